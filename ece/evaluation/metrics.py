"""Measure how well an edit took: efficacy, generalization, specificity and their harmonic mean.

Every answer is measured in three ways, which are never mixed (Eq 20-25):

* *success* compares two answers: the wanted one must have the strictly smaller length-normalised
  negative log-likelihood (a tie fails). Wanted is the new object on the edited prompt and its
  paraphrases, and the *true* one on neighbours (Eq 25 is printed the other way round).
* *top1* asks for more: every token of the wanted answer is the arg-max under teacher forcing.
* *accuracy* is the share of the wanted answer's tokens that are (Eq 20-22, ZsRE).

`questions` lists what a fact is measured by, `ece.evaluation.teacher_forcing.score_answers` scores
all answers in one pass, and `evaluate` puts the two together.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ece.errors import ConfigError, DataError, check_mode
from ece.evaluation.checks import check_texts
from ece.evaluation.teacher_forcing import AnswerScores, score_answers
from ece.evaluation.zsre_compat import score_published
from ece.facts import Fact

KINDS = ("efficacy", "generalization", "specificity")
UNEDITED = "specificity_unedited"
MEASURES = ("success", "top1", "accuracy")


class Question(NamedTuple):
    """Holds a prompt, the answer it should have, and the one that should be less likely."""

    kind: str
    prompt: str
    wanted: str
    other: str


def questions(fact: Fact) -> Iterator[Question]:
    """List what a fact is measured by: its own prompt, its paraphrases, then its neighbours."""
    yield Question("efficacy", fact.text, fact.target, fact.true)
    for prompt in fact.paraphrases:
        yield Question("generalization", prompt, fact.target, fact.true)
    if fact.true:
        for prompt in fact.neighbours:
            yield Question("specificity", prompt, fact.true, fact.target)


def harmonic(rates: Sequence[float]) -> float:
    """Compute the harmonic mean, unit as given; 0 if one of the rates is 0, nan if one is nan.

    >>> harmonic([100.0, 50.0, 50.0])
    60.0
    """
    rates = np.asarray(rates, dtype=float)
    with np.errstate(divide="ignore"):
        return float(len(rates) / (1 / rates).sum())


@dataclass(frozen=True)
class Scores:
    """Holds rates in [0, 1] per fact: the mean over its prompts of a kind; nan where it has none.

    Without suffix the rate of *success*, which is nan too if the fact names no true answer.
    """

    efficacy: Float[np.ndarray, " fact"]
    generalization: Float[np.ndarray, " fact"]
    specificity: Float[np.ndarray, " fact"]
    efficacy_top1: Float[np.ndarray, " fact"]
    generalization_top1: Float[np.ndarray, " fact"]
    specificity_top1: Float[np.ndarray, " fact"]
    efficacy_accuracy: Float[np.ndarray, " fact"] | None = None
    generalization_accuracy: Float[np.ndarray, " fact"] | None = None
    specificity_accuracy: Float[np.ndarray, " fact"] | None = None
    predictions: np.ndarray | None = None
    """The likeliest tokens after the neighbours' prompts: a tuple of token tuples per fact."""
    specificity_unedited: Float[np.ndarray, " fact"] | None = None
    """Specificity over the neighbours that the run does not edit themselves; None where it is
    not known which these are."""
    specificity_unedited_top1: Float[np.ndarray, " fact"] | None = None
    specificity_unedited_accuracy: Float[np.ndarray, " fact"] | None = None
    unchanged: Float[np.ndarray, " fact"] | None = None
    """Share of the predictions that are those of the unedited model (`unchanged`)."""
    fluency: Float[np.ndarray, " fact"] | None = None
    """Entropy of free text (`ece.evaluation.text_quality`), times 100, in bits; None without."""
    consistency: Float[np.ndarray, " fact"] | None = None
    """Similarity of free text to a reference, in [0, 1]; None without."""

    def __len__(self) -> int:
        return len(self.efficacy)

    def part(self, first: int, end: int) -> "Scores":
        """Take the scores of facts first..end - 1."""
        return Scores(**{name: column[first:end] for name, column in columns(self).items()})

    def summary(self, measure: str = "success") -> dict[str, float | None]:
        """Average over facts, in percent; `<name>_ci` is the half width of the 95 % interval.

        `efficacy`, `generalization`, `specificity` and their harmonic mean `score` are those of
        `measure` (CounterFact "success", ZsRE "accuracy"); the other measures have their suffix.
        `specificity_unedited` and `score_unedited` leave out neighbours that were edited, where
        that is known. A rate that no fact defines is None. The interval is 1.96 standard errors
        of the mean over facts: it is 0 when all facts agree, which is no certainty.
        """
        if measure not in MEASURES:
            raise ConfigError(f"measure {measure!r} is unknown; choose {', '.join(MEASURES)}")
        found = columns(self)
        suffix = "" if measure == "success" else f"_{measure}"
        kinds = [kind for kind in (*KINDS, UNEDITED) if kind in found]
        rates = {kind: found[f"{kind}{suffix}"] for kind in kinds}
        rates |= {n: column for n, column in found.items() if n not in (*kinds, "predictions")}
        units = {name: 1 if name == "fluency" else 100 for name in rates}
        rates = {n: units[n] * column[~np.isnan(column)] for n, column in rates.items()}
        result = {n: float(c.mean()) if len(c) else np.nan for n, c in rates.items()}
        result["score"] = harmonic([result[kind] for kind in KINDS])
        if UNEDITED in kinds:
            result["score_unedited"] = harmonic([result[kind] for kind in (*KINDS[:2], UNEDITED)])
        result |= {f"{name}_ci": _half_width(column) for name, column in rates.items()}
        return {name: None if np.isnan(value) else value for name, value in result.items()}


