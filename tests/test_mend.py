"""MEND: factors are the gradient, an untrained editor is descent, training helps and resumes."""

from dataclasses import fields, replace

import pytest
import torch

from ece.baselines.base import Task, wordings
from ece.baselines.likelihood import log_probs, nll, rows
from ece.baselines.mend import edit as mend
from ece.baselines.mend.edit import Mend, edit, train
from ece.baselines.mend.network import Factors, factors, join, normalised
from ece.errors import ConfigError, FactError, ModelError, StateError
from ece.experiments.flags import field_docs
from ece.facts import Fact
from ece.model import sites

NUMBERS = Mend(layers=(1, 3), rank=8, steps=0, edit_lr=1e-2, lr=3e-3, most=3, seed=1)
NAMES = ("Mira", "Tor", "Ilo", "Bena", "Ruan", "Ossia")
PLACES = ("Paris", "Lyon", "New Harbour", "Oslo")


@pytest.fixture(scope="session")
def lives() -> list[Fact]:
    """Facts to train on, each with a paraphrase and two neighbours."""
    return [
        Fact(
            "{} lives in",
            name,
            PLACES[i % 4],
            id=i,
            paraphrases=(f"The home of {name} is",),
            neighbours=tuple(f"{other} lives in" for other in NAMES if other != name)[:2],
        )
        for i, name in enumerate(NAMES)
    ]


@pytest.fixture
def task(model, tokenizer) -> Task:
    return Task(model, tokenizer, NUMBERS, {})


def trained(task: Task, facts, **settings) -> Task:
    task = replace(task, numbers=replace(task.numbers, **settings))
    return replace(task, trained=train(task, facts))


def weight_gradients(task: Task, pairs) -> dict[int, torch.Tensor]:
    """What autograd says, `[model, ff]` per layer of `NUMBERS`."""
    places = sites(task.model, NUMBERS.layers)
    weights = [site.module.weight for site in places]
    for weight in weights:
        weight.requires_grad_()
    asked = rows(task.tokenizer, pairs, task.model.device)
    found = torch.autograd.grad(nll(log_probs(task.model, asked, {}), asked), weights)
    task.model.requires_grad_(False)
    return {
        site.layer: g if g.shape == site.weight.shape and site.weight.is_contiguous() else g.T
        for site, g in zip(places, found, strict=True)
    }


def test_factors_are_the_gradient(task, facts):
    pairs = [(fact.text, fact.target) for fact in facts]
    places = sites(task.model, NUMBERS.layers)
    found = factors(task.model, places, rows(task.tokenizer, pairs, task.model.device))
    for layer, slow in weight_gradients(task, pairs).items():
        u, delta = found[layer]
        torch.testing.assert_close(delta.T @ u, slow, rtol=1e-4, atol=1e-6)
        assert (delta != 0).any(1).all()
    assert not any(module._forward_hooks for module in task.model.modules())


def test_an_untrained_editor_is_descent_on_normalised_factors(task, facts, lives):
    """Exactly: $W - \\alpha \\sum_t z(\\delta_t) z(u_t)^T$ with z the normalisation."""
    task, places = trained(task, lives), sites(task.model, NUMBERS.layers)
    pairs = [(fact.text, fact.target) for fact in facts]
    found = factors(task.model, places, rows(task.tokenizer, pairs, task.model.device))
    expected = {}
    for site in places:
        u, delta = normalised(task.trained, site.layer, found[site.layer])
        expected[site.layer] = site.weight - NUMBERS.edit_lr * delta.T @ u
    check(task, edit(task, facts), expected)


