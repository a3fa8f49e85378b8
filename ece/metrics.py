"""How well an edit took: efficacy, generalization, specificity (Eq 20-25), their harmonic mean.

Every answer is read in two ways, which are never mixed:

* *success* compares two answers: the wanted one must have the strictly smaller length-normalised
  negative log-likelihood (a tie fails). Wanted is the new object on the edited prompt and its
  paraphrases, and the *true* one on neighbours (Eq 25 is printed the other way round).
* *top1* asks for more: every token of the wanted answer is the arg-max under teacher forcing.

`questions` lists what is asked about a fact, `read` answers everything in one pass over the
distinct token sequences, and `evaluate` puts the two together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from ece.facts import Fact, encode, pad, target_ids

KINDS = ("efficacy", "generalization", "specificity")
MEASURES = ("success", "top1")


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

    def __len__(self) -> int:
        return len(self.efficacy)

    def summary(self, measure: str = "success") -> dict[str, float | None]:
        """Means over facts in percent; `<name>_ci` is the half width of the 95 % interval.

        `efficacy`, `generalization`, `specificity` and their harmonic mean `score` are read by
        `measure` (CounterFact "success", ZsRE "top1"); `*_top1` is always there. A rate that no
        fact defines is None. The interval is 1.96 standard errors of the mean over facts: it is
        0 when all facts agree, which is no certainty.
        """
        if measure not in MEASURES:
            raise ValueError(f"measure {measure!r} is unknown; known: {', '.join(MEASURES)}")
        top1 = {f"{kind}_top1": getattr(self, f"{kind}_top1") for kind in KINDS}
        chosen = {kind: top1[f"{kind}_top1"] for kind in KINDS}
        if measure == "success":
            chosen = {kind: getattr(self, kind) for kind in KINDS}
        rates = {name: 100 * column[~np.isnan(column)] for name, column in (chosen | top1).items()}
        result = {name: _mean(column) for name, column in rates.items()}
        result["score"] = harmonic([result[kind] for kind in KINDS])
        result |= {f"{name}_ci": _half_width(column) for name, column in rates.items()}
        return {name: None if np.isnan(value) else value for name, value in result.items()}


def join(parts: Sequence[Scores]) -> Scores:
    """Scores of several lists of facts as one, in order (e.g. each batch right after writing)."""
    names = [field.name for field in fields(Scores)]
    return Scores(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def evaluate(model, tokenizer, facts: Sequence[Fact], batch_tokens: int = 4096) -> Scores:
    """Score `facts` on `model` as it is now; batch_tokens as in `read`."""
    asked = [(i, question) for i, fact in enumerate(facts) for question in questions(fact)]
    wanted = [(question.prompt, question.wanted) for _, question in asked]
    rivals = [(question.prompt, question.other) for _, question in asked if question.other]
    nll, top1 = read(model, tokenizer, wanted + rivals, batch_tokens)
    mine, rival = nll[: len(asked)], np.full(len(asked), np.nan)
    rival[[bool(question.other) for _, question in asked]] = nll[len(asked) :]
    success = np.where(np.isnan(rival), np.nan, mine < rival)
    columns = [
        _per_fact(asked, kind, values, len(facts))
        for values in (success, top1[: len(asked)].astype(float))
        for kind in KINDS
    ]
    return Scores(*columns)


def recall(
    model, tokenizer, prompts: Sequence[str], answers: Sequence[str], batch_tokens: int = 4096
) -> Bool[np.ndarray, " prompt"]:
    """Whether the model's top-1 continuation of each prompt is its answer, token for token."""
    pairs = list(zip(prompts, answers, strict=True))
    return read(model, tokenizer, pairs, batch_tokens)[1]


