"""The update is the least-squares solution on the chosen neurons, and nothing elsewhere."""

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ece.errors import SolveError
from ece.solver import JITTERS, Knowledge, block, factorise, solve

EVERY = torch.ones(12, dtype=torch.bool)


def problem(seed: int = 0, model: int = 5, ff: int = 12, edit: int = 4):
    """R, K, and what is known: a moment of many keys, a history in both its parts, a mask."""
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.double)

    old, past, recent = rand(40, ff), rand(7, ff), rand(3, ff)
    mask = torch.rand(ff, generator=draw) < 0.6
    mask[0] = True
    known = Knowledge(old.T @ old / 40, mask, past.T @ past, recent)
    return rand(model, edit), rand(edit, ff), known


def history(known: Knowledge):
    return known.folded + known.recent.T @ known.recent


def eq_19(delta, R, K, known, lam):
    """Eq 19 written out: error on the new keys, and what changes on the old ones."""
    fit = (delta @ K.T - R).square().sum()
    return fit + ((delta @ (lam * known.moment + history(known))) * delta).sum()


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 9), st.floats(0.1, 1e4))
def test_normal_equations_hold_on_the_chosen_block(seed, ff, edit, lam):
    R, K, known = problem(seed, ff=ff, edit=edit)
    delta, jitter = solve(R, K, known, lam)
    assert jitter == 0
    mask = known.mask
    system = (lam * known.moment + history(known) + K.T @ K)[mask][:, mask]
    left, right = delta[:, mask] @ system, R @ K[:, mask]
    assert (left - right).norm() <= 1e-8 * right.norm()
    assert not delta[:, ~mask].any()


def test_it_is_where_gradient_descent_on_eq_19_ends():
    R, K, known = problem(1)
    delta = torch.zeros(5, 12, dtype=torch.double, requires_grad=True)
    for _ in range(2000):
        (gradient,) = torch.autograd.grad(eq_19(delta, R, K, known, 3.0), delta)
        delta = (delta - 0.01 * gradient * known.mask).detach().requires_grad_()
    found = solve(R, K, known, 3.0).delta
    torch.testing.assert_close(delta.detach(), found, rtol=1e-6, atol=1e-8)


def test_no_step_from_the_solution_improves_and_the_start_is_worse():
    R, K, known = problem(2)
    delta = solve(R, K, known, 3.0).delta
    best = eq_19(delta, R, K, known, 3.0)
    assert best < eq_19(torch.zeros_like(delta), R, K, known, 3.0)
    for seed in range(10):
        draw = torch.Generator().manual_seed(seed)
        step = torch.randn(5, 12, generator=draw).double() * known.mask
        assert eq_19(delta + 1e-3 * step, R, K, known, 3.0) > best


def test_a_full_mask_without_a_history_is_memit_s_formula():
    R, K, known = problem(3)
    plain = Knowledge(known.moment, EVERY)
    direct = R @ K @ torch.linalg.inv(2 * known.moment + K.T @ K)
    torch.testing.assert_close(solve(R, K, plain, 2.0).delta, direct)


def test_lambda_weighs_a_mean_and_the_history_is_a_sum():
    R, K, known = problem(4)
    twice = replace(known, moment=2 * known.moment)
    torch.testing.assert_close(solve(R, K, known, 6.0), solve(R, K, twice, 3.0))
    more = solve(R, K, replace(known, folded=100 * known.folded), 3.0).delta
    assert more.norm() < solve(R, K, known, 3.0).delta.norm()


def test_recent_keys_count_as_their_sum():
    R, K, known = problem(5)
    summed = replace(known, folded=history(known), recent=None)
    torch.testing.assert_close(solve(R, K, summed, 3.0), solve(R, K, known, 3.0))
    only = Knowledge(known.moment, known.mask, None, known.recent)
    as_sum = Knowledge(known.moment, known.mask, known.recent.T @ known.recent)
    torch.testing.assert_close(solve(R, K, only, 3.0), solve(R, K, as_sum, 3.0))


