"""Editing as a whole: all or nothing, exact undo, same seed same bits, and what is refused."""

import copy
from dataclasses import fields, replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from conftest import SUBJECTS, TEXTS, build, history, same, weights
from ece import covariance, editor
from ece.baselines import STRATEGIES
from ece.baselines.alphaedit import AlphaEdit
from ece.baselines.memit import Memit
from ece.baselines.rome import Rome
from ece.covariance import second_moment
from ece.editor import compute_values, edit_batch
from ece.errors import (
    ConfigError,
    EditError,
    FactError,
    ModelError,
    SolveError,
    StateError,
    StatsError,
)
from ece.facts import Fact, encode, names_of, target_ids
from ece.fingerprint import fingerprint
from ece.model import Site, sites
from ece.objective import mix, reader
from ece.sequence import edit_sequence, split
from ece.solver import Knowledge, solve
from ece.state import new_state, undo
from ece.strategy import Strategy

NAN = float("nan")
one_family = pytest.mark.parametrize("family", ["gpt2"])  # where families cannot differ


def columns(model, layers) -> list[torch.Tensor]:
    return [site.weight.clone() for site in sites(model, layers)]


def probability(model, tokenizer, fact) -> float:
    """Probability per token of the target after the bare prompt, from a plain forward."""
    ids, target = encode(tokenizer, fact.text), target_ids(tokenizer, fact.target)
    log_p = model(torch.tensor([ids + target])).logits[0].log_softmax(-1)
    picked = [log_p[len(ids) - 1 + j, t] for j, t in enumerate(target)]
    return float(torch.stack(picked).mean().exp())


@pytest.fixture
def begun(model, tokenizer, config):
    """A state before its first batch."""
    return new_state(model, tokenizer, config)


# What an edit does.


def test_editing_makes_the_targets_likelier(model, tokenizer, facts, stats, config):
    strong = dict(steps=30, own_steps=25, lr=0.2, clamp=4.0, lam=1e-3, scorer="all", p=1.0)
    free = dict(weight_decay=0.0, kl_factor=0.0, contexts=0)
    config = replace(config, layers=(1,), **strong, **free)
    before = [probability(model, tokenizer, fact) for fact in facts]
    _, (report,) = edit_sequence(model, tokenizer, facts, stats, config, 6)
    after = [probability(model, tokenizer, fact) for fact in facts]
    found = torch.tensor(report.loss_before).neg().exp()
    torch.testing.assert_close(found, torch.tensor(before), rtol=1e-3, atol=1e-6)
    gains = torch.tensor([b / a for a, b in zip(before, after, strict=True)])
    assert gains.log().mean().exp() > 1.3  # a random model hardly reads its subjects


def test_only_chosen_columns_change(model, tokenizer, facts, stats, config, begun):
    before, old = weights(model), {s.layer: s.weight.clone() for s in sites(model, config.layers)}
    _, report = edit_batch(model, tokenizer, facts, stats, begun, config)
    for site in sites(model, config.layers):
        mask = report.masks[site.layer]
        assert report.neurons[site.layer] == int(mask.sum()) < len(mask)
        assert torch.equal(site.weight[:, ~mask], old[site.layer][:, ~mask])
        assert (site.weight[:, mask] != old[site.layer][:, mask]).any(0).all()
    edited = {id(site.module.weight) for site in sites(model, config.layers)}
    for name, parameter in model.named_parameters():
        assert id(parameter) in edited or torch.equal(parameter, before[name])


def test_one_layer_is_written_as_the_equations_say(model, tokenizer, facts, stats, config):
    """Keys by the literal reader, the residual by hand, the solve by its formula."""
    config = replace(config, layers=(1,))
    begun = new_state(model, tokenizer, config)
    values = compute_values(model, tokenizer, facts, begun, config)
    keys, states, _ = reader(model, tokenizer, facts, begun.contexts, 10**6).read(1, 1)
    K, before = mix(keys), columns(model, (1,))[0]
    _, report = edit_batch(model, tokenizer, facts, stats, begun, config, values)
    known = Knowledge(stats.moments[1], report.masks[1])
    update = solve((values.z - states).T, K, known, config.lam, config.ridge).delta
    moved = sites(model, (1,))[0].weight - before
    assert (moved - update).norm() < 1e-3 * update.norm()


def test_layers_share_what_is_left_of_the_residual(model, tokenizer, facts, stats, config):
    """Each layer sees the model with the earlier ones written, and takes its even share."""
    config = replace(config, layers=(0, 1, 2), scorer="all", p=1.0)
    begun = new_state(model, tokenizer, config)
    values, twin = compute_values(model, tokenizer, facts, begun, config), copy.deepcopy(model)
    edit_batch(model, tokenizer, facts, stats, begun, config, values)
    for left, layer in zip((3, 2, 1), config.layers, strict=True):
        keys, states, _ = reader(twin, tokenizer, facts, begun.contexts, 10**6).read(layer, 2)
        W, moment = sites(twin, (layer,))[0].weight, stats.moments[layer]
        known = Knowledge(moment, torch.ones(len(moment), dtype=torch.bool))
        R = ((values.z - states) / left).T
        old = W.clone()
        W += solve(R, mix(keys), known, config.lam, config.ridge).delta
        mine = sites(model, (layer,))[0].weight
        assert (mine - W).norm() < 1e-3 * (W - old).norm()


