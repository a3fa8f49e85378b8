"""Runs one experiment: edits facts in batches; measures before, at each writing, and at the end."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ece import Fact, edit_sequence, engine
from ece.baselines import BASELINES, Task
from ece.baselines.sequence import sequence
from ece.baselines.trained import trained
from ece.engine.parallel import Processes, Together
from ece.errors import ConfigError
from ece.evaluation.checks import check_lengths
from ece.evaluation.layer_attribution import chosen_layers
from ece.evaluation.metrics import KINDS, Scores, join
from ece.experiments.crew import is_first, load_for, open_folder
from ece.experiments.inputs import check_edits, facts, gather, stated, statistics
from ece.experiments.order import labels, schedule
from ece.experiments.results import SIX, provenance
from ece.experiments.scoring import UNMEASURED, Judge, Measured, baseline_record, edit_record, timed
from ece.experiments.side_effects import SideEffects, cases
from ece.experiments.spec import Settings, run_id
from ece.fingerprint import fingerprint
from ece.storage import Folder, run_sequence
from ece.storage.archive import checksum
from ece.storage.archive import load as load_file
from ece.storage.archive import save as save_file
from ece.storage.files import check_writable
from ece.storage.held import held

BEFORE = ("dataset", "seed", "compat", "dtype", "matmul", "text_tokens", "text_facts")
"""Settings that decide, beside facts and sources, what is measured before any edit."""
SECONDS = ("values", "keys", "solve", "evaluate", "statistics")
"""Stages whose seconds every record states; baselines add "edit" and "train"."""


def run(
    settings: Settings, loaded=None, progress: Callable | None = None,
    work: str | Path | None = None, cache: str | Path | None = None,
    crew: Processes | None = None,
) -> dict:  # fmt: skip
    """Run `settings` and return the record: rates in percent, times in seconds, provenance.

    loaded: (model, tokenizer) to use in place of loading `settings.model`; the model is edited
    and stays so. progress: called as progress(stage, done, total). With a folder `work`, a run
    killed at any point and started again gives the same record. A folder `cache` holds what does
    not depend on the facts edited: second moments, and what baselines learn. crew: processes that
    make the run together, each by the same call, on folders that all of them see.
    """
    for path in filter(None, (work, cache)):
        check_writable(path)
    if crew is not None and not settings.edits:
        raise ConfigError(f"setting 'method' is {settings.method!r}, which runs in one process; "
                          "start it without torchrun")  # fmt: skip
    with matmul(settings.matmul), open_folder(work, crew) as folder:
        return Runner(settings, loaded, progress, folder, cache, crew).run()


@contextmanager
def matmul(precision: str) -> Iterator[None]:
    """Set the precision of float32 products, in the block only."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Session:
    """A method at work on one model: the editor with a strategy, or a baseline."""

    numbers: Any
    """The method's settings, a dataclass."""
    write: Callable[[Callable[[int], None]], tuple[dict, Counter]]
    """Writes all batches and calls back after each; returns what was done, and seconds."""
    view: Callable[[int], AbstractContextManager[nn.Module]]
    """The model as it is to be used after that many facts were written."""
    tokens: int | None = None
    """Tokens behind the second moments; None without."""
    statistics: dict | None = None
    """Digests of the second moments and of their texts."""


