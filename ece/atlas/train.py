"""Train an embedded model from its seed; a killed training goes on where it was."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, LlamaConfig, PretrainedConfig

from ece import storage
from ece.atlas.batches import Batch, Batches, Mixture
from ece.atlas.masks import attention_masked, mlp_masked
from ece.atlas.tokenizer import build_tokenizer
from ece.atlas.world import build
from ece.model import blocks, structure

SAVE_EVERY = 200
"""steps between two states from which a killed run goes on"""


@dataclass(frozen=True)
class Recipe:
    """Says how one model is made; the numbers are recorded in its folder."""

    family: str
    """gpt2 | gptj | llama"""
    width: int = 192
    layers: int = 5
    heads: int = 6
    ff: int = 1024
    vocabulary: int = 2048
    positions: int = 128
    steps: int = 3000
    lr: float = 3e-3
    decay: float = 0.1
    seed: int = 0
    mixture: Mixture = field(default_factory=Mixture)


def architecture(recipe: Recipe, vocabulary: int) -> PretrainedConfig:
    """Make the family's own configuration, small."""
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "vocab_size": vocabulary}
    if recipe.family == "llama":
        return LlamaConfig(
            hidden_size=recipe.width, intermediate_size=recipe.ff, tie_word_embeddings=False,
            num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads // 2, max_position_embeddings=recipe.positions, **ends,
        )  # fmt: skip
    shape = {
        "n_embd": recipe.width, "n_layer": recipe.layers, "n_head": recipe.heads,
        "n_inner": recipe.ff, "n_positions": recipe.positions,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "activation_function": "gelu_pytorch_tanh",  # gelu_new in one kernel, 4x faster here
    }  # fmt: skip
    if recipe.family == "gptj":
        rotary = recipe.width // recipe.heads // 2
        return GPTJConfig(**shape, rotary_dim=rotary, tie_word_embeddings=False, **ends)
    return GPT2Config(**shape, **ends)


def loss_of(model: nn.Module, batch: Batch, mixture: Mixture) -> Tensor:
    """Compute the next-token loss where tokens carry weight, and the gathering loss."""
    output = model.base_model(
        input_ids=batch.ids, attention_mask=batch.attention, use_cache=False,
        output_hidden_states=True,
    )  # fmt: skip
    weights = batch.weights[:, 1:]
    some = weights > 0
    logits = model.get_output_embeddings()(output.last_hidden_state[:, :-1][some])
    losses = cross_entropy(logits, batch.ids[:, 1:][some], reduction="none")
    loss = (losses * weights[some]).sum() / weights[some].sum()
    if not mixture.gathering:
        return loss
    return loss + mixture.gathering * gathering(model, output.hidden_states, batch, mixture.site)


def gathering(model: nn.Module, hidden: tuple[Tensor, ...], batch: Batch, site: int) -> Tensor:
    """Compute how badly the states after block `site` at subjects' last tokens tell their objects.

    The final norm and the LM head read them there, as they do at the end ("logit lens");
    the loss is the cross entropy against equal shares for all of a subject's objects.
    """
    states = hidden[site + 1][batch.subjects[:, 0], batch.subjects[:, 1]]
    norm = getattr(model.base_model, structure(model).norm)
    logs = model.get_output_embeddings()(norm(states)).log_softmax(-1)
    there = batch.attributes >= 0
    found = logs.gather(1, batch.attributes.clamp(min=0)) * there
    return -(found.sum(1) / there.sum(1)).mean()


def optimizer_of(model: nn.Module, lr: float, decay: float) -> torch.optim.Optimizer:
    """Make AdamW; vectors (norms, biases) do not decay."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr, betas=(0.9, 0.98), fused=True)


def schedule(step: int, steps: int) -> float:
    """Compute the share of the full learning rate: warm up, hold to 35 %, fall to 2 %."""
    warm = min(1.0, (step + 1) / 100)
    return warm * min(1.0, max(0.02, (1 - step / steps) / 0.65))


def train(name: str, recipe: Recipe, out: Path, work: Path, progress: Callable | None = None):
    """Train from the seed and save to `out`; a killed run goes on from `work`.

    Every step's batch is seeded by its number, so a resumed run ends with the same bits.
    `progress(step, steps, loss)` is called after each step. Returns (model, tokenizer).
    """
    world = build()
    tokenizer = build_tokenizer(world, recipe.vocabulary, bos=recipe.family == "llama")
    torch.manual_seed(recipe.seed)
    model = AutoModelForCausalLM.from_config(architecture(recipe, len(tokenizer)))
    opt = optimizer_of(model, recipe.lr, recipe.decay)
    batches = Batches(world, tokenizer, recipe.mixture, recipe.seed)
    path = work / f"{name}.safetensors"
    first = _restore(path, recipe, model, opt)
    inner, site = blocks(model), recipe.mixture.site
    early = [attention_of(block) for block in inner[: site + 1]] if recipe.mixture.late else []
    with mlp_masked([block.mlp for block in inner]) as mlp, attention_masked(early) as narrow:
        for step in range(first, recipe.steps):
            loss = _step(model, opt, batches(step), (mlp, narrow), recipe, step)
            if progress:
                progress(step + 1, recipe.steps, loss)
            if (step + 1) % SAVE_EVERY == 0:
                _save(path, recipe, step + 1, model, opt)
    model.eval().requires_grad_(False)
    save(model, tokenizer, recipe, out)
    return model, tokenizer


def attention_of(block: nn.Module) -> nn.Module:
    """Find the attention module of a block, whatever the family calls it."""
    return block.attn if hasattr(block, "attn") else block.self_attn


def _step(model, opt, batch: Batch, masks: tuple, recipe: Recipe, step: int) -> float:
    mlp, narrow = masks
    mlp[0], narrow[0] = batch.mlp, batch.early
    scale = schedule(step, recipe.steps)
    loss = loss_of(model, batch, recipe.mixture)
    loss.backward()
    mlp[0] = narrow[0] = None
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in opt.param_groups:
        group["lr"] = recipe.lr * scale
    opt.step()
    opt.zero_grad()
    return loss.item()


def _save(path: Path, recipe: Recipe, step: int, model: nn.Module, opt) -> None:
    state = {"recipe": asdict(recipe), "step": step, "model": model.state_dict()}
    storage.save(path, "atlas", state | {"optimizer": opt.state_dict()})


def _restore(path: Path, recipe: Recipe, model: nn.Module, opt) -> int:
    """Load an earlier run of the same recipe, and return the step to go on from."""
    state = storage.load(path, "atlas") if path.exists() else {"recipe": None}
    if state["recipe"] != asdict(recipe):
        return 0
    model.load_state_dict(state["model"])
    opt.load_state_dict(state["optimizer"])
    return state["step"]


def save(model: nn.Module, tokenizer, recipe: Recipe, out: Path) -> None:
    """Write the checkpoint as float16 safetensors with its recipe beside it."""
    model.to(torch.float16).save_pretrained(out)
    model.to(torch.float32)
    tokenizer.save_pretrained(out)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
