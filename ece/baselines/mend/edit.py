"""MEND (Mitchell et al. 2022): a network, trained ahead, turns gradients into edits.

Only down-projections are edited, where the paper edits both projections of an MLP: `Site`
names them for every family alike, while what stands before them differs (one matrix, or
two with a gate).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ece.baselines.base import Task, Weights, identity, lengths, names_of, wordings
from ece.baselines.likelihood import log_probs, nll, rows
from ece.baselines.mend.network import Factors, edited, factors, join, new_net, normalisers
from ece.baselines.training import fit
from ece.checks import validate
from ece.config import Count, NotNegative, Positive, Seed
from ece.engine.grouping import by_length
from ece.errors import ConfigError, ModelError, checked
from ece.facts import Fact
from ece.model import Site, blocks, sites

SAMPLE = 256  # training facts that the normalisation is measured on
Some = Annotated[int, Field(ge=0)]


@checked
class Mend:
    """Settings of MEND and its training; a `ConfigError` names one of a wrong type or range."""

    layers: Annotated[tuple[Some, ...], Field(min_length=1)] | None = None
    """Blocks whose down-projections are edited, each once; None: the model's last three."""
    rank: Count = 256
    """Rank of the network's layers."""
    steps: Some = 1600
    """Training steps; with 0 the network passes normalised gradients on."""
    lr: Positive = 1e-3
    """Learning rate of Adam in training; it falls to 0 as a cosine."""
    edit_lr: Positive = 3e-3
    """Where the learned step sizes of edits start, per unit of normalised gradient."""
    edit_weight: NotNegative = 1.0
    """$c_e$: weight of the edit loss in training; locality has weight 1. With 0.1 a third
    of the edits of an embedded model failed after 400 and after 800 steps."""
    most: Count = 8
    """Edits at once in a training step: 1 to `most`, drawn."""
    near: Some = 2
    """Neighbours of each edit on which the model should not move in training."""
    far: Count = 2
    """Prompts of other facts per edit on which it should not move in training."""
    max_tokens: Count = 4096
    """Most tokens in a forward pass when editing."""
    seen: bool = False
    """Whether training sees paraphrases too, in whose wordings generalization is measured."""
    seed: Seed = 0
    """Seed of the network's start and of training's draws."""

    def __post_init__(self) -> None:
        if self.layers is not None and len(self.layers) != len(set(self.layers)):
            raise ConfigError(f"setting 'layers' is {self.layers}; name each layer once")


def edit(task: Task, facts: list[Fact]) -> Weights:
    """Compute new values of the edited down-projections; the model stays as it is.

    Each fact's gradient is taken at the model's present weights, and transformed; the sum of
    all facts' updates is subtracted. Raises `FactError` for an unusable batch, `ModelError` for
    an untrained editor or values that are not finite.
    """
    validate(facts, task.tokenizer, task.model)
    places = _places(task)
    net = {name: value.to(places[0].weight.device) for name, value in task.trained.items()}
    _check(net, places)
    found = _gradients(task, places, facts)
    with torch.no_grad():
        values = edited(net, places, found, names_of(task.model, places))
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise ModelError(f"MEND's new {name} is not finite; train with a smaller 'lr'")
    return {name: value.contiguous() for name, value in values.items()}


def train(
    task: Task, facts: list[Fact], save_to: str | Path | None = None,
    progress: Callable | None = None,
) -> Weights:  # fmt: skip
    """Train the network on `facts`, which are never edited later; returns its weights.

    Adam on `edit_weight` times the NLL of the new objects after an edit, plus the KL divergence
    by which the edit moves other prompts. `ConfigError` for fewer than two facts. save_to,
    progress: as in `fit`.
    """
    if len(facts) < 2:
        raise ConfigError(f"MEND trains on at least two facts and was given {len(facts)}; add some")
    numbers, places = task.numbers, _places(task)
    names, device = names_of(task.model, places), places[0].weight.device
    measured = normalisers(_gradients(task, places, facts[:SAMPLE]))
    measured = {name: value.to(device) for name, value in measured.items()}

    def loss(net: Weights, draw: torch.Generator) -> Tensor:
        chosen, near, far = _draw(facts, numbers, draw)
        found = _gradients(task, places, chosen)
        new = edited({**net, **measured}, places, found, names)
        return _loss(task, new, chosen, [*near, *far])

    net = new_net(places, numbers.rank, numbers.edit_lr, numbers.seed, device)
    more = (numbers.steps, numbers.lr, identity(task, facts), numbers.seed, save_to, progress)
    return {**fit(net, loss, *more), **measured}


def _loss(task: Task, new: Weights, facts: list[Fact], others: list[str]) -> Float[Tensor, ""]:
    """Say how badly `new` weights know the facts, and how far they move `others`."""
    device, seen = task.model.device, task.numbers.seen
    pairs = [(prompt, fact.target) for fact in facts for prompt in wordings(fact, seen)]
    inputs = rows(task.tokenizer, pairs, device)
    taken = nll(log_probs(task.model, inputs, new), inputs) / len(pairs)
    inputs = rows(task.tokenizer, [(prompt, "") for prompt in others], device)
    with torch.no_grad():
        usual = log_probs(task.model, inputs, {})
    moved = (usual.exp() * (usual - log_probs(task.model, inputs, new))).sum(1).mean()
    return task.numbers.edit_weight * taken + moved


def _draw(
    facts: list[Fact], numbers: Mend, draw: torch.Generator
) -> tuple[list[Fact], list[str], list[str]]:
    """Draw a training step's facts, prompts of their neighbours, and prompts of other facts."""
    most = min(numbers.most, len(facts) - 1)
    count = int(torch.randint(1, most + 1, (), generator=draw))
    order = [facts[i] for i in torch.randperm(len(facts), generator=draw).tolist()]
    chosen, far = order[:count], order[count : count * (1 + numbers.far)]
    taught = {prompt for fact in chosen for prompt in wordings(fact, True)}
    near = []
    for fact in chosen:
        free = [prompt for prompt in fact.neighbours if prompt not in taught]
        picks = torch.randperm(len(free), generator=draw)[: numbers.near]
        near += [free[i] for i in picks.tolist()]
    return chosen, near, [fact.text for fact in far]


def _gradients(task: Task, places: list[Site], facts: list[Fact]) -> dict[int, Factors]:
    """Take the factors of all facts' edit losses, within the budget of tokens."""
    parts = []
    for chunk in by_length(lengths(task.tokenizer, facts), task.numbers.max_tokens):
        pairs = [(facts[i].text, facts[i].target) for i in chunk]
        parts.append(factors(task.model, places, rows(task.tokenizer, pairs, task.model.device)))
    return {site.layer: join([part[site.layer] for part in parts]) for site in places}


def _places(task: Task) -> list[Site]:
    """List the down-projections that are edited."""
    count = len(blocks(task.model))
    return sites(task.model, task.numbers.layers or tuple(range(max(0, count - 3), count)))


def _check(net: Weights, places: list[Site]) -> None:
    """Raise `ModelError` unless `net` was trained for these sites."""
    for site in places:
        size = tuple(site.weight.shape)
        u, delta = (net.get(f"{site.layer}.{name}.mean") for name in ("u", "delta"))
        if u is None or (*delta.shape, *u.shape) != size:
            text = f"MEND was not trained for layer {site.layer} of shape {size}; train it first"
            raise ModelError(text)
