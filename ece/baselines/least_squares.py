"""Least squares over all neurons whose old knowledge never changes: factorised once a sequence."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ece.config import Config
from ece.errors import checked
from ece.solver import Knowledge, Update, factorise
from ece.strategy import Strategy


def old_factor(moment: Float[Tensor, "ff ff"], config: Config) -> Float[Tensor, "ff_1 ff"]:
    r"""Factorise $\lambda C_0$ with its ridge; the last row holds the jitter that it took."""
    system = moment.double() * config.lam
    system.diagonal().add_(config.ridge * config.lam * moment.diagonal().double().mean())
    factor, jitter = factorise(system, warn=True)
    return torch.cat([factor, factor.new_full((1, len(factor)), jitter)])


def solve_factored(
    R: Float[Tensor, "model edit"],
    K: Float[Tensor, "edit ff"],
    prepared: Float[Tensor, "ff_1 ff"],
    slack: float,
) -> Update:
    r"""Solve $\Delta = R (s I + K A^{-1} K^T)^{-1} K A^{-1}$ from the factor of $A$, `old_factor`.

    `slack` $s = 1$ is Eq 4 without a history (by Woodbury's identity), 0 writes R exactly.
    """
    factor, jitter = prepared[:-1].to(K.device), float(prepared[-1, 0])
    gain = torch.cholesky_solve(K.double().T, factor)  # [ff, edit]
    small = K.double() @ gain
    small.diagonal().add_(slack)
    inner, more = factorise(small)
    delta = R.double() @ torch.cholesky_solve(gain.T, inner)
    return Update(delta, max(jitter, more))


@checked
class LeastSquares(Strategy):
    """MEMIT's solve, for the methods that change something else about it."""

    history: bool = False
    """Whether keys of earlier batches count as knowledge to keep."""

    chooses = False
    slack: ClassVar[float] = 1.0
    """How much each key may miss its residual, as in `solve_factored`; 0 writes it exactly."""

    def prepare(self, moment: Float[Tensor, "ff ff"], config: Config) -> Tensor | None:
        r"""Factorise $\lambda C_0$ once where there is no history to add to it."""
        return None if self.history else old_factor(moment, config)

    def solve(self, R: Tensor, K: Tensor, known: Knowledge, config: Config) -> Update:
        """Solve Eq 4 from the factor, or Eq 14 with the history."""
        if self.history:
            return super().solve(R, K, known, config)
        return solve_factored(R, K, known.prepared, self.slack)
