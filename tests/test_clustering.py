"""Jaccard distances and k-medoids, against definitions and brute force."""

from itertools import combinations

import pytest
import torch

from ece.clustering import centre, jaccard, k_medoids, silhouettes


def sets(edits: int, seed: int, ff: int = 24):
    return torch.rand(edits, ff, generator=torch.Generator().manual_seed(seed)) < 0.4


def test_jaccard_is_the_definition():
    chosen = sets(6, 0)
    distance = jaccard(chosen)
    for i in range(6):
        for j in range(6):
            a, b = set(chosen[i].nonzero()[:, 0].tolist()), set(chosen[j].nonzero()[:, 0].tolist())
            assert abs(float(distance[i, j]) - (1 - len(a & b) / len(a | b))) < 1e-12
    assert torch.equal(distance.diagonal(), torch.zeros(6).double())


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_a_local_optimum_close_to_brute_force(seed):
    distance, k = jaccard(sets(9, seed)), 3
    groups = k_medoids(distance, k, seed)
    best = min(float(distance[:, list(c)].min(1).values.sum()) for c in combinations(range(9), k))
    assert best - 1e-9 <= groups.cost <= best * 1.1
    near = distance[:, groups.medoids].min(1).values
    assert torch.equal(near, distance.gather(1, groups.medoids[groups.labels][:, None])[:, 0])
    for c in range(k):
        assert centre(distance, groups.labels == c) == groups.medoids[c]


def test_clear_clusters_are_found():
    base = sets(3, 5, 60)
    noisy = base.repeat_interleave(5, 0)
    noisy[torch.arange(15), torch.arange(15)] ^= True
    groups = k_medoids(jaccard(noisy), 3, 0)
    assert len(set(groups.labels.tolist())) == 3
    assert all(len(set(groups.labels[i : i + 5].tolist())) == 1 for i in (0, 5, 10))
    assert silhouettes(jaccard(noisy), groups.labels).min() > 0.5


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
    from ece.clustering import _assign

    places = torch.tensor([0.0, 0.0, 1.0, 5.0])
    labels, medoids = _assign((places[:, None] - places[None]).abs().double(), torch.tensor([0, 1]))
    assert medoids.tolist() == [0, 3] and labels.tolist() == [0, 0, 0, 1]


def test_same_seed_same_groups_and_facts_may_come_in_any_order():
    distance = jaccard(sets(12, 4))
    one, two = k_medoids(distance, 4, 1), k_medoids(distance, 4, 1)
    assert torch.equal(one.labels, two.labels) and torch.equal(one.medoids, two.medoids)


@pytest.mark.parametrize("k", [0, 6])
def test_impossible_k_is_refused(k):
    with pytest.raises(ValueError, match="1..5"):
        k_medoids(torch.zeros(5, 5).double(), k, 0)
