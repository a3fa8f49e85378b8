"""PRUNE (Ma et al. 2025): what a sequence of edits added up to is restrained when it is used."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from ece.baselines.least_squares import LeastSquares
from ece.config import Config
from ece.errors import checked
from ece.model import sites


@checked
class Prune(LeastSquares):
    """MEMIT, used through `view` with the sequence's whole update restrained."""

    base: Annotated[float, Field(gt=1, lt=1e6)] = 1.2
    """Base of the logarithm that restrains the update's singular values."""

    def remember(self, model: nn.Module, config: Config) -> dict[int, Tensor]:
        """Copy the edit layers' weights before the sequence, `[model, ff]` by layer."""
        return {site.layer: site.weight.clone() for site in sites(model, config.layers)}

    @contextmanager
    def view(self, model: nn.Module, remembered: dict[int, Tensor]) -> Iterator[nn.Module]:
        """Hold the original weights plus the restrained update, within the block.

        Afterwards the weights are back, bit for bit: a sequence goes on from its own update.
        """
        places = sites(model, tuple(remembered))
        edited = [site.weight.clone() for site in places]
        try:
            for site, now in zip(places, edited, strict=True):
                first = remembered[site.layer].to(now.device)
                update = restrain(now.double() - first.double(), first, self.base)
                site.write(first.double() + update)
            yield model
        finally:
            for site, now in zip(places, edited, strict=True):
                site.write(now)


def restrain(
    update: Float[Tensor, "model ff"], weight: Float[Tensor, "model ff"], base: float
) -> Float[Tensor, "model ff"]:
    r"""Pull in the large singular values of `update`, in float64.

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
