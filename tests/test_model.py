"""Where the weights are, in every family, whatever way round they lie."""

import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from conftest import build
from ece.engine.suffix import states_at
from ece.errors import ModelError
from ece.model import between, blocks, fingerprint, load, sites

SMALL = dict(
    vocab_size=50, hidden_size=16, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2
)


def test_weight_is_model_by_ff_and_writes_through(model, family):
    site = sites(model, (1,))[0]
    assert site.weight.shape == (32, 96 if family == "llama" else 128)
    key, before = torch.randn(2, site.weight.shape[1]), site.weight.clone()
    bias = getattr(site.module, "bias", None)
    shift = 0 if bias is None else bias
    torch.testing.assert_close(site.module(key) - shift, key @ before.T)
    site.weight[:, 3] += 1.0
    torch.testing.assert_close(
        site.module(key) - shift, key @ before.T + key[:, 3:4], rtol=1e-4, atol=1e-5
    )


def test_all_sites_come_in_order_and_a_wrong_layer_is_named(model):
    assert [site.layer for site in sites(model)] == [0, 1, 2, 3]
    with pytest.raises(ModelError, match="no layer 4"):
        sites(model, (4,))


def test_an_unknown_family_is_found_by_structure():
    model = Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=1))
    assert [tuple(site.weight.shape) for site in sites(model)] == [(16, 40)] * 3
    neox = GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL))
    assert sites(neox)[0].module is neox.gpt_neox.layers[0].mlp.dense_4h_to_h


def test_what_is_missing_is_said():
    with pytest.raises(ModelError, match="opt"):
        sites(
            OPTForCausalLM(
                OPTConfig(
                    vocab_size=50,
                    hidden_size=16,
                    ffn_dim=40,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    word_embed_proj_dim=16,
                )
            )
        )


def test_part_of_the_model_runs_and_the_whole_comes_back(model):
    ids = torch.arange(1, 9)[None]
    whole, children = model(ids).logits, dict(model.base_model.named_children())
    states = states_at(model, ids.tolist(), 1)
    with between(model, 2) as base:
        assert len(blocks(model)) == 2
        rest = base(inputs_embeds=states).last_hidden_state
    torch.testing.assert_close(model.get_output_embeddings()(rest), whole, rtol=1e-4, atol=1e-4)
    with pytest.raises(KeyError), between(model, 1, 2):
        raise KeyError
    assert dict(model.base_model.named_children()) == children
    assert torch.equal(model(ids).logits, whole)


def test_the_fingerprint_sees_edits_and_only_edits(family):
    one, two = build(family), build(family)
    assert fingerprint(one) == fingerprint(two) != fingerprint(build(family, 1))
    sites(two, (2,))[0].weight[:, 5] += 1e-3
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(one, (0, 1)) == fingerprint(two, (0, 1))
    assert fingerprint(one, (2,)) != fingerprint(two, (2,))


def test_load_reads_a_folder_as_it_was_saved(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, read = load(str(tmp_path))
    assert fingerprint(loaded) == fingerprint(model) and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert read("Ilo lives in")["input_ids"] == tokenizer("Ilo lives in")["input_ids"]
    assert load(str(tmp_path), dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_an_embedded_model_that_is_not_there_is_named():
    with pytest.raises(ModelError, match="atlas-none"):
        load("atlas-none")