@one_family
def test_a_report_says_what_was_written(model, tokenizer, facts, stats, config, begun):
    before = columns(model, config.layers)
    _, report = edit_batch(model, tokenizer, facts, stats, begun, config)
    for layer, old, new in zip(config.layers, before, columns(model, config.layers), strict=True):
        assert report.norms[layer] == pytest.approx(float((new - old).double().norm()), rel=1e-6)
        assert 0 <= report.rounding[layer] < 1e-4 and report.jitter[layer] == 0
    record = report.to_dict()
    assert record["facts"] == [fact.id for fact in facts] and "masks" not in record
    assert set(record) == {field.name for field in fields(report)} - {"masks"}
    assert record["layers"] == [0, 1] and record["steps"] == [2] * 6
    assert len(record["labels"]) == 6 and len(record["anchors"]) == 2
    assert record["shared_steps"] == [3, 3] and set(record["seconds"]) == {
        "values",
        "keys",
        "solve",
    }


def test_a_fact_that_already_holds_is_reported(model, tokenizer, facts, stats, config):
    words = [tokenizer.decode([token]).strip() for token in range(257, 320)]
    word = next(word for word in words if len(target_ids(tokenizer, word)) == 1)
    end = model.base_model(torch.tensor([encode(tokenizer, facts[0].text)])).last_hidden_state
    # Teach the answer: the word's row of the LM head points along the prompt's final state.
    model.get_output_embeddings().weight[target_ids(tokenizer, word)[0]] = 5 * end[0, -1]
    begun = new_state(model, tokenizer, config)
    own = replace(stats, fingerprint=begun.fingerprint)
    batch = [replace(facts[0], target=word), facts[1]]
    _, report = edit_batch(model, tokenizer, batch, own, begun, config)
    assert report.held == [True, False]


def test_the_order_of_facts_in_a_batch_plays_no_part(family, tokenizer, facts, stats, config):
    """K-medoids once started from the order: edits of the same facts were 40 to 60 % apart."""
    ends = []
    for order in ((0, 1, 2, 3, 4, 5), (5, 3, 1, 0, 2, 4)):
        model = build(family)
        edit_sequence(model, tokenizer, [facts[i] for i in order], stats, config, 6)
        ends.append(columns(model, config.layers))
    for one, other, old in zip(*ends, columns(build(family), config.layers), strict=True):
        assert (one - other).norm() < 1e-3 * (one - old).norm()


@one_family
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


def test_half_precision_weights_can_be_edited(family, tokenizer, facts, stats, config):
    model = build(family).to(torch.bfloat16)
    begun, before = new_state(model, tokenizer, config), weights(model)
    own = replace(stats, fingerprint=begun.fingerprint)
    after, report = edit_batch(model, tokenizer, facts, own, begun, config)
    assert not same(model, before) and model.dtype == torch.bfloat16
    assert all(loss == loss for loss in report.loss_after)
    # How much of the update the format lost is in the report.
    assert all(1e-3 < share < 1 for share in report.rounding.values())
    undo(model, after)
    assert same(model, before)


# Histories, and the way back.


def test_undo_is_exact_and_history_with_it(model, tokenizer, facts, stats, config, begun):
    before, states = [weights(model)], [begun]
    for part in (facts[:2], facts[2:4], facts[4:]):
        after, _ = edit_batch(model, tokenizer, part, stats, states[-1], config)
        before.append(weights(model))
        states.append(after)
    assert not same(model, before[2])
    back = undo(model, states[3])
    assert same(model, before[2]) and back.weights == states[2].weights
    assert all(torch.equal(history(back, n), history(states[2], n)) for n in config.layers)
    again, _ = edit_batch(model, tokenizer, facts[4:], stats, back, config)
    assert same(model, before[3]) and again.weights == states[3].weights
    first = undo(model, again, 3)
    assert same(model, before[0]) and not first.folded and not first.batches
    with pytest.raises(StateError, match="cannot undo"):
        undo(model, first)


def test_undo_with_the_wrong_state_is_refused(model, tokenizer, facts, stats, config, begun):
    """A sampled fingerprint took it: 37 of 40 edits of the shipped llama were not seen."""
    one, _ = edit_batch(model, tokenizer, facts[:1], stats, begun, config)
    two, _ = edit_batch(model, tokenizer, facts[1:2], stats, one, config)
    before = weights(model)
    for wrong in (one, begun):
        with pytest.raises(StateError, match="weights"):
            undo(model, wrong, len(wrong.batches))
    assert same(model, before)
    weight = sites(model, (1,))[0].weight
    value = weight[7, 3].clone()
    weight[7, 3] = torch.nextafter(value, value + 1)
    with pytest.raises(StateError, match="weights"):
        undo(model, two)
    weight[7, 3] = value
    undo(model, two, 2)


@one_family
@pytest.mark.parametrize("count", [1.0, "1", None])
def test_undo_takes_a_whole_number(model, tokenizer, facts, stats, config, begun, untyped, count):
    after, _ = edit_batch(model, tokenizer, facts[:1], stats, begun, config)
    before = weights(model)
    with pytest.raises(EditError, match="cannot undo"):
        undo(model, after, count)
    assert same(model, before)


@pytest.mark.parametrize("count", [-1, 2, 99])
@one_family
def test_undo_of_batches_that_are_not_there_is_refused(
    model, tokenizer, facts, stats, config, begun, count
):
    after, _ = edit_batch(model, tokenizer, facts, stats, begun, config)
    before = weights(model)
    with pytest.raises(StateError, match=f"cannot undo {count}.*the last 1"):
        undo(model, after, count)
    assert same(model, before)
    assert undo(model, after, 0).weights == after.weights and same(model, before)


