"""Fine-tuning of down-projections: FT-L, FT-W and FT-M, three settings of one function.

FT-L (Zhu et al. 2020) holds every weight within a small distance of where the batch found it,
FT-W lets a decay pull the weights back instead. Both, as published, score all tokens of the
target at the prompt's last token. FT-M scores each in its place, given those before.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from ece.baselines.base import Task, Weights, lengths, names_of
from ece.baselines.likelihood import log_probs, nll, rows
from ece.config import Count, NotNegative, Positive
from ece.engine.grouping import by_length
from ece.errors import StateError, checked
from ece.facts import Fact
from ece.model import sites


@checked
class FineTuning:
    """Settings of fine-tuning; a `ConfigError` names the first one of a wrong type or range."""

    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (1,)
    """Layers whose down-projections are trained, counted from 0."""
    goal: Literal["last", "answer"] = "answer"
    """"last": every target token is scored at the prompt's last token; "answer": in its place."""
    lr: Positive = 5e-4
    """Learning rate of Adam, in units of a weight."""
    steps: Count = 25
    """Gradient steps per batch."""
    stop: NotNegative = 0.01
    """Training of a batch ends once its mean loss (nats per token) is below."""
    ball: Positive | None = None
    """Largest change of any weight by one batch; None: no bound."""
    decay: NotNegative = 0.0
    """Adam's weight decay: the pull of all weights towards 0."""
    max_tokens: Count = 16384
    """Memory budget: tokens (rows times padded length) that one forward pass holds."""


def edit(task: Task, facts: list[Fact]) -> Weights:
    """Train the down-projections by a few steps of Adam on the batch's mean loss."""
    numbers: FineTuning = task.numbers
    before = trainable(task.model, numbers.layers)
    live = {name: value.detach().clone().requires_grad_() for name, value in before.items()}
    adam = torch.optim.Adam(live.values(), lr=numbers.lr, weight_decay=numbers.decay)
    parts = by_length(lengths(task.tokenizer, facts), numbers.max_tokens)
    pairs = [[(facts[i].text, facts[i].target) for i in part] for part in parts]
    last = numbers.goal == "last"
    chunks = [rows(task.tokenizer, part, task.model.device, last) for part in pairs]
    for _ in range(numbers.steps):
        adam.zero_grad()
        total = 0.0
        for chunk in chunks:
            loss = nll(log_probs(task.model, chunk, live), chunk) / len(facts)
            loss.backward()
            total += float(loss.detach())
        if total < numbers.stop:
            break
        adam.step()
        if numbers.ball is not None:
            for name, value in live.items():
                value.data.clamp_(before[name] - numbers.ball, before[name] + numbers.ball)
    after = {name: value.detach() for name, value in live.items()}
    if not all(torch.isfinite(value).all() for value in after.values()):
        raise StateError("fine-tuned weights are not finite; lower the setting 'lr'")
    return after


def trainable(model: nn.Module, layers: tuple[int, ...]) -> Weights:
    """Give the parameters of the down-projections of `layers`, by name."""
    places = sites(model, layers)
    names = names_of(model, places)
    return {names[site.layer]: site.module.weight.detach() for site in places}