def test_without_normalisation_it_is_plain_gradient_descent(task, facts, lives):
    task = trained(task, lives)
    plain = {
        name: torch.zeros_like(value) if name.endswith("mean") else torch.ones_like(value)
        for name, value in task.trained.items()
        if name.endswith(("mean", "deviation"))
    }
    task = replace(task, trained={**task.trained, **plain})
    slow = weight_gradients(task, [(fact.text, fact.target) for fact in facts])
    expected = {
        site.layer: site.weight - NUMBERS.edit_lr * slow[site.layer]
        for site in sites(task.model, NUMBERS.layers)
    }
    check(task, edit(task, facts), expected)


def check(task: Task, found, expected) -> None:
    """`found` are the parameters of `expected`'s layers with these values, and they differ."""
    named = dict(task.model.named_parameters())
    layers = {id(site.module.weight): site for site in sites(task.model)}
    assert len(found) == len(expected)
    for name, value in found.items():
        site = layers[id(named[name])]
        assert value.shape == named[name].shape and value.dtype == named[name].dtype
        turned = value if site.weight.is_contiguous() else value.T
        torch.testing.assert_close(turned, expected[site.layer], rtol=1e-4, atol=1e-5)
        assert not torch.equal(value, named[name])


def test_normalised_factors_have_mean_0_and_deviation_1(task, facts, lives):
    task, places = trained(task, lives), sites(task.model, NUMBERS.layers)
    pairs = [(fact.text, fact.target) for fact in lives]
    found = factors(task.model, places, rows(task.tokenizer, pairs, task.model.device))
    for site in places:
        for part in normalised(task.trained, site.layer, found[site.layer]):
            assert part.mean(0).abs().max() < 1e-4
            assert part.std(0, correction=0).max() < 1 + 1e-4