@one_family
def test_history_is_the_sum_of_all_keys(model, tokenizer, facts, stats, config, begun):
    after = begun
    for part in (facts[:4], facts[4:]):
        after, _ = edit_batch(model, tokenizer, part, stats, after, config)
    for layer in config.layers:
        keys = torch.cat([batch.keys[layer] for batch in after.batches]).double()
        assert torch.equal(after.recent(layer).double(), keys)
        torch.testing.assert_close(history(after, layer), keys.T @ keys)
    assert history(begun, 0) is None and begun.recent(0) is None


@one_family
def test_old_batches_leave_only_their_sum(model, tokenizer, facts, stats, config):
    """A short undo stack: the same history, the same edits, a bound on what is held."""
    ends = []
    for depth in (1, 9):
        other = copy.deepcopy(model)
        now = new_state(other, tokenizer, config, undo=depth)
        for fact in facts[:4]:
            now, _ = edit_batch(other, tokenizer, [fact], stats, now, config)
        ends.append((other, now))
    (one, few), (two, many) = ends
    assert (len(few.batches), len(many.batches)) == (1, 4) and few.done == many.done == 4
    for layer in config.layers:
        torch.testing.assert_close(history(few, layer), history(many, layer))
    for a, b in zip(weights(one).values(), weights(two).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    few = undo(one, few)
    with pytest.raises(StateError, match="holds the last 0"):
        undo(one, few)


@one_family
def test_history_holds_earlier_facts_in_place(model, tokenizer, facts, stats, config):
    """With history the second batch moves the first batch's outputs less."""
    shifts, config = [], replace(config, layers=(1,), lam=1e-2, scorer="all", p=1.0)
    for kept in (True, False):
        now = new_state(model, tokenizer, config, Strategy(history=kept))
        now, _ = edit_batch(model, tokenizer, facts[:3], stats, now, config)
        old = columns(model, (1,))[0]
        keys = mix(reader(model, tokenizer, facts[:3], now.contexts, 10**6).read(1, 1)[0])
        now, _ = edit_batch(model, tokenizer, facts[3:], stats, now, config)
        shifts.append(float((keys @ (columns(model, (1,))[0] - old).T).norm()))
        assert all((history(now, layer) is None) != kept for layer in config.layers)
        undo(model, now, 2)
    assert shifts[0] < 0.5 * shifts[1]


# Sequences.


@one_family
def test_values_come_from_where_the_strategy_says(family, tokenizer, facts, stats, config):
    ends, config = [], replace(config, lam=0.1)
    for source in ("original", "current"):
        model = build(family)
        after, reports = edit_sequence(
            model, tokenizer, facts, stats, config, 3, Strategy(values_from=source)
        )
        plain = compute_values(build(family), tokenizer, facts[3:], after, config)
        ends.append(torch.allclose(torch.tensor(reports[1].loss_before), plain.nll))
    assert ends == [True, False]


@one_family
def test_values_of_a_subject_edited_again_come_from_the_present_weights(
    family, tokenizer, facts, stats, config
):
    """The second batch repeats one subject: that fact is as with "current", the other is not."""
    config, strategy = replace(config, clusters=None), Strategy(values_from="again")
    twice = replace(facts[2], subject=facts[0].subject, id=9, relation="other")
    batch = [facts[0], facts[1], twice, facts[3]]
    model, twin = build(family), build(family)
    after, _ = edit_sequence(twin, tokenizer, batch[:2], stats, config, 2, strategy)
    now = compute_values(twin, tokenizer, batch[2:], after, config)
    first = compute_values(model, tokenizer, batch[2:], after, config)
    _, reports = edit_sequence(model, tokenizer, batch, stats, config, 2, strategy)
    losses = reports[1].loss_after
    assert losses[0] == pytest.approx(float(now.losses[-1][0]), abs=1e-4)
    assert losses[1] == pytest.approx(float(first.losses[-1][1]), abs=1e-4)
    assert abs(losses[0] - float(first.losses[-1][0])) > 1e-4, "the weights do make a difference"


@one_family
def test_without_repeated_subjects_again_is_original(family, tokenizer, facts, stats, config):
    ends = []
    for source in ("again", "original"):
        model = build(family)
        edit_sequence(model, tokenizer, facts[:4], stats, config, 2, Strategy(values_from=source))
        ends.append(weights(model))
    assert same(model, ends[0])


@one_family
def test_a_sequence_is_its_batches(family, tokenizer, facts, stats, config):
    one, two, seen, progress = build(family), build(family), [], []
    end, reports = edit_sequence(
        one,
        tokenizer,
        facts,
        stats,
        config,
        4,
        Strategy(values_from="current"),
        on_batch=lambda *what: seen.append(what),
        progress=lambda *what: progress.append(what),
    )
    now = new_state(two, tokenizer, config, Strategy(values_from="current"))
    for part in (facts[:4], facts[4:]):
        now, _ = edit_batch(two, tokenizer, part, stats, now, config)
    assert same(one, weights(two)) and end.weights == now.weights
    assert [(s.done, len(part)) for s, _, part in seen] == [(1, 4), (2, 2)]
    assert [report for _, report, _ in seen] == reports and seen[1][0] is end
    assert progress == [("edit", 1, 2), ("edit", 2, 2)]


@one_family
def test_a_sequence_finds_all_values_before_its_first_edit(family, tokenizer, facts, stats, config):
    """And takes those found earlier in their place; it goes on from any state."""
    one, two, progress = build(family), build(family), []
    begun = new_state(one, tokenizer, config)
    found = [compute_values(one, tokenizer, part, begun, config) for part in split(facts, 2)]
    states, given = [], dict(ahead=lambda parts, state: (state, found.__getitem__))
    edit_sequence(one, tokenizer, facts, stats, config, 2, state=begun, **given,
                  on_batch=lambda now, *_: states.append(now))  # fmt: skip
    edit_sequence(two, tokenizer, facts, stats, config, 2, progress=lambda *p: progress.append(p))
    assert same(one, weights(two))
    assert progress == [(stage, n, 3) for stage in ("values", "edit") for n in (1, 2, 3)]
    back = undo(two, states[-1], 2)
    end, reports = edit_sequence(two, tokenizer, facts, stats, config, 2, state=back, **given)
    assert same(one, weights(two)) and end.done == 3 and len(reports) == 2
    done, none = edit_sequence(two, tokenizer, facts, stats, config, 2, state=end, **given)
    assert done.weights == end.weights and none == []
    with pytest.raises(StateError, match="'ahead'"):
        edit_sequence(two, tokenizer, facts, stats, config, 2, state=end)


@pytest.mark.parametrize("batch, sizes", [(1, [1] * 6), (4, [4, 2]), (6, [6]), (100, [6])])
def test_the_settings_of_the_paper_are_batch_sizes(facts, batch, sizes):
    assert [len(part) for part in split(facts, batch)] == sizes


@pytest.mark.parametrize("batch", [0, -1, 2.0, "2", None])
@one_family
def test_a_batch_is_a_whole_number(model, tokenizer, facts, stats, config, untyped, batch):
    with pytest.raises(ConfigError, match="'batch'"):
        edit_sequence(model, tokenizer, facts, stats, config, batch)


# All or nothing.


BAD_FACT = {
    "no slot": dict(prompt="He lives in"),
    "two slots": dict(prompt="{} and {} live in"),
    "empty subject": dict(subject=""),
    "empty target": dict(target=" "),
    "too long": dict(prompt="{} " + "lives in " * 90),
    "duplicate": dict(prompt="The trade of {}, all agree, is", subject="Tor Asken", relation="r1"),
}


@pytest.mark.parametrize("case", BAD_FACT)
@one_family
def test_a_bad_fact_changes_no_weight(model, tokenizer, facts, stats, config, begun, case):
    before, wrong = weights(model), [*facts[:5], replace(facts[5], **BAD_FACT[case])]
    with pytest.raises(FactError, match="fact 5"):
        edit_batch(model, tokenizer, wrong, stats, begun, config)
    with pytest.raises(FactError, match="fact 5"):
        edit_sequence(model, tokenizer, wrong, stats, config, 6)
    assert same(model, before)


@one_family
def test_a_bad_fact_in_a_late_batch_stops_the_sequence_before_the_first(
    model, tokenizer, facts, stats, config
):
    before, wrong = weights(model), [*facts[:5], replace(facts[5], target="")]
    for strategy in (Strategy(), Strategy(values_from="current"), Strategy(values_from="again")):
        with pytest.raises(FactError):
            edit_sequence(model, tokenizer, wrong, stats, config, 2, strategy)
    assert same(model, before)


@pytest.mark.parametrize("kind", ["dict", "generator", "tuple", "one fact", "texts"])
@one_family
def test_facts_come_as_a_list(model, tokenizer, facts, stats, config, begun, untyped, kind):
    before = weights(model)

    def wrong():
        return {
            "dict": {i: fact for i, fact in enumerate(facts)},
            "generator": (fact for fact in facts),
            "tuple": tuple(facts),
            "one fact": facts[0],
            "texts": [fact.text for fact in facts],
        }[kind]

    for call in (
        lambda: edit_batch(model, tokenizer, wrong(), stats, begun, config),
        lambda: edit_sequence(model, tokenizer, wrong(), stats, config, 2),
        lambda: compute_values(model, tokenizer, wrong(), begun, config),
    ):
        with pytest.raises(FactError, match="give a list of ece.Fact"):
            call()
    assert same(model, before)


CASES = {
    "layer": (ConfigError, "'layers' ends at 9"),
    "top layer": (ConfigError, "layers"),
    "other layers": (StateError, "layers"),
    "stats of another model": (StatsError, "not of the model as"),
    "stats without a layer": (StatsError, "layer 1"),
    "stats of another width": (StatsError, "statistics of layer 0 have the shape 3,3, needed is"),
    "nan stats": (EditError, "finite"),
    "not definite": (SolveError, "definite"),
    "nan values": (StateError, "values are not finite"),
    "values of another layer": (StateError, "values"),
    "values of other facts": (StateError, "values of other facts"),
    "values of other targets": (StateError, "values of other facts"),
    "values of unnamed facts": (StateError, "values of other facts"),
    "other weights": (StateError, "weights"),
    "scorer": (ConfigError, "'scorer'"),
}


def wrong(case, stats, state, config, values):
    """Stats, state, config and values for `edit_batch`, with one thing wrong."""
    all_nan = {layer: moment * NAN for layer, moment in stats.moments.items()}
    small = torch.eye(3, dtype=torch.double)
    negative = {layer: -moment for layer, moment in stats.moments.items()}
    other_facts = (values.facts[0], ("{} lives in", "Some Other", "Rome"))
    other_target = (values.facts[0], (*values.facts[1][:2], "another"))
    change = {
        "layer": dict(config=replace(config, layers=(0, 9))),
        "top layer": dict(config=replace(config, layers=(0, 3))),
        "other layers": dict(config=replace(config, layers=(0, 2))),
        "stats of another model": dict(stats=replace(stats, fingerprint="x")),
        "stats without a layer": dict(stats=replace(stats, moments={0: stats.moments[0]})),
        "stats of another width": dict(stats=replace(stats, moments={**stats.moments, 0: small})),
        "nan stats": dict(stats=replace(stats, moments=all_nan)),
        "not definite": dict(stats=replace(stats, moments=negative)),
        "nan values": dict(values=replace(values, delta=values.delta * NAN)),
        "values of another layer": dict(values=replace(values, layer=0)),
        "values of other facts": dict(values=replace(values, facts=other_facts)),
        "values of other targets": dict(values=replace(values, facts=other_target)),
        "values of unnamed facts": dict(values=replace(values, facts=())),
        "other weights": dict(state=replace(state, weights="x")),
        "scorer": dict(state=replace(state, strategy=Memit())),
    }[case]
    found = {**dict(stats=stats, state=state, config=config, values=values), **change}
    return found["stats"], found["state"], found["config"], found["values"]


@pytest.mark.parametrize("case", CASES)
@one_family
def test_an_error_changes_no_weight(model, tokenizer, facts, stats, config, begun, case):
    before, some = weights(model), facts[:2]
    values = compute_values(model, tokenizer, some, begun, config)
    error, message = CASES[case]
    with pytest.raises(error, match=message):
        edit_batch(model, tokenizer, some, *wrong(case, stats, begun, config, values))
    assert same(model, before)


@one_family
def test_values_with_a_row_too_few_are_refused(
    model, tokenizer, facts, stats, config, begun, untyped
):
    before, values = weights(model), compute_values(model, tokenizer, facts[:2], begun, config)
    short = replace(values, delta=values.delta[:1])
    with pytest.raises(StateError, match="values hold 1 rows for 2 facts"):
        edit_batch(model, tokenizer, facts[:2], stats, begun, config, short)
    assert same(model, before)


@one_family
def test_an_engine_by_name_is_refused(model, tokenizer, facts, stats, config, begun):
    before, message = weights(model), "'engine' is 'fast'; give ece.engine or ece.objective"
    with pytest.raises(ConfigError, match=message):
        compute_values(model, tokenizer, facts, begun, config, engine="fast")
    with pytest.raises(ConfigError, match=message):
        edit_batch(model, tokenizer, facts, stats, begun, config, engine="fast")
    with pytest.raises(ConfigError, match=message):
        edit_sequence(model, tokenizer, facts, stats, config, 2, engine="fast")
    assert same(model, before)


class Broken(Exception):
    """A fault of the code, as none can be foreseen."""


WHERE = {
    "the report": (editor, "_report", 1),
    "the fingerprint": (editor, "fingerprint", 1),
    "the batch's traces": (editor, "_batch", 1),
    "the next state": (editor, "with_batch", 1),
    "the second layer": (editor, "_change", 2),
    "the second write": (editor, "_write", 2),
}


@one_family
@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("where", WHERE)
def test_whatever_breaks_after_a_write_takes_it_back(
    model, tokenizer, facts, stats, config, begun, monkeypatch, where, error
):
    before, (module, name, last) = weights(model), WHERE[where]
    values = compute_values(model, tokenizer, facts[:2], begun, config)
    real, calls = getattr(module, name), []

    def fail(*arguments):
        calls.append(not same(model, before))
        if len(calls) < last:
            return real(*arguments)
        if where == "the second write":
            real(*arguments)
        raise error

    monkeypatch.setattr(module, name, fail)
    with pytest.raises(error):
        edit_batch(model, tokenizer, facts[:2], stats, begun, config, values)
    assert len(calls) == last and calls[-1], "the weights had been changed"
    assert same(model, before)


@one_family
def test_a_failure_half_way_puts_the_first_layer_back(
    model, tokenizer, facts, stats, config, begun
):
    before, moments = weights(model), {0: stats.moments[0], 1: -stats.moments[1]}
    with pytest.raises(SolveError):
        edit_batch(model, tokenizer, facts, replace(stats, moments=moments), begun, config)
    assert same(model, before)
    edit_batch(model, tokenizer, facts, stats, begun, config)
    assert not same(model, before)


@one_family
def test_an_interrupted_sequence_stays_at_a_whole_batch(model, tokenizer, facts, stats, config):
    ends = []

    def stop(state, report, part):
        ends.append((state, weights(model)))
        if len(ends) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit_sequence(model, tokenizer, facts, stats, config, 2, on_batch=stop)
    assert same(model, ends[1][1]) and ends[1][0].weights == fingerprint(model, config.layers)


@one_family
def test_non_finite_weights_are_refused(model, tokenizer, facts, stats, config, begun):
    sites(model, (1,))[0].weight[0, 0] = float("inf")
    before = weights(model)
    broken = replace(begun, weights=fingerprint(model, (0, 1)))
    with pytest.raises(StateError, match="finite"):
        edit_batch(model, tokenizer, facts, stats, broken, config)
    with pytest.raises(ModelError, match="logits"):
        new_state(model, tokenizer, config)
    assert same(model, before)


@one_family
def test_non_finite_keys_are_refused(model, tokenizer, facts, stats, config):
    model.get_input_embeddings().weight.mul_(NAN)
    config = replace(config, contexts=0)
    begun, before = new_state(model, tokenizer, config), weights(model)
    own = replace(stats, fingerprint=begun.fingerprint)
    with pytest.raises(StateError, match="keys"):
        edit_batch(model, tokenizer, facts, own, begun, config)
    assert all(torch.equal(t.nan_to_num(), before[n].nan_to_num())
               for n, t in model.state_dict().items())  # fmt: skip


# Whatever the caller's model and modes are.


@one_family
def test_an_edit_does_not_depend_on_the_caller_s_grad_mode(
    family, tokenizer, facts, stats, config, begun
):
    ends = []
    for wanted in (True, False):
        model = build(family).requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            edit_batch(model, tokenizer, facts[:2], stats, begun, config)
        assert all(parameter.grad is None for parameter in model.parameters())
        ends.append(weights(model))
    assert same(model, ends[0])


@one_family
def test_a_model_in_training_mode_is_refused(model, tokenizer, facts, stats, config, begun):
    """Its dropout would make every value random."""
    before = weights(model)
    model.train()
    for call in (
        lambda: new_state(model, tokenizer, config),
        lambda: compute_values(model, tokenizer, facts, begun, config),
        lambda: edit_batch(model, tokenizer, facts, stats, begun, config),
    ):
        with pytest.raises(ModelError, match="training mode"):
            call()
    assert same(model, before)


@one_family
@pytest.mark.parametrize("case", ["stats", "weights", "layers"])
def test_a_sequence_checks_everything_before_its_first_value(
    model, tokenizer, facts, stats, config, begun, case
):
    """Values of a long sequence take hours."""
    if case == "stats":
        stats = replace(stats, fingerprint="x")
    elif case == "weights":
        begun = replace(begun, weights="x")
    else:
        stats = replace(stats, moments={0: stats.moments[0]})
    found = []
    with pytest.raises(EditError):
        edit_sequence(model, tokenizer, facts, stats, config, 2, state=begun,
                      progress=lambda *what: found.append(what))  # fmt: skip
    assert not found


@one_family
@pytest.mark.parametrize("seed", range(3))
def test_any_walk_of_edits_and_undos_is_exact(family, tokenizer, facts, stats, config, seed):
    """Every state along the way has its weights, bit for bit, however often one comes back."""
    draw = torch.Generator().manual_seed(seed)
    strategy = [Strategy(), Memit(), AlphaEdit(null=1.0)][seed]
    config = replace(config, steps=2, own_steps=1, clusters=None,
                     scorer="residual" if seed == 0 else "all")  # fmt: skip
    model = build(family)
    path = [(new_state(model, tokenizer, config, strategy, undo=3), weights(model))]
    values = compute_values(model, tokenizer, facts[:2], path[0][0], config)
    for _ in range(12):
        now, held = path[-1][0], len(path[-1][0].batches)
        if held and torch.rand((), generator=draw) < 0.4:
            count = int(torch.randint(1, held + 1, (), generator=draw))
            now, path = undo(model, now, count), path[:-count]
            assert now.weights == path[-1][0].weights and now.done == path[-1][0].done
            assert same(model, path[-1][1])
            path[-1] = (now, path[-1][1])
        else:
            now, _ = edit_batch(model, tokenizer, facts[:2], stats, now, config, values)
            path.append((now, weights(model)))
    assert now.done == len(path) - 1 and fingerprint(model, (0, 1)) == now.weights


# What may not change between batches.


@pytest.fixture
def once(model, tokenizer, facts, stats, config, begun):
    """A state after one batch."""
    return edit_batch(model, tokenizer, facts[:2], stats, begun, config)[0]


@one_family
def test_statistics_of_another_text_are_refused(
    family, model, tokenizer, facts, stats, config, once
):
    other = second_moment(build(family), tokenizer, TEXTS[60:90], (0, 1))
    before = weights(model)
    with pytest.raises(StateError, match="not those the state began with"):
        edit_batch(model, tokenizer, facts[2:4], other, once, config)
    assert same(model, before)
    again = second_moment(build(family), tokenizer, TEXTS[:60], (0, 1, 2))
    edit_batch(model, tokenizer, facts[2:4], again, once, config)


@one_family
def test_another_tokenizer_of_equal_size_is_refused(model, tokenizer, facts, stats, config, once):
    other = Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.decoder = decoders.ByteLevel()
    texts = [" ".join(SUBJECTS), "quite other words for quite another vocabulary"]
    other.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))  # fmt: skip
    wrong = PreTrainedTokenizerFast(tokenizer_object=other, bos_token="<s>")
    assert len(wrong) == len(tokenizer)
    before = weights(model)
    with pytest.raises(StateError, match="tokenizer"):
        edit_batch(model, wrong, facts[2:4], stats, once, config)
    with pytest.raises(StateError, match="tokenizer"):
        compute_values(model, wrong, facts[2:4], once, config)
    undo(model, once)
    before = weights(model)
    begun = new_state(model, wrong, config)  # from the start: the statistics know
    with pytest.raises(StatsError, match="another tokenizer"):
        edit_batch(model, wrong, facts[2:4], stats, begun, config)
    assert same(model, before)


