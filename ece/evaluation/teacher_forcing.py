"""Reading answers off a model: NLL and arg-max agreement of many (prompt, answer) pairs at once.

Every distinct token sequence runs once, in batches of similar length; a sequence that another one
continues does not run at all; the LM head runs at the positions that predict answers only.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from ece.facts import by_length, encode, pad, target_ids


class Answers(NamedTuple):
    """What was read, pair by pair; the answer's earlier tokens are always given."""

    nll: Float[np.ndarray, " pair"]
    """Nats per token of the answer."""
    top1: Bool[np.ndarray, " pair"]
    """Whether every token is the likeliest."""
    accuracy: Float[np.ndarray, " pair"]
    """Share of tokens that are."""
    said: np.ndarray
    """The likeliest tokens in the answer's places, a tuple each."""


class Asked(NamedTuple):
    """An answer's tokens, and the row that predicts them from position `first` on."""

    row: list[int]
    first: int
    answer: list[int]

    @classmethod
    def of(cls, prompt, answer):
        return cls([*prompt, *answer[:-1]], len(prompt) - 1, list(answer))


def read(model, tokenizer, pairs: Sequence[tuple[str, str]], batch_tokens: int = 4096) -> Answers:
    """How the model answers each prompt.

    pairs: (prompt, answer) texts; an answer is preceded by a space, its tokens are forced.
    batch_tokens: bound on rows * tokens of a forward pass; a longer single row runs alone.
    """
    unique = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    prompts = {prompt: encode(tokenizer, prompt) for prompt, _ in unique}
    answers = {answer: target_ids(tokenizer, answer) for _, answer in unique}
    asked = [Asked.of(prompts[prompt], answers[answer]) for prompt, answer in unique]
    nll, accuracy, said = read_rows(model, asked, list(unique), batch_tokens)
    back = [unique[pair] for pair in pairs]
    return Answers(nll[back], accuracy[back] == 1, accuracy[back], said[back])


def read_rows(
    model, asked: Sequence[Asked], names: Sequence[tuple[str, str]], batch_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """NLL per token, share of tokens that are the likeliest, and these, of each of `asked`.

    names: the (prompt, answer) that each is called by if it is too long (`ValueError`).
    """
    _check_lengths(model, names, asked)
    hosts = _hosts([item.row for item in asked])
    guests: dict[int, list[int]] = {}
    for item, host in enumerate(hosts):
        guests.setdefault(host, []).append(item)
    nll, accuracy = np.zeros(len(asked)), np.zeros(len(asked))
    said = np.empty(len(asked), dtype=object)
    runs = list(guests)
    for chunk in by_length([len(asked[host].row) for host in runs], batch_tokens):
        rows = [asked[runs[i]].row for i in chunk]
        members = [(row, item) for row, i in enumerate(chunk) for item in guests[runs[i]]]
        index = [item for _, item in members]
        nll[index], accuracy[index], told = _forward(
            model, rows, [(r, asked[i]) for r, i in members]
        )
        for item, tokens in zip(index, told, strict=True):
            said[item] = tokens
    return nll, accuracy, said


def _check_lengths(model, pairs, asked: Sequence[Asked]) -> None:
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


@torch.inference_mode()
def _forward(model, rows: list[list[int]], asked: list[tuple[int, Asked]]):
    """NLL per token, share of arg-max tokens and these, of `asked` (row number, answer)."""
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
    likeliest = logits.argmax(-1)[place]
    hit = likeliest == token
    owner = np.repeat(np.arange(len(asked)), [len(item.answer) for _, item in asked])
    length = np.bincount(owner)
    total = np.bincount(owner, weights=nll.double().cpu().numpy())
    told = np.split(likeliest.cpu().numpy(), np.cumsum(length)[:-1])
    right = np.bincount(owner, weights=hit.cpu().numpy()) / length
    return total / length, right, [tuple(tokens.tolist()) for tokens in told]
