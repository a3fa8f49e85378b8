"""Baselines: whole batches or none, the way back, and what each method promises."""

import multiprocessing
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from conftest import build, same, weights
from ece import presets
from ece.baselines import BASELINES, Baseline, Task
from ece.baselines.ft import FineTuning, trainable
from ece.baselines.ft import edit as fine_tune
from ece.baselines.rome import Rome
from ece.baselines.sequence import _write, edit_one, sequence
from ece.baselines.trained import trained
from ece.editor import compute_values, edit_batch
from ece.engine import reader
from ece.errors import ConfigError, FactError, StateError
from ece.experiments.runner import matmul
from ece.facts import encode, target_ids
from ece.model import sites
from ece.objective import mix
from ece.state import new_state
from ece.storage import Folder

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
    edit_one(Baseline(FineTuning, {}, fine_tune), numbers, facts)
    assert sum(float(loss_by_hand(model, tokenizer, fact, goal)) for fact in facts) < old
    changed = {n for n, value in model.named_parameters() if not torch.equal(value, before[n])}
    assert changed == set(new)


def test_a_batch_is_written_whole_or_not_at_all(model, tokenizer, facts):
    one = Baseline(FineTuning, {}, fine_tune)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    broken = replace(one, edit=lambda task, facts: {
        **fine_tune(task, facts), next(iter(before)): next(iter(before.values())) * float("nan")
    })  # fmt: skip
    with pytest.raises(StateError, match="new weights of .* are not finite"):
        edit_one(broken, task(model, tokenizer), facts)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    record = edit_one(one, task(model, tokenizer), facts)
    now = {n: v for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    moved = {n: float((value - before[n]).norm()) for n, value in now.items()}
    assert moved == pytest.approx(record.norms) and moved


def test_an_error_while_writing_puts_every_weight_back(model, tokenizer, facts):
    """The second of two parameters does not fit: the first is as before."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wide = replace(task(model, tokenizer), numbers=FineTuning(layers=(0, 1), steps=1))
    first, second = fine_tune(wide, facts).items()
    with pytest.raises(RuntimeError):
        _write(model, {first[0]: first[1], second[0]: second[1][:3]})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", FT)
def test_a_killed_sequence_ends_with_the_same_bits(name, tokenizers, facts, tmp_path):
    numbers = BASELINES[name].configure(name, steps=2)
    whole, baseline = build("gpt2"), BASELINES[name]
    at = partial(Task, tokenizer=tokenizers["gpt2"], numbers=numbers, trained={})
    records = sequence(baseline, at(whole), facts, 2)

    def killed(number, record, part):
        if number == 1:
            raise KeyboardInterrupt

    with Folder(tmp_path) as folder, pytest.raises(KeyboardInterrupt):
        sequence(baseline, at(build("gpt2")), facts, 2, killed, folder)
    again, heard = build("gpt2"), []
    with Folder(tmp_path) as folder:
        done = sequence(baseline, at(again), facts, 2, lambda n, *_: heard.append(n), folder)
    assert heard == [1, 2]
    for one, two in zip(done, records, strict=True):
        assert (one.facts, one.norms) == (two.facts, two.norms)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    for wrong, arguments in {
        "facts": (at(build("gpt2")), facts[:4], 2),
        "batch": (at(build("gpt2")), facts, 3),
        "settings": (at(build("gpt2"), numbers=replace(numbers, lr=0.5)), facts, 2),
        "training": (at(build("gpt2"), trained={"a": torch.ones(1)}), facts, 2),
        "model": (at(again), facts, 2),
    }.items():
        with Folder(tmp_path) as folder, pytest.raises(StateError, match=f"'{wrong}' differs"):
            sequence(baseline, *arguments, folder=folder)


def test_a_damaged_sequence_is_named_before_a_weight_changes(model, tokenizer, facts, tmp_path):
    def run(model):
        with Folder(tmp_path) as folder:
            sequence(BASELINES["ft-m"], task(model, tokenizer, steps=1), facts, 3, folder=folder)

    run(build(model.config.model_type))
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == [
        "baseline", "record-00001", "record-00002", "weights-00002"
    ]  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for path in tmp_path.glob("*.safetensors"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(StateError, match=path.name):
            run(model)
        path.write_bytes(whole)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("wrong", [
    dict(steps=0), dict(steps=2.5), dict(steps="4"), dict(lr=0.0), dict(lr=float("nan")),
    dict(ball=-1.0), dict(stop=float("nan")), dict(decay=-1e-9), dict(max_tokens=0),
    dict(layers=()), dict(layers=(-1,)), dict(layers=[1]), dict(goal="first"),
], ids=str)  # fmt: skip
def test_settings_of_a_wrong_type_or_range_are_named(wrong):
    with pytest.raises(ConfigError, match=f"setting '{next(iter(wrong))}"):
        FineTuning(**wrong)


def test_a_batch_of_a_wrong_size_is_refused(model, tokenizer, facts, untyped):
    for batch in (-1, 0, 2.5):
        with pytest.raises(ConfigError, match="'batch' is"):
            sequence(BASELINES["ft-m"], task(model, tokenizer), facts, batch)


def _learn(folder, order):
    """In a process of its own: train for a while, and say when."""

    def train(task, facts, save_to, progress):
        order.put("begins")
        order.put("ends")
        return {"a": torch.ones(2)}

    task = Task(build("gpt2"), None, FineTuning(), {})
    found = trained(Baseline(FineTuning, {}, train=train), task, [], folder)
    order.put(found["a"].tolist())


def test_two_processes_that_train_the_same_do_it_once(tmp_path):
    """They tripped over each other's files."""
    context = multiprocessing.get_context("fork")
    order = context.SimpleQueue()
    both = [context.Process(target=_learn, args=(tmp_path, order)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    found = [order.get() for _ in range(4)]
    assert found[:2] == ["begins", "ends"] and found[2:] == [[1.0, 1.0]] * 2


def test_what_was_trained_with_other_products_is_trained_anew(tmp_path):
    once = Baseline(FineTuning, {}, train=lambda *given: {"a": torch.ones(2)})
    one = Task(build("gpt2"), None, FineTuning(), {})
    for precision in ("highest", "medium", "medium"):
        with matmul(precision):
            trained(once, one, [], tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_numbers_that_are_not_there_or_out_of_range_are_named():
    with pytest.raises(ConfigError, match="'lam' is no setting of method ft-l; known: layers"):
        presets.numbers("gpt2-xl", "ft-l", lam=3.0)
    with pytest.raises(ConfigError, match="'lr' is -1"):
        presets.numbers("gpt2-xl", "ft-l", lr=-1.0)
    assert presets.numbers("EleutherAI/gpt-j-6B", "ft-l").layers == (21,)


def test_rome_satisfies_its_constraint_exactly(model, tokenizer, facts, stats, config):
    """One fact: the new weights map its key onto its value."""
    own = replace(config, layers=(1,), scorer="all", p=1.0, clusters=None)
    state = new_state(model, tokenizer, own, Rome())
    keys, _, _ = reader(model, tokenizer, facts[:1], state.contexts, 4096).read(1, 1)
    K, before = mix(keys)[0].double(), sites(model, (1,))[0].weight.clone()
    values = compute_values(model, tokenizer, facts[:1], state, own)
    edit_batch(model, tokenizer, facts[:1], stats, state, own, values)
    change = (sites(model, (1,))[0].weight - before).double() @ K
    torch.testing.assert_close(change, values.delta[0].double(), atol=1e-5, rtol=1e-4)


def test_a_sequence_is_checked_before_its_first_edit(model, tokenizer, facts):
    """A fact that cannot be edited, in the second batch, and no weight has changed."""
    bad = replace(facts[-1], target=" ")
    before = weights(model)
    with pytest.raises(FactError):
        sequence(BASELINES["ft-m"], task(model, tokenizer), [*facts[:-1], bad], 2)
    assert same(model, before)