def read(
    model, tokenizer, pairs: Sequence[tuple[str, str]], batch_tokens: int = 4096
) -> tuple[Float[np.ndarray, " pair"], Bool[np.ndarray, " pair"]]:
    """NLL of the answer in nats per token, and whether all its tokens are the arg-max.

    pairs: (prompt, answer) texts; an answer is preceded by a space, its tokens are forced.
    batch_tokens: bound on rows * tokens of a forward pass; a longer single row runs alone.
    """
    unique = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    prompts = {prompt: encode(tokenizer, prompt) for prompt, _ in unique}
    answers = {answer: target_ids(tokenizer, answer) for _, answer in unique}
    asked = [_Asked.of(prompts[prompt], answers[answer]) for prompt, answer in unique]
    _check_lengths(model, list(unique), asked)
    hosts = _hosts([item.row for item in asked])
    guests = {host: [] for host in sorted(set(hosts), key=lambda i: -len(asked[i].row))}
    for item, host in enumerate(hosts):
        guests[host].append(item)
    nll, top1 = np.zeros(len(asked)), np.zeros(len(asked), dtype=bool)
    for batch in _batches({host: len(asked[host].row) for host in guests}, batch_tokens):
        members = [(row, item) for row, host in enumerate(batch) for item in guests[host]]
        rows = [asked[host].row for host in batch]
        index = [item for _, item in members]
        nll[index], top1[index] = _forward(model, rows, [(r, asked[i]) for r, i in members])
    back = [unique[pair] for pair in pairs]
    return nll[back], top1[back]


class _Asked(NamedTuple):
    """An answer's tokens, and the row that predicts them from position `first` on."""

    row: list[int]
    first: int
    answer: list[int]

    @classmethod
    def of(cls, prompt, answer):
        return cls([*prompt, *answer[:-1]], len(prompt) - 1, list(answer))


def _check_lengths(model, pairs, asked: list[_Asked]) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    for (prompt, answer), item in zip(pairs, asked, strict=True):
        if limit is not None and len(item.row) > limit:
            raise ValueError(
                f"prompt {prompt!r} with answer {answer!r} has {len(item.row)} tokens, and the "
                f"model reads {limit}; shorten the prompt or leave this fact out"
            )


def _hosts(rows: list[list[int]]) -> list[int]:
    """For each row the row to run in its place: itself, or one that it is a prefix of.

    The models are causal, so a prefix is computed on the way. In sorted order a row that is a
    prefix of any other is one of its successor.
    """
    hosts = list(range(len(rows)))
    order = sorted(hosts, key=rows.__getitem__)
    for here, after in reversed(list(pairwise(order))):
        if rows[after][: len(rows[here])] == rows[here]:
            hosts[here] = hosts[after]
    return hosts


def _batches(lengths: dict[int, int], batch_tokens: int) -> Iterator[list[int]]:
    """Split the keys of `lengths`, longest first, so that rows * longest <= batch_tokens."""
    keys = list(lengths)
    while keys:
        size = max(1, batch_tokens // lengths[keys[0]])
        yield keys[:size]
        keys = keys[size:]


@torch.inference_mode()
def _forward(model, rows: list[list[int]], asked: list[tuple[int, _Asked]]):
    """NLL per token and arg-max agreement of `asked` (row number, answer), each [asked]."""
    ids, mask = (tensor.to(model.device) for tensor in pad(rows, "right"))
    at = [(row, item.first + k) for row, item in asked for k in range(len(item.answer))]
    row, position = torch.tensor(at, device=ids.device).T
    token = torch.tensor([t for _, item in asked for t in item.answer], device=ids.device)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[row, position] = True  # the LM head runs at these positions alone
    out = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep)
    logits = out.logits.float()  # [kept, vocab]
    place = (keep.flatten().cumsum(0) - 1).view_as(keep)[row, position]
    nll = -logits.log_softmax(-1)[place, token]
    hit = logits.argmax(-1)[place] == token
    owner = np.repeat(np.arange(len(asked)), [len(item.answer) for _, item in asked])
    length = np.bincount(owner)
    total = np.bincount(owner, weights=nll.double().cpu().numpy())
    return total / length, np.bincount(owner, weights=hit.cpu().numpy()) == length


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