@one_family
def test_a_tokenizer_larger_than_the_model_is_refused(family, tokenizer, config):
    with pytest.raises(ModelError, match="320 tokens, the model fewer"):
        new_state(build(family, vocab=300), tokenizer, config)


@one_family
def test_the_strategy_cannot_change_between_batches(model, tokenizer, facts, stats, config):
    """AlphaEdit's threshold could, without a word: it is the state's."""
    config = replace(config, scorer="all")
    first = AlphaEdit(null=1.0)
    _, reports = edit_sequence(model, tokenizer, facts[:2], stats, config, 2, first)
    now, _ = edit_sequence(
        build(model.config.model_type), tokenizer, facts[:2], stats, config, 2, first
    )
    assert now.strategy == first and len(reports) == 1
    for other in (AlphaEdit(null=2.0), Memit()):
        with pytest.raises(StateError, match="same strategy"):
            edit_sequence(model, tokenizer, facts, stats, config, 2, other, state=now)


@one_family
def test_layers_cannot_change_between_batches(model, tokenizer, facts, stats, config, once):
    with pytest.raises(StateError, match="layers 0,1, the config 0,2"):
        edit_batch(model, tokenizer, facts[2:4], stats, once, replace(config, layers=(0, 2)))


@pytest.mark.parametrize("depth", [0, -1, 2.5, "3", None, True])
@one_family
def test_the_depth_of_undo_is_a_whole_number(model, tokenizer, config, untyped, depth):
    with pytest.raises(ConfigError, match="'undo'"):
        new_state(model, tokenizer, config, undo=depth)


