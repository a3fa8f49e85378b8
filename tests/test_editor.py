"""Editing as a whole: MEMIT by settings, all or nothing, exact undo, same seed same bits."""

import copy
from dataclasses import replace

import pytest
import torch

from conftest import build
from ece.bench import reference as naive
from ece.config import METHODS
from ece.editor import compute_values, edit_batch, edit_sequence
from ece.errors import (
    ConfigError,
    EditError,
    FactError,
    ModelError,
    SolveError,
    StateError,
    StatsError,
)
from ece.facts import encode, target_ids
from ece.model import fingerprint, sites
from ece.solver import solve_update
from ece.state import new_state, undo

PLAIN = dict(scorer="all", p=1.0, clusters=None, history=False)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def probability(model, tokenizer, fact) -> float:
    """Probability per token of the target after the bare prompt, from a plain forward."""
    ids, target = encode(tokenizer, fact.text), target_ids(tokenizer, fact.target)
    log_p = model(torch.tensor([ids + target])).logits[0].log_softmax(-1)
    picked = [log_p[len(ids) - 1 + j, t] for j, t in enumerate(target)]
    return float(torch.stack(picked).mean().exp())


def same(model, kept) -> bool:
    return all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def state(model, tokenizer, config):
    return new_state(model, tokenizer, config)


def test_with_everything_selected_it_is_memit(model, family, tokenizer, facts, stats, config):
    config = replace(config, **PLAIN, layers=(1, 2), steps=3, lam=200.0)
    twin = build(family)
    state, _ = edit_sequence(model, tokenizer, facts[:3], stats, config, 3)
    naive.memit(twin, tokenizer, facts[:3], state.contexts, stats.moments, config)
    original = build(family)
    three = [sites(m, config.layers) for m in (model, twin, original)]
    for edited, plain, before in zip(*three, strict=True):
        moved = (plain.weight - before.weight).norm()
        assert moved > 1e-3 * before.weight.norm()
        assert (edited.weight - plain.weight).norm() < 1e-2 * moved


def test_editing_makes_the_targets_likelier(model, tokenizer, facts, stats, config):
    config = replace(
        config,
        layers=(1,),
        steps=30,
        own_steps=25,
        lr=0.2,
        clamp=4.0,
        lam=1e-3,
        weight_decay=0.0,
        kl_factor=0.0,
        contexts=0,
        scorer="all",
        p=1.0,
    )
    before = [probability(model, tokenizer, fact) for fact in facts]
    _, (report,) = edit_sequence(model, tokenizer, facts, stats, config, 6)
    after = [probability(model, tokenizer, fact) for fact in facts]
    torch.testing.assert_close(
        torch.tensor(report.probability_before), torch.tensor(before), rtol=1e-3, atol=1e-6
    )
    gains = torch.tensor([b / a for a, b in zip(before, after, strict=True)])
    assert gains.log().mean().exp() > 1.3  # a random model hardly reads its subjects


def test_only_chosen_columns_change(model, tokenizer, facts, stats, config, state):
    kept = weights(model)
    columns = {site.layer: site.weight.clone() for site in sites(model, config.layers)}
    _, report = edit_batch(model, tokenizer, facts, stats, state, config)
    for site in sites(model, config.layers):
        mask, before = report.masks[site.layer], columns[site.layer]
        assert report.neurons[site.layer] == int(mask.sum()) < len(mask)
        assert torch.equal(site.weight[:, ~mask], before[:, ~mask])
        assert (site.weight[:, mask] != before[:, mask]).any(0).all()
    edited = {id(site.module.weight) for site in sites(model, config.layers)}
    for name, parameter in model.named_parameters():
        assert id(parameter) in edited or torch.equal(parameter, kept[name])


def test_undo_is_exact_and_history_with_it(model, tokenizer, facts, stats, config, state):
    kept, states = [weights(model)], [state]
    for part in (facts[:2], facts[2:4], facts[4:]):
        state, _ = edit_batch(model, tokenizer, part, stats, state, config)
        kept.append(weights(model))
        states.append(state)
    assert not same(model, kept[2])
    back = undo(model, state)
    assert same(model, kept[2]) and back.weights == states[2].weights
    assert all(torch.equal(back.history(n), states[2].history(n)) for n in config.layers)
    again, _ = edit_batch(model, tokenizer, facts[4:], stats, back, config)
    assert same(model, kept[3]) and again.weights == state.weights
    first = undo(model, again, 3)
    assert same(model, kept[0]) and not first.folded and not first.batches
    with pytest.raises(StateError, match="cannot undo"):
        undo(model, first)


def test_same_seed_same_bits(family, tokenizer, facts, stats, config):
    ends = []
    for _ in range(2):
        model = build(family)
        edit_sequence(model, tokenizer, facts, stats, config, 3)
        ends.append(weights(model))
    assert same(model, ends[0])


