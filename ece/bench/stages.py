"""The stages of the benchmark: ways to edit the same facts, from the published loop on."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from statistics import median

import torch
from torch import nn

from ece import presets
from ece.bench import reference
from ece.bench.profiling import counted, measured, resident
from ece.config import Config
from ece.covariance import Stats, blend, second_moment
from ece.descent import COLUMNS, Values
from ece.editor import compute_values, edit_batch
from ece.evaluation.metrics import KINDS, evaluate
from ece.experiments.results import rounded
from ece.facts import Fact
from ece.fingerprint import fingerprint
from ece.model import sites
from ece.state import EditState, new_state
from ece.strategy import Strategy

COUNTED = 4
"""Facts on which the naive loop's FLOPs are counted: they cost the same but for their length."""
PAIRS = 11
"""Times that a batch runs at the beginning and at the end of a long run, in turn."""


@dataclass(frozen=True)
class Bench:
    """What all stages share: a model, its facts and its statistics."""

    name: str
    """The model's name in the presets."""
    model: nn.Module
    tokenizer: object
    facts: list[Fact]
    stats: Stats
    random: bool
    """Whether the weights are random, so that no quality can be measured."""
    contexts: tuple[str, ...] | None = None
    """Templates to use; None: those that the model writes."""
    named: Stats | None = None
    """Second moments over the ends of names alone, which ece-plus mixes in."""

    def __post_init__(self):
        """Hash the statistics now: a sequence does it once, and no measured run should."""
        _ = self.stats.digest

    @property
    def device(self) -> torch.device:
        """Where the model's first layer lies."""
        return self.model.get_input_embeddings().weight.device

    def config(self, method: str, **settings) -> Config:
        """Build the settings of a method on this model."""
        return presets.configure(self.name, method, **settings)

    def state(self, config: Config, method: str) -> EditState:
        """Start a sequence of edits with a method."""
        strategy = presets.strategy(self.name, method)
        if self.contexts is None:
            return new_state(self.model, self.tokenizer, config, strategy)
        begun = new_state(self.model, self.tokenizer, replace(config, contexts=0), strategy)
        return replace(begun, contexts=self.contexts)

    def mixed(self, strategy: Strategy) -> "Bench":
        """Take the statistics that the strategy asks for."""
        if self.named is None or not (share := getattr(strategy, "names", 0.0)):
            return self
        return replace(self, stats=blend(self.stats, self.named, share))

    def cast(self, dtype: torch.dtype) -> "Bench":
        """Cast the model to `dtype`, in place; the moments stay those it had before."""
        if self.model.dtype == dtype:
            return self
        changed = fingerprint(self.model.to(dtype))
        return replace(self, stats=replace(self.stats, fingerprint=changed))


@dataclass(frozen=True)
class Stage:
    """One row of the table: a way to edit, and what it adds to the row before."""

    name: str
    adds: str
    method: str
    settings: dict
    way: str = "engine"
    """naive: the published loop; single: the engine, one fact at a time; engine: all at once."""
    own: float | None = None
    """Share of its steps that a fact takes by itself; None: as in the preset."""

    def config(self, bench: Bench) -> Config:
        """Build the stage's settings on the bench's model."""
        config = bench.config(self.method, **self.settings)
        own = config.own_steps if self.own is None else max(1, round(self.own * config.steps))
        return replace(config, own_steps=own)


