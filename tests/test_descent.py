"""Descent: all at once equals one by one, and Adam on the literal loss; in two steps, too."""

from dataclasses import replace

import pytest
import torch

from ece import engine, objective
from ece.clustering import jaccard, k_medoids
from ece.descent import _adam, descend, groups_of, renewed, two_step
from ece.model import sites
from ece.scoring import fact_sets, residual

LAYER = 1
TEMPLATES = ("{}", "The trade of all. {}", "He said. {}")
CLOSE = dict(rtol=2e-3, atol=2e-4)  # float32, and a few steps of Adam's normalisation


@pytest.fixture
def problem(model, tokenizer, facts, config):
    return engine.prepare(model, tokenizer, facts, TEMPLATES, config, LAYER)


@pytest.fixture
def literal(model, tokenizer, facts, config):
    return objective.prepare(model, tokenizer, facts, TEMPLATES, config, LAYER)


@pytest.fixture
def W(model):
    return sites(model, (LAYER,))[0].weight


def plain(literal, config, members: list[int], steps: int, start=None):
    """One value for `members` by torch's Adam on the literal loss, and the NLL at each step."""
    norms = literal.hidden[members].norm(dim=1)
    value = torch.zeros(1, literal.hidden.shape[1]) if start is None else start.clone()[None]
    value.requires_grad_()
    unit = 1.0 if config.lr_unit == "stream" else norms.mean().item() / len(value[0]) ** 0.5
    optimizer, curve = torch.optim.Adam([value], lr=config.lr * unit), []
    with torch.no_grad():
        shorten(value, config.clamp * norms.mean())
    for step in range(steps + 1):
        found = [literal.parts[i].losses(value) for i in members]
        curve.append(sum(float(nll.detach()) for nll, _ in found) / len(members))
        if step == steps:
            return value.detach()[0], torch.tensor(curve)
        decay = config.weight_decay * value.norm() / norms**2
        loss = sum(nll + config.kl_factor * kl for nll, kl in found) + decay.sum()
        optimizer.zero_grad()
        (loss / len(members)).sum().backward()
        optimizer.step()
        with torch.no_grad():
            shorten(value, config.clamp * norms.mean())


def shorten(value, limit):
    norm = value.norm()
    if norm > limit:
        value *= limit / norm