def test_matrices_may_move_in_parts_and_stay_as_they_were(monkeypatch):
    R, K, known = problem(4)
    before = known.moment.clone(), known.folded.clone(), known.recent.clone()
    whole = solve(R, K, known, 3.0).delta
    monkeypatch.setattr("ece.solver.ROWS", 3)
    assert torch.equal(solve(R, K, known, 3.0).delta, whole)
    after = known.moment, known.folded, known.recent
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@given(st.integers(1, 30), st.data())
def test_a_block_is_the_chosen_rows_and_columns(n, data):
    chosen = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
    matrix = torch.arange(n * n).reshape(n, n).float()
    found = block(matrix, torch.tensor(chosen), matrix.device)
    assert torch.equal(found, matrix[chosen][:, chosen].double())


def test_float32_inputs_are_solved_in_float64():
    R, K, known = problem(5)
    found = solve(R.float(), K.float(), known, 3.0).delta
    assert found.dtype == torch.double
    assert torch.equal(found, solve(R.float().double(), K.float().double(), known, 3.0).delta)


# Systems that are nearly, or not at all, positive definite.


def test_jitter_is_reported_only_when_needed():
    R, K, known = problem(6)
    assert solve(R, K, known, 1.0).jitter == 0
    alike = torch.ones(4, 12).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = solve(R, alike, Knowledge(torch.zeros(12, 12), EVERY), 1.0)
    assert found.jitter > 0 and torch.isfinite(found.delta).all()


@given(st.integers(0, 10**6), st.sampled_from(JITTERS[1:]))
def test_the_smallest_jitter_that_succeeds_is_taken(seed, missing):
    """An eigenvalue of -0.5 times a jitter (as a share of the mean) needs exactly that jitter."""
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=draw).double()).Q
    values = torch.ones(6).double()
    values[0] = -0.5 * missing
    system = basis @ torch.diag(values) @ basis.T
    factor, jitter = factorise((system + system.T) / 2)
    assert jitter == missing
    lifted = (system + system.T) / 2 + jitter * system.diagonal().mean() * torch.eye(6).double()
    torch.testing.assert_close(factor @ factor.T, lifted)


def test_a_system_that_is_not_positive_definite_is_refused():
    with pytest.raises(SolveError, match="positive definite"):
        factorise(-torch.eye(4).double())
    with pytest.raises(SolveError, match="finite"):
        factorise(torch.full((2, 2), float("nan")).double())
    R, K, known = problem()
    with pytest.raises(SolveError, match="more tokens or raise lam"):
        solve(R, K, replace(known, moment=-known.moment), 1e6)


def test_a_nearly_singular_system_warns_with_the_remedy():
    """Few tokens and no ridge: the update is huge, and nothing else would say so."""
    R, noise, _ = problem()
    draw = torch.Generator().manual_seed(1)
    few = torch.randn(3, 12, generator=draw).double()
    K = torch.randn(4, 3, generator=draw).double() @ few + 1e-3 * noise
    thin = Knowledge(few.T @ few / 3 + 1e-8 * torch.eye(12).double(), EVERY)
    with pytest.warns(UserWarning, match="nearly singular.*'ridge'"):
        bare = solve(R, K, thin, 3.0).delta
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held = solve(R, K, thin, 3.0, 1e-3).delta
    assert bare.norm() > 10 * held.norm()


def test_a_ridge_keeps_silent_neurons_small():
    """A neuron that the old text never drives would be filled with noise; a ridge prevents it."""
    R, K, known = problem()
    C0 = known.moment.clone()
    C0[:, 0] = C0[0] = 0
    C0[0, 0] = 1e-5
    K[:, 0] *= 1e-3
    bare, held = (solve(R, K, Knowledge(C0, EVERY), 3.0, ridge).delta for ridge in (0.0, 1e-2))
    assert held[:, 0].norm() < bare[:, 0].norm() / 10
    lifted = C0 + 1e-2 * C0.diagonal().mean() * torch.eye(12).double()
    torch.testing.assert_close(held, solve(R, K, Knowledge(lifted, EVERY), 3.0).delta)


def test_the_ridge_s_scale_is_that_of_all_neurons():
    """The chosen neurons decide what is written, not how strongly it is held back."""
    R, K, known = problem(7)
    mean = known.moment.diagonal().mean()
    lifted = replace(known, moment=known.moment + 0.1 * mean * torch.eye(12).double())
    torch.testing.assert_close(solve(R, K, known, 3.0, 0.1).delta, solve(R, K, lifted, 3.0).delta)
