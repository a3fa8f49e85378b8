"""Values by gradient descent: all facts at once, and in two steps (Eq 11-13)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ece.clustering import Groups, jaccard, k_medoids
from ece.config import Config
from ece.objective import Objective
from ece.scoring import fact_sets, scores

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's usual ones
COLUMNS = ("hidden", "delta", "nll", "steps", "holds")  # one entry a fact


@dataclass(frozen=True)
class Values:
    """The states that the facts' subjects should have after `layer`, and how they were found."""

    facts: tuple[tuple[str, str, str], ...]
    """Whose values these are: the facts' texts and targets; empty until the editor says."""
    layer: int
    """The layer after which the values enter."""
    hidden: Float[Tensor, "edit model"]
    """$h$, the states before."""
    delta: Float[Tensor, "edit model"]
    r"""$U + \delta$ of Eq 13."""
    losses: Float[Tensor, "time edit"]
    """NLL (nats per token) before the first step and after each; a fact that has finished
    keeps its last. In two-step descent this is phase 2."""
    nll: Float[Tensor, " edit"]
    """NLL of the unchanged model."""
    steps: Int[Tensor, " edit"]
    """Steps that each fact took (in phase 2)."""
    holds: Bool[Tensor, " edit"]
    """Facts that the unchanged model already states."""
    groups: Groups | None = None
    """The clusters, where there are any."""
    shared: "Values | None" = None
    """Phase 1: with "anchor" one column per cluster, with "mean" one per fact."""
    first: "Values | None" = None
    """Values at the first edit layer, where the strategy has some enter there, too."""
    features: Float[Tensor, "edit feature"] | None = None
    """What a learned start was predicted from (`ece.learned_start`); None with other starts."""
    model: str = ""
    """Fingerprint of the unedited model they are for; empty until the editor says."""
    seconds: float = 0.0
    """Wall time of finding them, with preparation and clustering."""

    @property
    def z(self) -> Float[Tensor, "edit model"]:
        r"""$z = h + U + \delta$, Eq 13."""
        return self.hidden + self.delta

    @property
    def before(self) -> Float[Tensor, " edit"]:
        """Probability per target token (geometric mean) of the unchanged model."""
        return (-self.nll).exp()

    @property
    def after(self) -> Float[Tensor, " edit"]:
        """The same with the value in place, before any weight changes."""
        return (-self.losses[-1]).exp()


def renewed(values: Values, at: list[int], new: Values) -> Values:
    """Replace the values of the facts `at` by `new`; groups stay as they were."""
    changed = {}
    for name in COLUMNS:
        changed[name] = getattr(values, name).clone()
        changed[name][at] = getattr(new, name).to(changed[name])
    losses = values.losses.clone()
    losses[:, at] = new.losses.to(losses)
    first = None if values.first is None else renewed(values.first, at, new.first)
    more = {"first": first, "features": None, "seconds": values.seconds + new.seconds}
    return replace(values, **changed, losses=losses, **more)


def descend(
    objective: Objective, config: Config, steps: int, start: Tensor | None = None,
    owner: Int[Tensor, " edit"] | None = None,
) -> Values:  # fmt: skip
    """Run Adam on all values at once (Eq 11-12); facts that are done (`stop`) leave the batch.

    Values start at `start` (default 0). Fact i descends on value `owner[i]` (default: its own), a
    shared value on its facts' mean loss. Clamp and decay act on the whole value, relative to `h`.
    """
    hidden = objective.hidden
    owner = torch.arange(len(hidden), device=hidden.device) if owner is None else owner
    sizes, norms = torch.bincount(owner), hidden.norm(dim=1)
    weight = 1 / sizes[owner].float()
    total = hidden.new_zeros(len(sizes), hidden.shape[1]) if start is None else start.clone()
    length = norms.new_zeros(len(sizes)).index_add(0, owner, weight * norms)
    limit, rate = config.clamp * length, step_sizes(length, hidden.shape[1], config)
    total, taken = _clamped(total, limit), torch.zeros_like(sizes)
    parts, nll = objective.merge(objective.parts), objective.nll.clone()
    moments, losses = (torch.zeros_like(total), torch.zeros_like(total)), []
    for step in range(steps + 1):
        gradient, found = torch.zeros_like(total), torch.zeros_like(nll)
        for part in objective.share(parts):
            at, last = part.facts, step == steps  # after the last step the loss alone
            found[at], some = _measure(part, total, owner, weight[at], norms[at], config, last)
            gradient += some
        seen = torch.cat([part.facts for part in parts])
        nll[seen], gradient = objective.total(found)[seen], objective.total(gradient)
        losses.append(nll.clone())
        live = _unfinished(nll, owner, weight, config)
        if step == steps or not live.any():
            break
        left = [(part, live[owner[part.facts]]) for part in parts]
        parts = objective.merge([part if keep.all() else part.take(keep.nonzero()[:, 0])
                                 for part, keep in left if keep.any()])  # fmt: skip
        moments, move = _adam(moments, gradient, step + 1)
        total = _clamped(total - rate[:, None] * move * live[:, None], limit)
        taken += live
    curve = torch.stack(losses + [losses[-1]] * (steps + 1 - len(losses)))
    columns = (total[owner], curve, objective.nll, taken[owner], objective.holds)
    return Values((), objective.layer, hidden, *columns)


