"""Facts that use the same neurons: Jaccard distances, k-medoids, anchors (Eq 9-10)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RESTARTS = 4
ROUNDS = 100


@dataclass(frozen=True)
class Groups:
    """A partition of facts; cluster `c` is `labels == c` and its anchor is `medoids[c]`."""

    labels: Int[Tensor, " edit"]
    """The cluster of each fact."""
    medoids: Int[Tensor, " cluster"]
    """The anchor of each cluster (Eq 10), an index of a fact."""
    cost: float
    """The objective of Eq 9: summed distance of the facts to their anchors."""


def jaccard(sets: Bool[Tensor, "edit ff"]) -> Float[Tensor, "edit edit"]:
    r"""Distance $1 - |A\cap B| / |A\cup B|$ between all pairs of neuron sets, in [0, 1] (Eq 9).

    >>> jaccard(torch.tensor([[True, True, False, False], [True, False, False, False]]))[0, 1]
    tensor(0.5000, dtype=torch.float64)
    """
    member = sets.double()
    both = member @ member.T
    size = member.sum(1)
    either = size[:, None] + size[None] - both
    return 1 - torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both))


def k_medoids(distance: Float[Tensor, "edit edit"], k: int, seed: int = 0) -> Groups:
    """Partition into at most `k` clusters around medoids; Eq 9 with facts as centres.

    The best of a few seeded starts; every tie goes to the lower index, so equal inputs give
    equal groups. A cluster that loses all its facts is reseeded at the fact farthest from
    its medoid; where all distances are 0 it is dropped (as with WI's identical sets).
    """
    if not 1 <= k <= len(distance):
        raise ValueError(f"k must be in 1..{len(distance)}, the number of facts; got {k}")
    draw = torch.Generator().manual_seed(seed)
    distance = distance.double().cpu()
    tries = [_descend(distance, _start(distance, k, draw)) for _ in range(RESTARTS)]
    return min(tries, key=lambda groups: groups.cost)  # min keeps the first of equals


def _start(distance: Tensor, k: int, draw: torch.Generator) -> Tensor:
    """Seeds far apart: each drawn with probability proportional to its squared distance.

    k-means++ (Arthur and Vassilvitskii 2007), among the facts.
    """
    chosen = [int(torch.randint(len(distance), (1,), generator=draw))]
    while len(chosen) < k:
        weight = distance[:, chosen].min(1).values ** 2
        if weight.sum() <= 0:
            break
        chosen.append(int(torch.multinomial(weight, 1, generator=draw)))
    return torch.tensor(sorted(chosen))


def _descend(distance: Tensor, medoids: Tensor) -> Groups:
    """Assign, move each medoid to its cluster's centre, until nothing moves (Park and Jun 2009)."""
    for _ in range(ROUNDS):
        labels, medoids = _assign(distance, medoids)
        moved = torch.stack([centre(distance, labels == c) for c in range(len(medoids))])
        if torch.equal(moved, medoids):
            break
        medoids = moved
    labels, medoids = _assign(distance, medoids)
    return Groups(labels, medoids, float(distance.gather(1, medoids[labels][:, None]).sum()))


def _assign(distance: Tensor, medoids: Tensor) -> tuple[Tensor, Tensor]:
    """Assign each fact to its nearest medoid; reseed or drop emptied clusters."""
    while True:
        near, labels = distance[:, medoids].min(1)
        sizes = torch.bincount(labels, minlength=len(medoids))
        if (sizes > 0).all():
            return labels, medoids
        empty = int((sizes == 0).nonzero()[0])
        if near.max() > 0:
            medoids = medoids.clone()
            medoids[empty] = near.argmax()
        else:
            medoids = torch.cat([medoids[:empty], medoids[empty + 1 :]])


def centre(distance: Float[Tensor, "edit edit"], members: Bool[Tensor, " edit"]) -> Tensor:
    """Eq 10: the member with the smallest summed distance to the members (lowest index)."""
    inside = members.nonzero()[:, 0]
    return inside[distance[inside][:, inside].sum(1).argmin()]