FIXED = {"stop": None}
OWN = 0.2  # the paper's share of own steps: 5 of 25
STAGES = (
    Stage("naive", "the published loop, one fact at a time", "memit", FIXED, "naive"),
    Stage("cached", "only what changes is run", "memit", FIXED, "single"),
    Stage("memit", "all facts at once", "memit", FIXED),
    Stage("memit-stop", "MEMIT with early stop", "memit", {}),
    Stage("bfloat16", "passes in bfloat16", "memit", {"passes": "bfloat16"}),
    Stage("ece", "anchors: 20 shared steps, 5 own; chosen neurons", "ece-rs", FIXED, own=OWN),
    Stage("ece-stop", "ECE with early stop", "ece-rs", {"stop": 0.05}, own=OWN),
    Stage("own", "as many own steps, no anchors", "ece-rs", {**FIXED, "shared": "zero"}, own=OWN),
    Stage("ece-plus", "no anchors, early stop, all neurons", "ece-plus", {}),
    Stage("ece-plus-bfloat16", "its passes in bfloat16", "ece-plus", {"passes": "bfloat16"}),
)


def stage_row(bench: Bench, stage: Stage, some: int | None = None, times: int = 1) -> dict:
    """Run one stage on fresh weights; with `some`, on so many facts, and scaled up to all.

    What a batch does once, the solve, is not scaled. Of `times` runs, an odd number, the one
    with the median seconds counts: other work on the machine disturbs a short run easily.
    """
    facts = bench.facts[:some]
    scale = len(bench.facts) / len(facts)
    config = stage.config(bench)
    state = bench.state(config, stage.method)
    bench = bench.mixed(state.strategy)
    work = partial(WAYS[stage.way], bench, facts, state, config)
    runs, quality = [], None
    for number in range(times):
        with restored(bench.model, config.layers):
            runs.append(measured(work, bench.device))
            if not (number or bench.random or some):  # all runs write the same
                found = evaluate(bench.model, bench.tokenizer, facts).summary()
                quality = rounded(found, (*KINDS, "score"))
    (steps, seconds), _, peak = sorted(runs, key=lambda run: sum(run[0][1].values()))[times // 2]
    seconds = {name: s * (1 if name == "solve" else scale) for name, s in seconds.items()}
    few = facts[:COUNTED] if stage.way == "naive" else facts
    with restored(bench.model, config.layers):
        flops = counted(partial(WAYS[stage.way], bench, few, state, config))
    return {
        "stage": stage.name,
        "adds": stage.adds,
        "facts_run": len(facts),
        "times_run": times,
        "seconds": seconds,
        "total": sum(seconds.values()),
        "steps_per_fact": sum(steps) / len(facts),
        "flops": flops * len(bench.facts) / len(few),
        "peak_bytes": peak,
        "quality": quality,
    }


def _naive(bench: Bench, facts: list[Fact], state: EditState, config: Config) -> tuple:
    moments = bench.stats.moments
    return reference.memit(bench.model, bench.tokenizer, facts, state.contexts, moments, config)


def _single(bench: Bench, facts: list[Fact], state: EditState, config: Config) -> tuple:
    found = [compute_values(bench.model, bench.tokenizer, [fact], state, config) for fact in facts]
    return _engine(bench, facts, state, config, joined(found))


def _engine(bench: Bench, facts, state: EditState, config: Config, values=None) -> tuple:
    began = time.perf_counter()
    _, report = edit_batch(bench.model, bench.tokenizer, facts, bench.stats, state, config, values)
    total = time.perf_counter() - began + (0.0 if values is None else values.seconds)
    # What a sequence does once (MEMIT's factorisation) and all checks count as part of the solve.
    solve = total - report.seconds["values"] - report.seconds["keys"]
    return report.steps + report.shared_steps, {**report.seconds, "solve": solve}


WAYS = {"naive": _naive, "single": _single, "engine": _engine}
"""How a stage edits facts: returns the steps taken and the seconds of each part of the work."""


def joined(parts: list[Values]) -> Values:
    """Join the values of several calls into those of one batch (without clusters)."""
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in COLUMNS}
    losses = torch.cat([part.losses for part in parts], 1)
    facts = sum((part.facts for part in parts), ())
    seconds = sum(part.seconds for part in parts)
    return replace(parts[0], facts=facts, losses=losses, seconds=seconds, **columns)


