"""Reads log-likelihoods of answers from a model, with other weights in place of its own."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from ece.baselines.base import Weights
from ece.facts import encode, pad, target_ids


class Rows(NamedTuple):
    """Prompts with their answers, tokenised; one forward pass reads all answers."""

    ids: Int[Tensor, "row token"]
    mask: Bool[Tensor, "row token"]
    read: Bool[Tensor, "row token"]
    """Positions that predict a token of an answer; without an answer, the prompt's last."""
    at: Int[Tensor, " read_tokens"]
    """For each token of the answers, the number of its position among those read."""
    answer: Int[Tensor, " read_tokens"]
    """The answers' tokens, row by row; 0 where a prompt has none."""
    share: Float[Tensor, " read_tokens"]
    """One over the answer's length, so that a row's sum is nats per token."""


def rows(tokenizer, pairs: list[tuple[str, str]], device, last: bool = False) -> Rows:
    """Tokenise (prompt, answer) texts; with an answer "" the prompt is only read.

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


def log_probs(model: nn.Module, inputs: Rows, weights: Weights) -> Float[Tensor, "read vocab"]:
    """Run the model at the positions read, with `weights` in place of its own."""
    named = dict(input_ids=inputs.ids, attention_mask=inputs.mask, logits_to_keep=inputs.read)
    out = functional_call(model, weights, kwargs=dict(named, use_cache=False))
    return out.logits.float().log_softmax(-1)


def nll(found: Float[Tensor, "read vocab"], inputs: Rows) -> Float[Tensor, ""]:
    """Sum the answers' negative log-likelihoods, in nats per token, over rows."""
    return -(found[inputs.at, inputs.answer] * inputs.share).sum()
