"""MEND (Mitchell et al. 2022): a network, trained ahead, turns gradients into edits.

Only down-projections are edited, where the paper edits both projections of an MLP: `Site`
names them for every family alike, while what stands before them differs (one matrix, or
two with a gate).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ece.baselines.base import Task, Weights, mark_of, names_of, wordings
from ece.baselines.likelihood import log_probs, nll, rows
from ece.baselines.mend.network import (
    Factors,
    edited,
    factors,
    join,
    new_net,
    normalisers,
)
from ece.baselines.training import fit
from ece.errors import ConfigError, ModelError
from ece.facts import Fact, by_length, encode, target_ids, validate
from ece.model import Site, blocks, sites

SAMPLE = 256  # training facts that the normalisation is measured on


@dataclass(frozen=True)
class Mend:
    """Settings of MEND and of its training."""

    layers: tuple[int, ...] | None = None
    """Blocks whose down-projections are edited, each once; None: the model's last three."""
    rank: int = 256
    """Rank of the network's layers, >= 1."""
    steps: int = 1600
    """Training steps, >= 0; with 0 the network passes normalised gradients on."""
    lr: float = 1e-3
    """Learning rate of Adam in training, > 0; it falls to 0 as a cosine."""
    edit_lr: float = 3e-3
    """Where the learned step sizes of edits start, > 0, per unit of normalised gradient."""
    edit_weight: float = 1.0
    """$c_e$, >= 0: weight of the edit loss in training; locality has weight 1. With 0.1
    a third of the edits of an embedded model failed after 400 and after 800 steps."""
    most: int = 8
    """Edits at once in a training step: 1 to `most`, drawn."""
    near: int = 2
    """Neighbours of each edit on which the model should not move in training, >= 0."""
    far: int = 2
    """Prompts of other facts per edit on which it should not move in training, >= 1."""
    max_tokens: int = 4096
    """Most tokens in a forward pass when editing, >= 1."""
    seen: bool = False
    """Whether training sees paraphrases too, in whose wordings generalization is asked."""
    seed: int = 0
    """Seed of the network's start and of training's draws, >= 0."""

    def __post_init__(self) -> None:
        least = dict(rank=1, steps=0, edit_weight=0, most=1, near=0, far=1, max_tokens=1, seed=0)
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                text = f"{name} is {getattr(self, name)}; give a number of at least {bound}"
                raise ConfigError(text)
        for name in ("lr", "edit_lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a number above 0")
        if self.layers is not None and not 0 < len(self.layers) == len(set(self.layers)):
            raise ConfigError(f"layers are {self.layers}; name at least one, and each once")


def edit(task: Task, facts: list[Fact]) -> Weights:
    """New values of the edited down-projections for a batch; the model stays as it is.

    Each fact's gradient is taken at the model's present weights, and transformed; the sum of
    all facts' updates is subtracted. Raises `FactError` for an unusable batch,
    `ModelError` for an untrained editor or values that are not finite.
    """
    validate(facts, task.tokenizer, task.model)
    places = _places(task)
    device = places[0].weight.device
    net = {name: value.to(device) for name, value in task.trained.items()}
    _check(net, places)
    found = _gradients(task, places, facts)
    with torch.no_grad():
        values = edited(net, places, found, names_of(task.model, places))
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise ModelError(f"MEND's new {name} is not finite; train with a smaller lr")
    return {name: value.contiguous() for name, value in values.items()}


