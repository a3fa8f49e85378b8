"""What a model says to prompts with other weights in place of its own, and how surprised it is."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from ece.baselines.base import Weights
from ece.facts import encode, pad, target_ids


class Rows(NamedTuple):
    """Prompts with their answers, ready to run; one forward reads all answers."""

    ids: Int[Tensor, "row token"]
    mask: Bool[Tensor, "row token"]
    read: Bool[Tensor, "row token"]
    """Positions that predict a token of an answer; without one, the prompt's last."""
    at: Int[Tensor, " read_tokens"]
    """For each token of the answers, the number of its position among those read."""
    answer: Int[Tensor, " read_tokens"]
    """The answers' tokens, row by row; 0 where a prompt has none."""
    share: Float[Tensor, " read_tokens"]
    """One over the answer's length, so that a row's sum is nats per token."""


def rows(tokenizer, pairs: list[tuple[str, str]], device, last: bool = False) -> Rows:
    """(prompt, answer) texts as `Rows`; an answer "" means that the prompt is only read.

    last: every token of an answer is read at the prompt's last token, and none is given.
    """
    coded = [(encode(tokenizer, p), target_ids(tokenizer, a) if a else [0]) for p, a in pairs]
    ids, mask = pad([prompt if last else prompt + answer[:-1] for prompt, answer in coded])
    read, at = torch.zeros_like(mask), []
    for row, (prompt, answer) in enumerate(coded):
        count, before = 1 if last else len(answer), int(read.sum())
        read[row, len(prompt) - 1 : len(prompt) - 1 + count] = True
        at += [before] * len(answer) if last else range(before, before + count)
    answers = torch.tensor([token for _, answer in coded for token in answer])
    shares = torch.tensor([1 / len(answer) for _, answer in coded for _ in answer])
    made = (ids, mask, read, torch.tensor(at), answers, shares)
    return Rows(*(tensor.to(device) for tensor in made))


def log_probs(model: nn.Module, asked: Rows, weights: Weights) -> Float[Tensor, "read vocab"]:
    """What the model says at the positions read, with `weights` in place of its own."""
    inputs = dict(input_ids=asked.ids, attention_mask=asked.mask, logits_to_keep=asked.read)
    out = functional_call(model, weights, kwargs=dict(inputs, use_cache=False))
    return out.logits.float().log_softmax(-1)


def nll(said: Float[Tensor, "read vocab"], asked: Rows) -> Float[Tensor, ""]:
    """Nats per token of the answers, summed over rows."""
    return -(said[asked.at, asked.answer] * asked.share).sum()
