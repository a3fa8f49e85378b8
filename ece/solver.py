"""The weight update: least squares on the chosen neurons (Eq 4, 14, 19)."""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ece.errors import SolveError

JITTERS = (0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6)  # tried in turn: shares of the mean diagonal
THIN = 5e-7  # below it updates were 30 to 500 times as long as with a ridge of 1e-3 (measured)
FLOOR = 5e-11  # the smallest squared pivot taken for real, as a share of the mean diagonal
ROWS = 1024  # rows of a matrix that move to another device at a time


@dataclass(frozen=True)
class Knowledge:
    """What an update of one layer must keep: old keys, and the neurons it may use."""

    moment: Float[Tensor, "ff ff"]
    """$C_0$, a mean over tokens."""
    mask: Bool[Tensor, " ff"]
    """The chosen neurons $I$."""
    folded: Float[Tensor, "ff ff"] | None = None
    """The sum of $k k^T$ over edits long past; None: none."""
    recent: Float[Tensor, "earlier ff"] | None = None
    """Keys of the last edits, which count like their sum of $k k^T$ but cost less."""
    prepared: Tensor | None = None
    """What the strategy computed once for the layer, if anything."""


class Update(NamedTuple):
    """A change of one layer's weights."""

    delta: Float[Tensor, "model ff"]
    """$\\Delta$, float64, zero outside the chosen neurons."""
    jitter: float
    """Largest share of a mean diagonal that a factorisation needed; mostly 0."""


def solve(
    R: Float[Tensor, "model edit"], K: Float[Tensor, "edit ff"], known: Knowledge,
    lam: float, ridge: float = 0.0,
) -> Update:  # fmt: skip
    r"""Solve $\Delta_I = R K_I^T(\lambda C_{0,II} + H_{II} + K_I K_I^T)^{-1}$ (Eq 14, 19).

    `ridge` adds that share of the mean diagonal of $\lambda C_0$ to the diagonal: neurons that
    the text hardly ever drives have no weight in $C_0$, and would be filled with huge columns.
    Float64 throughout. Raises `SolveError` if the system is not positive definite.

    >>> known = Knowledge(torch.eye(3), torch.tensor([True, True, False]))
    >>> solve(torch.tensor([[3.0]]), torch.tensor([[1.0, 1.0, 1.0]]), known, lam=1.0).delta.round()
    tensor([[1., 1., 0.]], dtype=torch.float64)
    """
    chosen = known.mask.nonzero()[:, 0]
    keys = K.double()[:, chosen]
    system = block(known.moment, chosen, keys.device).mul_(lam)
    system.addmm_(keys.T, keys)
    if known.folded is not None:
        system += block(known.folded, chosen, keys.device)
    if known.recent is not None:
        earlier = known.recent.to(keys.device)[:, chosen].double()
        system.addmm_(earlier.T, earlier)
    system.diagonal().add_(ridge * lam * known.moment.diagonal().double().mean().to(keys.device))
    factor, jitter = factorise(system, warn=True)
    delta = torch.zeros(len(R), len(known.mask), dtype=torch.double, device=keys.device)
    delta[:, chosen] = R.double() @ torch.cholesky_solve(keys.T, factor).T
    return Update(delta, jitter)


def block(matrix: Tensor, chosen: Tensor, device: torch.device) -> Float[Tensor, "n n"]:
    """Copy the chosen rows and columns; a matrix on another device never moves there whole."""
    found = torch.empty(len(chosen), len(chosen), dtype=torch.double, device=device)
    for part, rows in zip(found.split(ROWS), chosen.to(matrix.device).split(ROWS), strict=True):
        part.copy_(matrix[rows].to(device)[:, chosen])
    return found


def factorise(
    system: Float[Tensor, "n n"], warn: bool = False
) -> tuple[Float[Tensor, "n n"], float]:
    """Factorise by Cholesky, with the smallest jitter of `JITTERS` that makes it succeed.

    A pivot below `FLOOR` counts as a failure: keys carry float32 noise, and a direction in
    which the old knowledge has no weight at all would be filled with it.
    """
    if not torch.isfinite(system).all():
        raise SolveError("the system has non-finite entries; check the statistics and the keys")
    scale = system.diagonal().mean()
    for jitter in JITTERS:
        lifted = system.clone() if jitter else system
        lifted.diagonal().add_(jitter * scale)
        factor, info = torch.linalg.cholesky_ex(lifted)
        least = float(factor.diagonal().min() ** 2 / scale)
        if int(info) == 0 and least >= FLOOR:
            if warn and least < THIN:
                warnings.warn(f"the system is nearly singular (least pivot {least:.1g} of its mean "
                              "diagonal), so the update may be huge; set 'ridge', e.g. to 1e-3, or "
                              "take second moments over more tokens", stacklevel=3)  # fmt: skip
            return factor, jitter
    raise SolveError(f"the system of {len(system)} neurons is not positive definite even with a "
                     f"jitter of {JITTERS[-1]:g} of its mean diagonal; take second moments over "
                     "more tokens or raise lam")  # fmt: skip
