"""What `ece-plus` keeps at the other tokens of the prompts it edits."""

import copy
from dataclasses import replace

import pytest
import torch

from conftest import build, same, weights
from ece.baselines import ece_plus
from ece.baselines.ece_plus import EcePlus, other_keys
from ece.baselines.memit import Memit
from ece.editor import compute_values, edit_batch
from ece.facts import locate
from ece.hooks import capture
from ece.model import sites
from ece.objective import mix, reader
from ece.sequence import edit_sequence
from ece.solver import Knowledge, solve
from ece.state import new_state, undo
from ece.storage import load_state, save_state


@pytest.fixture
def config(config):
    return replace(config, layers=(1,), scorer="all", p=1.0, clusters=None)


def one_by_one(model, tokenizer, facts, layer: int) -> torch.Tensor:
    """Run each whole prompt through the whole model, and pick the tokens one at a time."""
    found = []
    for fact in facts:
        ids, last = locate(tokenizer, fact.prompt, fact.subject)
        with capture(sites(model, (layer,))) as keys:
            model(torch.tensor([ids]))
        found += [keys[layer][0, t] for t in range(1, len(ids)) if t != last]
    return torch.stack(found)


def test_other_keys_are_those_of_the_other_tokens(model, tokenizer, facts):
    for layer in (0, 2):
        found = other_keys(model, tokenizer, facts, layer)
        torch.testing.assert_close(found, one_by_one(model, tokenizer, facts, layer), rtol=1e-4,
                                   atol=1e-5)  # fmt: skip


def test_groups_of_prompts_give_the_same_keys(model, tokenizer, facts, monkeypatch):
    kept = EcePlus(prompts=4.0)
    whole = kept.beside(model, tokenizer, facts, 1)
    monkeypatch.setattr(ece_plus, "ROWS", 2)
    torch.testing.assert_close(kept.beside(model, tokenizer, facts, 1), whole)
    torch.testing.assert_close(whole, 2 * other_keys(model, tokenizer, facts, 1))
    assert EcePlus().beside(model, tokenizer, facts, 1) is None


def test_two_batches_are_solved_as_if_the_other_keys_were_old_ones(
    model, tokenizer, facts, stats, config
):
    """The twin adds the outer products of the other keys to those of the text, by hand."""
    weight, twin, old, earlier = 0.7, copy.deepcopy(model), torch.zeros(()).double(), None
    state = new_state(model, tokenizer, config, EcePlus(prompts=weight))
    for part in (facts[:3], facts[3:]):
        values = compute_values(model, tokenizer, part, state, config)
        keys, states, _ = reader(twin, tokenizer, part, state.contexts, 10**6).read(1, 1)
        K, others = mix(keys), one_by_one(twin, tokenizer, part, 1).double()
        old = old + weight / config.lam * others.T @ others
        known = Knowledge(stats.moments[1] + old, torch.ones(K.shape[1], dtype=torch.bool),
                          recent=earlier)  # fmt: skip
        ridge = config.ridge * stats.moments[1].trace() / known.moment.trace()
        update = solve((values.z - states).T, K, known, config.lam, float(ridge)).delta
        before = sites(model, (1,))[0].weight.clone()
        state, _ = edit_batch(model, tokenizer, part, stats, state, config, values)
        moved = sites(model, (1,))[0].weight - before
        assert (moved - update).norm() < 1e-3 * update.norm()
        (site,), earlier = sites(twin, (1,)), K if earlier is None else torch.cat([earlier, K])
        site.write(site.weight + update.to(site.weight), known.mask)


def test_the_layer_says_nearly_the_same_at_the_other_tokens(model, tokenizer, facts, stats, config):
    config, moved = replace(config, lam=1.0), {}
    others, before = one_by_one(model, tokenizer, facts, 1), sites(model, (1,))[0].weight.clone()
    for weight in (0.0, 100.0):
        model = build(model.config.model_type)
        state = new_state(model, tokenizer, config, EcePlus(prompts=weight))
        edit_batch(model, tokenizer, facts, stats, state, config)
        moved[weight] = (others @ (sites(model, (1,))[0].weight - before).T).norm()
    assert moved[100.0] < 0.5 * moved[0.0], moved


def test_a_weight_of_zero_is_memit_with_a_history(model, tokenizer, facts, stats, config):
    twin = copy.deepcopy(model)
    edit_sequence(model, tokenizer, facts, stats, config, 3, EcePlus(values_from="original"))
    edit_sequence(twin, tokenizer, facts, stats, config, 3, Memit(history=True))
    assert same(twin, weights(model))


@pytest.mark.parametrize("undoable", [1, 5])
def test_a_sequence_goes_on_from_disk_to_the_same_bits_and_is_taken_back(
    model, tokenizer, facts, stats, config, tmp_path, undoable
):
    """Other keys of earlier batches count like keys of earlier edits, folded or not."""
    parts, before = (facts[:2], facts[2:4], facts[4:]), weights(model)
    strategy, half = EcePlus(prompts=1.0), copy.deepcopy(model)
    state = new_state(model, tokenizer, config, strategy, undo=undoable)
    for part in parts[:2]:
        state, _ = edit_batch(model, tokenizer, part, stats, state, config)
    save_state(model, state, tmp_path / "state")
    loaded = load_state(half, tmp_path / "state", strategy)
    state, _ = edit_batch(model, tokenizer, parts[2], stats, state, config)
    edit_batch(half, tokenizer, parts[2], stats, loaded, config)
    assert same(half, weights(model))
    rows = len(other_keys(build(model.config.model_type), tokenizer, parts[2], 1))
    assert len(state.batches[-1].keys[1]) == len(parts[2]) + rows
    undo(model, state, min(undoable, 3))
    assert same(model, before) == (undoable == 5)
