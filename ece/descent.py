"""Values by gradient descent: all facts at once, and in two steps (Eq 11-13)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ece.clustering import Groups, jaccard, k_medoids
from ece.config import Config
from ece.engine.loss import Chunk, Problem, kl_of, log_probs, merged, nll_of, wins
from ece.facts import ENOUGH
from ece.scoring import fact_sets, scores

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's usual ones


@dataclass(frozen=True)
class Values:
    """What the facts' subjects should look like after `layer`, and how that was found."""

    layer: int
    """The layer where the values enter."""
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
    """Steps each fact took (in phase 2)."""
    holds: Bool[Tensor, " edit"]
    """Facts that the unchanged model already states."""
    groups: Groups | None = None
    """The clusters, where there are any."""
    shared: "Values | None" = None
    """Phase 1: with "anchor" one column per cluster, with "mean" one per fact."""
    first: "Values | None" = None
    """With `spread="boundary"`, the values at the first edit layer."""
    seconds: float = 0.0
    """Wall time of finding them, preparation and clustering included."""

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
    """`values` with those of the facts `at` replaced by `new`; groups stay as they were."""
    changed = {}
    for name in ("hidden", "delta", "nll", "steps", "holds"):
        changed[name] = getattr(values, name).clone()
        changed[name][at] = getattr(new, name).to(changed[name])
    losses = values.losses.clone()
    losses[:, at] = new.losses.to(losses)
    first = None if values.first is None else renewed(values.first, at, new.first)
    seconds = values.seconds + new.seconds
    return replace(values, **changed, losses=losses, first=first, seconds=seconds)


def descend(
    problem: Problem,
    config: Config,
    steps: int,
    start: Tensor | None = None,
    owner: Int[Tensor, " edit"] | None = None,
) -> Values:
    """Adam on all values at once; facts that are done (`stop`, `stop_sure`) leave the batch.

    Values start at `start` (default 0). `owner[i]` is the value that fact i descends on
    (default: its own); a shared value descends on the mean loss of its facts. Clamp and
    decay act on the whole value, relative to the norm of `h`.
    """
    hidden = problem.hidden
    owner = torch.arange(len(hidden), device=hidden.device) if owner is None else owner
    sizes = torch.bincount(owner)
    weight = 1 / sizes[owner].float()
    total = hidden.new_zeros(len(sizes), hidden.shape[1]) if start is None else start.clone()
    norms = hidden.norm(dim=1)
    limit = config.clamp * norms.new_zeros(len(sizes)).index_add(0, owner, weight * norms)
    total = _clamped(total, limit)
    most, taken = min(ENOUGH, config.max_tokens), torch.zeros_like(sizes)
    chunks = merged(problem.chunks, most)
    moments, losses = (torch.zeros_like(total), torch.zeros_like(total)), []
    nll, sure = problem.nll.clone(), torch.zeros_like(problem.holds)
    for step in range(steps + 1):
        gradient = torch.zeros_like(total)
        for chunk in chunks:
            at = chunk.facts
            share = weight[at] if step < steps else None
            nll[at], sure[at] = _push(chunk, total, owner, share, norms[at], config, gradient)
        losses.append(nll.clone())
        live = _unfinished(nll, sure, owner, weight, config)
        if step == steps or not live.any():
            break
        left = [part for part in (_alive(chunk, live[owner]) for chunk in chunks) if part]
        chunks = merged(left, most)
        moments, move = _adam(moments, gradient, step + 1)
        total = _clamped(total - config.lr * move * live[:, None], limit)
        taken += live
    told = torch.stack(losses + [losses[-1]] * (steps + 1 - len(losses)))
    return Values(
        problem.layer, hidden, total[owner], told, problem.nll, taken[owner], problem.holds
    )


def _push(
    chunk: Chunk,
    total: Tensor,
    owner: Tensor,
    weight: Tensor | None,
    norms: Tensor,
    config: Config,
    gradient: Tensor,
) -> tuple[Tensor, Tensor]:
    """The chunk's facts at `total`: NLL, and whether all contexts go on with the target.

    Adds the loss's gradient unless `weight` is None.
    """
    with torch.set_grad_enabled(weight is not None):
        leaf = total.detach().requires_grad_(weight is not None)
        value = leaf[owner[chunk.facts]]
        told, essence = log_probs(chunk, value)
        nll = nll_of(chunk, told)
        if weight is not None:
            decay = config.weight_decay * value.norm(dim=1) / norms**2
            loss = nll + config.kl_factor * kl_of(chunk, essence) + decay
            gradient += torch.autograd.grad((weight * loss).sum(), leaf)[0]
    return nll.detach(), wins(chunk, told.detach()).all(1)


def _unfinished(nll: Tensor, sure: Tensor, owner: Tensor, weight: Tensor, config) -> Tensor:
    """Which values still move: with all their facts' mean NLL not below `stop`, or not all sure."""
    means = nll.new_zeros(2, int(owner.max()) + 1)
    means.index_add_(1, owner, torch.stack([weight * nll, (~sure).to(nll)]))
    live = torch.ones_like(means[0], dtype=torch.bool)
    if config.stop is not None:
        live &= means[0] >= config.stop
    if config.stop_sure:
        live &= means[1] > 0
    return live


def _alive(chunk: Chunk, live: Tensor) -> Chunk | None:
    keep = live[chunk.facts]
    if keep.all():
        return chunk
    return chunk.take(keep.nonzero()[:, 0]) if keep.any() else None


def _adam(moments: tuple[Tensor, Tensor], gradient: Tensor, step: int):
    """Adam's update, elementwise: each value moves as if it were alone."""
    first = BETAS[0] * moments[0] + (1 - BETAS[0]) * gradient
    second = BETAS[1] * moments[1] + (1 - BETAS[1]) * gradient**2
    root = (second / (1 - BETAS[1] ** step)).sqrt() + EPSILON
    return (first, second), first / (1 - BETAS[0] ** step) / root


def _clamped(total: Tensor, limit: Tensor) -> Tensor:
    """Values longer than their limit are shortened to it."""
    norm = total.norm(dim=1)
    return total * torch.where(norm > limit, limit / norm, torch.ones_like(norm))[:, None]


def groups_of(problem: Problem, W: Float[Tensor, "model ff"], config: Config) -> Groups:
    """Clusters of facts by the neurons they use at the layer where values enter.

    Scores that do not look at the fact ("weight", "all") give every fact the same set;
    there the activation sets are clustered instead.
    """
    blind = config.scorer in ("weight", "all")
    score = scores("activation" if blind else config.scorer, problem.keys, W)
    k = min(config.clusters, len(problem.keys))
    return k_medoids(jaccard(fact_sets(score, config.p)), k, config.seed)


def two_step(problem: Problem, W: Float[Tensor, "model ff"], config: Config) -> Values:
    """Eq 11-13: descend once per cluster, then from there once per fact.

    Without clusters every fact descends alone for `config.steps`.
    """
    if config.clusters is None:
        return descend(problem, config, config.steps)
    groups, common = groups_of(problem, W, config), config.steps - config.own_steps
    labels = groups.labels.to(problem.hidden.device)
    start, shared = None, None
    if config.shared != "zero":
        if config.shared == "anchor":
            shared = descend(problem.take(groups.medoids.to(labels.device)), config, common)
            start = shared.delta[labels]
        else:
            shared = descend(problem, config, common, owner=labels)
            start = shared.delta
    own = descend(problem, config, config.own_steps, start=start)
    return replace(own, groups=groups, shared=shared)