class Runner:
    """Everything that the parts of one run share."""

    def __init__(
        self, settings: Settings, loaded, progress, folder: Folder | None, cache, crew=None
    ):
        """Gather what the run starts from, and check it before anything long begins."""
        self.settings, self.progress, self.folder, self.cache = settings, progress, folder, cache
        self.crew, self.together = crew, crew if isinstance(crew, Together) else None
        self.facts, self.references, self.sources = gather(settings, progress)
        self.clock = Counter()
        self.model, self.tokenizer = loaded or load_for(settings, crew)
        if settings.known:
            self.facts = stated(self.model, self.tokenizer, self.facts, settings.facts)
        check_lengths(self.model, self.tokenizer, self.facts)
        if settings.order != "drawn":
            self.facts = self._ordered()
        self.mark = fingerprint(self.model)

    def _ordered(self) -> list[Fact]:
        """Put the facts in their order, the same one for every method."""
        layers = self.settings.configure().layers
        scored = replace(self.settings, method="ece-rs", config={"layers": layers}).configure()
        groups = -(-len(self.facts) // self.settings.batch)
        found = labels(self.model, self.tokenizer, self.facts, scored, groups)
        return [self.facts[i] for i in schedule(found, self.settings.order)]

    def run(self) -> dict:
        """Write all batches, and measure."""
        session = self._editor() if self.settings.edits else self._baseline()
        origin = self._origin(session)
        if self.folder is not None:
            self.folder.claim("cell", {**origin["identity"], "statistics": session.statistics})
        prompts = frozenset(fact.text for fact in self.facts)
        judge = Judge(self.tokenizer, self.settings, self.references, prompts, self.together)
        with timed(self.clock, "evaluate"):
            pre = self._before(judge, origin)
            effects = SideEffects.of(self.settings, self.model, self.tokenizer, self.facts)
            old_texts = effects.texts_of_cases(self.model, self.facts)
            beside = effects.measure(self.model, self.facts)
        written, points, done = self._write(session, judge, pre, effects)
        with timed(self.clock, "evaluate"), session.view(len(self.facts)) as edited:
            after = judge.score(edited, self.facts, pre)
            late = effects.measure(edited, self.facts)
            new_texts = effects.texts_of_cases(edited, self.facts)
        if len(self.facts) in {*self.settings.points} - {point["edited"] for point in points}:
            points.append(self._point(judge, after, late))
        if self.crew is not None:
            self.crew.agree("what they measured", checksum(judge.rates(after) | late))
        return {
            **{name: getattr(self.settings, name) for name in SIX},
            "pre": judge.rates(pre) | beside,
            "at_write": judge.rates(join(written) if self.settings.at_write else UNMEASURED),
            "after": judge.rates(after) | late,
            "batches": judge.steps(written, after, self.settings.batch),
            **({"points": points} if self.settings.points else {}),
            **({"texts": cases(self.facts, old_texts, new_texts)} if old_texts else {}),
            "edit": done,
            "seconds": {s: round(self.clock[s], 3) for s in dict.fromkeys((*SECONDS, *self.clock))},
            "provenance": origin,
        }

    def _before(self, judge: Judge, origin: dict) -> Scores:
        """Score the unedited model, or read what a run of the same facts found."""
        if self.cache is None:
            return judge.score(self.model, self.facts)
        parts = {name: origin["identity"][name] for name in BEFORE}
        key = checksum((self.mark, self.facts, parts, origin["identity"]["sources"]))
        path = Path(self.cache) / f"before-{key}.safetensors"
        there = path.exists()
        if there if self.crew is None else self.crew.first(there):
            return load_file(path, "before", [Scores])
        found = judge.score(self.model, self.facts)
        if is_first(self.crew):
            save_file(path, "before", found)
        return found

    def _origin(self, session: Session) -> dict:
        """Say how the result comes about, without times: equal runs have equal origins."""
        identity, settings = self.settings.identity(self.mark), self.settings
        numbers, ids = asdict(session.numbers), [fact.id for fact in self.facts]
        return {
            **provenance(settings.command(), numbers, self.model, session.tokens, self.mark),
            **({"processes": self.crew.count} if self.crew else {}),
            **self.sources,
            "compat": settings.compat,
            "statistics": session.statistics,
            "facts": ids if settings.data else None,
            "run": run_id(identity),
            "name": settings.name,
            "identity": identity,
        }

    def _editor(self) -> Session:
        """Set up one of the editor's methods."""
        model, tokenizer, batch = self.model, self.tokenizer, self.settings.batch
        config, strategy = self.settings.fitted(model), self.settings.strategy()
        if self.settings.adaptive:
            found = (config.scorer, self.settings.adaptive)
            config = replace(config, layers=chosen_layers(model, tokenizer, self.facts, *found))
        check_edits(model, tokenizer, self.facts, config, strategy, batch)
        with timed(self.clock, "statistics"):
            stats, origin = statistics(model, tokenizer, self.settings, config, strategy, self.mark,
                                       self.cache, self.progress, self.crew)  # fmt: skip
        stats = stats if self.crew is None else held(stats, self.crew)
        before, size = strategy.remember(model, config), strategy.batch or batch
        fixed = (model, tokenizer, self.facts, stats, config, batch)

        def write(on_written: Callable[[int], None]) -> tuple[dict, Counter]:
            def on_batch(state, report, part: list[Fact]) -> None:
                edited = min(state.done * size, len(self.facts))
                if edited % batch == 0 or edited == len(self.facts):
                    on_written((edited - 1) // batch)

            named = {"strategy": strategy, "on_batch": on_batch, "progress": self.progress,
                     "engine": self.together or engine}  # fmt: skip
            if self.folder is None:
                _, reports = edit_sequence(*fixed, **named)
            else:
                cache = Path(self.cache) if self.cache and self.crew is None else None
                _, reports = run_sequence(*fixed, self.folder, **named, cache=cache)
            return edit_record(reports), sum((Counter(r.seconds) for r in reports), Counter())

        return Session(config, write, lambda _: strategy.view(model, before), stats.tokens, origin)

    def _baseline(self) -> Session:
        """Set up a baseline, trained where it has something to learn."""
        baseline, settings = BASELINES[self.settings.method], self.settings
        task = Task(self.model, self.tokenizer, settings.configure(), {})
        if baseline.train is not None:
            edited = set(self.facts)
            others = [fact for fact in facts(settings, settings.data) if fact not in edited]
            with timed(self.clock, "train"):
                learned = trained(baseline, task, others, self.cache, self.progress)
            task = replace(task, trained=learned)

        def write(on_written: Callable[[int], None]) -> tuple[dict, Counter]:
            more = (lambda number, *_: on_written(number), self.folder, self.progress)
            records = sequence(baseline, task, self.facts, settings.batch, *more)
            return baseline_record(records), Counter(edit=sum(r.seconds for r in records))

        view = baseline.view or (lambda task, facts: task.model)
        return Session(task.numbers, write, lambda n: nullcontext(view(task, self.facts[:n])))

    def _write(self, session: Session, judge: Judge, pre: Scores, effects: SideEffects):
        """Write all batches; returns scores at write, rates at the points, and what was done."""
        done: dict[int, Measured] = {}

        def on_written(number: int) -> None:
            first, own, point = number * self.settings.batch, Counter(), None
            part = self.facts[first : first + self.settings.batch]
            end = first + len(part)
            with session.view(end) as edited, timed(own, "evaluate"):
                at_write = self.settings.at_write
                scores = judge.score(edited, part, pre.part(first, end)) if at_write else UNMEASURED
                if end in self.settings.points and end < len(self.facts):  # `run` has the end
                    whole = judge.score(edited, self.facts[:end], pre.part(0, end), texts=False)
                    point = self._point(judge, whole, effects.measure(edited, self.facts[:end]))
            done[number] = Measured(scores, own["evaluate"], point)
            if self.folder is not None:
                self.folder.save("scores", number, done[number])

        record, seconds = session.write(on_written)
        every, kinds = range(-(-len(self.facts) // self.settings.batch)), (Measured, Scores)
        found = [done.get(i) or self.folder.load("scores", i, *kinds) for i in every]
        self.clock.update(seconds + Counter(evaluate=sum(part.seconds for part in found)))
        return [m.scores for m in found], [m.point for m in found if m.point], record

    def _point(self, judge: Judge, scores: Scores, beside: dict) -> dict:
        """Rate all facts so far, and those of the first batch; free texts are no part of it."""
        scores = replace(scores, fluency=None, consistency=None)
        early = judge.rates(scores.part(0, self.settings.batch), (*KINDS, "score"))
        first = {f"first_{name}": rate for name, rate in early.items()}
        return {"edited": len(scores), **judge.rates(scores), **first, **beside}