def test_conv1d_and_linear_give_the_same_update(tokenizers, facts, all_stats, config):
    one, two = build("gpt2"), build("gpt2")
    for block in two.transformer.h:
        conv = block.mlp.c_proj
        linear = torch.nn.Linear(conv.weight.shape[0], conv.weight.shape[1])
        linear.weight.data, linear.bias.data = conv.weight.data.T.contiguous(), conv.bias.data
        block.mlp.c_proj = linear
    two.requires_grad_(False)
    stats = replace(all_stats["gpt2"], fingerprint=fingerprint(two))
    for model, own in ((one, all_stats["gpt2"]), (two, stats)):
        edit_sequence(model, tokenizers["gpt2"], facts, own, config, 3)
    for a, b in zip(sites(one, config.layers), sites(two, config.layers), strict=True):
        torch.testing.assert_close(a.weight, b.weight, rtol=1e-4, atol=1e-5)


def test_history_is_the_sum_of_all_keys(model, tokenizer, facts, stats, config, state):
    for part in (facts[:4], facts[4:]):
        state, _ = edit_batch(model, tokenizer, part, stats, state, config)
    for layer in config.layers:
        keys = torch.cat([batch.keys[layer] for batch in state.batches]).double()
        torch.testing.assert_close(state.history(layer), keys.T @ keys)
    plain = replace(config, history=False)
    bare = replace(state, batches=(), folded={}, done=0)
    after, _ = edit_batch(model, tokenizer, [replace(facts[0], id=9)], stats, bare, plain)
    assert all(after.history(layer) is None for layer in config.layers)


