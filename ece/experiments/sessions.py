"""A method at work on one model: the editor with its settings, or a baseline, behind one face."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ece.baselines.base import Baseline, Task
from ece.baselines.prune import restrained
from ece.baselines.sequence import Record, sequence
from ece.config import Config
from ece.covariance import Stats
from ece.editor import edit_sequence
from ece.experiments.results import baseline_record, edit_record
from ece.facts import Fact
from ece.model import sites

Heard = Callable[[int], None]
"""Called with the number of a batch right after it was written."""


@dataclass(frozen=True)
class Session:
    """What a run needs of a method."""

    write: Callable[[Heard], tuple[dict, Counter]]
    """Writes all batches; returns what was done, for the result, and seconds by stage."""
    view: Callable[[list[Fact]], AbstractContextManager[nn.Module]]
    """The model to be asked after these facts were written."""


def editor_session(
    model: nn.Module,
    tokenizer,
    facts: list[Fact],
    stats: Stats,
    config: Config,
    batch: int,
    work: Path | None,
    progress: Callable | None,
) -> Session:
    """The editor of `ece.editor`, one of its methods."""
    kept = sites(model, config.layers) if config.restrain is not None else []
    originals = {site.layer: site.weight.clone() for site in kept}
    size = 1 if config.single else batch

    def write(heard: Heard) -> tuple[dict, Counter]:
        def on_batch(state, report, part):
            edited = min(state.done * size, len(facts))
            if edited % batch == 0 or edited == len(facts):
                heard((edited - 1) // batch)

        numbers = (stats, config, batch, on_batch, work, progress)
        _, reports = edit_sequence(model, tokenizer, facts, *numbers)
        clock = Counter()
        for report in reports:
            clock.update(report.seconds)
        return edit_record(reports), clock

    return Session(write, lambda so_far: restrained(model, originals, config.restrain))


def baseline_session(
    baseline: Baseline,
    task: Task,
    facts: list[Fact],
    batch: int,
    work: Path | None,
    progress: Callable | None,
) -> Session:
    """One of the methods of `ece.baselines`."""

    def write(heard: Heard) -> tuple[dict, Counter]:
        def on_batch(number: int, record: Record, part: list[Fact]) -> None:
            heard(number)

        done = sequence(baseline, task, facts, batch, on_batch, work, progress)
        seconds = Counter(edit=sum(record.seconds for record in done.records))
        return baseline_record(done.records), seconds

    def view(so_far: list[Fact]) -> AbstractContextManager[nn.Module]:
        return nullcontext(task.model if baseline.view is None else baseline.view(task, so_far))

    return Session(write, view)
