"""Edits a sequence of batches by a baseline: the one place where it changes a model's weights."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ece.baselines.base import Baseline, Task, Weights, identity
from ece.checks import validate
from ece.errors import ModelError, check_finite
from ece.facts import Fact
from ece.parts import in_parts
from ece.sequence import split
from ece.storage import Folder


@dataclass(frozen=True)
class Record:
    """One batch: what it changed, and how long that took."""

    facts: tuple[int, ...]
    """The facts' ids."""
    norms: dict[str, float]
    """Per changed parameter, the Frobenius norm of the change."""
    seconds: float
    """Wall time of the edit."""


def edit_one(baseline: Baseline, task: Task, facts: list[Fact]) -> Record:
    """Write one batch into `task.model`, whole or (on any error) not at all."""
    validate(facts, task.tokenizer, task.model)
    began = time.perf_counter()
    after, norms = {} if baseline.edit is None else baseline.edit(task, facts), {}
    own = dict(task.model.named_parameters())
    for name, value in after.items():
        check_finite(f"the new weights of {name}", value)
        norms[name] = float((value - own[name]).float().norm())
    ids = tuple(fact.id for fact in facts)
    _write(task.model, after)
    return Record(ids, norms, time.perf_counter() - began)


def _write(model: nn.Module, weights: Weights) -> None:
    """Put values in place of a model's own, all or (on any error) none."""
    own = {name: p.data for name, p in model.named_parameters() if name in weights}
    before = {name: value.clone() for name, value in own.items()}
    try:
        for name, value in weights.items():
            own[name].copy_(value)
    except BaseException:
        for name, value in before.items():
            own[name].copy_(value)
        raise


def sequence(
    baseline: Baseline, task: Task, facts: list[Fact], batch: int,
    on_batch: Callable | None = None, folder: Folder | None = None,
    progress: Callable | None = None,
) -> list[Record]:  # fmt: skip
    """Edit `facts` in batches of `batch`, in order; a run in `folder` goes on where it was.

    After each batch the changed weights are saved, then `on_batch(number, record, facts)` and
    `progress("edit", done, total)` are called. A run killed at any point and started again on
    the unedited model ends with the same bits; it calls `on_batch` again for its last batch.
    """
    parts, done = split(facts, batch), []
    if any(map(in_parts, task.model.parameters())):
        raise ModelError("this baseline edits a model that is whole, and this one lies in parts on "
                         "several processes; load it without 'sharding'")  # fmt: skip
    if folder is not None:
        folder.claim("baseline", identity(task, facts, batch=batch))
        done = _resumed(task.model, folder)
    if done and on_batch is not None:
        on_batch(len(done) - 1, done[-1], parts[len(done) - 1])
    for part in parts[len(done) :]:  # before the first weight changes
        validate(part, task.tokenizer, task.model)
    for number in range(len(done), len(parts)):
        done = [*done, edit_one(baseline, task, parts[number])]
        if folder is not None:
            _save(task.model, folder, done)
        if on_batch is not None:
            on_batch(number, done[-1], parts[number])
        if progress is not None:
            progress("edit", number + 1, len(parts))
    return done


def _save(model: nn.Module, folder: Folder, done: list[Record]) -> None:
    """Save the last record, and all weights changed so far; once they are there, it counts."""
    number, changed = len(done), {name for record in done for name in record.norms}
    folder.save("record", number, done[-1])
    own = {name: p for name, p in model.named_parameters() if name in changed}
    folder.save("weights", number, own)
    folder.remove("weights", number)


def _resumed(model: nn.Module, folder: Folder) -> list[Record]:
    """Bring the unedited model to where the sequence in the folder is."""
    done = max(folder.numbers("weights"), default=0)
    records = [folder.load("record", number, Record) for number in range(1, done + 1)]
    _write(model, folder.load("weights", done) if done else {})
    return records
