"""RECT (Gu et al. 2024): MEMIT whose update keeps only its relatively largest entries."""

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ece.baselines.least_squares import LeastSquares
from ece.errors import checked


@checked
class Rect(LeastSquares):
    """Least squares over all neurons, then most of the update's entries are dropped."""

    keep: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of an update's entries that stay: those largest relative to their weight."""

    def finish(
        self, delta: Float[Tensor, "model ff"], W: Float[Tensor, "model ff"]
    ) -> Float[Tensor, "model ff"]:
        """Drop all but the relatively largest entries; ties at the edge stay in."""
        relative = (delta / W.to(delta)).abs().nan_to_num(posinf=torch.inf)
        count = max(1, round(self.keep * relative.numel()))
        edge = relative.flatten().kthvalue(relative.numel() - count + 1).values
        return torch.where(relative >= edge, delta, torch.zeros_like(delta))
