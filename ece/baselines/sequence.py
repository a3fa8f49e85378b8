"""A baseline over a sequence of batches: the one place where it changes a model's weights."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save as serialise
from torch import nn

from ece.baselines.base import Baseline, Task, Weights, mark_of
from ece.errors import StateError
from ece.facts import Fact, validate
from ece.storage.files import read_json, read_tensors, write, write_json


@dataclass(frozen=True)
class Record:
    """One batch: what it changed, and how long that took."""

    facts: tuple[int, ...]
    """The facts' ids."""
    norms: dict[str, float]
    """Per changed parameter, the Frobenius norm of the change."""
    seconds: float
    """Wall time of the edit."""


@dataclass(frozen=True)
class Done:
    """A sequence so far."""

    records: tuple[Record, ...] = ()
    before: Weights | None = None
    """What the last batch changed, as it was: one batch can be undone."""


def edit_one(baseline: Baseline, task: Task, facts: list[Fact], done: Done) -> Done:
    """Write one batch into `task.model`, whole or (on any error) not at all."""
    validate(facts, task.tokenizer, task.model)
    began = time.perf_counter()
    after = {} if baseline.edit is None else baseline.edit(task, facts)
    held = dict(task.model.named_parameters())
    for name, value in after.items():
        if not torch.isfinite(value).all():
            raise StateError(f"the new weights of {name} are not finite; nothing was changed")
    before = {name: held[name].detach().clone() for name in after}
    norms = {name: float((after[name] - before[name]).float().norm()) for name in after}
    _put(task.model, after)
    record = Record(tuple(fact.id for fact in facts), norms, time.perf_counter() - began)
    return Done((*done.records, record), before)


def undo_one(task: Task, done: Done) -> Done:
    """Take the last batch back, bit for bit; `StateError` if it was taken back already."""
    if not done.records or done.before is None:
        raise StateError("a baseline keeps one batch to undo, and there is none; load the model")
    _put(task.model, done.before)
    return Done(done.records[:-1], None)


def _put(model: nn.Module, weights: Weights) -> None:
    held = dict(model.named_parameters())
    for name, value in weights.items():
        held[name].data.copy_(value)


def sequence(
    baseline: Baseline,
    task: Task,
    facts: list[Fact],
    batch: int,
    on_batch: Callable | None = None,
    save_to: str | Path | None = None,
    progress: Callable | None = None,
) -> Done:
    """Edit `facts` in batches of `batch`, in order; resumes from `save_to` if it has a run.

    After each batch the changed weights are saved, then `on_batch(number, record, facts)` and
    `progress("edit", done, total)` are called. A run killed at any point and started again on
    the unedited model ends with the same bits; it calls `on_batch` again for its last batch.
    """
    parts = [facts[i : i + batch] for i in range(0, len(facts), batch)]
    folder = None if save_to is None else Path(save_to)
    mark = mark_of(task, facts, batch, _sums(task.trained))
    done = Done() if folder is None else _resume(task.model, folder, mark)
    if done.records and on_batch is not None:
        on_batch(len(done.records) - 1, done.records[-1], parts[len(done.records) - 1])
    for number in range(len(done.records), len(parts)):
        done = edit_one(baseline, task, parts[number], done)
        if folder is not None:
            _save(task.model, folder, mark, done)
        if on_batch is not None:
            on_batch(number, done.records[-1], parts[number])
        if progress is not None:
            progress("edit", number + 1, len(parts))
    return done


def _sums(weights: Weights) -> dict[str, str]:
    """Name -> SHA-256 of the value."""
    parts = {name: weights[name].detach().cpu().contiguous() for name in weights}
    return {n: hashlib.sha256(serialise({n: value})).hexdigest() for n, value in parts.items()}


def _save(model: nn.Module, folder: Path, mark: str, done: Done) -> None:
    """The weights that batches have changed so far, and the records, as one consistent pair."""
    folder.mkdir(parents=True, exist_ok=True)
    held = dict(model.named_parameters())
    names = sorted({name for record in done.records for name in record.norms})
    tensors = {name: held[name].detach().cpu().contiguous() for name in names}
    file = folder / f"weights-{len(done.records):05d}.safetensors"
    head = {"mark": mark, "file": file.name, "records": [asdict(r) for r in done.records]}
    if tensors:
        head["checksum"] = write(file, serialise(tensors))
    write_json(folder / "baseline.json", json.loads(json.dumps(head)))
    for old in folder.glob("weights-*.safetensors"):
        if old != file:
            old.unlink()


def _resume(model: nn.Module, folder: Path, mark: str) -> Done:
    if not (folder / "baseline.json").exists():
        return Done()
    head = read_json(folder / "baseline.json")
    if head["mark"] != mark:
        raise StateError(f"{folder.name} holds a run of other facts, settings or another model")
    records = [Record(**{**r, "facts": tuple(r["facts"])}) for r in head["records"]]
    if "checksum" in head:
        _put(model, read_tensors(folder / head["file"], head["checksum"]))
    return replace(Done(), records=tuple(records))