@one_family
def test_values_know_their_facts(model, tokenizer, facts, stats, config, begun):
    """Values of as many other facts went in unseen, and each fact got another's."""
    values = compute_values(model, tokenizer, facts[:3], begun, config)
    assert (
        values.facts
        == names_of(facts[:3])
        == tuple((f.prompt, f.subject, f.target) for f in facts[:3])
    )
    before = weights(model)
    for wrong in (facts[3:], [*facts[1:3], facts[0]]):
        with pytest.raises(StateError, match="values of other facts"):
            edit_batch(model, tokenizer, wrong, stats, begun, config, values)
    assert same(model, before)


# What is done once.


WHOLE = dict(scorer="all", p=1.0, clusters=None, steps=1, own_steps=1)
METHODS = {
    "memit": (Memit(), WHOLE),
    "memit-history": (Memit(history=True), WHOLE),
    "rome": (Rome(), dict(layers=(1,), **WHOLE)),
    "alphaedit": (AlphaEdit(null=1.0), WHOLE),
}


@one_family
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_costs_what_it_must(model, tokenizer, facts, stats, config, monkeypatch, method):
    """MEMIT and ROME factorise once a layer, not once a batch; no batch reads all moments anew."""
    strategy, change = METHODS[method]
    config = replace(config, **change)
    sizes, scans, hashes, bases = [], [], [], []
    count(monkeypatch, torch.linalg, "cholesky_ex", lambda system: sizes.append(len(system)))
    count(monkeypatch, torch, "isfinite", lambda tensor: scans.append(tuple(tensor.shape)))
    count(monkeypatch, torch.linalg, "eigh", lambda system: bases.append(len(system)))
    fresh = covariance.Stats(stats.moments, stats.tokens, stats.fingerprint)
    count(monkeypatch, covariance, "digest", lambda tensor: hashes.append(tuple(tensor.shape)))
    _, reports = edit_sequence(model, tokenizer, facts[:4], fresh, config, 2, strategy)
    ff, layers, batches = len(stats.moments[0]), len(config.layers), len(reports)
    assert batches == (4 if method == "rome" else 2)
    once = {"memit": layers, "rome": layers, "memit-history": layers * batches}
    assert sizes.count(ff) == once.get(method, 0)
    assert len(bases) == (layers if method == "alphaedit" else 0)
    assert len(hashes) == len(stats.moments), "statistics are hashed once, not once a batch"
    # A matrix of that size is looked at where it is factorised, and nowhere else.
    assert scans.count((ff, ff)) == sizes.count(ff) + len(bases)


