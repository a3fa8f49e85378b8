"""Baselines: whole batches or none, the way back, and what each method promises."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from conftest import build
from ece.baselines import BASELINES, Baseline, Task, numbers_of
from ece.baselines.ft import FineTuning, trainable
from ece.baselines.ft import edit as fine_tune
from ece.baselines.prune import restrain, restrained
from ece.baselines.sequence import Done, edit_one, sequence, undo_one
from ece.editor import edit_batch, new_state
from ece.engine.keys import keys_and_states, mix, subject_rows
from ece.errors import ConfigError, StateError
from ece.facts import encode, target_ids
from ece.model import sites

FT = [name for name in BASELINES if name.startswith("ft-")]


def task(model, tokenizer, **numbers):
    return Task(model, tokenizer, FineTuning(**{"layers": (1,), "steps": 4, **numbers}), {})


def loss_by_hand(model, tokenizer, fact, goal):
    """NLL per target token, one row, the whole model."""
    prompt, target = encode(tokenizer, fact.text), target_ids(tokenizer, fact.target)
    row = torch.tensor([prompt + target])
    logits = model(row).logits[0]
    at = [len(prompt) - 1] * len(target)
    if goal == "answer":
        at = [len(prompt) - 1 + i for i in range(len(target))]
    return cross_entropy(logits[at], torch.tensor(target))


@pytest.mark.parametrize("goal", ["last", "answer"])
def test_one_step_of_fine_tuning_is_adam_on_the_loss_by_hand(model, tokenizer, facts, goal):
    new = fine_tune(task(model, tokenizer, goal=goal, steps=1, stop=0.0), facts)
    (name,) = new
    weight = dict(model.named_parameters())[name]
    weight.requires_grad_()
    sum(loss_by_hand(model, tokenizer, fact, goal) for fact in facts).div(len(facts)).backward()
    step = new[name] - weight.detach()
    moved = weight.grad.abs() > 1e-6  # Adam's first step is the sign of the gradient
    assert torch.equal(step.sign()[moved], -weight.grad.sign()[moved])
    assert step.abs().max() <= 5e-4 * 1.01


def test_memory_budget_does_not_change_fine_tuning(model, tokenizer, facts):
    whole = fine_tune(task(model, tokenizer), facts)
    parts = fine_tune(task(model, tokenizer, max_tokens=1), facts)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-5, rtol=1e-4)


def test_ft_l_stays_inside_its_ball(model, tokenizer, facts):
    new = fine_tune(task(model, tokenizer, lr=0.1, ball=1e-3), facts)
    before = trainable(model, (1,))
    for name in new:
        change = (new[name] - before[name]).abs().max()
        assert 0 < change <= 1e-3 * 1.001


def test_decay_pulls_weights_towards_zero(model, tokenizer, facts):
    free = fine_tune(task(model, tokenizer), facts)
    held = fine_tune(task(model, tokenizer, decay=100.0), facts)
    for name in free:
        assert held[name].norm() < free[name].norm()


@pytest.mark.parametrize("goal", ["last", "answer"])
def test_fine_tuning_lowers_its_loss_and_touches_nothing_else(model, tokenizer, facts, goal):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    old = sum(float(loss_by_hand(model, tokenizer, fact, goal)) for fact in facts)
    numbers = task(model, tokenizer, goal=goal, steps=20, lr=1e-2)
    new = fine_tune(numbers, facts)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    edit_one(Baseline(FineTuning, {}, fine_tune), numbers, facts, Done())
    assert sum(float(loss_by_hand(model, tokenizer, fact, goal)) for fact in facts) < old
    changed = {n for n, value in model.named_parameters() if not torch.equal(value, before[n])}
    assert changed == set(new)


def test_a_batch_is_written_whole_or_not_at_all_and_can_be_undone(model, tokenizer, facts):
    one = Baseline(FineTuning, {}, fine_tune)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    broken = replace(one, edit=lambda task, facts: {
        **fine_tune(task, facts), next(iter(before)): next(iter(before.values())) * float("nan")
    })  # fmt: skip
    with pytest.raises(StateError, match="not finite; nothing was changed"):
        edit_one(broken, task(model, tokenizer), facts, Done())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    done = edit_one(one, task(model, tokenizer), facts, Done())
    assert not all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    back = undo_one(task(model, tokenizer), done)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(StateError, match="keeps one batch"):
        undo_one(task(model, tokenizer), back)


@pytest.mark.parametrize("name", FT)
def test_a_killed_sequence_ends_with_the_same_bits(name, tokenizers, facts, tmp_path):
    numbers = BASELINES[name].configure(name, steps=2)
    whole = build("gpt2")
    sequence(BASELINES[name], Task(whole, tokenizers["gpt2"], numbers, {}), facts, 2)
    first = build("gpt2")

    def killed(number, record, part):
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        at = Task(first, tokenizers["gpt2"], numbers, {})
        sequence(BASELINES[name], at, facts, 2, killed, tmp_path)
    again, heard = build("gpt2"), []
    at = Task(again, tokenizers["gpt2"], numbers, {})
    sequence(BASELINES[name], at, facts, 2, lambda n, *_: heard.append(n), tmp_path)
    assert heard == [1, 2]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    other = Task(build("gpt2"), tokenizers["gpt2"], numbers, {})
    with pytest.raises(StateError, match="other facts, settings"):
        sequence(BASELINES[name], other, facts[:4], 2, save_to=tmp_path)


def test_numbers_that_are_not_there_or_out_of_range_are_named():
    with pytest.raises(ConfigError, match="'lam' is not one of method ft-l; it has: layers"):
        numbers_of("gpt2-xl", "ft-l", lam=3.0)
    with pytest.raises(ConfigError, match="'lr' is -1"):
        numbers_of("gpt2-xl", "ft-l", lr=-1.0)
    assert numbers_of("EleutherAI/gpt-j-6B", "ft-l").layers == (21,)


def test_rome_satisfies_its_constraint_exactly(model, tokenizer, facts, stats, config):
    """One fact: the new weights map its key onto its value."""
    rome = replace(config, layers=(1,), scorer="all", p=1.0, clusters=None, exact=True)
    state = new_state(model, tokenizer, rome)
    rows = subject_rows(tokenizer, facts[:1], state.contexts)
    keys, _ = keys_and_states(model, rows, 1, 1, 1, 4096)
    K, before = mix(keys, "mixed")[0].double(), sites(model, (1,))[0].weight.clone()
    edit_batch(model, tokenizer, facts[:1], stats, state, rome, values := _values(
        model, tokenizer, facts[:1], state, rome))  # fmt: skip
    change = (sites(model, (1,))[0].weight - before).double() @ K
    torch.testing.assert_close(change, values.delta[0].double(), atol=1e-5, rtol=1e-4)


def _values(model, tokenizer, facts, state, config):
    from ece.editor import compute_values

    return compute_values(model, tokenizer, facts, state, config)


def test_single_writes_fact_by_fact(model, tokenizer, facts, stats, config):
    from ece.editor import edit_sequence

    one = replace(config, single=True)
    twin = build(model.config.model_type)
    state, reports = edit_sequence(model, tokenizer, facts[:3], stats, one, 3)
    assert state.done == 3 and [len(report.facts) for report in reports] == [1, 1, 1]
    edit_sequence(twin, tokenizer, facts[:3], stats, config, 1)
    for mine, other in zip(sites(model, (0, 1)), sites(twin, (0, 1)), strict=True):
        assert torch.equal(mine.weight, other.weight)


def test_prune_pulls_in_only_what_is_longer_than_the_weight():
    torch.manual_seed(0)
    weight, base = torch.randn(6, 9, dtype=torch.double), 1.2
    small = 0.1 * torch.randn(6, 9, dtype=torch.double)
    assert torch.equal(restrain(small, weight, base), small)
    left, _, right = torch.linalg.svd(small, full_matrices=False)
    top = torch.linalg.matrix_norm(weight, ord=2)
    long = left * torch.tensor([4.0, 2.0, 1.0, 0.5, 0.2, 0.1]).double() * top @ right
    values = torch.linalg.svdvals(restrain(long, weight, base))
    log = torch.log(torch.tensor([4.0, 2.0], dtype=torch.double)) / torch.log(
        torch.tensor(base, dtype=torch.double)
    )
    pulled = torch.minimum(top + log, top * torch.tensor([4.0, 2.0]).double())
    assert pulled[0] < 4 * top, "the case at hand restrains something"
    wanted = torch.cat([pulled, top * torch.tensor([1.0, 0.5, 0.2, 0.1]).double()])
    torch.testing.assert_close(values, wanted.sort(descending=True).values)


def test_restrained_weights_are_only_there_within(model):
    site = sites(model, (1,))[0]
    first = site.weight.clone()
    site.weight.add_(torch.randn_like(first) * 50)
    edited = site.weight.clone()
    with restrained(model, {1: first}, 1.2):
        inside = site.weight.clone()
    assert torch.equal(site.weight, edited)
    assert (inside - first).norm() < (edited - first).norm()
    with restrained(model, {1: first}, None):
        assert torch.equal(site.weight, edited)
