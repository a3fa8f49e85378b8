"""The rows of the benchmark: ways of editing the same facts, each adding one device to the last."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import nn

from ece import atlas
from ece.bench import reference as naive
from ece.bench.profiling import counted, measured, resident
from ece.config import Config, configure
from ece.covariance import Stats, second_moment
from ece.descent import Values
from ece.editor import compute_values, edit_batch
from ece.evaluation.metrics import KINDS, evaluate
from ece.experiments.results import rounded
from ece.facts import Fact
from ece.model import fingerprint, sites
from ece.state import EditState, new_state


@dataclass(frozen=True)
class Bench:
    """What all stages share."""

    name: str
    model: nn.Module
    tokenizer: object
    facts: list[Fact]
    stats: Stats
    random: bool
    """Whether the weights are random, so that no quality can be measured."""
    contexts: tuple[str, ...] | None = None
    """Templates to use; None: those that the model writes."""

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def config(self, method: str, **settings) -> Config:
        return configure(self.name, method, **settings)

    def state(self, config: Config) -> EditState:
        """The state before the first edit."""
        if self.contexts is None:
            return new_state(self.model, self.tokenizer, config)
        begun = new_state(self.model, self.tokenizer, replace(config, contexts=0))
        return replace(begun, contexts=self.contexts)

    def cast(self, dtype: torch.dtype) -> "Bench":
        """The same with the model in `dtype`, in place; the moments stay those it had before."""
        if self.model.dtype == dtype:
            return self
        model = self.model.to(dtype)
        return replace(self, stats=replace(self.stats, fingerprint=fingerprint(model)))


@dataclass(frozen=True)
class Stage:
    """One row of the table: a way of editing, and what it adds to the row before."""

    name: str
    adds: str
    method: str
    settings: dict
    way: str = "engine"
    """naive: the published loop; single: the engine, one fact at a time; engine: all at once."""
    own: float | None = None
    """Share of its steps that a fact takes by itself; None: as the preset has it."""

    def config(self, bench: Bench) -> Config:
        """Its settings on the bench's model."""
        config = bench.config(self.method, **self.settings)
        if self.own is None:
            return config
        return replace(config, own_steps=max(1, round(self.own * config.steps)))


COUNTED = 4
"""Facts on which the naive loop's FLOPs are counted: each costs the same but for its length."""
PAIRS = 11
"""Times that a batch runs at the beginning and at the end of a long run, in turn."""
FIXED = {"stop": None}
OWN = 0.2
"""The paper's share of own steps: 5 of 25."""
STAGES = (
    Stage("naive", "the published loop, one fact at a time", "memit", FIXED, "naive"),
    Stage("cached", "only what changes is run", "memit", FIXED, "single"),
    Stage("memit", "all facts at once", "memit", FIXED),
    Stage("memit-stop", "MEMIT with early stop", "memit", {}),
    Stage("ece", "anchors: 20 shared steps, 5 own; chosen neurons", "ece-rs", FIXED, own=OWN),
    Stage("ece-stop", "ECE with early stop", "ece-rs", {"stop": 0.05}, own=OWN),
    Stage("own", "as many own steps, no anchors", "ece-rs", {**FIXED, "shared": "zero"}, own=OWN),
    Stage("ece-plus", "no anchors, early stop, all neurons", "ece-plus", {}),
)