def test_updates_of_a_batch_add_up_and_the_budget_changes_nothing(task, facts, lives):
    task = trained(task, lives, steps=3)
    before = dict(task.model.named_parameters())
    together = edit(task, facts)
    tight = edit(replace(task, numbers=replace(task.numbers, max_tokens=20)), facts)
    alone = [edit(task, [fact]) for fact in facts]
    for name, value in together.items():
        total = sum(one[name] - before[name] for one in alone)
        torch.testing.assert_close(value - before[name], total, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(tight[name], value, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_on_held_out_edits(task):
    names = [f"{first} {last}" for first in NAMES for last in ("Velan", "Asken", "Quist", "Marn")]
    known = [
        Fact("{} lives in", name, PLACES[(5 * i + i // 4) % 4], id=i, paraphrases=(f"Ask {name}",))
        for i, name in enumerate(names)
    ]
    held, ahead = known[-4:], known[:-4]
    others = [fact.text for fact in ahead[:8]]

    def loss(task) -> float:
        losses = [mend._loss(task, edit(task, [fact]), [fact], others) for fact in held]
        return float(sum(losses))

    settings = dict(edit_lr=1e-3, edit_weight=1.0, lr=1e-2, rank=16)
    raw = trained(task, ahead, **settings)
    taught = trained(task, ahead, **settings, steps=30)
    same = dict(task.model.named_parameters())
    unedited = float(sum(mend._loss(raw, same, [fact], others) for fact in held))
    assert loss(taught) < 0.95 * min(loss(raw), unedited)


def test_editing_and_training_leave_the_model_alone(task, lives, facts):
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    names = set(edit(trained(task, lives, steps=2), facts))
    after = task.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in task.model.parameters())
    weights = {id(site.module.weight) for site in sites(task.model, NUMBERS.layers)}
    assert names == {n for n, p in task.model.named_parameters() if id(p) in weights}


def test_the_last_three_blocks_are_the_default(task, lives, facts):
    assert len(edit(trained(task, lives, layers=None), facts)) == 3


class Killed(Exception):
    pass


def test_a_killed_training_ends_with_the_same_bits(task, lives, tmp_path, monkeypatch):
    monkeypatch.setattr("ece.baselines.training.SAVE_EVERY", 2)
    task = replace(task, numbers=replace(NUMBERS, steps=6))
    whole, path = train(task, lives), tmp_path / "mend.json"

    def kill(what, done, steps):
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        train(task, lives, path, kill)
    steps = []
    again = train(task, lives, path, lambda what, done, steps_: steps.append(done))
    assert steps == [5, 6]
    assert set(whole) == set(again)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    with pytest.raises(StateError, match="mend.json is of another run .'settings' differs.*remove"):
        train(replace(task, numbers=replace(task.numbers, lr=1e-4)), lives, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StateError, match="mend.json cannot be read.*name another place"):
        train(task, lives, path)


def test_the_seed_decides_every_bit(task, lives):
    one, two = (trained(task, lives, steps=3).trained for _ in range(2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    other = trained(task, lives, steps=3, seed=2).trained
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_half_precision_models_get_half_precision_values(task, lives, facts):
    task.model.bfloat16()
    values = edit(trained(task, lives, steps=1), facts)
    assert {value.dtype for value in values.values()} == {torch.bfloat16}


def test_a_prompt_to_keep_is_never_one_that_is_edited(lives):
    for seed in range(20):
        chosen, near, far = mend._draw(lives, NUMBERS, torch.Generator().manual_seed(seed))
        asked = {prompt for fact in chosen for prompt in wordings(fact, True)}
        assert 1 <= len(chosen) <= 3 and far and not asked & {*near, *far}


def test_another_wording_that_is_taught_is_not_kept(lives):
    facts = [replace(fact, generation=fact.neighbours) for fact in lives]
    assert all(fact.neighbours for fact in facts)
    for seed in range(5):
        assert not mend._draw(facts, NUMBERS, torch.Generator().manual_seed(seed))[1]


def test_what_cannot_be_used_is_refused(task, lives, facts):
    ready = trained(task, lives)
    with pytest.raises(FactError, match="empty"):
        edit(ready, [])
    with pytest.raises(ModelError, match="train it first"):
        edit(task, facts)
    with pytest.raises(ModelError, match="layer 2"):
        edit(replace(ready, numbers=replace(NUMBERS, layers=(2,))), facts)
    with pytest.raises(ConfigError, match="two facts"):
        train(task, lives[:1])
    endless = {n: v + float("inf") if n.endswith("rate") else v for n, v in ready.trained.items()}
    with pytest.raises(ModelError, match="not finite"):
        edit(replace(ready, trained=endless), facts)
    sites(task.model)[2].weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        edit(ready, facts)


@pytest.mark.parametrize("wrong", [
    dict(rank=0), dict(rank=2.5), dict(lr=0.0), dict(lr=float("inf")), dict(edit_lr="1"),
    dict(edit_weight=-1.0), dict(far=0), dict(near=-1), dict(steps=-4), dict(seed=-1),
    dict(seed=2**70), dict(seen="yes"), dict(layers=()), dict(layers=(1, 1)), dict(layers=(-1,)),
], ids=str)  # fmt: skip
def test_settings_of_a_wrong_type_or_range_are_named(wrong):
    with pytest.raises(ConfigError, match=f"setting '{next(iter(wrong))}"):
        Mend(**wrong)


def test_factors_join_to_the_factors_of_the_sum():
    one, two = (Factors(torch.randn(3, 5), torch.randn(3, 2)) for _ in range(2))
    u, delta = join([one, two])
    torch.testing.assert_close(delta.T @ u, one.delta.T @ one.u + two.delta.T @ two.u)


def test_every_setting_is_explained():
    assert list(field_docs(Mend)) == [field.name for field in fields(Mend)]


def test_training_reads_no_paraphrase_unless_told_to(task, lives):
    facts = [replace(fact, generation=(f"{fact.subject} is",)) for fact in lives]
    bare = [replace(fact, paraphrases=()) for fact in facts]
    for seen in (False, True):
        one, two = (trained(task, some, steps=2, seen=seen).trained for some in (facts, bare))
        assert all(torch.equal(value, two[name]) for name, value in one.items()) == (not seen)
