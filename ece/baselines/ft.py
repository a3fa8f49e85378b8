"""Fine-tuning of down-projections: FT-L, FT-W and FT-M, three settings of one function.

FT-L (Zhu et al. 2020) keeps every weight within a small distance of where the batch found it,
FT-W lets a decay pull the weights back instead. Both, as published, score all tokens of
the target at the prompt's last token. FT-M scores each where it stands, given those before.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ece.baselines.base import Task, Weights, names_of
from ece.baselines.likelihood import Rows, log_probs, nll, rows
from ece.errors import ConfigError, StateError
from ece.facts import Fact, by_length, encode, target_ids
from ece.model import sites

GOALS = ("last", "answer")


@dataclass(frozen=True)
class FineTuning:
    """Settings of fine-tuning; checked on construction."""

    layers: tuple[int, ...] = (1,)
    """Layers whose down-projections are trained, counted from 0."""
    goal: str = "answer"
    """"last": every target token is scored at the prompt's last token; "answer": in its place."""
    lr: float = 5e-4
    """Learning rate of Adam, > 0 (units of a weight)."""
    steps: int = 25
    """Gradient steps per batch, >= 1."""
    stop: float = 0.01
    """Training of a batch ends once its mean loss (nats per token) is below."""
    ball: float | None = None
    """Largest change of any weight by one batch, > 0; None: no bound."""
    decay: float = 0.0
    """Adam's weight decay, >= 0: the pull of all weights towards 0."""
    max_tokens: int = 16384
    """Memory budget, >= 1: tokens (rows times padded length) that one forward holds."""

    def __post_init__(self):
        """Raise `ConfigError` naming the first field out of range."""
        fine = {
            "layers": bool(self.layers) and min(self.layers) >= 0,
            "goal": self.goal in GOALS,
            "lr": self.lr > 0,
            "steps": self.steps >= 1,
            "ball": self.ball is None or self.ball > 0,
            "decay": self.decay >= 0,
            "max_tokens": self.max_tokens >= 1,
        }
        for name, good in fine.items():
            if not good:
                value, doc = getattr(self, name), "see the help of its flag"
                raise ConfigError(f"setting '{name}' is {value!r}, out of its range; {doc}")


def edit(task: Task, facts: list[Fact]) -> Weights:
    """New down-projections after a few steps of Adam on the batch's mean loss."""
    numbers: FineTuning = task.numbers
    before = trainable(task.model, numbers.layers)
    live = {name: value.detach().clone().requires_grad_() for name, value in before.items()}
    adam = torch.optim.Adam(live.values(), lr=numbers.lr, weight_decay=numbers.decay)
    chunks = _chunks(task, facts)
    for _ in range(numbers.steps):
        adam.zero_grad()
        total = 0.0
        for asked in chunks:
            loss = nll(log_probs(task.model, asked, live), asked) / len(facts)
            loss.backward()
            total += float(loss.detach())
        if total < numbers.stop:
            break
        adam.step()
        if numbers.ball is not None:
            for name, value in live.items():
                low, high = before[name] - numbers.ball, before[name] + numbers.ball
                value.data.clamp_(low, high)
    after = {name: value.detach() for name, value in live.items()}
    if not all(torch.isfinite(value).all() for value in after.values()):
        raise StateError("fine-tuned weights are not finite; lower the setting 'lr'")
    return after


def trainable(model: nn.Module, layers: tuple[int, ...]) -> Weights:
    """Parameters of the down-projections of `layers`, by name."""
    places = sites(model, layers)
    names = names_of(model, places)
    return {names[site.layer]: site.module.weight.detach() for site in places}


def _chunks(task: Task, facts: list[Fact]) -> list[Rows]:
    """The facts as rows of like length, within the budget of tokens."""
    last, device = task.numbers.goal == "last", task.model.get_input_embeddings().weight.device
    sizes = [
        len(encode(task.tokenizer, fact.text)) + len(target_ids(task.tokenizer, fact.target))
        for fact in facts
    ]
    parts = by_length(sizes, task.numbers.max_tokens)
    pairs = [[(facts[i].text, facts[i].target) for i in part] for part in parts]
    return [rows(task.tokenizer, part, device, last) for part in pairs]
