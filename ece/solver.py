"""The weight update: least squares on the chosen neurons (Eq 4, 14, 19)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ece.errors import SolveError

JITTERS = (0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6)  # tried in turn: shares of the mean diagonal
FLOOR = 5e-11  # the smallest squared pivot taken for real, as a share of the mean diagonal
ROWS = 1024  # rows of a matrix that move to another device at a time


def solve_update(
    R: Float[Tensor, "model edit"],
    K: Float[Tensor, "edit ff"],
    C0: Float[Tensor, "ff ff"],
    history: Float[Tensor, "ff ff"] | None,
    mask: Bool[Tensor, " ff"],
    lam: float,
    ridge: float = 0.0,
    recent: Float[Tensor, "earlier ff"] | None = None,
    exact: bool = False,
) -> Float[Tensor, "model ff"]:
    r"""$\Delta_I = R K_I^T(\lambda C_{0,II} + H_{II} + K_I K_I^T)^{-1}$; zero outside $I$.

    `C0` is a mean over tokens, `history` and the batch's own term are sums over edits.
    `ridge` adds that share of the mean diagonal of $\lambda C_0$ to the diagonal: neurons that
    the text hardly ever drives have no weight in $C_0$, and would be filled with huge columns.
    `recent`: keys of earlier edits, the same as their sum of $k k^T$ added to `history`; cheaper
    than it as long as they are fewer than a third of the neurons.
    `exact`: $\Delta_I = R (K_I G)^{-1} G^T$ instead, $G = (\lambda C_{0,II} + H_{II})^{-1} K_I^T$:
    the least change to old outputs that has $\Delta K^T = R$. ROME for one fact, EMMET for more.
    Float64 throughout. `SolveError` if the system is not positive definite.
    """
    return solve_reported(R, K, C0, history, mask, lam, ridge, recent, exact)[0]


def solve_reported(
    R: Float[Tensor, "model edit"],
    K: Float[Tensor, "edit ff"],
    C0: Float[Tensor, "ff ff"],
    history: Float[Tensor, "ff ff"] | None,
    mask: Bool[Tensor, " ff"],
    lam: float,
    ridge: float = 0.0,
    recent: Float[Tensor, "earlier ff"] | None = None,
    exact: bool = False,
) -> tuple[Float[Tensor, "model ff"], float]:
    """`solve_update`, and the jitter that the factorisation needed (a share; mostly 0)."""
    chosen = mask.nonzero()[:, 0]
    keys = K.double()[:, chosen]
    system = _block(C0, chosen, keys.device).mul_(lam)
    if not exact:
        system.addmm_(keys.T, keys)
    if history is not None:
        system += _block(history, chosen, keys.device)
    if recent is not None:
        earlier = recent.to(keys.device)[:, chosen].double()
        system.addmm_(earlier.T, earlier)
    system.diagonal().add_(ridge * lam * C0.diagonal().double().mean().to(keys.device))
    factor, jitter = factorise(system)
    gain = torch.cholesky_solve(keys.T, factor)  # [chosen, edit]
    if exact:
        gain = torch.cholesky_solve(gain.T, factorise(keys @ gain)[0]).T
    delta = torch.zeros(len(R), len(mask), dtype=torch.double, device=keys.device)
    delta[:, chosen] = R.double() @ gain.T
    if not torch.isfinite(delta).all():
        raise SolveError("the update is not finite; raise lam or look at the values' norms")
    return delta, jitter


def _block(matrix: Tensor, chosen: Tensor, device: torch.device) -> Tensor:
    """A copy of the chosen rows and columns; a matrix kept elsewhere never lies there whole."""
    block = torch.empty(len(chosen), len(chosen), dtype=torch.double, device=device)
    for part, rows in zip(block.split(ROWS), chosen.to(matrix.device).split(ROWS), strict=True):
        part.copy_(matrix[rows].to(device)[:, chosen])
    return block


def factorise(system: Float[Tensor, "n n"]) -> tuple[Float[Tensor, "n n"], float]:
    """Cholesky factor, with the smallest jitter of `JITTERS` that makes it succeed.

    A pivot below `FLOOR` counts as a failure: keys carry float32 noise, and a direction in
    which the old knowledge has no weight at all would be filled with it.
    """
    if not torch.isfinite(system).all():
        raise SolveError("the system has non-finite entries; check the statistics and the keys")
    scale = system.diagonal().mean()
    for jitter in JITTERS:
        lifted = system
        if jitter:
            lifted = system.clone()
            lifted.diagonal().add_(jitter * scale)
        factor, info = torch.linalg.cholesky_ex(lifted)
        if int(info) == 0 and factor.diagonal().min() ** 2 >= FLOOR * scale:
            return factor, jitter
    raise SolveError(
        f"the system of {len(system)} neurons is not positive definite even with a jitter of "
        f"{JITTERS[-1]:g} of its mean diagonal; take second moments over more tokens or raise lam"
    )


def null_basis(C0: Float[Tensor, "ff ff"], threshold: float) -> Float[Tensor, "ff null"]:
    """Orthonormal directions in which old keys hardly lie: eigenvalues of `C0` below `threshold`.

    AlphaEdit (Fang et al. 2025): an update along them alone leaves old outputs as they were.
    `SolveError` if there are none.
    """
    values, vectors = torch.linalg.eigh(C0.double())
    basis = vectors[:, values < threshold]
    if not basis.shape[1]:
        least = float(values.min())
        raise SolveError(f"no eigenvalue of the second moment is below {threshold:g}; the least "
                         f"is {least:.2g}, so raise the config field 'null'")  # fmt: skip
    return basis


def solve_within(
    R: Float[Tensor, "model edit"],
    K: Float[Tensor, "edit ff"],
    basis: Float[Tensor, "ff null"],
    history: Float[Tensor, "ff ff"] | None,
    lam: float,
    recent: Float[Tensor, "earlier ff"] | None = None,
) -> Float[Tensor, "model ff"]:
    r"""$\Delta = R K U (U^T (H + K^T K) U + \lambda I)^{-1} U^T$: the update within `basis` $U$.

    AlphaEdit's projected least squares, solved in the coordinates of the null space.
    """
    inside = K.double() @ basis
    system = lam * torch.eye(basis.shape[1]).to(inside) + inside.T @ inside
    if history is not None:
        system += basis.T @ history.to(basis) @ basis
    if recent is not None:
        earlier = recent.to(basis) @ basis
        system.addmm_(earlier.T, earlier)
    factor, _ = factorise(system)
    return R.double() @ torch.cholesky_solve(inside.T, factor).T @ basis.T


def largest(
    delta: Float[Tensor, "model ff"], weight: Float[Tensor, "model ff"], share: float
) -> Float[Tensor, "model ff"]:
    """The update without all but the `share` of entries largest relative to their weight.

    RECT (Gu et al. 2024); ties at the edge stay in.
    """
    relative = (delta / weight.to(delta)).abs().nan_to_num(posinf=torch.inf)
    count = max(1, round(share * relative.numel()))
    edge = relative.flatten().kthvalue(relative.numel() - count + 1).values
    return torch.where(relative >= edge, delta, torch.zeros_like(delta))


def spread(
    residual: Float[Tensor, "edit model"], how: str, left: int
) -> Float[Tensor, "edit model"]:
    """The part of the residual for one layer when `left` layers remain, this one included.

    "even": an equal share; "boundary": all of it, as each layer has its own residual.
    """
    return residual / left if how == "even" else residual