def count(monkeypatch, module, name, note):
    real = getattr(module, name)

    def counted(first, *more, **named):
        note(first)
        return real(first, *more, **named)

    monkeypatch.setattr(module, name, counted)


@one_family
def test_what_was_prepared_is_made_again_for_other_settings(model, tokenizer, facts, stats, config):
    """The factor of lambda C0 holds for one lambda; another between batches gets its own."""
    config = replace(config, scorer="all", p=1.0, clusters=None)
    other = replace(config, lam=90.0)
    begun = new_state(model, tokenizer, config, Memit())
    one, _ = edit_batch(model, tokenizer, facts[:2], stats, begun, config)
    two, _ = edit_batch(model, tokenizer, facts[2:4], stats, one, other)
    moved = weights(model)
    assert not torch.equal(one.prepared[0], two.prepared[0])
    model = build(model.config.model_type)
    plain, _ = edit_batch(model, tokenizer, facts[:2], stats, begun, config)
    bare = replace(plain, prepared={}, prepared_for=None)
    edit_batch(model, tokenizer, facts[2:4], stats, bare, other)
    assert same(model, moved)


@one_family
def test_what_was_prepared_is_made_again_for_another_strategy(
    model, tokenizer, facts, stats, config
):
    """AlphaEdit's basis keeps a share of the old keys; another share has another basis."""
    config = replace(config, scorer="all", p=1.0, clusters=None)
    wide, narrow = AlphaEdit(null=1.0), AlphaEdit(null=0.01)
    begun = new_state(model, tokenizer, config, wide)
    one, _ = edit_batch(model, tokenizer, facts[:2], stats, begun, config)
    two, _ = edit_batch(model, tokenizer, facts[2:4], stats, replace(one, strategy=narrow), config)
    assert one.prepared[0].shape != two.prepared[0].shape


