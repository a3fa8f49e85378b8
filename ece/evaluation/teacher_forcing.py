"""Score answers under teacher forcing: log-likelihood and top-1 agreement of many pairs at once.

Every distinct token sequence runs once, in batches of similar length; a sequence that another one
continues does not run at all; the LM head runs at the positions that predict answers only.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from ece.engine.grouping import by_length
from ece.errors import DataError
from ece.facts import encode, pad, target_ids
from ece.model import room


class AnswerScores(NamedTuple):
    """Holds one entry per (prompt, answer) pair; the answer's earlier tokens are always given."""

    nll: Float[np.ndarray, " pair"]
    """Negative log-likelihood in nats per token of the answer."""
    top1: Bool[np.ndarray, " pair"]
    """Whether every token is the likeliest."""
    accuracy: Float[np.ndarray, " pair"]
    """Share of tokens that are."""
    predictions: np.ndarray
    """The likeliest tokens in the answer's places, a tuple each."""


class AnswerRow(NamedTuple):
    """Holds an answer's tokens, and the ids that predict them from place `first` on."""

    ids: list[int]
    first: int
    answer: list[int]


def score_answers(
    model, tokenizer, pairs: Sequence[tuple[str, str]], batch_tokens: int = 4096
) -> AnswerScores:
    """Score how the model answers each prompt.

    pairs: (prompt, answer) texts; an answer is preceded by a space, its tokens are forced.
    batch_tokens: bound on rows * tokens of a forward pass; a longer single row runs alone.
    """
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise DataError("pairs are not all (prompt, answer); give a list of such tuples")
    unique = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    prompts = {prompt: encode(tokenizer, prompt) for prompt, _ in unique}
    answers = {answer: target_ids(tokenizer, answer) for _, answer in unique}
    rows = [
        AnswerRow([*prompts[p], *answers[a][:-1]], len(prompts[p]) - 1, answers[a])
        for p, a in unique
    ]
    scores = score_rows(model, rows, list(unique), batch_tokens)
    back = [unique[pair] for pair in pairs]
    return AnswerScores(*(column[back] for column in scores))


def score_rows(
    model, rows: Sequence[AnswerRow], names: Sequence[tuple[str, str]], batch_tokens: int
) -> AnswerScores:
    """Score the answers of rows; `names` are the (prompt, answer) that errors call them by."""
    _check_rows(model, names, rows)
    covers = _covers([row.ids for row in rows])
    members: dict[int, list[int]] = {}
    for number, cover in enumerate(covers):
        members.setdefault(cover, []).append(number)
    nll, accuracy = np.zeros(len(rows)), np.zeros(len(rows))
    predictions = np.empty(len(rows), dtype=object)
    runs = list(members)
    for chunk in by_length([len(rows[run].ids) for run in runs], batch_tokens):
        at = [(line, number) for line, i in enumerate(chunk) for number in members[runs[i]]]
        index = [number for _, number in at]
        ids = [rows[runs[i]].ids for i in chunk]
        nll[index], accuracy[index], found = _forward(model, ids, [(i, rows[n]) for i, n in at])
        for number, tokens in zip(index, found, strict=True):
            predictions[number] = tokens
    return AnswerScores(nll, accuracy == 1, accuracy, predictions)


def _check_rows(model, names, rows: Sequence[AnswerRow]) -> None:
    limit = room(model, whole=True)
    for (prompt, answer), row in zip(names, rows, strict=True):
        where = f"prompt {prompt!r} with answer {answer!r}"
        if row.first < 0 or not row.answer:
            raise DataError(f"{where}: one of them has no tokens; give visible text")
        if len(row.ids) > limit:
            raise DataError(f"{where} has {len(row.ids)} tokens, and the model reads {limit}; "
                            "shorten the prompt or leave this fact out")  # fmt: skip


def _covers(rows: list[list[int]]) -> list[int]:
    """Find for each row the row to run in its place: itself, or one that it is a prefix of.

    The models are causal, so a prefix is computed on the way. In sorted order a row that is a
    prefix of any other is one of its successor.
    """
    covers = list(range(len(rows)))
    order = sorted(covers, key=rows.__getitem__)
    for here, after in reversed(list(pairwise(order))):
        if rows[after][: len(rows[here])] == rows[here]:
            covers[here] = covers[after]
    return covers


@torch.no_grad()
def _forward(model, rows: list[list[int]], answers: list[tuple[int, AnswerRow]]):
    """Compute NLL per token, share of top-1 tokens and the likeliest ones, per (line, row)."""
    ids, mask = (tensor.to(model.device) for tensor in pad(rows, "right"))
    at = [(line, row.first + k) for line, row in answers for k in range(len(row.answer))]
    line, position = torch.tensor(at, device=ids.device).T
    token = torch.tensor([t for _, row in answers for t in row.answer], device=ids.device)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[line, position] = True  # the LM head runs at these positions alone
    out = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep)
    logits = out.logits.float()  # [position read, vocab]
    place = (keep.flatten().cumsum(0) - 1).view_as(keep)[line, position]
    nll = -logits.log_softmax(-1)[place, token]
    likeliest = logits.argmax(-1)[place]
    hit = likeliest == token
    owner = np.repeat(np.arange(len(answers)), [len(row.answer) for _, row in answers])
    length = np.bincount(owner)
    total = np.bincount(owner, weights=nll.double().cpu().numpy())
    right = np.bincount(owner, weights=hit.cpu().numpy()) / length
    found = np.split(likeliest.cpu().numpy(), np.cumsum(length)[:-1])
    return total / length, right, [tuple(tokens.tolist()) for tokens in found]