@contextmanager
def restored(model: nn.Module, layers: tuple[int, ...]) -> Iterator[None]:
    """Put the edit layers' weights back when the block ends."""
    before = [(site.weight, site.weight.clone()) for site in sites(model, layers)]
    try:
        yield
    finally:
        for weight, copy in before:
            weight.copy_(copy)


def sweep(bench: Bench, every: list[Fact], sizes: Sequence[int]) -> list[dict]:
    """Time one batch at several sizes, ECE and MEMIT with their fixed schedules."""
    rows = []
    for size, stage in product(sizes, STAGES):
        if stage.name not in ("ece", "memit") or size > len(every):
            continue
        config = stage.config(bench)
        work = partial(_engine, bench, every[:size], bench.state(config, stage.method), config)
        with restored(bench.model, config.layers):
            (_, seconds), _, peak = measured(work, bench.device)
        total = sum(seconds.values())
        rows.append({"stage": stage.name, "batch": size, "seconds": total, "peak_bytes": peak})
    return rows


def long_run(bench: Bench, every: list[Fact], edits: int, batch: int, show=iter) -> dict:
    """Edit on and on: compare a batch's cost at the end with the beginning; facts are used again.

    Values take a single step here: the descent cannot know how many edits came before, and
    beside less of it a growth of the rest (keys, history, solve, state) stands out more.
    """
    config = bench.config("ece-rs", shared="zero", own_steps=1, steps=1)
    state, ends = bench.state(config, "ece-rs"), []
    rows, parts = [], [every[i : i + batch] for i in range(0, len(every) - batch + 1, batch)]
    with restored(bench.model, config.layers):
        for number in show(range(edits // batch)):
            state, seconds = _timed(bench, parts[number % len(parts)], state, config)
            rows.append({"edits": (number + 1) * batch, "seconds_per_edit": seconds / batch,
                         "bytes": resident(bench.device)})  # fmt: skip
            if number in (0, edits // batch - 1):
                weights = [site.weight.clone() for site in sites(bench.model, config.layers)]
                ends.append((state, weights))
        found = paired(bench, config, parts[1 % len(parts)], (ends[0], ends[-1]))
    ratio = median(late / early for early, late in zip(*found, strict=True))
    first, last = ({**row, "seconds_per_edit": median(seconds)}
                   for row, seconds in zip((rows[0], rows[-1]), found, strict=True))  # fmt: skip
    return {"batch": batch, "pairs": PAIRS, "first": first, "last": last, "ratio": ratio,
            "rows": rows}  # fmt: skip


def paired(bench: Bench, config: Config, part: list[Fact], ends) -> list[list[float]]:
    """Time the same batch after each of the `ends` (state, weights) in turn; seconds per edit.

    A drift of the machine's speed, which takes minutes, then meets all of them alike.
    """
    seconds = [[] for _ in ends]
    for _ in range(PAIRS):
        for (state, weights), column in zip(ends, seconds, strict=True):
            for site, weight in zip(sites(bench.model, config.layers), weights, strict=True):
                site.weight.copy_(weight)
            column.append(_timed(bench, part, state, config)[1] / len(part))
    return seconds


def _timed(bench: Bench, part: list[Fact], state: EditState, config: Config) -> tuple:
    """Edit one batch; returns the state after it and the seconds it took."""
    work = partial(edit_batch, bench.model, bench.tokenizer, part, bench.stats, state, config)
    (after, _), seconds, _ = measured(work, bench.device)
    return after, seconds


def throughput(bench: Bench, texts: Sequence[str]) -> dict:
    """Measure the tokens per second of the second moments, all edit layers in one pass."""
    layers = bench.config("ece-rs").layers
    work = partial(second_moment, bench.model, bench.tokenizer, texts, layers)
    stats, seconds, _ = measured(work, bench.device)
    return {"tokens": stats.tokens, "tokens_per_second": stats.tokens / seconds}
