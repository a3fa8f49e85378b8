"""Where the weights are in every family, whatever way round they lie; what tells them apart."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from conftest import build
from ece import fingerprint as module
from ece.errors import ModelError
from ece.fingerprint import digest, fingerprint
from ece.hooks import states_at
from ece.model import between, blocks, room, sites

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
    assert [site.layer for site in sites(model, (2, 0))] == [2, 0]
    for wrong in (4, -1):
        with pytest.raises(ModelError, match=f"no layer {wrong} .* layers 0 to 3"):
            sites(model, (wrong,))


def test_an_unknown_family_is_found_by_structure():
    model = Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=1))
    assert [tuple(site.weight.shape) for site in sites(model)] == [(16, 40)] * 3
    neox = GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL))
    assert sites(neox)[0].module is neox.gpt_neox.layers[0].mlp.dense_4h_to_h


def test_what_is_missing_is_named(model, family):
    with pytest.raises(ModelError, match="'mixtral'.*found none"):
        sites(MixtralForCausalLM(MixtralConfig(**SMALL, num_key_value_heads=1)))
    blocks(model)[2].mlp = nn.Identity()
    with pytest.raises(ModelError, match="not every block"):
        sites(model)
    norm = {"gpt2": "ln_f", "gptj": "ln_f", "llama": "norm"}[family]
    setattr(model.base_model, norm, nn.Identity())
    with pytest.raises(ModelError, match="final norm is needed, found none"):
        sites(model)


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
    assert dict(model.base_model.named_children()) == children and len(blocks(model)) == 4
    assert torch.equal(model(ids).logits, whole)


def test_the_room_is_what_a_token_can_see():
    def model(**sizes):
        made = nn.Module()
        made.config = PreTrainedConfig(**sizes)
        return made

    assert room(build("gpt2", room=64)) == 64
    assert room(model(max_position_embeddings=4096, sliding_window=512)) == 512
    assert room(model(max_position_embeddings=2048, window_size=256)) == 256
    assert room(model(max_position_embeddings=128, sliding_window=None)) == 128
    assert room(model()) > 10**6


# Fingerprints.

FORMATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
SHAPES = st.lists(st.integers(1, 6), max_size=3)


def numbers(shape, seed: int, dtype=torch.float32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=draw).mul(9).to(dtype)


@given(SHAPES, st.integers(0, 999), st.sampled_from(FORMATS[:-1]), st.data())
def test_any_single_bit_is_seen(shape, seed, dtype, data):
    tensor = numbers(shape, seed, dtype)
    other = tensor.clone()
    # As bytes: whatever the format, one bit of one value.
    raw = other.reshape(-1).view(torch.uint8)
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    assert digest(other) != digest(tensor) == digest(tensor.clone())


@given(SHAPES, st.integers(0, 999), st.data())
def test_any_two_values_that_change_places_are_seen(shape, seed, data):
    tensor = numbers(shape, seed)
    flat = tensor.reshape(-1)
    one, two = (data.draw(st.integers(0, len(flat) - 1)) for _ in range(2))
    assume(flat[one] != flat[two])
    swapped = flat.clone()
    swapped[[one, two]] = flat[[two, one]]
    assert digest(swapped.reshape(shape)) != digest(tensor)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 999), st.sampled_from(FORMATS))
def test_neither_the_layout_nor_the_slices_count(rows, columns, seed, dtype):
    tensor = numbers((rows, columns), seed, dtype)
    turned = tensor.T.contiguous().T
    assert not turned.is_contiguous() and digest(turned) == digest(tensor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLICE", 3)
        assert digest(tensor) == digest(turned)
        patched = digest(tensor)
    assert patched == digest(tensor)


def test_an_empty_tensor_has_a_digest():
    assert digest(torch.zeros(0)) == digest(torch.zeros(3, 0))
    assert digest(torch.tensor(1.0)) != digest(torch.tensor(2.0))


class Wide(nn.Module):
    """As much of a model as a fingerprint looks at."""

    def __init__(self, width: int, ff: int, dtype=torch.float16):
        super().__init__()
        self.config = PreTrainedConfig(hidden_size=width)
        self.embed, self.norm = nn.Embedding(2, width), nn.LayerNorm(width)
        block = nn.Module()
        block.down = nn.Linear(ff, width, bias=False, dtype=dtype)
        self.layers = nn.ModuleList([block])
        self.base_model = self
        self.requires_grad_(False)

    def get_input_embeddings(self):
        return self.embed


def test_all_neurons_but_one_rewritten_are_seen_at_the_width_of_llama():
    """Every `numel // 4096`-th value is neuron 0 only: the sample that was taken before."""
    model = Wide(4096, 4100)
    weight = sites(model)[0].weight
    before, whole = fingerprint(model, (0,)), fingerprint(model)
    column = weight[:, 1].clone()
    weight[:, 1:] += 1.0
    assert fingerprint(model, (0,)) != before and fingerprint(model) != whole
    weight[:, 1:] -= 1.0
    weight[:, 1], weight[:, 2] = weight[:, 2].clone(), column
    assert fingerprint(model, (0,)) != before, "two columns that changed places"


@given(st.integers(2, 60), st.integers(70, 200), st.data())
def test_a_sample_of_a_matrix_sees_every_column(rows, columns, data):
    """A weight that is not edited is only sampled, but no neuron of it escapes."""
    model = Wide(rows, columns, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SAMPLE", columns)
        before = fingerprint(model)
        column = data.draw(st.integers(0, columns - 1))
        model.layers[0].down.weight[:, column] += 1.0
        assert fingerprint(model) != before


def test_a_fingerprint_knows_layer_weights_and_family(family):
    one, two = build(family), build(family)
    assert fingerprint(one) == fingerprint(two)
    sites(two, (2,))[0].weight[5, 7] += 1e-6
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(one, (0, 1)) == fingerprint(two, (0, 1))
    assert fingerprint(one, (2,)) != fingerprint(two, (2,))
    assert len(fingerprint(one)) == 16 and int(fingerprint(one), 16) >= 0


def test_a_fingerprint_sees_two_layers_that_changed_places(model):
    before, (one, two) = fingerprint(model, (0, 1)), sites(model, (0, 1))
    first = one.weight.clone()
    one.weight.copy_(two.weight)
    two.weight.copy_(first)
    assert fingerprint(model, (0, 1)) != before


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_flipped_signs_do_not_cancel(kind):
    """Two bits of 2^63 are 0 modulo 2^64: in float64 a matrix and its negative were one."""
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).to(kind)
    matrix = matrix + matrix.T
    pair = matrix.clone()
    pair[1, 2] *= -1
    pair[2, 1] *= -1
    assert len({digest(part) for part in (matrix, pair, -matrix)}) == 3


def test_a_fingerprint_sees_a_layout_and_a_format(model):
    before = fingerprint(model)
    assert fingerprint(model.double()) != before