def stage_row(bench: Bench, stage: Stage, some: int | None = None, times: int = 1) -> dict:
    """Run one stage on fresh weights; with `some`, on so many facts, and scaled up to all.

    What a batch does once, the solve, is not scaled. Of `times` runs, an odd number, that with
    the median seconds counts: a short one is soon disturbed by other work on the machine.
    """
    facts = bench.facts[:some] if some else bench.facts
    scale = len(bench.facts) / len(facts)
    config = stage.config(bench)
    state = bench.state(config)
    work = partial(_WAYS[stage.way], replace(bench, facts=facts), state, config)
    runs, quality = [], None
    for number in range(times):
        with restored(bench.model, config.layers):
            runs.append(measured(work, bench.device))
            if not (number or bench.random or some):  # all runs write the same
                quality = _quality(bench, facts)
    (steps, seconds), cost = sorted(runs, key=lambda run: sum(run[0][1].values()))[times // 2]
    seconds = {name: s * (1 if name == "solve" else scale) for name, s in seconds.items()}
    few = facts[:COUNTED] if stage.way == "naive" else facts
    with restored(bench.model, config.layers):
        again = partial(_WAYS[stage.way], replace(bench, facts=few), state, config)
        flops = counted(again) * len(facts) / len(few)
    return {
        "stage": stage.name,
        "adds": stage.adds,
        "facts_run": len(facts),
        "times_run": times,
        "seconds": seconds,
        "total": sum(seconds.values()),
        "steps_per_fact": sum(steps) / len(facts),
        "flops": scale * flops,
        "peak_bytes": cost.peak,
        "quality": quality,
    }


def _naive(bench: Bench, state: EditState, config: Config) -> tuple[list, dict]:
    return naive.memit(
        bench.model, bench.tokenizer, bench.facts, state.contexts, bench.stats.moments, config
    )


def _engine(bench: Bench, state: EditState, config: Config, values=None) -> tuple[list, dict]:
    _, report = edit_batch(
        bench.model, bench.tokenizer, bench.facts, bench.stats, state, config, values
    )
    return report.steps + report.shared_steps, report.seconds


def _single(bench: Bench, state: EditState, config: Config) -> tuple[list, dict]:
    found = [
        compute_values(bench.model, bench.tokenizer, [fact], state, config) for fact in bench.facts
    ]
    return _engine(bench, state, config, joined(found))


_WAYS = {"naive": _naive, "single": _single, "engine": _engine}


def joined(parts: list[Values]) -> Values:
    """Values of several calls as one batch (without clusters)."""
    names = ("hidden", "delta", "nll", "steps", "holds")
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    losses = torch.cat([part.losses for part in parts], 1)
    seconds = sum(part.seconds for part in parts)
    return Values(parts[0].layer, **columns, losses=losses, seconds=seconds)


@contextmanager
def restored(model: nn.Module, layers: tuple[int, ...]) -> Iterator[None]:
    """The edit layers' weights come back when the block ends."""
    kept = [(site.weight, site.weight.clone()) for site in sites(model, layers)]
    try:
        yield
    finally:
        for weight, before in kept:
            weight.copy_(before)


def _quality(bench: Bench, facts: list[Fact]) -> dict:
    summary = evaluate(bench.model, bench.tokenizer, facts).summary()
    return rounded(summary, (*KINDS, "score"))


def sweep(bench: Bench, every: list[Fact], sizes) -> list[dict]:
    """Seconds of one batch at several sizes, ECE and MEMIT with their fixed schedules."""
    rows = []
    for size in (size for size in sizes if size <= len(every)):
        for stage in (s for s in STAGES if s.name in ("ece", "memit")):
            config = stage.config(bench)
            state = bench.state(config)
            part = replace(bench, facts=every[:size])
            with restored(bench.model, config.layers):
                (_, seconds), cost = measured(partial(_engine, part, state, config), bench.device)
            rows.append({"stage": stage.name, "batch": size, "seconds": sum(seconds.values()),
                         "peak_bytes": cost.peak})  # fmt: skip
    return rows


def long_run(bench: Bench, every: list[Fact], edits: int, batch: int, show) -> dict:
    """Edit on and on: what a batch costs then and at the beginning; the facts come round again.

    Values take a single step here: the descent cannot know how many edits came before, and
    what might grow with them (keys, history, solve, state) shows the better beside less of it.
    """
    config = bench.config("ece-rs", shared="zero", own_steps=1, steps=1)
    state, ends = bench.state(config), []
    rows, parts = [], [every[i : i + batch] for i in range(0, len(every) - batch + 1, batch)]
    with restored(bench.model, config.layers):
        for number in show(range(edits // batch)):
            (state, _), cost = _timed(bench, parts[number % len(parts)], state, config)
            rows.append({"edits": (number + 1) * batch, "seconds_per_edit": cost.seconds / batch,
                         "bytes": resident(bench.device)})  # fmt: skip
            if number in (0, edits // batch - 1):
                ends.append(
                    (state, [site.weight.clone() for site in sites(bench.model, config.layers)])
                )
        found = paired(bench, config, parts[1 % len(parts)], (ends[0], ends[-1]))
    sides = zip(("first", "last"), (rows[0], rows[-1]), found, strict=True)
    told = {name: {**row, "seconds_per_edit": median(seconds)} for name, row, seconds in sides}
    ratio = median(late / early for early, late in zip(*found, strict=True))
    return {"batch": batch, "pairs": PAIRS, **told, "ratio": ratio, "rows": rows}


def paired(bench: Bench, config: Config, part: list[Fact], ends) -> list[list[float]]:
    """Seconds per edit of the same batch after each of the `ends` (state, weights), in turn.

    So a drift of the machine, which minutes bring about, meets all of them alike.
    """
    seconds = [[] for _ in ends]
    for _ in range(PAIRS):
        for (state, weights), column in zip(ends, seconds, strict=True):
            for site, weight in zip(sites(bench.model, config.layers), weights, strict=True):
                site.weight.copy_(weight)
            column.append(_timed(bench, part, state, config)[1].seconds / len(part))
    return seconds


def _timed(bench: Bench, part: list[Fact], state: EditState, config: Config):
    """What `edit_batch` returns, and what it cost."""
    work = partial(edit_batch, bench.model, bench.tokenizer, part, bench.stats, state, config)
    return measured(work, bench.device)


def throughput(bench: Bench) -> dict:
    """Tokens per second of the second moments, all edit layers in one pass."""
    layers, texts = bench.config("ece-rs").layers, atlas.corpus(1000)
    stats, cost = measured(
        lambda: second_moment(bench.model, bench.tokenizer, texts, layers, names=False),
        bench.device,
    )
    return {"tokens": stats.tokens, "tokens_per_second": stats.tokens / cost.seconds}