@pytest.mark.parametrize("unit", ["state", "stream"])
def test_a_descent_is_adam_on_the_literal_loss(problem, literal, config, unit):
    config = replace(config, lr_unit=unit)
    fast = descend(problem, config, 4)
    for i in range(6):
        value, losses = plain(literal, config, [i], 4)
        torch.testing.assert_close(fast.delta[i], value, **CLOSE)
        torch.testing.assert_close(fast.losses[:, i], losses, **CLOSE)
    assert fast.losses[-1].mean() < fast.losses[0].mean()
    torch.testing.assert_close(fast.losses[0], problem.nll, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unit", ["state", "stream"])
def test_a_shared_value_descends_on_the_mean_loss_of_its_facts(problem, literal, config, unit):
    config = replace(config, lr_unit=unit)
    owner = torch.tensor([0, 1, 0, 1, 1, 1])
    fast = descend(problem, config, 3, owner=owner)
    for group in ([0, 2], [1, 3, 4, 5]):
        value, losses = plain(literal, config, group, 3)
        for i in group:
            torch.testing.assert_close(fast.delta[i], value, **CLOSE)
        torch.testing.assert_close(fast.losses[:, group].mean(1), losses, **CLOSE)


def test_all_at_once_equals_one_by_one(problem, config, model, tokenizer, facts):
    together = descend(problem, config, 4)
    for i, fact in enumerate(facts):
        one = engine.prepare(model, tokenizer, [fact], TEMPLATES, config, LAYER)
        torch.testing.assert_close(descend(one, config, 4).delta[0], together.delta[i], **CLOSE)


def test_the_memory_budget_changes_nothing(config, model, tokenizer, facts, problem):
    tight = replace(config, max_tokens=30)
    split = engine.prepare(model, tokenizer, facts, TEMPLATES, tight, LAYER)
    assert len(split.parts) > len(problem.parts)
    torch.testing.assert_close(
        descend(split, tight, 4).delta, descend(problem, config, 4).delta, **CLOSE
    )


def test_finished_facts_leave_with_what_they_had(problem, config):
    free = descend(problem, config, 4)
    bar = float(free.losses[2].median())
    stopped = descend(problem, replace(config, stop=bar), 4)
    assert stopped.steps.min() < 4 <= stopped.steps.max()
    for i, steps in enumerate(stopped.steps.tolist()):
        value = descend(problem, config, steps).delta[i] if steps else torch.zeros(32)
        torch.testing.assert_close(stopped.delta[i], value, **CLOSE)
        torch.testing.assert_close(
            stopped.losses[: steps + 1, i], free.losses[: steps + 1, i], **CLOSE
        )
        assert steps == 4 or stopped.losses[steps, i] < bar
        assert (stopped.losses[steps:, i] == stopped.losses[steps, i]).all()


def test_facts_that_are_all_done_take_no_step(problem, config):
    done = descend(problem, replace(config, stop=1e6), 4)
    assert not done.delta.any() and done.steps.tolist() == [0] * 6
    assert done.losses.shape == (5, 6) and torch.equal(done.losses[0], done.losses[-1])
    never = descend(problem, replace(config, stop=0.0), 2)
    assert torch.equal(never.delta, descend(problem, config, 2).delta)


def test_no_steps_leave_the_start(problem, config):
    start = 0.01 * torch.ones(6, 32)
    found = descend(problem, config, 0, start=start)
    assert torch.equal(found.delta, start) and found.losses.shape == (1, 6)


def test_clamp_and_decay_hold_for_the_whole_value(problem, config):
    tight, far = replace(config, clamp=0.05), torch.full((6, 32), 9.0)
    moved = descend(problem, tight, 3, start=far)
    assert (moved.delta.norm(dim=1) <= 0.05 * problem.hidden.norm(dim=1) * (1 + 1e-5)).all()
    heavy = descend(problem, replace(config, weight_decay=1e6), 6)
    assert heavy.delta.norm() < descend(problem, config, 6).delta.norm()


def test_adam_is_adam():
    draw = torch.Generator().manual_seed(0)
    ours = torch.randn(3, 5, generator=draw)
    theirs = ours.clone().requires_grad_()
    optimizer, moments = torch.optim.Adam([theirs], lr=0.3), (torch.zeros(3, 5),) * 2
    for step in range(1, 6):
        gradient = torch.randn(3, 5, generator=draw)
        moments, move = _adam(moments, gradient, step)
        ours = ours - 0.3 * move
        theirs.grad = gradient
        optimizer.step()
    torch.testing.assert_close(ours, theirs.detach())


# Two steps.


@pytest.mark.parametrize(
    "family, shared",
    [("gpt2", "anchor"), ("gptj", "mean"), ("llama", "zero"), ("llama", "anchor")],
)
def test_two_steps_are_a_shared_descent_and_then_one_s_own(problem, literal, W, config, shared):
    config = replace(config, shared=shared)
    values, groups = two_step(problem, W, config), groups_of(problem, W, config)
    assert len(groups.medoids) == 2
    for c, anchor in enumerate(groups.medoids.tolist()):
        members = (groups.labels == c).nonzero()[:, 0].tolist()
        first = {"anchor": [anchor], "mean": members, "zero": []}[shared]
        start = torch.zeros(32)
        if first:
            start, _ = plain(literal, config, first, 3)
        for i in members:
            value, losses = plain(literal, config, [i], 2, start)
            torch.testing.assert_close(values.delta[i], value, **CLOSE)
            torch.testing.assert_close(values.losses[:, i], losses, **CLOSE)


def test_curves_of_both_phases_are_there(problem, W, config):
    values = two_step(problem, W, config)
    assert values.shared.losses.shape == (4, 2) and values.losses.shape == (3, 6)
    anchors = values.groups.medoids
    torch.testing.assert_close(values.shared.losses[-1], values.losses[0, anchors], **CLOSE)
    assert values.steps.tolist() == [2] * 6 and values.shared.steps.tolist() == [3, 3]
    torch.testing.assert_close(values.before, (-problem.nll).exp())
    torch.testing.assert_close(values.after, (-values.losses[-1]).exp())
    torch.testing.assert_close(values.z, problem.hidden + values.delta)


def test_singletons_are_plain_descent(problem, W, config):
    alone = replace(config, clusters=None)
    values = two_step(problem, W, alone)
    assert torch.equal(values.delta, descend(problem, alone, 5).delta)
    assert values.groups is None and values.shared is None


def test_more_clusters_than_facts_are_as_many_as_facts(problem, W, config):
    groups = groups_of(problem, W, replace(config, clusters=100))
    assert sorted(groups.medoids.tolist()) == list(range(6)) and groups.cost == 0


def test_weight_scores_are_clustered_on_activation_sets(problem, W, config):
    by_weight = groups_of(problem, W, replace(config, scorer="weight"))
    by_activation = groups_of(problem, W, replace(config, scorer="activation"))
    assert torch.equal(by_weight.labels, by_activation.labels)
    assert len(by_weight.medoids) == 2


@pytest.mark.parametrize("order", [[5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 4, 3]])
def test_the_order_of_the_facts_plays_no_part(model, tokenizer, facts, config, W, order):
    """Clusters, anchors and values: k-medoids started from the order, and edits were 40 % apart."""
    found = []
    for at in (list(range(6)), order):
        batch = [facts[i] for i in at]
        problem = engine.prepare(model, tokenizer, batch, TEMPLATES, config, LAYER)
        values = two_step(problem, W, config)
        anchors = [batch[i].id for i in values.groups.medoids.tolist()]
        clusters = [{batch[i].id for i in (values.groups.labels == c).nonzero()[:, 0].tolist()}
                    for c in range(2)]  # fmt: skip
        back = torch.tensor(at).argsort()
        found.append((anchors, clusters, values.delta[back]))
    (one, mine, delta), (other, theirs, moved) = found
    assert one == other and mine == theirs
    torch.testing.assert_close(moved, delta, **CLOSE)


def test_labels_and_anchors_are_those_of_the_facts_as_given(problem, W, config):
    groups = groups_of(problem, W, config)
    assert all(groups.labels[anchor] == c for c, anchor in enumerate(groups.medoids.tolist()))
    # As k-medoids finds them for facts in the order of their NLL.
    order = problem.nll.argsort()
    sets = fact_sets(residual(problem.keys, W)[order], config.p)
    plain = k_medoids(jaccard(sets), 2, config.seed)
    assert torch.equal(groups.labels[order], plain.labels)
    assert torch.equal(groups.medoids, order[plain.medoids])


def test_some_values_are_renewed(problem, config, W):
    old, new = two_step(problem, W, config), two_step(problem, W, replace(config, lr=0.3))
    some = replace(new, **{name: getattr(new, name)[[1, 4]] for name in
                           ("hidden", "delta", "nll", "steps", "holds")},
                   losses=new.losses[:, [1, 4]], seconds=2.0)  # fmt: skip
    found = renewed(replace(old, seconds=1.0), [1, 4], some)
    assert torch.equal(found.delta[[1, 4]], new.delta[[1, 4]])
    assert torch.equal(found.delta[[0, 2, 3, 5]], old.delta[[0, 2, 3, 5]])
    assert torch.equal(found.losses[:, 4], new.losses[:, 4]) and found.seconds == 3.0
    assert not torch.equal(old.delta[1], new.delta[1]), "the given ones stay as they are"


def test_facts_are_clustered_where_every_neuron_is_chosen(problem, W, config):
    """With p = 1 all sets are equal; the paper's setting has p = 1 and more than one cluster."""
    config = replace(config, clusters=3, scorer="residual")
    usual, every = (groups_of(problem, W, replace(config, p=p)) for p in (0.8, 1.0))
    assert len(every.medoids) == 3
    assert torch.equal(usual.labels, every.labels)
