"""Which neurons carry a fact: three scores (Eq 5-7) and the selection rule (Eq 8).

Pure functions of tensors. A neuron is one column of $W_{out}$ and one entry of the key.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def activation(keys: Float[Tensor, "edit ff"]) -> Float[Tensor, "edit ff"]:
    r"""AS, Eq 5: $|k_{ij}|$, how strongly fact i drives neuron j."""
    return keys.double().abs()


def weight(W: Float[Tensor, "model ff"], edits: int) -> Float[Tensor, "{edits} ff"]:
    r"""WI, Eq 6: $\sum_m |W_{mj}|$, the same for every fact (the input plays no part)."""
    return W.double().abs().sum(0).expand(edits, -1)


def residual(
    keys: Float[Tensor, "edit ff"], W: Float[Tensor, "model ff"]
) -> Float[Tensor, "edit ff"]:
    r"""RS, Eq 7: $|k_{ij}|\,\lVert W_{:j}\rVert_2$, what neuron j adds to the stream."""
    return keys.double().abs() * W.double().norm(dim=0)


def scores(
    name: str, keys: Float[Tensor, "edit ff"], W: Float[Tensor, "model ff"]
) -> Float[Tensor, "edit ff"]:
    """Compute the score called `name` (Eq 5-7); "all" scores every neuron alike."""
    if name == "activation":
        return activation(keys)
    if name == "weight":
        return weight(W, len(keys))
    return residual(keys, W) if name == "residual" else torch.ones_like(keys, dtype=torch.double)


def fact_sets(scores: Float[Tensor, "edit ff"], p: float) -> Bool[Tensor, "edit ff"]:
    r"""Eq 8 per fact: the shortest descending prefix with sum $\ge p\cdot$ total.

    Ties go to the lower index, a set is never empty, p = 1 chooses every neuron. Sums are
    float64. Scores must be finite and >= 0.
    """
    scores = scores.double()
    if not torch.isfinite(scores).all() or (scores < 0).any():
        raise ValueError("neuron scores must be finite and not negative")
    if p >= 1:
        return torch.ones_like(scores, dtype=torch.bool)
    ranked, order = scores.sort(dim=1, descending=True, stable=True)
    reached = ranked.cumsum(1)
    # A neuron is in the prefix if the sum before it still falls short; the first always is.
    short = torch.ones_like(scores, dtype=torch.bool)
    short[:, 1:] = reached[:, :-1] < p * reached[:, -1:]
    return torch.zeros_like(short).scatter(1, order, short)


def select(scores: Float[Tensor, " ff"], p: float) -> Bool[Tensor, " ff"]:
    """Eq 8 for one vector of scores; see `fact_sets`.

    >>> select(torch.tensor([1.0, 4.0, 3.0, 2.0]), p=0.6).tolist()
    [False, True, True, False]
    """
    return fact_sets(scores[None], p)[0]


def batch_set(scores: Float[Tensor, "edit ff"], p: float) -> Bool[Tensor, " ff"]:
    """Choose one set for a batch: scores normalised per fact, summed, then Eq 8.

    Without the normalisation facts with long keys would choose for all.
    """
    total = scores.double().sum(1, keepdim=True)
    return select((scores.double() / total.clamp_min(torch.finfo(torch.double).tiny)).sum(0), p)
