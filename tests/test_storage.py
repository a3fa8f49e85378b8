"""A run on disk: killed anywhere it goes on to the same bits, damage is seen."""

import json
from dataclasses import replace

import pytest
import torch

from conftest import build
from ece.editor import compute_values, edit_sequence
from ece.errors import StateError
from ece.model import sites
from ece.report import Report
from ece.state import new_state, undo
from ece.storage import files
from ece.storage import journal as storage
from ece.storage.files import read_json, write_json
from ece.storage.journal import load_state, load_values, save_state, save_values


@pytest.fixture(params=("gpt2", "llama"))
def family(request) -> str:
    """Both ways round that weights can lie; files know nothing else of a family."""
    return request.param


class Killed(BaseException):
    """As abrupt as a signal: nothing in the package may catch it for good."""


def weights(model, layers):
    return [site.weight.clone() for site in sites(model, layers)]


def same(one, two) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.fixture(scope="module")
def wholes(tokenizers, facts, all_stats, config):
    """An uninterrupted run of three batches per family: weights, state, reports."""
    ends = {}
    for name, stats in all_stats.items():
        model = build(name)
        state, reports = edit_sequence(model, tokenizers[name], facts, stats, config, 2)
        ends[name] = weights(model, config.layers), state, reports
    return ends


@pytest.fixture
def whole(family, wholes):
    return wholes[family]


@pytest.mark.parametrize("writes", [1, 4, 8, 9, 12])
def test_a_run_killed_at_any_write_goes_on_to_the_same_bits(
    family, tokenizer, facts, stats, config, whole, tmp_path, monkeypatch, writes
):
    real, count = files.write, []

    def deadly(path, data):
        count.append(path.name)
        if len(count) == writes:
            path.with_name(path.name + ".tmp").write_bytes(data[: len(data) // 2])
            raise Killed
        return real(path, data)

    for module in (files, storage):
        monkeypatch.setattr(module, "write", deadly)
    with pytest.raises(Killed):
        edit_sequence(build(family), tokenizer, facts, stats, config, 2, save_to=tmp_path)
    monkeypatch.undo()
    model = build(family)
    state, reports = edit_sequence(model, tokenizer, facts, stats, config, 2, save_to=tmp_path)
    assert same(weights(model, config.layers), whole[0]) and state.weights == whole[1].weights
    assert all(torch.equal(state.history(n), whole[1].history(n)) for n in config.layers)
    for found, expected in zip(reports, whole[2], strict=True):
        assert replace_seconds(found) == replace_seconds(expected)
        assert all(torch.equal(found.masks[n], expected.masks[n]) for n in expected.masks)


def replace_seconds(report: Report) -> dict:
    return json.loads(json.dumps({**report.to_dict(), "seconds": None}))


def test_a_finished_run_is_read_not_repeated(
    family, tokenizer, facts, stats, config, whole, tmp_path
):
    for _ in range(2):
        model, seen = build(family), []
        edit_sequence(
            model,
            tokenizer,
            facts,
            stats,
            config,
            2,
            save_to=tmp_path,
            on_batch=lambda state, *a, seen=seen: seen.append(state.done),
        )
        assert same(weights(model, config.layers), whole[0])
    assert seen == [3]  # only the last one is shown again


def test_a_saved_state_comes_back_and_can_be_undone(
    family, tokenizer, facts, stats, config, tmp_path
):
    model = build(family)
    state, _ = edit_sequence(model, tokenizer, facts, stats, config, 3)
    save_state(model, state, tmp_path)
    other = build(family)
    back = load_state(other, tmp_path)
    assert same(weights(other, config.layers), weights(model, config.layers))
    assert back.contexts == state.contexts and back.weights == state.weights
    for layer in config.layers:
        assert torch.equal(back.history(layer), state.history(layer))
    undo(other, back, 2)
    assert same(weights(other, config.layers), weights(build(family), config.layers))


def test_a_state_without_batches_can_be_saved(model, family, tokenizer, config, tmp_path):
    save_state(model, new_state(model, tokenizer, config), tmp_path)
    assert load_state(build(family), tmp_path).batches == ()


def test_another_model_other_facts_other_settings_are_refused(
    family, tokenizer, facts, stats, config, tmp_path
):
    model = build(family)
    state, _ = edit_sequence(model, tokenizer, facts, stats, config, 3, save_to=tmp_path)
    kept = weights(model, config.layers)
    with pytest.raises(StateError, match="another model"):
        load_state(model, tmp_path)
    assert same(weights(model, config.layers), kept)
    undo(model, state, 2)
    for changed, arguments in (
        ("facts", (facts[:4], stats, config, 3)),
        ("batch", (facts, stats, config, 2)),
        ("config", (facts, stats, replace(config, lam=9.0), 3)),
    ):
        with pytest.raises(StateError, match=f"another {changed}"):
            edit_sequence(model, tokenizer, *arguments, save_to=tmp_path)


@pytest.mark.parametrize("name", ["state.json", "run.json", "batch-00001.safetensors"])
def test_damage_is_seen_before_a_weight_changes(
    family, tokenizer, facts, stats, config, tmp_path, name
):
    edit_sequence(build(family), tokenizer, facts, stats, config, 3, save_to=tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(bytes(data))
    model = build(family)
    kept = weights(model, config.layers)
    with pytest.raises(StateError, match="damaged|another"):
        edit_sequence(model, tokenizer, facts, stats, config, 3, save_to=tmp_path)
    assert same(weights(model, config.layers), kept)
    (tmp_path / name).unlink()
    if name != "run.json":
        with pytest.raises((StateError, FileNotFoundError)):
            load_state(model, tmp_path)


@pytest.mark.parametrize("spread", ["even", "boundary"])
@pytest.mark.parametrize("shared", ["anchor", "mean"])
def test_values_come_back_whole(model, tokenizer, facts, config, tmp_path, spread, shared):
    config = replace(config, spread=spread, shared=shared)
    state = new_state(model, tokenizer, config)
    values = compute_values(model, tokenizer, facts, state, config)
    assert load_values(tmp_path, 3) is None
    save_values(values, tmp_path, 3)
    back = load_values(tmp_path, 3)
    for one, two in ((values, back), (values.shared, back.shared)):
        assert torch.equal(one.z, two.z) and torch.equal(one.losses, two.losses)
    assert torch.equal(values.groups.labels, back.groups.labels)
    assert (back.first is None) == (spread == "even")
    if back.first is not None:
        assert torch.equal(values.first.z, back.first.z) and back.first.layer == 0


def test_json_knows_its_own_damage(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, 2]})
    assert read_json(tmp_path / "a.json") == {"x": [1, 2]}
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace("[1, 2]", "[1, 3]"))
    with pytest.raises(StateError, match="a.json"):
        read_json(tmp_path / "a.json")