def step_sizes(length: Float[Tensor, " n"], width: int, config: Config) -> Float[Tensor, " n"]:
    """Give Adam's rates in units of the stream; a first step is about sqrt(width) times as long."""
    unit = torch.ones_like(length) if config.lr_unit == "stream" else length / width**0.5
    return config.lr * unit


def _measure(part, total: Tensor, owner, weight, norms, config: Config, last: bool):
    """Measure the NLL of the part's facts, and the gradient of their weighted loss (or 0)."""
    if last:
        with torch.no_grad():
            return part.losses(total[owner[part.facts]])[0], 0.0
    with torch.enable_grad():
        leaf = total.detach().requires_grad_()
        value = leaf[owner[part.facts]]
        nll, kl = part.losses(value)
        decay = config.weight_decay * value.norm(dim=1) / norms**2
        loss = nll + config.kl_factor * kl + decay
        return nll.detach(), torch.autograd.grad((weight * loss).sum(), leaf)[0]


def _unfinished(nll: Tensor, owner: Tensor, weight: Tensor, config: Config) -> Tensor:
    """Say which values still move: those whose facts' mean NLL is not below `stop`."""
    means = nll.new_zeros(int(owner.max()) + 1).index_add_(0, owner, weight * nll)
    return torch.ones_like(means, dtype=torch.bool) if config.stop is None else means >= config.stop


def _adam(moments: tuple[Tensor, Tensor], gradient: Tensor, step: int):
    """Take Adam's step, elementwise: each value moves as if it were alone."""
    first = BETAS[0] * moments[0] + (1 - BETAS[0]) * gradient
    second = BETAS[1] * moments[1] + (1 - BETAS[1]) * gradient**2
    root = (second / (1 - BETAS[1] ** step)).sqrt() + EPSILON
    return (first, second), first / (1 - BETAS[0] ** step) / root


def _clamped(total: Tensor, limit: Tensor) -> Tensor:
    """Shorten values that are longer than their limit."""
    norm = total.norm(dim=1)
    return total * torch.where(norm > limit, limit / norm, torch.ones_like(norm))[:, None]


def groups_of(objective: Objective, W: Float[Tensor, "model ff"], config: Config) -> Groups:
    """Cluster facts by the neurons they use at the layer where values enter (Eq 9-10).

    Scores that do not look at the fact ("weight", "all") give every fact the same set;
    there the activation sets are clustered instead. So does p = 1: the default is used there.
    """
    share = config.p if config.p < 1 else Config.p
    kind = "activation" if config.scorer in ("weight", "all") else config.scorer
    score = scores(kind, objective.keys.to(W.device), W).to(objective.nll.device)
    k = min(config.clusters, len(objective.keys))
    # Taken in the order of their NLL, so that the facts' order in the batch plays no part.
    order = objective.nll.argsort()
    found = k_medoids(jaccard(fact_sets(score[order], share)), k, config.seed)
    order = order.to(found.labels.device)
    labels = torch.empty_like(found.labels).scatter(0, order, found.labels)
    return replace(found, labels=labels, medoids=order[found.medoids])


def two_step(objective: Objective, W: Float[Tensor, "model ff"], config: Config) -> Values:
    """Descend once per cluster, then from there once per fact (Eq 11-13).

    Without clusters every fact descends alone for `config.steps`.
    """
    if config.clusters is None:
        return descend(objective, config, config.steps, start=objective.start)
    groups, common = groups_of(objective, W, config), config.steps - config.own_steps
    labels = groups.labels.to(objective.hidden.device)
    start, shared = None, None
    if config.shared == "anchor":
        shared = descend(objective.take(groups.medoids.to(labels.device)), config, common)
        start = shared.delta[labels]
    elif config.shared == "mean":
        shared = descend(objective, config, common, owner=labels)
        start = shared.delta
    elif config.shared == "learned":
        start = objective.start
    own = descend(objective, config, config.own_steps, start=start)
    return replace(own, groups=groups, shared=shared)