def train(
    task: Task,
    facts: list[Fact],
    save_to: str | Path | None = None,
    progress: Callable | None = None,
) -> Weights:
    """The network's weights after training on `facts`, which are never edited later.

    Adam on `edit_weight` times the NLL of the new objects after an edit, plus the KL
    divergence by which the edit moves other prompts. `ConfigError` for fewer than
    two facts. save_to, progress: as in `fit`.
    """
    if len(facts) < 2:
        raise ConfigError(f"MEND trains on at least two facts and was given {len(facts)}; add some")
    numbers, places = task.numbers, _places(task)
    names = names_of(task.model, places)
    device = places[0].weight.device
    measured = normalisers(_gradients(task, places, facts[:SAMPLE]))
    measured = {name: value.to(device) for name, value in measured.items()}

    def loss(net: Weights, draw: torch.Generator) -> Tensor:
        chosen, near, far = _draw(facts, numbers, draw)
        found = _gradients(task, places, chosen)
        new = edited({**net, **measured}, places, found, names)
        return _loss(task, new, chosen, [*near, *far])

    net = new_net(places, numbers.rank, numbers.edit_lr, numbers.seed, device)
    mark = mark_of(task, facts)
    net = fit(net, loss, numbers.steps, numbers.lr, mark, numbers.seed, save_to, progress)
    return {**net, **measured}


def _loss(task: Task, new: Weights, facts: list[Fact], others: list[str]) -> Float[Tensor, ""]:
    """How badly `new` weights say the facts, and how far they move `others`."""
    device = task.model.device
    seen = task.numbers.seen
    pairs = [(prompt, fact.target) for fact in facts for prompt in wordings(fact, seen)]
    asked = rows(task.tokenizer, pairs, device)
    taken = nll(log_probs(task.model, asked, new), asked) / len(pairs)
    kept = rows(task.tokenizer, [(prompt, "") for prompt in others], device)
    with torch.no_grad():
        usual = log_probs(task.model, kept, {})
    said = log_probs(task.model, kept, new)
    moved = (usual.exp() * (usual - said)).sum(1).mean()
    return task.numbers.edit_weight * taken + moved


def _draw(
    facts: list[Fact], numbers: Mend, draw: torch.Generator
) -> tuple[list[Fact], list[str], list[str]]:
    """Facts of a training step, prompts of their neighbours, and prompts of other facts."""
    most = min(numbers.most, len(facts) - 1)
    count = int(torch.randint(1, most + 1, (), generator=draw))
    order = [facts[i] for i in torch.randperm(len(facts), generator=draw).tolist()]
    chosen, far = order[:count], order[count : count * (1 + numbers.far)]
    asked = {prompt for fact in chosen for prompt in wordings(fact, True)}
    near = []
    for fact in chosen:
        free = [prompt for prompt in fact.neighbours if prompt not in asked]
        picks = torch.randperm(len(free), generator=draw)[: numbers.near]
        near += [free[i] for i in picks.tolist()]
    return chosen, near, [fact.text for fact in far]


def _gradients(task: Task, places: list[Site], facts: list[Fact]) -> dict[int, Factors]:
    """Factors of all facts' edit losses, within the budget of tokens."""
    texts = [fact.text for fact in facts]
    sizes = [
        len(encode(task.tokenizer, text)) + len(target_ids(task.tokenizer, fact.target))
        for text, fact in zip(texts, facts, strict=True)
    ]
    parts = []
    for chunk in by_length(sizes, task.numbers.max_tokens):
        pairs = [(texts[i], facts[i].target) for i in chunk]
        parts.append(factors(task.model, places, rows(task.tokenizer, pairs, task.model.device)))
    return {site.layer: join([part[site.layer] for part in parts]) for site in places}


def _places(task: Task) -> list[Site]:
    """The down-projections that are edited."""
    layers = task.numbers.layers
    if layers is None:
        count = len(blocks(task.model))
        layers = tuple(range(max(0, count - 3), count))
    return sites(task.model, layers)


def _check(net: Weights, places: list[Site]) -> None:
    """`ModelError` unless `net` was trained for these sites."""
    for site in places:
        size = tuple(site.weight.shape)
        u, delta = (net.get(f"{site.layer}.{name}.mean") for name in ("u", "delta"))
        if u is None or (*delta.shape, *u.shape) != size:
            text = f"MEND was not trained for layer {site.layer} of shape {size}; train it first"
            raise ModelError(text)