def test_old_batches_leave_only_their_sum(model, tokenizer, facts, stats, config, state):
    """A short undo stack: the same history, the same edits, a bound on what is kept."""
    short, long_ = replace(config, undo=1), replace(config, undo=9)
    ends = []
    for setting in (short, long_):
        other, now = copy.deepcopy(model), state
        for fact in facts[:4]:
            now, _ = edit_batch(other, tokenizer, [fact], stats, now, setting)
        ends.append((other, now))
    (one, few), (two, many) = ends
    assert (len(few.batches), len(many.batches)) == (1, 4) and few.done == many.done == 4
    for layer in config.layers:
        torch.testing.assert_close(few.history(layer), many.history(layer))
    for a, b in zip(weights(one).values(), weights(two).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    few = undo(one, few)
    with pytest.raises(StateError, match="keeps the last 0"):
        undo(one, few)


def test_history_holds_earlier_facts_in_place(model, tokenizer, facts, stats, config):
    """With history the second batch moves the first batch's outputs less."""
    shifts = []
    for history in (True, False):
        setting = replace(config, history=history, layers=(1,), lam=1e-2, scorer="all", p=1.0)
        state = new_state(model, tokenizer, setting)
        state, _ = edit_batch(model, tokenizer, facts[:3], stats, state, setting)
        columns = sites(model, (1,))[0].weight.clone()
        keys = torch.stack(
            [naive.key(model, tokenizer, f, state.contexts, 1, "mixed") for f in facts[:3]]
        )
        state, _ = edit_batch(model, tokenizer, facts[3:], stats, state, setting)
        shifts.append(float((keys @ (sites(model, (1,))[0].weight - columns).T).norm()))
        undo(model, state, 2)
    assert shifts[0] < 0.5 * shifts[1]


def test_keys_and_residuals_of_one_layer_by_hand(model, family, tokenizer, facts, stats, config):
    config = replace(config, layers=(1,), keys="bare", scorer="all", p=1.0)
    state = new_state(model, tokenizer, config)
    values = compute_values(model, tokenizer, facts, state, config)
    edit_batch(model, tokenizer, facts, stats, state, config, values)
    plain = build(family)
    K = torch.stack([naive.key(plain, tokenizer, f, ("{}",), 1, "bare") for f in facts])
    mask = torch.ones(K.shape[1], dtype=torch.bool)
    update = solve_update(values.delta.T, K, stats.moments[1], None, mask, config.lam)
    moved = sites(model, (1,))[0].weight - sites(plain, (1,))[0].weight
    assert (moved - update).norm() < 1e-3 * update.norm()


def test_boundary_edits_the_first_and_last_layer_only(model, tokenizer, facts, stats, config):
    config = replace(config, layers=(0, 1, 2), spread="boundary")
    kept = sites(model, (1,))[0].weight.clone()
    state, (report,) = edit_sequence(model, tokenizer, facts, stats, config, 6)
    assert report.layers == [0, 2] and report.norms[0] > 0 and report.norms[2] > 0
    assert torch.equal(sites(model, (1,))[0].weight, kept)
    undo(model, state)


def test_values_come_from_the_original_weights_unless_told(family, tokenizer, facts, stats, config):
    ends = []
    for source in ("original", "current"):
        model = build(family)
        setting = replace(config, values_from=source, lam=0.1)
        state, reports = edit_sequence(model, tokenizer, facts, stats, setting, 3)
        plain = compute_values(build(family), tokenizer, facts[3:], state, setting)
        ends.append(torch.allclose(torch.tensor(reports[1].loss_before), plain.nll))
    assert ends == [True, False]


def test_the_four_settings_of_the_paper_are_batch_sizes(
    model, family, tokenizer, facts, stats, config
):
    for batch, count in ((1, 6), (4, 2), (6, 1)):
        seen = []
        state, reports = edit_sequence(
            model,
            tokenizer,
            facts,
            stats,
            config,
            batch,
            on_batch=lambda state, _, part, seen=seen: seen.append((state.done, len(part))),
        )
        assert len(reports) == count and sum(size for _, size in seen) == 6
        assert [number for number, _ in seen] == list(range(1, count + 1))
        undo(model, state, min(count, config.undo))
        model = build(family)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_reports(model, tokenizer, facts, stats, config, method):
    setting = replace(config, **{**METHODS[method], "own_steps": 2})
    some = facts[:1] if setting.single else facts[:3]
    _, (report,) = edit_sequence(model, tokenizer, some, stats, setting, 3)
    record = report.to_dict()
    assert record["facts"] == [fact.id for fact in some] and set(record["seconds"]) == {
        "values",
        "keys",
        "solve",
    }
    assert len(record["labels"]) == (0 if setting.clusters is None else 3)
    full = sites(model)[0].weight.shape[1]
    chosen = set(record["neurons"].values())
    assert chosen == {full} if setting.scorer == "all" else max(chosen) < full


def test_a_fact_that_already_holds_is_reported(model, tokenizer, facts, stats, config):
    words = [tokenizer.decode([token]).strip() for token in range(257, 320)]
    word = next(word for word in words if len(target_ids(tokenizer, word)) == 1)
    end = model.base_model(torch.tensor([encode(tokenizer, facts[0].text)])).last_hidden_state
    # Teach the answer: the word's row of the LM head points along the prompt's final state.
    model.get_output_embeddings().weight[target_ids(tokenizer, word)[0]] = 5 * end[0, -1]
    state = new_state(model, tokenizer, config)
    own = replace(stats, fingerprint=state.fingerprint)
    told = [replace(facts[0], target=word), facts[1]]
    _, report = edit_batch(model, tokenizer, told, own, state, config)
    assert report.held == [True, False]


BAD_FACT = {
    "no slot": dict(prompt="He lives in"),
    "two slots": dict(prompt="{} and {} live in"),
    "empty subject": dict(subject=""),
    "empty target": dict(target=" "),
    "too long": dict(prompt="{} " + "lives in " * 90),
    "duplicate": dict(prompt="The trade of {}, all agree, is", subject="Tor Asken", relation="r1"),
}


@pytest.mark.parametrize("case", BAD_FACT)
def test_a_bad_fact_changes_no_weight(model, tokenizer, facts, stats, config, state, case):
    kept = weights(model)
    wrong = [*facts[:5], replace(facts[5], **BAD_FACT[case])]
    with pytest.raises(FactError, match="fact 5"):
        edit_batch(model, tokenizer, wrong, stats, state, config)
    assert same(model, kept)
    with pytest.raises(FactError, match="fact 5"):
        edit_sequence(model, tokenizer, wrong, stats, config, 6)
    assert same(model, kept)


def test_a_bad_fact_in_a_late_batch_stops_the_sequence_before_the_first(
    model, tokenizer, facts, stats, config
):
    kept = weights(model)
    wrong = [*facts[:5], replace(facts[5], target="")]
    with pytest.raises(FactError):
        edit_sequence(model, tokenizer, wrong, stats, config, 2)
    assert same(model, kept)


def failing(case, model, stats, state, config, values):
    """Arguments of edit_batch with one thing wrong, and the error that names it."""
    nan = float("nan")
    moments = {layer: moment * nan for layer, moment in stats.moments.items()}
    negative = {layer: -moment for layer, moment in stats.moments.items()}
    bad = {
        "layer": (stats, state, replace(config, layers=(0, 9)), None, EditError, "no layer 9"),
        "top layer": (stats, state, replace(config, layers=(0, 3)), None, ConfigError, "layers"),
        "other layers": (stats, state, replace(config, layers=(0, 2)), None, StateError, "layers"),
        "other stats": (replace(stats, fingerprint="x"), state, config, None, StatsError, "other"),
        "nan stats": (replace(stats, moments=moments), state, config, None, StatsError, "finite"),
        "not definite": (replace(stats, moments=negative), state, config, None, SolveError, "def"),
        "nan values": (
            stats,
            state,
            config,
            replace(values, delta=values.delta * nan),
            StateError,
            "values are not finite",
        ),
        "other values": (stats, state, config, replace(values, layer=0), StateError, "values"),
        "other weights": (stats, replace(state, weights="x"), config, None, StateError, "weights"),
    }
    return bad[case]


CASES = (
    "layer",
    "top layer",
    "other layers",
    "other stats",
    "nan stats",
    "not definite",
    "nan values",
    "other values",
    "other weights",
)


@pytest.mark.parametrize("case", CASES)
def test_an_error_changes_no_weight(model, tokenizer, facts, stats, config, state, case):
    kept, values = weights(model), compute_values(model, tokenizer, facts, state, config)
    *rest, error, message = failing(case, model, stats, state, config, values)
    with pytest.raises(error, match=message):
        edit_batch(model, tokenizer, facts, *rest)
    assert same(model, kept)


def test_non_finite_weights_are_refused(model, tokenizer, facts, stats, config, state):
    sites(model, (1,))[0].weight[0, 0] = float("inf")
    kept = weights(model)
    with pytest.raises(StateError, match="weights of layer 1"):
        edit_batch(model, tokenizer, facts, stats, state, config)
    with pytest.raises(ModelError, match="logits"):
        new_state(model, tokenizer, config)
    assert same(model, kept)


def test_non_finite_keys_are_refused(model, tokenizer, facts, stats, config):
    for parameter in model.base_model.get_input_embeddings().parameters():
        parameter.mul_(float("nan"))
    state_of = replace(config, contexts=0)
    state = new_state(model, tokenizer, state_of)
    kept = weights(model)
    with pytest.raises(StateError, match="keys"):
        edit_batch(
            model, tokenizer, facts, replace(stats, fingerprint=state.fingerprint), state, state_of
        )
    assert all(
        torch.equal(t.nan_to_num(), kept[n].nan_to_num()) for n, t in model.state_dict().items()
    )


def test_a_failure_half_way_puts_the_first_layer_back(
    model, tokenizer, facts, stats, config, state
):
    kept = weights(model)
    moments = {0: stats.moments[0], 1: -stats.moments[1]}
    with pytest.raises(SolveError):
        edit_batch(model, tokenizer, facts, replace(stats, moments=moments), state, config)
    assert same(model, kept)
    edit_batch(model, tokenizer, facts, stats, state, config)
    assert not same(model, kept)


def test_half_precision_weights_can_be_edited(family, tokenizer, facts, stats, config):
    model = build(family).to(torch.bfloat16)
    state = new_state(model, tokenizer, config)
    kept = weights(model)
    own = replace(stats, fingerprint=state.fingerprint)
    state, report = edit_batch(model, tokenizer, facts, own, state, config)
    assert not same(model, kept) and model.dtype == torch.bfloat16
    assert all(loss == loss for loss in report.loss_after)
    undo(model, state)
    assert same(model, kept)


def test_values_of_a_subject_edited_again_come_from_the_present_weights(
    model, tokenizer, facts, stats, config, tmp_path
):
    """The second batch repeats one subject: that fact is as with "current", the other is not."""
    again = replace(config, values_from="again", clusters=None)
    twice = replace(facts[2], subject=facts[0].subject, id=9, relation="other")
    told = [facts[0], facts[1], twice, facts[3]]
    twin = build(model.config.model_type)
    state, _ = edit_sequence(twin, tokenizer, told[:2], stats, again, 2)
    now = compute_values(twin, tokenizer, told[2:], state, again)
    first = compute_values(model, tokenizer, told[2:], state, again)
    _, reports = edit_sequence(model, tokenizer, told, stats, again, 2, save_to=tmp_path)
    losses = reports[1].loss_after
    assert losses[0] == pytest.approx(float(now.losses[-1][0]), abs=1e-4)
    assert losses[1] == pytest.approx(float(first.losses[-1][1]), abs=1e-4)
    assert abs(losses[0] - float(first.losses[-1][0])) > 1e-4, "the weights do make a difference"
    resumed = build(model.config.model_type)
    edit_sequence(resumed, tokenizer, told, stats, again, 2, save_to=tmp_path)
    for mine, other in zip(sites(model, (0, 1)), sites(resumed, (0, 1)), strict=True):
        assert torch.equal(mine.weight, other.weight)


def test_without_repeated_subjects_again_is_original(model, tokenizer, facts, stats, config):
    twin = build(model.config.model_type)
    edit_sequence(model, tokenizer, facts[:4], stats, replace(config, values_from="again"), 2)
    edit_sequence(twin, tokenizer, facts[:4], stats, config, 2)
    for mine, other in zip(sites(model, (0, 1)), sites(twin, (0, 1)), strict=True):
        assert torch.equal(mine.weight, other.weight)
