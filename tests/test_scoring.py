"""Scores (Eq 5-7) and the selection rule (Eq 8) with its edges."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ece.scoring import activation, batch_set, fact_sets, residual, scores, select, weight

SHARES = st.floats(0.01, 1)
WHOLE = st.lists(st.integers(0, 9), min_size=1, max_size=7)  # sums of these are exact
REALS = st.lists(st.floats(0, 1e6), min_size=1, max_size=40)


def smallest(values: list[float], p: float) -> int:
    """The smallest number of neurons that reach p of the total (at least one), by trying all."""
    for size in range(1, len(values) + 1):
        if any(sum(c) >= p * sum(values) for c in combinations(values, size)):
            return size
    return len(values)


@given(WHOLE, SHARES)
def test_the_set_is_the_smallest_that_reaches_p(values, p):
    chosen = select(torch.tensor(values).double(), p)
    if p == 1:
        assert chosen.all()
    else:
        assert int(chosen.sum()) == smallest(values, p)


@given(REALS, SHARES)
def test_no_neuron_outside_is_stronger_than_one_inside(values, p):
    one = torch.tensor(values).double()
    chosen = select(one, p)
    assert chosen.any()
    if not chosen.all():
        assert one[chosen].min() >= one[~chosen].max()
        # One fewer would fall short, but for rounding of the sum.
        weakest = one[chosen].min()
        assert one[chosen].sum() - weakest < p * one.sum() * (1 + 1e-12) or int(chosen.sum()) == 1


@given(REALS, SHARES, SHARES)
def test_a_larger_share_takes_a_larger_set(values, p, q):
    small, large = (select(torch.tensor(values).double(), share) for share in sorted((p, q)))
    assert (large | ~small).all()


@given(st.lists(st.lists(st.integers(0, 9), min_size=5, max_size=5), min_size=1, max_size=5),
       SHARES, st.permutations(range(5)))  # fmt: skip
def test_sets_of_a_batch_are_those_of_each_fact(rows, p, order):
    table = torch.tensor(rows).double()
    sets = fact_sets(table, p)
    assert all(torch.equal(found, select(row, p)) for found, row in zip(sets, table, strict=True))
    shuffled = fact_sets(table[:, order], p)
    assert torch.equal(sets.sum(1), shuffled.sum(1))


@given(REALS, SHARES, st.sampled_from([0.25, 8.0, 1024.0]))
def test_the_unit_of_the_scores_plays_no_part(values, p, unit):
    one = torch.tensor(values).double()
    assert torch.equal(select(one, p), select(one * unit, p)) or one.max() < 1e-300


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


def test_every_score_of_the_config_has_its_name():
    keys, W = torch.rand(3, 8), torch.rand(5, 8)
    assert torch.equal(scores("activation", keys, W), activation(keys))
    assert torch.equal(scores("weight", keys, W), weight(W, 3))
    assert torch.equal(scores("residual", keys, W), residual(keys, W))


def test_a_loud_fact_does_not_choose_for_the_batch():
    quiet, loud = torch.tensor([1.0, 0, 0]), torch.tensor([0, 600.0, 400.0])
    chosen = batch_set(torch.stack([quiet, loud]), 0.7)
    assert chosen.tolist() == [True, True, False]
    assert select(quiet + loud, 0.7).tolist() == [False, True, True]


def test_scaling_a_fact_changes_nothing():
    s = torch.rand(4, 30, generator=torch.Generator().manual_seed(3))
    assert torch.equal(batch_set(s, 0.8), batch_set(s * torch.tensor([[1.0], [8], [64], [2]]), 0.8))


def test_facts_without_any_score_choose_one_neuron():
    assert batch_set(torch.zeros(3, 5), 0.8).tolist() == [True] + [False] * 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_bad_scores_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        select(torch.tensor([1.0, bad]), 0.5)
