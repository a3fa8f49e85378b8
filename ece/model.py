"""Where a decoder keeps what the method needs: blocks, down-projections, the final norm.

Nothing outside this module asks how a model is built or which way round its weights lie.
"""

from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from ece.errors import ModelError
from ece.parts import gathered, in_parts, joined, put

HEADS = ("head_dim", "head_size", "v_head_dim")  # only attention has one of these


class Structure(NamedTuple):
    """Attribute paths, found by looking at the modules."""

    base: str
    """What holds the blocks: the model's base model, or the decoder that this wraps."""
    blocks: str
    down: str
    """The MLP down-projection inside a block."""
    norm: str
    """The norm after the last block."""


@dataclass(frozen=True)
class Site:
    """One MLP down-projection: its input is the key, its output joins the residual stream."""

    layer: int
    module: nn.Module
    block: nn.Module

    @property
    def weight(self) -> Float[Tensor, "model ff"]:
        """$W_{out}$ as `[model, ff]`: a view, or gathered where it lies in parts; see `write`."""
        weight = gathered(self.module.weight.data)
        return weight.T if isinstance(self.module, Conv1D) else weight

    @property
    def shape(self) -> tuple[int, int]:
        """Give (model, ff), without gathering anything."""
        first, second = self.module.weight.shape
        return (second, first) if isinstance(self.module, Conv1D) else (first, second)

    def write(self, values: Float[Tensor, "model some"], columns: Tensor | None = None) -> None:
        """Write some columns (a mask or their numbers) or all, wherever the weight lies."""
        weight, own = self.weight, self.module.weight
        at = slice(None) if columns is None else columns.to(weight.device)
        weight[:, at] = values.to(weight)
        if in_parts(own):
            put(own, weight.T if isinstance(self.module, Conv1D) else weight)

    def keys(self, inputs: Float[Tensor, "*place part"]) -> Float[Tensor, "*place ff"]:
        """Make whole what the module was given, where each process has its neurons' part."""
        return joined(inputs, self.module.weight, self.shape[1])

    def output(self, keys: Float[Tensor, "edit ff"]) -> Float[Tensor, "edit model"]:
        """Compute the down-projection of whole keys."""
        if not in_parts(self.module.weight):
            return self.module(keys)
        bias = self.module.bias
        return linear(keys, self.weight, None if bias is None else gathered(bias))


def structure(model: nn.Module) -> Structure:
    """Find the model's parts; `ModelError` says what is missing or there more than once."""
    kind, config = model.config.model_type, model.config.get_text_config(decoder=True)
    width, whole = getattr(config, "hidden_size", None), config is model.config
    home = model.base_model if whole else model.get_decoder()  # it may read images, too
    path, base = next((p for p in model.named_modules() if p[1] is home), ("", model))
    named = list(base.named_children())
    while len(named) == 1 and not isinstance(named[0][1], nn.ModuleList):
        path, named = f"{path}.{named[0][0]}", list(named[0][1].named_children())
    lists = [(len(m), name) for name, m in named if isinstance(m, nn.ModuleList)] or [(0, "")]
    block = [*dict(named)[max(lists)[1]]][:1] if max(lists)[0] else []
    dense = [b for b in block if not any(n.endswith("experts") for n, _ in b.named_modules())]
    downs = [path for b in dense for path, m in _outside_attention(b) if _is_down(m, width)]
    norms = [name for name, m in named if getattr(getattr(m, "weight", m), "shape", ()) == (width,)]
    for what, found in (("list of blocks with a down-projection", downs), ("final norm", norms)):
        if len(found) != 1:
            raise ModelError(f"model type '{kind}': one {what} is needed, found "
                             f"{', '.join(found) or 'none'}; ece edits dense decoders")  # fmt: skip
    return Structure(path, max(lists)[1], downs[0], norms[0])


def _outside_attention(block: nn.Module):
    """List the modules of a block, less attention's: wide heads are projected down there, too."""
    own = [f"{path}." for path, m in block.named_modules() if any(hasattr(m, n) for n in HEADS)]
    return [(path, m) for path, m in block.named_modules() if not path.startswith(tuple(own))]


def _is_down(module: nn.Module, width: int) -> bool:
    """Tell whether a module projects into the residual stream from somewhere wider."""
    if isinstance(module, Conv1D):
        return module.weight.shape[1] == width < module.weight.shape[0]
    return isinstance(module, nn.Linear) and module.out_features == width < module.in_features


def blocks(model: nn.Module) -> nn.ModuleList:
    """List the model's transformer blocks, in order."""
    parts = structure(model)
    return getattr(model.get_submodule(parts.base), parts.blocks)


def sites(model: nn.Module, layers: tuple[int, ...] | None = None) -> list[Site]:
    """List the down-projections of `layers` (default: all); `ModelError` for a missing layer."""
    down, every = structure(model).down, blocks(model)
    chosen = range(len(every)) if layers is None else layers
    if wrong := [layer for layer in chosen if not 0 <= layer < len(every)]:
        raise ModelError(f"no layer {wrong[0]} in this model; it has layers 0 to {len(every) - 1}")
    try:
        return [Site(n, attrgetter(down)(every[n]), every[n]) for n in chosen]
    except AttributeError as error:
        raise ModelError(f"not every block has '{down}'; ece edits dense decoders") from error


def room(model, whole: bool = False) -> int:
    """Count the tokens that the model reads at once; run in parts, all of them must be in view."""
    names = ["max_position_embeddings"]
    if not whole:  # beyond the last some families change the angles of all positions
        names += ["sliding_window", "window_size", "original_max_position_embeddings"]
    sizes = [getattr(model.config.get_text_config(decoder=True), name, None) for name in names]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=2**31)


@contextmanager
def between(model: nn.Module, first: int, last: int | None = None, embedded: bool | None = None):
    """Let the base model run blocks `first..last` only (last=None: to the end), in the block.

    With `first > 0`, or `embedded`, it takes states through `inputs_embeds`, positions included;
    with `last` given it returns states before the final norm. The model is whole again afterwards.
    """
    parts, given = structure(model), []
    base = model.get_submodule(parts.base)
    some = getattr(base, parts.blocks)[first : None if last is None else last + 1]
    swaps = [(base, parts.blocks, some)] + [(base, parts.norm, nn.Identity())] * (last is not None)
    if kinds := vars(base.config).get("layer_types"):  # looked up by a block's place
        swaps.append((base.config, "layer_types", kinds[first:]))
    with ExitStack() as undo:
        for owner, name, part in swaps:
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, part)
        if first > 0 if embedded is None else embedded:
            # States enter the first block as they are, whatever the base model adds or multiplies.
            undo.enter_context(base.register_forward_pre_hook(
                lambda _, __, kw: given.append(kw["inputs_embeds"]), with_kwargs=True))  # fmt: skip
            undo.enter_context([*some, getattr(base, parts.norm)][0].register_forward_pre_hook(
                lambda _, arguments: (given.pop(), *arguments[1:])))  # fmt: skip
        undo.enter_context(base.register_forward_pre_hook(_brought, with_kwargs=True))
        yield base


def _brought(base: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
    """Bring states to the embeddings' device: they may come from a later part of the model."""
    device = base.get_input_embeddings().weight.device
    return given, {n: v.to(device) if isinstance(v, Tensor) else v for n, v in named.items()}


def narrowed(model: nn.Module, dtype: str) -> nn.Module:
    """Copy the model in a narrower format; fused attention is slow there on CPUs (measured)."""
    copy = deepcopy(model).to(getattr(torch, dtype))
    copy.set_attn_implementation("eager")
    return copy
