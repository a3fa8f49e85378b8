"""AlphaEdit (Fang et al. 2025): updates within the null space of the old keys."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ece.config import Config
from ece.errors import SolveError, check_finite, checked
from ece.solver import Knowledge, Update, factorise
from ece.strategy import Strategy


@checked
class AlphaEdit(Strategy):
    """Projected least squares; `Config.lam` weighs the identity in place of $C_0$."""

    history: Literal[True] = True
    """AlphaEdit keeps the keys of earlier batches."""
    null: Annotated[float, Field(gt=0, lt=1e12)] = 0.02
    """Largest eigenvalue of $C_0$ whose direction counts as null space (a squared key)."""

    chooses = False

    def unused(self, config: Config) -> tuple[str, ...]:
        """Name settings without effect: $C_0$ is not in the system."""
        return ("ridge", *super().unused(config))

    def prepare(self, moment: Float[Tensor, "ff ff"], config: Config) -> Float[Tensor, "ff null"]:
        """Compute an orthonormal basis of the directions in which old keys hardly lie."""
        return null_basis(moment, self.null)

    def solve(self, R: Tensor, K: Tensor, known: Knowledge, config: Config) -> Update:
        r"""Solve $\Delta = R K U (U^T (H + K^T K) U + \lambda I)^{-1} U^T$ in the basis $U$."""
        basis = known.prepared.to(K.device)
        inside = K.double() @ basis
        system = config.lam * torch.eye(basis.shape[1]).to(inside) + inside.T @ inside
        if known.folded is not None:
            system += basis.T @ known.folded.to(basis) @ basis
        if known.recent is not None:
            earlier = known.recent.to(basis) @ basis
            system.addmm_(earlier.T, earlier)
        factor, jitter = factorise(system)
        return Update(R.double() @ torch.cholesky_solve(inside.T, factor).T @ basis.T, jitter)


def null_basis(C0: Float[Tensor, "ff ff"], threshold: float) -> Float[Tensor, "ff null"]:
    """Find the directions in which `C0` has eigenvalues below `threshold`, orthonormal.

    Raises `SolveError` if there are none.
    """
    check_finite("second moments", C0)
    values, vectors = torch.linalg.eigh(C0.double())
    basis = vectors[:, values < threshold]
    if not basis.shape[1]:
        least = float(values.min())
        raise SolveError(f"no eigenvalue of the second moment is below {threshold:g}; the least "
                         f"is {least:.2g}, so raise the setting 'null'")  # fmt: skip
    return basis
