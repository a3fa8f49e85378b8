"""Jaccard distances and k-medoids, against definitions and brute force."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ece.clustering import _assign, centre, jaccard, k_medoids


def sets(edits: int, seed: int, ff: int = 24):
    return torch.rand(edits, ff, generator=torch.Generator().manual_seed(seed)) < 0.4


@given(st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=8))
def test_jaccard_is_the_definition_and_a_metric(chosen):
    table = torch.zeros(len(chosen), 8, dtype=torch.bool)
    for row, some in zip(table, chosen, strict=True):
        row[list(some)] = True
    distance = jaccard(table)
    for i, a in enumerate(chosen):
        for j, b in enumerate(chosen):
            either = len(a | b)
            expected = 1 - len(a & b) / either if either else 0.0
            assert float(distance[i, j]) == pytest.approx(expected, abs=1e-15)
    assert torch.equal(distance, distance.T) and not distance.diagonal().any()
    around = distance[:, :, None] + distance[None]  # i to j to k
    assert (distance[:, None] <= around + 1e-12).all()


@given(st.integers(1, 12), st.integers(0, 10**6), st.integers(1, 12))
def test_groups_are_a_partition_around_their_anchors(edits, seed, k):
    distance, k = jaccard(sets(edits, seed)), min(k, edits)
    groups = k_medoids(distance, k, seed)
    count = len(groups.medoids)
    assert 1 <= count <= k and groups.labels.shape == (edits,)
    assert sorted(set(groups.labels.tolist())) == list(range(count))
    assert len(set(groups.medoids.tolist())) == count
    near = distance[:, groups.medoids].min(1).values
    own = distance.gather(1, groups.medoids[groups.labels][:, None])[:, 0]
    assert torch.equal(near, own), "each fact is with its nearest anchor"
    assert groups.cost == pytest.approx(float(own.sum()))
    for c in range(count):
        assert centre(distance, groups.labels == c) == groups.medoids[c], "Eq 10"


@pytest.mark.parametrize("seed", range(8))
def test_the_cost_is_close_to_brute_force(seed):
    distance, k = jaccard(sets(9, seed)), 3
    best = min(float(distance[:, list(c)].min(1).values.sum()) for c in combinations(range(9), k))
    assert best - 1e-9 <= k_medoids(distance, k, seed).cost <= best * 1.1


def test_clear_clusters_are_found():
    base = sets(3, 5, 60)
    noisy = base.repeat_interleave(5, 0)
    noisy[torch.arange(15), torch.arange(15)] ^= True
    groups = k_medoids(jaccard(noisy), 3, 0)
    assert len(set(groups.labels.tolist())) == 3
    assert all(len(set(groups.labels[i : i + 5].tolist())) == 1 for i in (0, 5, 10))


def test_k_equal_to_n_makes_every_fact_an_anchor():
    groups = k_medoids(jaccard(sets(7, 2)), 7, 0)
    assert groups.cost == 0 and sorted(groups.medoids.tolist()) == list(range(7))


def test_one_cluster_has_the_medoid_of_all():
    distance = jaccard(sets(8, 3))
    assert int(k_medoids(distance, 1, 0).medoids) == int(distance.sum(1).argmin())


def test_identical_sets_make_one_cluster_with_the_first_as_anchor():
    groups = k_medoids(torch.zeros(5, 5).double(), 3, 0)
    assert groups.medoids.tolist() == [0] and groups.labels.tolist() == [0] * 5


def test_an_emptied_cluster_is_reseeded():
    places = torch.tensor([0.0, 0.0, 1.0, 5.0])
    labels, medoids = _assign((places[:, None] - places[None]).abs().double(), torch.tensor([0, 1]))
    assert medoids.tolist() == [0, 3] and labels.tolist() == [0, 0, 0, 1]


@given(st.integers(2, 12), st.integers(0, 2**62))
def test_same_seed_same_groups(edits, seed):
    distance = jaccard(sets(edits, 4))
    one, two = (k_medoids(distance, 2, seed) for _ in range(2))
    assert torch.equal(one.labels, two.labels) and torch.equal(one.medoids, two.medoids)
    assert one.cost == two.cost


@pytest.mark.parametrize("k", [0, 6])
def test_impossible_k_is_refused(k):
    with pytest.raises(ValueError, match="1..5"):
        k_medoids(torch.zeros(5, 5).double(), k, 0)
