"""Edits a sequence of batches by a baseline: the one place where it changes a model's weights."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ece.baselines.base import Baseline, Task, Weights, identity
from ece.checks import validate
from ece.errors import ModelError, StateError, check_finite
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
    for name, value in after.items():
        check_finite(f"the new weights of {name}", value)
    before = _write(task.model, after)
    norms = {name: float((after[name] - before[name]).float().norm()) for name in after}
    record = Record(tuple(fact.id for fact in facts), norms, time.perf_counter() - began)
    return Done((*done.records, record), before)


def undo_one(task: Task, done: Done) -> Done:
    """Take the last batch back, bit for bit; `StateError` if it was taken back already."""
    if not done.records or done.before is None:
        raise StateError("a baseline can undo one batch, and none is left; load the model again")
    _write(task.model, done.before)
    return Done(done.records[:-1], None)


def _write(model: nn.Module, weights: Weights) -> Weights:
    """Put values in place of a model's own, all or (on any error) none; returns the old ones."""
    own = {name: p.data for name, p in model.named_parameters() if name in weights}
    before = {name: value.clone() for name, value in own.items()}
    try:
        for name, value in weights.items():
            own[name].copy_(value)
    except BaseException:
        for name, value in before.items():
            own[name].copy_(value)
        raise
    return before


def sequence(
    baseline: Baseline, task: Task, facts: list[Fact], batch: int,
    on_batch: Callable | None = None, folder: Folder | None = None,
    progress: Callable | None = None,
) -> Done:  # fmt: skip
    """Edit `facts` in batches of `batch`, in order; a run in `folder` goes on where it was.

    After each batch the changed weights are saved, then `on_batch(number, record, facts)` and
    `progress("edit", done, total)` are called. A run killed at any point and started again on
    the unedited model ends with the same bits; it calls `on_batch` again for its last batch.
    """
    parts, done = split(facts, batch), Done()
    if any(map(in_parts, task.model.parameters())):
        raise ModelError("this baseline edits a model that is whole, and this one lies in parts on "
                         "several processes; load it without 'sharding'")  # fmt: skip
    if folder is not None:
        folder.claim("baseline", identity(task, facts, batch=batch))
        done = _resumed(task.model, folder)
    if done.records and on_batch is not None:
        on_batch(len(done.records) - 1, done.records[-1], parts[len(done.records) - 1])
    for part in parts[len(done.records) :]:  # before the first weight changes
        validate(part, task.tokenizer, task.model)
    for number in range(len(done.records), len(parts)):
        done = edit_one(baseline, task, parts[number], done)
        if folder is not None:
            _save(task.model, folder, done)
        if on_batch is not None:
            on_batch(number, done.records[-1], parts[number])
        if progress is not None:
            progress("edit", number + 1, len(parts))
    return done


def _save(model: nn.Module, folder: Folder, done: Done) -> None:
    """Save the last record, and all weights changed so far; once they are there, it counts."""
    number, changed = len(done.records), {name for r in done.records for name in r.norms}
    folder.save("record", number, done.records[-1])
    own = {name: p for name, p in model.named_parameters() if name in changed}
    folder.save("weights", number, own)
    folder.remove("weights", number)


def _resumed(model: nn.Module, folder: Folder) -> Done:
    """Bring the unedited model to where the sequence in the folder is."""
    done = max(folder.numbers("weights"), default=0)
    records = tuple(folder.load("record", number, Record) for number in range(1, done + 1))
    _write(model, folder.load("weights", done) if done else {})
    return Done(records)