def columns(scores: Scores) -> dict[str, np.ndarray]:
    """List the columns that were measured, by name."""
    found = {field.name: getattr(scores, field.name) for field in fields(Scores)}
    return {name: column for name, column in found.items() if column is not None}


def join(parts: Sequence[Scores]) -> Scores:
    """Join scores of several lists of facts, in order (e.g. each batch right after writing)."""
    found = [columns(part) for part in parts]
    return Scores(**{name: np.concatenate([c[name] for c in found]) for name in found[0]})


def evaluate(
    model, tokenizer, facts: Sequence[Fact], batch_tokens: int = 4096, compat: bool = False,
    edited: Collection[str] | None = None,
) -> Scores:  # fmt: skip
    """Score `facts` on the model as it is now (Eq 20-25); batch_tokens as in `score_answers`.

    compat: as the published ZsRE evaluation does, with its slips (`ece.evaluation.zsre_compat`).
    edited: all prompts (`Fact.text`) that are edited: a neighbour among them has a new answer,
    and rightly so; specificity is then also given without such neighbours.
    """
    check_mode(model)
    if not isinstance(facts, list | tuple) or not all(isinstance(f, Fact) for f in facts):
        raise DataError(f"facts are {facts!r:.60}; give a list of ece.Fact")
    numbered = [(i, question) for i, fact in enumerate(facts) for question in questions(fact)]
    pairs = [(q, q.wanted) for _, q in numbered] + [(q, q.other) for _, q in numbered if q.other]
    if compat:
        triples = [(q.prompt, answer, q.kind == "specificity") for q, answer in pairs]
        answers = score_published(model, tokenizer, triples, batch_tokens)
    else:
        texts = [(q.prompt, answer) for q, answer in pairs]
        answers = score_answers(model, tokenizer, texts, batch_tokens)
    return _scores(numbered, len(facts), answers, edited)


def _scores(
    numbered: list[tuple[int, Question]], facts: int, answers: AnswerScores, edited
) -> Scores:
    """Turn the scores of all wanted answers, then of the others, into rates per fact."""
    count = len(numbered)
    wanted, other = answers.nll[:count], np.full(count, np.nan)
    other[[bool(question.other) for _, question in numbered]] = answers.nll[count:]
    success = np.where(np.isnan(other), np.nan, wanted < other)
    measured = {"": success, "_top1": answers.top1[:count] * 1.0,
                "_accuracy": answers.accuracy[:count]}  # fmt: skip
    rates = {}
    for suffix, values in measured.items():
        for kind in KINDS:
            rates[kind + suffix] = _per_fact(numbered, kind, values, facts)
        if edited is not None:
            left = np.where([q.prompt in edited for _, q in numbered], np.nan, values)
            rates[UNEDITED + suffix] = _per_fact(numbered, "specificity", left, facts)
    predictions = np.empty(facts, dtype=object)
    predictions[:] = [()] * facts
    for (i, question), tokens in zip(numbered, answers.predictions[:count], strict=True):
        if question.kind == "specificity":
            predictions[i] += (tokens,)
    return Scores(**rates, predictions=predictions)


def unchanged(before: Scores, after: Scores) -> Float[np.ndarray, " fact"]:
    """Compute, per fact, the share of predictions about its neighbours that stayed the same.

    Eq 22 against the model's own output before the edit; nan for a fact without neighbours.
    """
    shares = []
    for old, new in zip(before.predictions, after.predictions, strict=True):
        pairs = [p for a, b in zip(old, new, strict=True) for p in zip(a, b, strict=True)]
        shares.append(np.mean([a == b for a, b in pairs]) if pairs else np.nan)
    return np.array(shares, dtype=float)


def recall(
    model, tokenizer, prompts: Sequence[str], answers: Sequence[str], batch_tokens: int = 4096
) -> Bool[np.ndarray, " prompt"]:
    """Tell whether the model's top-1 continuation of each prompt is its answer, every token."""
    check_texts("prompts", prompts)
    check_texts("answers", answers)
    pairs = list(zip(prompts, answers, strict=True))
    return score_answers(model, tokenizer, pairs, batch_tokens).top1


def known(model, tokenizer, facts: Sequence[Fact], batch_tokens: int = 4096) -> list[Fact]:
    """Keep the facts that the model states: its top-1 answer to their prompts is the true one."""
    texts, answers = [fact.text for fact in facts], [fact.true for fact in facts]
    states = recall(model, tokenizer, texts, answers, batch_tokens)
    return [fact for fact, there in zip(facts, states, strict=True) if there]


def _per_fact(numbered, kind: str, values, count: int) -> Float[np.ndarray, " fact"]:
    """Average the values of questions of `kind` per fact; nan where there is none."""
    chosen = np.array([question.kind == kind for _, question in numbered], dtype=bool)
    chosen &= ~np.isnan(values)
    owner = np.array([i for i, _ in numbered], dtype=int)[chosen]
    number = np.bincount(owner, minlength=count)
    total = np.bincount(owner, weights=values[chosen], minlength=count)
    with np.errstate(invalid="ignore"):
        return total / number


def _half_width(column) -> float:
    count = len(column)
    return float(1.96 * column.std(ddof=1) / count**0.5) if count > 1 else float("nan")
