"""Scores (Eq 5-7) and the selection rule (Eq 8) with its edges."""

from itertools import combinations

import pytest
import torch

from ece.scoring import activation, batch_set, fact_sets, residual, scores, select, weight


def brute(values: list[float], p: float) -> int:
    """The smallest number of neurons that reach p of the total (at least one)."""
    for size in range(1, len(values) + 1):
        if any(sum(c) >= p * sum(values) for c in combinations(values, size)):
            return size
    return len(values)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8, 0.95])
def test_the_set_is_the_smallest_that_reaches_p(p):
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        values = torch.randint(0, 9, (7,), generator=draw).double()
        if values.sum() == 0:
            continue
        chosen = select(values, p)
        assert int(chosen.sum()) == brute(values.tolist(), p)
        assert values[chosen].min() >= values[~chosen].max() if (~chosen).any() else True


def test_one_neuron_can_be_enough_and_the_set_is_never_empty():
    assert select(torch.tensor([1.0, 9.0, 0.0]), 0.8).tolist() == [False, True, False]
    assert select(torch.zeros(4), 0.8).tolist() == [True, False, False, False]
    assert select(torch.tensor([5.0]), 0.1).tolist() == [True]


def test_p_of_one_selects_all_even_silent_neurons():
    assert select(torch.tensor([1.0, 0.0, 1e-30]), 1.0).all()
    assert fact_sets(torch.rand(3, 50_000, generator=torch.Generator().manual_seed(0)), 1.0).all()


def test_ties_go_to_the_lower_index():
    assert select(torch.ones(10), 0.25).nonzero()[:, 0].tolist() == [0, 1, 2]


def test_reaching_p_exactly_is_enough():
    assert int(select(torch.tensor([4.0, 1.0]), 0.8).sum()) == 1


def test_sums_are_float64():
    many = torch.full((1 << 20,), 0.1, dtype=torch.float32)
    assert int(select(many, 0.5).sum()) == 1 << 19


def test_scores_are_what_the_equations_say():
    keys, W = torch.tensor([[1.0, -2.0], [0.5, 0.0]]), torch.tensor([[3.0, 1.0], [-4.0, 1.0]])
    assert activation(keys).tolist() == [[1, 2], [0.5, 0]]
    assert weight(W, 2).tolist() == [[7, 2], [7, 2]]
    torch.testing.assert_close(
        residual(keys, W), torch.tensor([[5.0, 2 * 2**0.5], [2.5, 0.0]]).double()
    )
    assert torch.equal(scores("all", keys, W), torch.ones(2, 2).double())


def test_a_loud_fact_does_not_choose_for_the_batch():
    quiet, loud = torch.tensor([1.0, 0, 0]), torch.tensor([0, 600.0, 400.0])
    chosen = batch_set(torch.stack([quiet, loud]), 0.7)
    assert chosen.tolist() == [True, True, False]
    assert select(quiet + loud, 0.7).tolist() == [False, True, True]


def test_scaling_a_fact_changes_nothing():
    s = torch.rand(4, 30, generator=torch.Generator().manual_seed(3))
    assert torch.equal(batch_set(s, 0.8), batch_set(s * torch.tensor([[1.0], [8], [64], [2]]), 0.8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_bad_scores_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        select(torch.tensor([1.0, bad]), 0.5)
