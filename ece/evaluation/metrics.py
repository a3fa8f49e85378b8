"""How well an edit took: efficacy, generalization, specificity (Eq 20-25), their harmonic mean.

Every answer is read in three ways, which are never mixed:

* *success* compares two answers: the wanted one must have the strictly smaller length-normalised
  negative log-likelihood (a tie fails). Wanted is the new object on the edited prompt and its
  paraphrases, and the *true* one on neighbours (Eq 25 is printed the other way round).
* *top1* asks for more: every token of the wanted answer is the arg-max under teacher forcing.
* *accuracy* is the share of the wanted answer's tokens that are (Eq 20-22, ZsRE).

`questions` lists what is asked about a fact, `ece.evaluation.teacher_forcing.read` answers everything in one pass,
and `evaluate` puts the two together.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ece.evaluation.teacher_forcing import read
from ece.evaluation.zsre_compat import read_published
from ece.facts import Fact

KINDS = ("efficacy", "generalization", "specificity")
UNEDITED = "specificity_unedited"
MEASURES = ("success", "top1", "accuracy")


class Question(NamedTuple):
    """One prompt put to the model: does it answer `wanted`, and sooner than `other`?"""

    kind: str
    prompt: str
    wanted: str
    other: str


def questions(fact: Fact) -> Iterator[Question]:
    """What is asked about `fact`: its own prompt, its paraphrases, then its neighbours."""
    yield Question("efficacy", fact.text, fact.target, fact.true)
    for prompt in fact.paraphrases:
        yield Question("generalization", prompt, fact.target, fact.true)
    if fact.true:
        for prompt in fact.neighbours:
            yield Question("specificity", prompt, fact.true, fact.target)


def harmonic(rates: Sequence[float]) -> float:
    """Harmonic mean of `rates`, unit as given; 0 if one of them is 0, nan if one is nan."""
    rates = np.asarray(rates, dtype=float)
    with np.errstate(divide="ignore"):
        return float(len(rates) / (1 / rates).sum())


@dataclass(frozen=True)
class Scores:
    """Rates in [0, 1] per fact: the mean over its prompts of a kind; nan where it has none.

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
    said: np.ndarray | None = None
    """What the model says on the neighbours' prompts: a tuple of token tuples per fact."""
    specificity_unedited: Float[np.ndarray, " fact"] | None = None
    """Specificity over the neighbours that the run does not edit themselves; None where it is
    not known which these are."""
    specificity_unedited_top1: Float[np.ndarray, " fact"] | None = None
    specificity_unedited_accuracy: Float[np.ndarray, " fact"] | None = None
    unchanged: Float[np.ndarray, " fact"] | None = None
    """Share of those tokens that the unedited model said too (`unchanged`)."""
    fluency: Float[np.ndarray, " fact"] | None = None
    """Entropy of free text (`ece.evaluation.text_quality`), times 100, in bits; None where none was written."""
    consistency: Float[np.ndarray, " fact"] | None = None
    """Likeness of free text to a reference, in [0, 1]; None where none was written."""

    def __len__(self) -> int:
        return len(self.efficacy)

    def part(self, first: int, end: int) -> "Scores":
        """The scores of facts first..end - 1."""
        return Scores(**{name: column[first:end] for name, column in _columns(self).items()})

    def summary(self, measure: str = "success") -> dict[str, float | None]:
        """Means over facts in percent; `<name>_ci` is the half width of the 95 % interval.

        `efficacy`, `generalization`, `specificity` and their harmonic mean `score` are read by
        `measure` (CounterFact "success", ZsRE "accuracy"); the other readings have their suffix.
        `specificity_unedited` and `score_unedited` leave out neighbours that were edited, where
        that is known. A rate that no fact defines is None. The interval is 1.96 standard errors
        of the mean over facts: it is 0 when all facts agree, which is no certainty.
        """
        if measure not in MEASURES:
            raise ValueError(f"measure {measure!r} is unknown; known: {', '.join(MEASURES)}")
        there = _columns(self)
        suffix = "" if measure == "success" else f"_{measure}"
        read = [kind for kind in (*KINDS, UNEDITED) if kind in there]
        rates = {kind: there[f"{kind}{suffix}"] for kind in read}
        rates |= {name: column for name, column in there.items() if name not in (*read, "said")}
        units = {name: 1 if name == "fluency" else 100 for name in rates}
        rates = {n: units[n] * column[~np.isnan(column)] for n, column in rates.items()}
        result = {name: _mean(column) for name, column in rates.items()}
        result["score"] = harmonic([result[kind] for kind in KINDS])
        if UNEDITED in read:
            kinds = (*KINDS[:2], UNEDITED)
            result["score_unedited"] = harmonic([result[kind] for kind in kinds])
        result |= {f"{name}_ci": _half_width(column) for name, column in rates.items()}
        return {name: None if np.isnan(value) else value for name, value in result.items()}


