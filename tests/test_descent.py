"""Descent: all at once equals one by one, the fast run equals the whole model's."""

from dataclasses import replace

import pytest
import torch

from ece.bench import reference as naive
from ece.descent import _adam, descend, groups_of, two_step
from ece.engine.batching import prepare
from ece.engine.loss import kl_of, log_probs, merged, nll_of, wins
from ece.model import sites
from ece.state import new_state

LAYER = 1
CLOSE = dict(rtol=2e-3, atol=2e-4)  # float32, and a few steps of Adam's normalisation


@pytest.fixture
def templates(model, tokenizer, config):
    return new_state(model, tokenizer, config).contexts


@pytest.fixture
def problem(model, tokenizer, facts, templates, config):
    return prepare(model, tokenizer, facts, templates, config, LAYER)


def test_one_measurement_equals_the_whole_model(problem, model, tokenizer, facts, templates):
    total = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    site = sites(model, (LAYER,))[0]
    for chunk in problem.chunks:
        found = nll_of(chunk, log_probs(chunk, total[chunk.facts])[0])
        for i, value in zip(chunk.facts.tolist(), found, strict=True):
            rows = naive.rows_of(model, tokenizer, facts[i], templates)
            slow = naive.nll_of(rows, naive.log_probs(model, rows, site, total[i]))
            torch.testing.assert_close(value, slow, rtol=1e-4, atol=1e-4)


def test_merged_chunks_measure_as_they_did_apart(config, model, tokenizer, facts, templates):
    """Chunks of unlike width, and of targets of unlike length, become one."""
    total = torch.randn(6, 32, generator=torch.Generator().manual_seed(3))
    narrow = replace(config, max_tokens=1)
    apart = prepare(model, tokenizer, facts, templates, narrow, LAYER).chunks
    assert len(apart) == 6 and len(merged(apart, 1)) == 6
    together = merged(apart, 10**6)
    assert len(together) == 1 and 1 < len(merged(apart, 200)) < 6
    measures = [], []
    for chunks, found in zip((apart, together), measures, strict=True):
        for chunk in chunks:
            told, essence = log_probs(chunk, total[chunk.facts])
            found += zip(nll_of(chunk, told), kl_of(chunk, essence), wins(chunk, told), strict=True)
    for one, other in zip(*measures, strict=True):
        torch.testing.assert_close(one[:2], other[:2], rtol=1e-4, atol=1e-5)
        assert torch.equal(one[2], other[2])


def test_gradients_equal_the_whole_model(problem, model, tokenizer, facts, templates, config):
    from ece.descent import _push

    total = torch.randn(6, 32, generator=torch.Generator().manual_seed(2))
    gradient, site = torch.zeros(6, 32), sites(model, (LAYER,))[0]
    norms, owner = problem.hidden.norm(dim=1), torch.arange(6)
    for chunk in problem.chunks:
        at = chunk.facts
        _push(chunk, total, owner, torch.ones(len(at)), norms[at], config, gradient)
    for i, fact in enumerate(facts):
        value = total[i].clone().requires_grad_()
        norm = naive.state(model, tokenizer, fact, LAYER).norm()
        rows = naive.rows_of(model, tokenizer, fact, templates)
        usual = naive.essence(rows, naive.log_probs(model, rows, site, torch.zeros(32)))
        whole, _ = naive.loss(model, rows, site, value, norm, usual, config)
        (slow,) = torch.autograd.grad(whole, value)
        torch.testing.assert_close(gradient[i], slow, rtol=1e-3, atol=1e-5)


def test_states_before_are_the_models_own(problem, model, tokenizer, facts):
    for i, fact in enumerate(facts):
        slow = naive.state(model, tokenizer, fact, LAYER)
        torch.testing.assert_close(problem.hidden[i], slow, rtol=1e-4, atol=1e-5)


def test_fast_descent_equals_the_naive_one(problem, model, tokenizer, facts, templates, config):
    fast = descend(problem, config, 4)
    for i, fact in enumerate(facts):
        value, losses = naive.descend(
            model, tokenizer, [fact], templates, config, LAYER, 4, torch.zeros(32)
        )
        torch.testing.assert_close(fast.delta[i], value, **CLOSE)
        torch.testing.assert_close(fast.losses[:, i], torch.tensor(losses), **CLOSE)
    assert fast.losses[-1].mean() < fast.losses[0].mean()
    torch.testing.assert_close(fast.losses[0], problem.nll, rtol=1e-5, atol=1e-6)


