"""ROME (Meng et al. 2022): one fact after the other, each written exactly."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ece.baselines.least_squares import old_factor, solve_factored
from ece.config import Config
from ece.errors import checked
from ece.solver import Knowledge, Update
from ece.strategy import Strategy


@checked
class Rome(Strategy):
    r"""The least change to old outputs that has $\Delta K^T = R$; EMMET for several facts."""

    history: Literal[False] = False
    """ROME keeps no history."""
    values_from: Literal["current"] = "current"
    """Each value comes from the weights that the fact before left."""

    batch = 1
    chooses = False

    def prepare(self, moment: Float[Tensor, "ff ff"], config: Config) -> Tensor:
        r"""Factorise $\lambda C_0$ once: it never changes."""
        return old_factor(moment, config)

    def solve(self, R: Tensor, K: Tensor, known: Knowledge, config: Config) -> Update:
        r"""Solve $\Delta = R (K A^{-1} K^T)^{-1} K A^{-1}$ with $A = \lambda C_0$."""
        return solve_factored(R, K, known.prepared, 0.0)
