"""Edits as files: applied and taken back to the bit, refused elsewhere, exported to other tools."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import build, weights
from ece.errors import StateError
from ece.sequence import edit_sequence
from ece.storage import edits_since, load_edits, save_adapter, save_edits, snapshot, toggle
from ece.storage.edits import standing

IDS = torch.arange(2, 22)[None]


@pytest.fixture
def edited(model, tokenizer, facts, stats, config):
    """A model after two batches, its weights before, and the edits."""
    before, unedited = snapshot(model, config.layers), weights(model)
    edit_sequence(model, tokenizer, facts, stats, config, batch=3)
    return model, unedited, edits_since(before, model, facts, {"method": "ece-rs", "lam": 20.0})


def equal(one: dict, other: dict) -> bool:
    return all(torch.equal(part, other[name]) for name, part in one.items())


def test_a_file_brings_an_unedited_model_to_the_same_bits_and_back(edited, family, tmp_path):
    model, unedited, edits = edited
    save_edits(tmp_path / "edits.safetensors", edits)
    read, other = load_edits(tmp_path / "edits.safetensors"), build(family)
    assert toggle(other, read) == "edited" and equal(weights(other), weights(model))
    assert not equal(weights(other), unedited)
    assert toggle(other, read) == "unedited" and equal(weights(other), unedited)
    assert read.facts == edits.facts and read.about == {"method": "ece-rs", "lam": 20.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_bits_are_exact_in_every_format(dtype):
    model, other = build("llama").to(dtype), build("llama").to(dtype)
    before = snapshot(model, (1,))
    site = model.model.layers[1].mlp.down_proj.weight.data
    site[:, 5], site[:, 7] = 1e-3, -0.0
    site[:, 8] = 0.0
    toggle(other, edits_since(before, model, []))
    found = other.model.layers[1].mlp.down_proj.weight.data
    assert torch.equal(found, site) and torch.equal(found.signbit(), site.signbit())


def test_only_changed_columns_are_in_the_file(edited):
    model, unedited, edits = edited
    for layer, columns in edits.columns.items():
        name = next(n for n in unedited if f".{layer}.mlp" in n and ("down_proj.weight" in n
                    or "c_proj.weight" in n or "fc_out.weight" in n))  # fmt: skip
        moved = weights(model)[name] != unedited[name]
        assert torch.equal(moved.any(0 if len(moved) == 32 else 1).nonzero()[:, 0], columns)
    assert 0 < edits.bytes < sum(part.nbytes for part in unedited.values())


def test_edits_stack_in_their_order_only(edited, tokenizer, stats, config, family):
    model, unedited, first = edited
    before = snapshot(model, (2,))
    model.get_parameter(dict(llama="model.layers.2.mlp.down_proj.weight",
        gpt2="transformer.h.2.mlp.c_proj.weight",
        gptj="transformer.h.2.mlp.fc_out.weight")[family]).data[:, 3] += 1.0  # fmt: skip
    second, other = edits_since(before, model, []), build(family)
    with pytest.raises(StateError, match="order in which they were made"):
        toggle(other, second)
    assert equal(weights(other), unedited)
    toggle(other, first)
    toggle(other, second)
    assert equal(weights(other), weights(model))
    with pytest.raises(StateError, match="in another state"):
        toggle(other, first)
    toggle(other, second)
    toggle(other, first)
    assert equal(weights(other), unedited)


def test_a_file_that_contradicts_itself_changes_nothing(edited, family):
    _, unedited, edits = edited
    layer = next(iter(edits.bits))
    edits.bits[layer][0, 0] ^= 1
    other = build(family)
    with pytest.raises(StateError):
        toggle(other, edits)
    assert equal(weights(other), unedited)


def test_a_damaged_file_is_named(edited, tmp_path):
    path = tmp_path / "edits.safetensors"
    save_edits(path, edited[2])
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(StateError, match="edits.safetensors is damaged"):
        load_edits(path)


def test_a_saved_model_reads_the_same_in_plain_transformers(edited, tmp_path):
    model, _, _ = edited
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, model(IDS).logits)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")  # peft's own
def test_an_adapter_gives_peft_the_edited_model(edited, family, tmp_path):
    from peft import PeftModel

    model, _, edits = edited
    lost = save_adapter(tmp_path, model, edits)
    assert lost < 1e-5
    served = PeftModel.from_pretrained(build(family), tmp_path)
    with torch.no_grad():
        wanted, plain = model(IDS).logits, build(family)(IDS).logits
        assert (served(IDS).logits - wanted).norm() < 1e-4 * (wanted - plain).norm()
    # From the unedited side the same file is written.
    save_adapter(tmp_path / "again", build(family), edits)
    names = ("adapter_config.json", "adapter_model.safetensors")
    read = [[(place / name).read_bytes() for name in names] for place in
            (tmp_path, tmp_path / "again")]  # fmt: skip
    assert read[0] == read[1]


def test_an_adapter_of_too_low_a_rank_says_what_it_lost(edited, tmp_path):
    model, _, edits = edited
    assert save_adapter(tmp_path, model, edits, rank=1) > 0.05


def test_edits_that_changed_nothing_have_no_adapter(model, tmp_path):
    edits = edits_since(snapshot(model, (0,)), model, [])
    assert edits.bytes == 0
    with pytest.raises(StateError, match="changed nothing"):
        save_adapter(tmp_path, model, edits)
    with pytest.raises(StateError, match="another model"):
        standing(build("llama", seed=1), edits)