def test_all_at_once_equals_one_by_one(problem, config, model, tokenizer, facts, templates):
    together = descend(problem, config, 4)
    for i, fact in enumerate(facts):
        alone = descend(prepare(model, tokenizer, [fact], templates, config, LAYER), config, 4)
        torch.testing.assert_close(alone.delta[0], together.delta[i], **CLOSE)


def test_the_memory_budget_changes_nothing(config, model, tokenizer, facts, templates, problem):
    tight = replace(config, max_tokens=30)
    split = prepare(model, tokenizer, facts, templates, tight, LAYER)
    assert len(split.chunks) > len(problem.chunks)
    torch.testing.assert_close(
        descend(split, tight, 4).delta, descend(problem, config, 4).delta, **CLOSE
    )


def test_finished_facts_leave_with_what_they_had(problem, config):
    free = descend(problem, config, 4)
    bar = float(free.losses[2].median())
    stopped = descend(problem, replace(config, stop=bar), 4)
    assert stopped.steps.min() < 4 <= stopped.steps.max()
    for i, steps in enumerate(stopped.steps.tolist()):
        kept = descend(problem, config, steps).delta[i] if steps else torch.zeros(32)
        torch.testing.assert_close(stopped.delta[i], kept, **CLOSE)
        torch.testing.assert_close(
            stopped.losses[: steps + 1, i], free.losses[: steps + 1, i], **CLOSE
        )
        assert steps == 4 or stopped.losses[steps, i] < bar


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


@pytest.mark.parametrize("shared", ["anchor", "mean", "zero"])
def test_two_steps_equal_the_naive_ones(
    problem, model, tokenizer, facts, templates, config, shared
):
    config = replace(config, shared=shared)
    W = sites(model, (LAYER,))[0].weight
    values, groups = two_step(problem, W, config), groups_of(problem, W, config)
    assert len(groups.medoids) == 2
    for c, anchor in enumerate(groups.medoids.tolist()):
        members = (groups.labels == c).nonzero()[:, 0].tolist()
        told = {"anchor": [facts[anchor]], "mean": [facts[i] for i in members], "zero": []}[shared]
        start = torch.zeros(32)
        if told:
            start, _ = naive.descend(
                model, tokenizer, told, templates, config, LAYER, 3, torch.zeros(32)
            )
        for i in members:
            value, losses = naive.descend(
                model, tokenizer, [facts[i]], templates, config, LAYER, 2, start
            )
            torch.testing.assert_close(values.delta[i], value, **CLOSE)
            torch.testing.assert_close(values.losses[:, i], torch.tensor(losses), **CLOSE)


def test_curves_of_both_phases_are_kept(problem, model, config):
    values = two_step(problem, sites(model, (LAYER,))[0].weight, config)
    assert values.shared.losses.shape == (4, 2) and values.losses.shape == (3, 6)
    anchors = values.groups.medoids
    torch.testing.assert_close(values.shared.losses[-1], values.losses[0, anchors], **CLOSE)
    assert values.steps.tolist() == [2] * 6 and values.shared.steps.tolist() == [3, 3]
    torch.testing.assert_close(values.before, (-problem.nll).exp())


def test_singletons_are_plain_descent(problem, model, config):
    alone = replace(config, clusters=None)
    values = two_step(problem, sites(model, (LAYER,))[0].weight, alone)
    assert torch.equal(values.delta, descend(problem, alone, 5).delta)
    assert values.groups is None and values.shared is None


def test_weight_scores_are_clustered_on_activation_sets(problem, model, config):
    W = sites(model, (LAYER,))[0].weight
    by_weight = groups_of(problem, W, replace(config, scorer="weight"))
    by_activation = groups_of(problem, W, replace(config, scorer="activation"))
    assert torch.equal(by_weight.labels, by_activation.labels)
    assert len(by_weight.medoids) == 2