@one_family
@pytest.mark.parametrize("method", STRATEGIES)
def test_every_method_runs_reports_and_is_taken_back(
    model, tokenizer, facts, stats, config, method
):
    strategy, before = STRATEGIES[method], weights(model)
    if isinstance(strategy, AlphaEdit):
        strategy = replace(strategy, null=1.0)
    if not strategy.chooses:
        config = replace(config, scorer="all", clusters=None)
    end, reports = edit_sequence(model, tokenizer, facts[:2], stats, config, 2, strategy)
    assert not same(model, before)
    assert len(reports) == end.done == (2 if strategy.batch == 1 else 1)
    full = len(stats.moments[0])
    for report in reports:
        assert strategy.chooses or set(report.neurons.values()) == {full}
        assert all(0 < norm < 1e3 for norm in report.norms.values())
    undo(model, end, end.done)
    assert same(model, before)


@one_family
def test_a_fact_is_edited_alone_as_in_a_batch_of_one(family, tokenizer, facts, stats, config):
    model = build(family)
    one, _ = edit_sequence(model, tokenizer, facts[:1], stats, config, 1)
    twin = build(family)
    begun = new_state(twin, tokenizer, config)
    two, _ = edit_batch(twin, tokenizer, [Fact(**vars(facts[0]))], stats, begun, config)
    assert same(model, weights(twin)) and one.weights == two.weights
    assert fingerprint(model, config.layers) == two.weights


