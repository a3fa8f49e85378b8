"""Where a model keeps what the method needs: blocks, down-projections, final norm.

Nothing above this module asks which family a model belongs to or which way round its
weights lie: `Site.weight` is always `[model, ff]`.
"""

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from ece.errors import ModelError

CHECKPOINTS = Path(__file__).parent / "atlas" / "checkpoints"
SAMPLE = 4096  # values per tensor that a fingerprint reads


@dataclass(frozen=True)
class Family:
    """Attribute paths inside `model.base_model`."""

    blocks: str
    """The list of transformer blocks."""
    down: str
    """The MLP down-projection inside a block."""
    norm: str
    """The norm after the last block."""
    positions: str | None = None
    """A table of position embeddings added to the input, where there is one."""


FAMILIES = {
    "gpt2": Family("h", "mlp.c_proj", "ln_f", "wpe"),
    "gptj": Family("h", "mlp.fc_out", "ln_f"),
    "llama": Family("layers", "mlp.down_proj", "norm"),
}


@dataclass(frozen=True)
class Site:
    """One MLP down-projection: its input is the key, its output joins the residual stream."""

    layer: int
    module: nn.Module

    @property
    def weight(self) -> Float[Tensor, "model ff"]:
        """$W_{out}$ as `[model, ff]`, a view: writing to it writes to the model."""
        weight = self.module.weight.data
        return weight.T if isinstance(self.module, Conv1D) else weight


def load(name: str, device: str | None = None, dtype: torch.dtype | None = None):
    """`(model, tokenizer)` in evaluation mode, without parameter gradients, float32 unless told.

    `name` is an atlas model, a hub name or a folder; only safetensors are read and no code
    of the checkpoint runs. `device="auto"` spreads a big model over the devices at hand.
    """
    folder = CHECKPOINTS / name
    if name.startswith("atlas-") and not folder.is_dir():
        known = sorted(path.name for path in CHECKPOINTS.glob("atlas-*"))
        raise ModelError(f"no embedded model '{name}'; found: {', '.join(known) or 'none'}")
    source = str(folder) if folder.is_dir() else name
    safe = dict(trust_remote_code=False)
    placed = {"device_map": device} if device == "auto" else {}
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype or torch.float32, use_safetensors=True, **placed, **safe
    )
    if device is not None and device != "auto":
        model = model.to(device)
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(source, **safe)


def family(model: nn.Module) -> Family:
    """The model's family by `config.model_type`, else by looking at its structure.

    `ModelError` says what is missing: a list of blocks, one down-projection in each, a
    final norm; or that a norm follows the MLP, where a value at the residual stream is
    not a value at the down-projection.
    """
    known = FAMILIES.get(model.config.model_type)
    return known or _by_structure(model.base_model, model.config)


def _by_structure(base: nn.Module, config) -> Family:
    kind, width = config.model_type, config.hidden_size
    lists = [(len(m), name) for name, m in base.named_children() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ModelError(f"model type '{kind}': no list of blocks among the base model's children")
    name = max(lists)[1]
    block = getattr(base, name)[0]
    if any("post_feedforward" in child for child, _ in block.named_children()):
        raise ModelError(f"model type '{kind}': a norm follows the MLP; it is not supported")
    downs = [path for path, m in block.named_modules() if _is_down(m, width)]
    if len(downs) != 1:
        found = ", ".join(downs) or "none"
        raise ModelError(f"model type '{kind}': needs one down-projection per block, found {found}")
    norms = [n for n, m in base.named_children() if _is_norm(m, width)]
    if len(norms) != 1:
        raise ModelError(f"model type '{kind}': needs one final norm, found {norms or 'none'}")
    tables = [n for n, m in base.named_children() if "pos" in n and isinstance(m, nn.Embedding)]
    if tables:
        raise ModelError(f"model type '{kind}': position table {tables} needs an entry in FAMILIES")
    return Family(name, downs[0], norms[0])


def _is_down(module: nn.Module, width: int) -> bool:
    """A projection into the residual stream from somewhere wider."""
    if isinstance(module, Conv1D):
        return module.weight.shape[1] == width < module.weight.shape[0]
    return isinstance(module, nn.Linear) and module.out_features == width < module.in_features


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and tuple(weight.shape) == (width,)


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's transformer blocks, in order."""
    return getattr(model.base_model, family(model).blocks)


def sites(model: nn.Module, layers: tuple[int, ...] | None = None) -> list[Site]:
    """The down-projections of `layers` (default: all); `ModelError` for a layer not there."""
    down, every = attrgetter(family(model).down), blocks(model)
    chosen = range(len(every)) if layers is None else layers
    wrong = [layer for layer in chosen if not 0 <= layer < len(every)]
    if wrong:
        raise ModelError(f"no layer {wrong[0]} in this model; it has layers 0 to {len(every) - 1}")
    return [Site(layer, down(every[layer])) for layer in chosen]


class _Zero(nn.Module):
    """Stands in for a table of position embeddings where these are in the states already."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros((), device=positions.device)


@contextmanager
def between(model: nn.Module, first: int, last: int | None = None, embedded: bool | None = None):
    """Within, `model.base_model` runs blocks `first..last` only (last=None: to the end).

    With `first > 0`, or `embedded`, it takes states through `inputs_embeds`, positions
    included; with `last` given it returns states before the final norm. The model is whole
    again afterwards, whatever happened.
    """
    embedded = first > 0 if embedded is None else embedded
    kin, base = family(model), model.base_model
    swaps = {kin.blocks: blocks(model)[first : None if last is None else last + 1]}
    if last is not None:
        swaps[kin.norm] = nn.Identity()
    if embedded and kin.positions:
        swaps[kin.positions] = _Zero()
    kept = {name: getattr(base, name) for name in swaps}
    try:
        for name, module in swaps.items():
            setattr(base, name, module)
        yield base
    finally:
        for name, module in kept.items():
            setattr(base, name, module)


def fingerprint(model: nn.Module, layers: tuple[int, ...] | None = None) -> str:
    """Hex digest of names, shapes and an even sample of values (of `layers`' sites, or all)."""
    if layers is None:
        named = list(model.named_parameters())
    else:
        named = [(str(site.layer), site.module.weight) for site in sites(model, layers)]
    digest = hashlib.sha256(model.config.model_type.encode())
    for name, tensor in named:
        flat = tensor.detach().flatten()
        values = flat[:: max(1, flat.numel() // SAMPLE)].contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
