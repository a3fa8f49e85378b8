"""PRUNE (Ma et al. 2025): what a sequence of edits added up to is restrained when it is used."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ece.model import sites


def restrain(
    update: Float[Tensor, "model ff"], weight: Float[Tensor, "model ff"], base: float
) -> Float[Tensor, "model ff"]:
    r"""`update` with its large singular values pulled in, float64.

    One above the largest of the unedited `weight`, $\sigma > \sigma_0$, becomes
    $\sigma_0 + \log_b \sigma - \log_b \sigma_0$ where that is less (as printed it depends on the
    unit of the weights, and can be more where $\sigma_0$ is small); the others stay as they are.
    """
    top = torch.linalg.matrix_norm(weight.double(), ord=2)
    left, values, right = torch.linalg.svd(update.double(), full_matrices=False)
    if not (values > top).any():
        return update.double()
    pulled = torch.minimum(values, top + (values / top).log() / math.log(base))
    return left * torch.where(values > top, pulled, values) @ right


@contextmanager
def restrained(
    model: nn.Module, originals: dict[int, Tensor], base: float | None
) -> Iterator[nn.Module]:
    """Within, the edited layers hold their original weights plus the restrained update.

    `originals`: layer -> `[model, ff]` as it was before the sequence. Afterwards the weights
    are back, bit for bit, so that a sequence goes on from the update as it is. base None: no-op.
    """
    places = sites(model, tuple(originals)) if base is not None else []
    kept = [site.weight.clone() for site in places]
    try:
        for site, edited in zip(places, kept, strict=True):
            first = originals[site.layer].to(edited.device)
            update = restrain(edited.double() - first.double(), first, base)
            site.weight.copy_(first.double() + update)
        yield model
    finally:
        for site, edited in zip(places, kept, strict=True):
            site.weight.copy_(edited)
