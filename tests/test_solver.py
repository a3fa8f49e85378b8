"""The update is the least-squares solution on the chosen neurons, and nothing elsewhere."""

import pytest
import torch

from ece.errors import SolveError
from ece.solver import (
    factorise,
    largest,
    null_basis,
    solve_reported,
    solve_update,
    solve_within,
    spread,
)


def problem(seed: int = 0, model: int = 5, ff: int = 12, edit: int = 4):
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.double)

    old, past = rand(40, ff), rand(7, ff)
    mask = torch.rand(ff, generator=draw) < 0.6
    return rand(model, edit), rand(edit, ff), old.T @ old / 40, past.T @ past, mask


def objective(delta, R, K, C0, history, lam):
    """Eq 19 written out: error on the new keys, and what changes on the old ones."""
    fit = (delta @ K.T - R).square().sum()
    return fit + ((delta @ (lam * C0 + history)) * delta).sum()


@pytest.mark.parametrize("seed", range(3))
def test_normal_equations_hold_on_the_chosen_block(seed):
    R, K, C0, history, mask = problem(seed)
    delta = solve_update(R, K, C0, history, mask, 3.0)
    system = (3 * C0 + history + K.T @ K)[mask][:, mask]
    torch.testing.assert_close(delta[:, mask] @ system, R @ K[:, mask])
    assert torch.equal(delta[:, ~mask], torch.zeros_like(delta[:, ~mask]))
    assert delta[:, mask].abs().min() > 0


def test_matrices_may_move_in_parts_and_stay_as_they_were(monkeypatch):
    R, K, C0, history, mask = problem(4)
    kept = C0.clone(), history.clone()
    whole = solve_update(R, K, C0, history, mask, 3.0)
    monkeypatch.setattr("ece.solver.ROWS", 3)
    assert torch.equal(solve_update(R, K, C0, history, mask, 3.0), whole)
    assert torch.equal(C0, kept[0]) and torch.equal(history, kept[1])


def test_it_is_where_gradient_descent_on_eq_19_ends():
    R, K, C0, history, mask = problem(1)
    delta = torch.zeros(5, 12, dtype=torch.double, requires_grad=True)
    for _ in range(4000):
        loss = objective(delta, R, K, C0, history, 3.0)
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = (delta - 0.01 * gradient * mask).detach().requires_grad_()
    torch.testing.assert_close(
        delta.detach(), solve_update(R, K, C0, history, mask, 3.0), rtol=1e-6, atol=1e-8
    )


def test_no_step_from_the_solution_improves_and_the_start_is_worse():
    R, K, C0, history, mask = problem(2)
    delta = solve_update(R, K, C0, history, mask, 3.0)
    best = objective(delta, R, K, C0, history, 3.0)
    assert best < objective(torch.zeros_like(delta), R, K, C0, history, 3.0)
    for seed in range(10):
        step = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed)).double() * mask
        assert objective(delta + 1e-3 * step, R, K, C0, history, 3.0) > best


def test_a_full_mask_is_the_memit_formula():
    R, K, C0, _, _ = problem(3)
    full = torch.ones(12, dtype=torch.bool)
    torch.testing.assert_close(
        solve_update(R, K, C0, None, full, 2.0), R @ K @ torch.linalg.inv(2 * C0 + K.T @ K)
    )


def test_lambda_weighs_a_mean_and_history_a_sum():
    R, K, C0, history, mask = problem(4)
    torch.testing.assert_close(
        solve_update(R, K, C0, history, mask, 6.0), solve_update(R, K, 2 * C0, history, mask, 3.0)
    )
    more = solve_update(R, K, C0, 100 * history, mask, 3.0)
    assert more.norm() < solve_update(R, K, C0, history, mask, 3.0).norm()


def test_float32_inputs_are_solved_in_float64():
    R, K, C0, history, mask = problem(5)
    found = solve_update(R.float(), K.float(), C0, history, mask, 3.0)
    assert found.dtype == torch.double
    exact = solve_update(R.float().double(), K.float().double(), C0, history, mask, 3.0)
    assert torch.equal(found, exact)