def join(parts: Sequence[Scores]) -> Scores:
    """Scores of several lists of facts as one, in order (e.g. each batch right after writing)."""
    columns = [_columns(part) for part in parts]
    return Scores(**{name: np.concatenate([c[name] for c in columns]) for name in columns[0]})


def _columns(scores: Scores) -> dict[str, np.ndarray]:
    """The columns that there are."""
    found = {field.name: getattr(scores, field.name) for field in fields(Scores)}
    return {name: column for name, column in found.items() if column is not None}


def evaluate(
    model,
    tokenizer,
    facts: Sequence[Fact],
    batch_tokens: int = 4096,
    compat: bool = False,
    edited: Collection[str] | None = None,
) -> Scores:
    """Score `facts` on `model` as it is now; batch_tokens as in `read`.

    compat: ask as the published ZsRE evaluation does, with its slips (`ece.evaluation.zsre_compat`).
    edited: all prompts (`Fact.text`) that are edited: a neighbour among them has a new answer,
    and rightly so; specificity is then also told without such neighbours.
    """
    asked = [(i, question) for i, fact in enumerate(facts) for question in questions(fact)]
    pairs = [(q, q.wanted) for _, q in asked] + [(q, q.other) for _, q in asked if q.other]
    if compat:
        told = [(q.prompt, answer, q.kind == "specificity") for q, answer in pairs]
        answers = read_published(model, tokenizer, told, batch_tokens)
    else:
        told = [(q.prompt, answer) for q, answer in pairs]
        answers = read(model, tokenizer, told, batch_tokens)
    nll, mine, rival = answers.nll, answers.nll[: len(asked)], np.full(len(asked), np.nan)
    rival[[bool(question.other) for _, question in asked]] = nll[len(asked) :]
    success = np.where(np.isnan(rival), np.nan, mine < rival)
    read_as = (success, answers.top1[: len(asked)] * 1.0, answers.accuracy[: len(asked)])
    names = ("", *(f"_{measure}" for measure in MEASURES[1:]))
    columns = {
        f"{kind}{name}": _per_fact(asked, kind, values, len(facts))
        for name, values in zip(names, read_as, strict=True)
        for kind in KINDS
    }
    if edited is not None:
        known = [q.kind == "specificity" and q.prompt in edited for _, q in asked]
        for name, values in zip(names, read_as, strict=True):
            left = np.where(known, np.nan, values)
            columns[f"{UNEDITED}{name}"] = _per_fact(asked, "specificity", left, len(facts))
    said = np.empty(len(facts), dtype=object)
    said[:] = [()] * len(facts)
    for (i, question), tokens in zip(asked, answers.said[: len(asked)], strict=True):
        if question.kind == "specificity":
            said[i] += (tokens,)
    return Scores(**columns, said=said)


def unchanged(before: Scores, after: Scores) -> Float[np.ndarray, " fact"]:
    """Per fact, the share of tokens said about its neighbours that are the same in both.

    Eq 22 against the model's own output before the edit; nan for a fact without neighbours.
    """
    shares = []
    for old, new in zip(before.said, after.said, strict=True):
        pairs = [p for a, b in zip(old, new, strict=True) for p in zip(a, b, strict=True)]
        shares.append(np.mean([a == b for a, b in pairs]) if pairs else np.nan)
    return np.array(shares, dtype=float)


def recall(
    model, tokenizer, prompts: Sequence[str], answers: Sequence[str], batch_tokens: int = 4096
) -> Bool[np.ndarray, " prompt"]:
    """Whether the model's top-1 continuation of each prompt is its answer, token for token."""
    pairs = list(zip(prompts, answers, strict=True))
    return read(model, tokenizer, pairs, batch_tokens).top1


def _per_fact(asked, kind: str, values, count: int) -> Float[np.ndarray, " fact"]:
    """Mean of the values of questions of `kind` per fact; nan where there is none."""
    chosen = np.array([question.kind == kind for _, question in asked], dtype=bool)
    chosen &= ~np.isnan(values)
    owner = np.array([i for i, _ in asked], dtype=int)[chosen]
    number = np.bincount(owner, minlength=count)
    total = np.bincount(owner, weights=values[chosen], minlength=count)
    with np.errstate(invalid="ignore"):
        return total / number


def _mean(column) -> float:
    return float(column.mean()) if len(column) else float("nan")


def _half_width(column) -> float:
    count = len(column)
    return float(1.96 * column.std(ddof=1) / count**0.5) if count > 1 else float("nan")
