"""ROME (Meng et al. 2022): one fact after the other, each written exactly."""

from typing import Literal

from ece.baselines.least_squares import LeastSquares
from ece.errors import checked


@checked
class Rome(LeastSquares):
    r"""The least change to old outputs that has $\Delta K^T = R$; EMMET for several facts.

    $\Delta = R (K A^{-1} K^T)^{-1} K A^{-1}$ with $A = \lambda C_0$, factorised once.
    """

    history: Literal[False] = False
    """ROME keeps no history."""
    values_from: Literal["current"] = "current"
    """Each value comes from the weights that the fact before left."""

    batch = 1
    slack = 0.0
