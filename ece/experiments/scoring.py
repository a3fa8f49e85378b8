"""What a run asks of a model: the scores of facts, with free texts where they are wanted."""

import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from ece.data.references import References
from ece.evaluation.metrics import Scores, evaluate, unchanged
from ece.evaluation.text_quality import consistencies, fluencies
from ece.evaluation.text_quality import written as write_texts
from ece.experiments.spec import Settings
from ece.facts import Fact


def score(
    tokenizer,
    settings: Settings,
    references: References,
    model,
    facts: list[Fact],
    clock: Counter,
    before: Scores | None = None,
    texts: bool = True,
    edited: Collection[str] | None = None,
) -> Scores:
    """The facts' scores now; `before` are those of the unedited model, `edited` all prompts
    that the run edits."""
    with timed(clock, "evaluate"):
        compat = settings.compat and settings.dataset == "zsre"
        scores = evaluate(model, tokenizer, facts, compat=compat, edited=edited)
        if before is not None:
            scores = replace(scores, unchanged=unchanged(before, scores))
        if not settings.text_tokens or not texts:
            return scores
        return _with_texts(scores, model, tokenizer, settings, references, facts, before)


def _with_texts(scores, model, tokenizer, settings, references, facts, before) -> Scores:
    """Scores with fluency and consistency of the facts that free texts are written about."""
    wanted = np.full(len(facts), True)
    if before is not None:
        wanted = ~np.isnan(before.fluency)
    elif settings.text_facts:
        wanted = np.arange(len(facts)) < settings.text_facts
    some = [fact for fact, said in zip(facts, wanted, strict=True) if said]
    columns = {name: np.full(len(facts), np.nan) for name in ("fluency", "consistency")}
    if some:
        texts = write_texts(model, tokenizer, some, settings.text_tokens, settings.seed)
        columns["fluency"][wanted] = fluencies(texts)
        columns["consistency"][wanted] = consistencies(some, texts, *references)
    return replace(scores, **columns)


@contextmanager
def timed(clock: Counter, name: str) -> Iterator[None]:
    """Add the seconds that the block takes to `clock[name]`."""
    began = time.perf_counter()
    yield
    clock[name] += time.perf_counter() - began
