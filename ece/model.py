"""Where a decoder keeps what the method needs: blocks, down-projections, the final norm.

Nothing outside this module asks how a model is built or which way round its weights lie:
`Site.weight` is always `[model, ff]`.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ece.errors import ModelError

SAMPLE = 65536  # values that a fingerprint reads of a weight that is not edited
SLICE = 1 << 22  # values hashed at a time, to bound the memory it takes
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Structure:
    """Attribute paths inside `model.base_model`, found by looking at the modules."""

    blocks: str
    """The list of transformer blocks."""
    down: str
    """The MLP down-projection inside a block."""
    norm: str
    """The norm after the last block."""
    positions: str | None
    """The table of position embeddings added to the input, where there is one."""


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


def structure(model: nn.Module) -> Structure:
    """Find the model's parts; `ModelError` says what is missing or found more than once."""
    base, kind = model.base_model, model.config.model_type
    width, words = getattr(model.config, "hidden_size", None), model.get_input_embeddings()
    lists = [(len(m), name) for name, m in base.named_children() if isinstance(m, nn.ModuleList)]
    if not lists or width is None:
        raise ModelError(f"model type '{kind}': no list of blocks in the base model; ece edits "
                         "decoders of the GPT and Llama kind")  # fmt: skip
    name = max(lists)[1]
    downs = [path for path, m in getattr(base, name)[0].named_modules() if _is_down(m, width)]
    norms = [n for n, m in base.named_children() if tuple(getattr(m, "weight", words.weight).shape)
             == (width,)]  # fmt: skip
    tables = [n for n, m in base.named_children() if isinstance(m, nn.Embedding) and m is not words]
    for what, found, most in (
        ("down-projection per block", downs, 1),
        ("final norm", norms, 1),
        ("table of positions", tables, 1),
    ):
        if len(found) > most or (len(found) < most and what != "table of positions"):
            names = ", ".join(found) or "none"
            raise ModelError(f"model type '{kind}': one {what} is needed, found: {names}; ece "
                             "edits dense decoders of the GPT and Llama kind")  # fmt: skip
    return Structure(name, downs[0], norms[0], tables[0] if tables else None)


def _is_down(module: nn.Module, width: int) -> bool:
    """Whether the module projects into the residual stream from somewhere wider."""
    if isinstance(module, Conv1D):
        return module.weight.shape[1] == width < module.weight.shape[0]
    return isinstance(module, nn.Linear) and module.out_features == width < module.in_features


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's transformer blocks, in order."""
    return getattr(model.base_model, structure(model).blocks)


def sites(model: nn.Module, layers: tuple[int, ...] | None = None) -> list[Site]:
    """List the down-projections of `layers` (default: all); `ModelError` for a missing layer."""
    parts = structure(model)
    down, every = attrgetter(parts.down), getattr(model.base_model, parts.blocks)
    chosen = range(len(every)) if layers is None else layers
    wrong = [layer for layer in chosen if not 0 <= layer < len(every)]
    if wrong:
        raise ModelError(f"no layer {wrong[0]} in this model; it has layers 0 to {len(every) - 1}")
    return [Site(layer, down(every[layer])) for layer in chosen]


class _Zero(nn.Module):
    """Stands in for the table of positions where these are in the states already."""

    def forward(self, positions: Tensor, *_, **__) -> Tensor:
        return torch.zeros((), device=positions.device)


@contextmanager
def between(model: nn.Module, first: int, last: int | None = None, embedded: bool | None = None):
    """Let `model.base_model` run blocks `first..last` only (last=None: to the end), in the block.

    With `first > 0`, or `embedded`, it takes states through `inputs_embeds`, positions included;
    with `last` given it returns states before the final norm. The model is whole again afterwards.
    """
    embedded = first > 0 if embedded is None else embedded
    parts, base = structure(model), model.base_model
    swaps = {parts.blocks: blocks(model)[first : None if last is None else last + 1]}
    if last is not None:
        swaps[parts.norm] = nn.Identity()
    if embedded and parts.positions:
        swaps[parts.positions] = _Zero()
    before = {name: getattr(base, name) for name in swaps}
    try:
        for name, module in swaps.items():
            setattr(base, name, module)
        yield base
    finally:
        for name, module in before.items():
            setattr(base, name, module)


def fingerprint(model: nn.Module, layers: tuple[int, ...] | None = None) -> str:
    """Hash names, shapes and values: whole of `layers`' sites, or of all weights a sample.

    16 hexadecimal digits. The sample's places are spread by an irrational step, which no width of
    a matrix repeats.
    """
    if layers is not None:
        named = [(str(site.layer), site.module.weight) for site in sites(model, layers)]
    else:
        named = [(name, _sample(tensor)) for name, tensor in model.named_parameters()]
    total = 0
    for name, tensor in named:
        head = f"{model.config.model_type} {name} {tuple(tensor.shape)} {tensor.dtype}".encode()
        for part in (torch.tensor(list(head), dtype=torch.uint8), tensor):
            total = (total * 0x100000001B3 + digest(part)) % 2**64
    return f"{total:016x}"


def _sample(tensor: Tensor) -> Tensor:
    """Up to `SAMPLE` values of the tensor, from all over it."""
    flat = tensor.detach().reshape(-1)
    if len(flat) <= SAMPLE:
        return flat
    step = int(len(flat) * 0.6180339887498949)
    return flat[torch.arange(SAMPLE, device=flat.device) * step % len(flat)]


def digest(tensor: Tensor) -> int:
    """A 64-bit hash of every bit of a tensor, by place; computed where the tensor lies."""
    bits = tensor.detach().contiguous().view(BITS[tensor.element_size()])
    rows = bits.reshape(len(bits) if bits.ndim > 1 else 1, -1)
    column, total = _odd(rows.shape[1], 1, bits.device), 0
    row = _odd(len(rows), 2, bits.device)
    count = max(1, SLICE // max(1, rows.shape[1]))
    for part, weight in zip(rows.split(count), row.split(count), strict=True):
        total += int(((part * column).sum(1) * weight).sum())
    return total % 2**64


def _odd(count: int, seed: int, device: torch.device) -> Tensor:
    """`count` odd numbers of 64 bits that look random (splitmix64; products wrap around)."""
    mixed = (torch.arange(count, device=device) + seed) * -7046029254386353131
    mixed = (mixed ^ (mixed >> 30)) * -4658895280553007687
    mixed = (mixed ^ (mixed >> 27)) * -7723592293110705685
    return (mixed ^ (mixed >> 31)) | 1
