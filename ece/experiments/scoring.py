"""Measures a model for a run, and shapes what was measured for its record and for its folder."""

import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ece import Fact
from ece.data.loading import MEASURE
from ece.data.references import References
from ece.engine.parallel import Together
from ece.evaluation.metrics import KINDS, Scores, evaluate, join, unchanged
from ece.evaluation.text_quality import consistencies, fluencies, write_texts
from ece.experiments.results import rounded
from ece.experiments.spec import Settings
from ece.report import Report

NONE = np.array([], dtype=float)
UNMEASURED = Scores(*[NONE] * 9, predictions=np.array([], dtype=object))
"""Scores of no fact: every rate is None."""


@dataclass(frozen=True)
class Judge:
    """Measures facts of one run, always by the same settings."""

    tokenizer: object
    settings: Settings
    references: References
    prompts: Collection[str]
    """All prompts that the run edits."""
    crew: Together | None = None
    """Processes that share the facts to be measured."""

    def score(
        self, model, facts: list[Fact], before: Scores | None = None, texts: bool = True
    ) -> Scores:
        """Score facts on the model as it is; `before` are the scores of the unedited model."""
        compat = self.settings.compat and self.settings.dataset == "zsre"
        rate = partial(evaluate, model, self.tokenizer, compat=compat, edited=self.prompts)
        scores = rate(facts) if self.crew is None else join(self.crew.spread(facts, rate))
        if before is not None:
            scores = replace(scores, unchanged=unchanged(before, scores))
        if not self.settings.text_tokens or not texts:
            return scores
        wanted = np.arange(len(facts)) < (self.settings.text_facts or len(facts))
        if before is not None:
            wanted = ~np.isnan(before.fluency)
        return replace(scores, **self._texts(model, facts, wanted))

    def _texts(self, model, facts: list[Fact], wanted: np.ndarray) -> dict[str, np.ndarray]:
        """Measure free texts about the facts `wanted`; the others have nan."""
        some = [fact for fact, write in zip(facts, wanted, strict=True) if write]
        found = {name: np.full(len(facts), np.nan) for name in ("fluency", "consistency")}
        if some:
            length, seed = self.settings.text_tokens, self.settings.seed
            texts = write_texts(model, self.tokenizer, some, length, seed)
            found["fluency"][wanted] = fluencies(texts)
            found["consistency"][wanted] = consistencies(some, texts, *self.references)
        return found

    def rates(self, scores: Scores, names: Collection[str] | None = None) -> dict:
        """Average scores over facts, in percent, rounded as records have them."""
        return rounded(scores.summary(MEASURE[self.settings.dataset]), names)

    def steps(self, written: list[Scores], after: Scores, batch: int) -> list[dict]:
        """Rate each batch at its writing and at the end: what is forgotten, and when."""
        record = []
        for number, scores in enumerate(written):
            first, end = number * batch, min((number + 1) * batch, len(after))
            parts = {"at_write": scores, "after": after.part(first, end)}
            shown = {name: self.rates(part, (*KINDS, "score")) for name, part in parts.items()}
            record.append({"edited": end, **shown})
        return record


@dataclass(frozen=True)
class Measured:
    """What was measured when a batch had been written."""

    scores: Scores
    """The batch's own."""
    seconds: float
    """What measuring took."""
    point: dict | None
    """Rates of all facts so far, at the points of the settings."""


def edit_record(reports: list[Report]) -> dict:
    """Average over batches what the editor did, and count the facts that held before."""
    layers = sorted({layer for report in reports for layer in report.neurons})
    return {
        "neurons": {str(at): np.mean([r.neurons[at] for r in reports]).item() for at in layers},
        "clusters": np.mean([len(report.anchors) for report in reports]).item(),
        "steps": np.mean([step for report in reports for step in report.steps]).item(),
        "shared_steps": sum(sum(report.shared_steps) for report in reports),
        "rounding": max(lost for report in reports for lost in report.rounding.values()),
        "jitter": max(part for report in reports for part in report.jitter.values()),
        "held_before": sum(sum(report.held) for report in reports),
    }


def baseline_record(records) -> dict:
    """Average over batches the norm of what a baseline changed, by parameter."""
    names = sorted({name for record in records for name in record.norms})
    return {"norms": {n: np.mean([r.norms.get(n, 0.0) for r in records]).item() for n in names}}


@contextmanager
def timed(clock: Counter, name: str) -> Iterator[None]:
    """Add the seconds that the block takes to `clock[name]`."""
    began = time.perf_counter()
    yield
    clock[name] += time.perf_counter() - began