def test_jitter_is_reported_only_when_needed():
    R, K, C0, history, mask = problem(6)
    assert solve_reported(R, K, C0, history, mask, 1.0)[1] == 0
    keys = torch.ones(3, 12).double()
    assert solve_reported(R[:, :3], keys, torch.zeros(12, 12), None, mask, 1.0)[1] > 0


def test_a_system_that_is_not_positive_definite_is_refused():
    with pytest.raises(SolveError, match="positive definite"):
        factorise(-torch.eye(4).double())
    with pytest.raises(SolveError, match="finite"):
        factorise(torch.full((2, 2), float("nan")).double())


def test_spreading_writes_the_whole_residual_in_the_end():
    residual, written = torch.randn(3, 4), torch.zeros(3, 4)
    for left in (3, 2, 1):
        written = written + spread(residual - written, "even", left)
    torch.testing.assert_close(written, residual)
    assert torch.equal(spread(residual, "boundary", 2), residual)


def test_a_ridge_keeps_silent_neurons_small():
    """A neuron that the old text never drives would be filled with noise; a ridge prevents it."""
    R, K, C0, history, _ = problem()
    full = torch.ones(12, dtype=torch.bool)
    C0[:, 0] = C0[0] = 0
    C0[0, 0] = 1e-9
    K[:, 0] *= 1e-3
    bare, held = (solve_update(R, K, C0, None, full, 3.0, ridge) for ridge in (0.0, 1e-2))
    assert held[:, 0].norm() < bare[:, 0].norm() / 10
    lifted = C0 + 1e-2 * C0.diagonal().mean() * torch.eye(12).double()
    torch.testing.assert_close(held, solve_update(R, K, lifted, None, full, 3.0))


def test_the_null_space_is_where_old_keys_are_not():
    old = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).double()
    keys = old @ torch.randn(5, 12, generator=torch.Generator().manual_seed(1)).double()
    basis = null_basis(keys.T @ keys / 40, 1e-9)
    assert basis.shape == (12, 7)
    torch.testing.assert_close(basis.T @ basis, torch.eye(7).double())
    assert (keys @ basis).abs().max() < 1e-6
    with pytest.raises(SolveError, match="raise the config field 'null'"):
        null_basis(torch.eye(3), 0.5)


def test_an_update_within_leaves_old_outputs_and_equals_the_published_form():
    draw = torch.Generator().manual_seed(2)
    old = torch.randn(40, 5, generator=draw).double() @ torch.randn(5, 12, generator=draw).double()
    K, earlier = (torch.randn(n, 12, generator=draw).double() for n in (3, 4))
    R, basis = torch.randn(6, 3, generator=draw).double(), null_basis(old.T @ old / 40, 1e-9)
    delta = solve_within(R, K, basis, None, 0.5, earlier)
    assert (old @ delta.T).abs().max() < 1e-6 < (K @ delta.T).abs().max()
    P, H = basis @ basis.T, earlier.T @ earlier
    identity = torch.eye(12).double()
    published = torch.linalg.solve(P @ (K.T @ K + H) + 0.5 * identity, P @ K.T @ R.T).T
    torch.testing.assert_close(delta, published)
    torch.testing.assert_close(delta, solve_within(R, K, basis, H, 0.5))


def test_only_the_relatively_largest_entries_stay():
    weight = torch.tensor([[1.0, 10.0], [0.0, -2.0]])
    delta = torch.tensor([[0.5, 1.0], [0.1, 0.8]]).double()
    assert torch.equal(largest(delta, weight, 1.0), delta)
    kept = largest(delta, weight, 0.5)  # relative sizes 0.5, 0.1, infinite, 0.4
    assert torch.equal(kept, torch.tensor([[0.5, 0.0], [0.1, 0.0]]).double())