# What is refused, and what an error leaves behind.


@one_family
def test_values_of_another_model_are_refused(model, tokenizer, facts, stats, config, begun):
    other = copy.deepcopy(model)
    with torch.no_grad():
        sites(other, (0,))[0].weight.mul_(1.5)
    values = compute_values(other, tokenizer, facts, new_state(other, tokenizer, config), config)
    with pytest.raises(StateError, match="another model"):
        edit_batch(model, tokenizer, facts, stats, begun, config, values)


@one_family
def test_another_number_of_contexts_is_refused(model, tokenizer, facts, stats, config, begun):
    other = replace(config, contexts=config.contexts + 1)
    with pytest.raises(StateError, match="contexts"):
        edit_batch(model, tokenizer, facts, stats, begun, other)


@one_family
def test_values_for_other_layers_are_refused(model, tokenizer, facts, config, begun):
    with pytest.raises(StateError, match="layers"):
        compute_values(model, tokenizer, facts, begun, replace(config, layers=config.layers[:1]))


@one_family
def test_keys_whose_sum_leaves_half_precision_are_finite(model, tokenizer, facts, config, begun):
    """The sum of finite float16 keys may be infinite, and is nobody's business."""
    prepare = editor.fast.prepare

    class Engine:
        def prepare(*given):
            found = prepare(*given)
            return replace(found, keys=torch.full_like(found.keys, 6e4, dtype=torch.float16))

    values = editor.find_values(model, tokenizer, facts, begun, config, Engine)
    assert torch.isfinite(values.z).all()


@one_family
def test_an_interrupted_sequence_hands_its_state_over(model, tokenizer, facts, stats, config):
    before = weights(model)

    def stop(state, report, part):
        if state.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        edit_sequence(model, tokenizer, facts, stats, config, 2, on_batch=stop)
    state = caught.value.state
    assert state.done == 2
    assert not same(model, before)
    undo(model, state, 2)
    assert same(model, before)


@one_family
def test_a_state_of_other_facts_is_not_gone_on_with(model, tokenizer, facts, stats, config, begun):
    facts = [replace(fact, id=i) for i, fact in enumerate(facts)]
    state, _ = edit_batch(model, tokenizer, facts[:2], stats, begun, config)
    after = weights(model)
    with pytest.raises(StateError, match="do not begin"):
        edit_sequence(model, tokenizer, facts[2:], stats, config, 2, state=state)
    assert same(model, after)


@one_family
def test_facts_are_known_by_what_they_say_not_by_their_ids(
    model, tokenizer, facts, stats, config, begun
):
    """Every fact made by hand has id 0: a state went on with quite other facts."""
    facts = [replace(fact, id=0) for fact in facts]
    state, _ = edit_batch(model, tokenizer, facts[:2], stats, begun, config)
    after = weights(model)
    with pytest.raises(StateError, match="do not begin"):
        edit_sequence(model, tokenizer, facts[2:], stats, config, 2, state=state)
    assert same(model, after)
    twin = [Fact("The {} house stands in", "big", "Rome")]
    values = compute_values(model, tokenizer, twin, state, config)
    with pytest.raises(StateError, match="values of other facts"):
        other = [Fact("The big {} stands in", "house", "Rome")]
        edit_batch(model, tokenizer, other, stats, state, config, values)
    with pytest.raises(FactError, match=r"fact 0, facts\[1\], .* repeats facts\[0\]"):
        edit_batch(model, tokenizer, [twin[0], twin[0]], stats, state, config)
    assert same(model, after)


@one_family
def test_an_interrupted_undo_takes_nothing_back(
    model, tokenizer, facts, stats, config, begun, monkeypatch
):
    """A stop between two layers left weights that fitted no state, with no way back."""
    state, _ = edit_batch(model, tokenizer, facts[:2], stats, begun, config)
    after, write, calls = weights(model), Site.write, []

    def stopped(site, *values):
        calls.append(site.layer)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(site, *values)

    monkeypatch.setattr(Site, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        undo(model, state)
    assert same(model, after)
    assert undo(model, state).done == 0


@one_family
@pytest.mark.parametrize("wrong", [None, "state", Strategy])
def test_a_wrong_type_is_named(model, tokenizer, facts, stats, config, begun, untyped, wrong):
    """Raw tracebacks of attributes that None does not have."""
    before = weights(model)
    for call, name in (
        (lambda: edit_batch(model, tokenizer, facts, stats, wrong, config), "state"),
        (lambda: edit_batch(model, tokenizer, facts, stats, begun, wrong), "config"),
        (lambda: edit_sequence(model, tokenizer, facts, stats, wrong, 2), "config"),
        (lambda: undo(model, wrong), "state"),
        (lambda: new_state(model, tokenizer, wrong), "config"),
        (lambda: new_state(model, tokenizer, config, wrong or "none"), "strategy"),
    ):
        with pytest.raises(ConfigError, match=f"'{name}' is .*; give an object of ece's "):
            call()
    assert same(model, before)


@one_family
def test_an_empty_sequence_is_refused(model, tokenizer, stats, config):
    with pytest.raises(FactError, match="empty"):
        edit_sequence(model, tokenizer, [], stats, config, 2)
