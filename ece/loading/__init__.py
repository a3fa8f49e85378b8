"""Load a model and its tokenizer, and check that the method sees the model rightly."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from os import PathLike

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.models.auto import modeling_auto as auto

from ece.engine.loss import head_of
from ece.engine.prefix import common, embed, pass_heads, through
from ece.engine.suffix import lift
from ece.errors import ModelError
from ece.hooks import add_at, in_projection_units
from ece.loading.gguf import WHEELS, resolve
from ece.loading.sharding import arguments, join, spread
from ece.model import blocks, sites, structure

CHECKPOINTS = files("ece") / "atlas" / "checkpoints"
ROWS = ([2, 3, 4, 5, 6, 7], [2, 3, 4, 9], [8, 2, 11, 3, 5], [10, 7, 3], [12, 4, 4, 6])
KINDS, SUBJECT = (0, 0, 1, 2, 2), (4, 2, 2, 1, 1)  # rows of one kind share a beginning
CHECKED = 3  # blocks that the check runs; the others must be built like one of them
RUN, VALUE = 1e-4, 1e-2  # families that work stay below 2e-6 and 1e-4, others reach 5e-3 and 0.2


def load(
    name: str | PathLike, device: str | None = None, dtype: torch.dtype | None = None,
    sharding: str | None = None,
):  # fmt: skip
    """Load `(model, tokenizer)` in evaluation mode, without gradients, in float32 by default.

    `name`: an embedded model ("atlas-gpt2"), "smollm2-135m", a hub name, a folder, a GGUF file.
    Only safetensors and GGUF are read, and no code of the checkpoint runs. `device="auto"` spreads
    a big model over devices, `sharding` ("tp", "fsdp") over the processes of `torchrun`. Raises
    `ModelError` for a model that cannot be had, is damaged, or is not served.
    """
    if not isinstance(name, str | PathLike):
        raise ModelError(f"'name' is a {type(name).__name__}; give a name or a folder")
    where = {"device_map": "auto"} if device == "auto" else {}
    if sharding is not None:
        join(sharding, device)
    elif device is not None and device != "auto":
        check_device(device)
    try:
        source = _source(str(name))
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if sharding is not None:
            where = arguments(config, sharding)
        model, info = builder(config).from_pretrained(
            source, dtype=dtype or torch.float32, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True, **where,
        )  # fmt: skip
        tokenizer = _tokenizer(source, name)
    except ModelError:
        raise
    except Exception as error:  # transformers, the hub and safetensors raise many kinds
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model '{name}' cannot be loaded ({why}); name an embedded model, a "
                         "whole checkpoint folder that is there, or a hub model within "
                         "reach") from error  # fmt: skip
    _check_whole(name, info, model)
    if device is not None and device != "auto":
        model = model.to(device)
    check(model.eval().requires_grad_(False))
    return model if sharding is None else spread(model, sharding), tokenizer


def builder(config: PretrainedConfig) -> type:
    """Find what builds a model: a language model, or one that reads images and writes text."""
    known = type(config) in auto.MODEL_FOR_CAUSAL_LM_MAPPING
    return auto.AutoModelForCausalLM if known else auto.AutoModelForImageTextToText


def _check_whole(name, info: dict, model: nn.Module) -> None:
    """Refuse a checkpoint that lacks tensors, or has blocks that the configuration leaves out."""
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"model '{name}' lacks tensors, {missing[0]} among {len(missing)}; "
                         "get the checkpoint again")  # fmt: skip
    block = re.compile(rf"\b{structure(model).blocks}\.(\d+)\.")
    for key in sorted(info["unexpected_keys"]):
        if (found := block.search(key)) and int(found[1]) >= len(blocks(model)):
            raise ModelError(f"model '{name}' has {len(blocks(model))} blocks by its configuration "
                             f"and {key} beside them; get the checkpoint again")  # fmt: skip


def _tokenizer(source, name):
    """Load a tokenizer; transformers makes an empty one where there are no files of it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except ValueError:  # none of the kinds that transformers tries
        tokenizer = ()
    if len(tokenizer) < 2:
        raise ModelError(f"model '{name}' has no tokenizer; put its tokenizer files there")
    return tokenizer


def configuration(name: str):
    """Read a model's configuration without loading it; `name` as for `load`."""
    source = _source(name)
    try:
        found = AutoConfig.from_pretrained(source, trust_remote_code=False)
        range(found.get_text_config().num_hidden_layers)
        return found
    except Exception as error:  # wrong types in it fail in many ways
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model '{name}' has no preset, and its configuration cannot be read "
                         f"({why}); name another model or a preset file") from error  # fmt: skip


def _source(name: str) -> str:
    """Find the folder of an embedded model, or return the name itself."""
    if not name.startswith("atlas-"):
        return resolve(name)
    if not (CHECKPOINTS / name).is_dir():
        known = [*sorted(path.name for path in CHECKPOINTS.glob("atlas-*")), *WHEELS]
        raise ModelError(f"no embedded model '{name}'; known: {', '.join(known) or 'none'}")
    return str(CHECKPOINTS / name)


def check_device(device: str) -> None:
    """Raise `ModelError` for a device that is not there or cannot hold float64."""
    try:
        torch.zeros(1, device=device, dtype=torch.float64).item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        why = str(error).splitlines()[0][:160]
        raise ModelError(f"setting 'device' is {device!r} ({why}); name a device that holds "
                         "numbers in float64, as torch names it") from error  # fmt: skip


@torch.no_grad()
def check(model: nn.Module) -> None:
    """Check that the engine's run in parts equals the whole model's, with and without values.

    Families with multipliers, norms behind the MLP, scaled logits or states of their own would
    otherwise be edited wrongly without a word. The first three blocks run, in float32. Raises
    `ModelError`.
    """
    kind, every = model.config.model_type, sites(model)
    if hasattr(model.config, "encoder_layers"):
        raise ModelError(f"model type '{kind}': this is half of an encoder-decoder, which reads "
                         "nothing without the other; ece edits dense decoders")  # fmt: skip
    if len(every) < 2:
        raise ModelError("the model has one block; a value needs a block above it")
    shapes = [[name for name, _ in block.named_modules()] for block in blocks(model)]
    odd = [i for i, names in enumerate(shapes) if names not in shapes[:CHECKED]]
    if odd:
        raise ModelError(f"model type '{kind}': block {odd[0]} is built otherwise than the first "
                         f"{CHECKED}, which are those checked; it is not served")  # fmt: skip
    try:
        with _cut(model, CHECKED):
            gaps = _gaps(model)
    except Exception as error:  # a family's own code may fail in any way on a partial run
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model type '{kind}' cannot be run in parts ({why}); it is not "
                         "served") from error  # fmt: skip
    for what, gap, most in zip(("run", "value"), gaps, (RUN, VALUE), strict=True):
        if not gap <= most:
            raise ModelError(f"model type '{kind}': a {what} in parts differs from the whole "
                             f"model's by {gap:.2g} of its size, at most {most:g} is rounding; "
                             "it is not served")  # fmt: skip


@contextmanager
def _cut(model: nn.Module, count: int) -> Iterator[None]:
    """Let the model have its first blocks only, and float32 weights, within the block."""
    parts, every, originals = structure(model), blocks(model), []
    base, name = model.get_submodule(parts.base), parts.blocks
    try:
        setattr(base, name, every[:count])
        for parameter in model.parameters():
            originals.append((parameter, parameter.data))
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data
        setattr(base, name, every)


def _gaps(model: nn.Module) -> tuple[float, float]:
    """Compare log-probabilities at the rows' ends, engine against whole model.

    The difference of the two runs, and of what a value after block 0 changes, both as a share.
    """
    vocab, device = len(table := model.get_input_embeddings().weight), table.device
    rows = [[token % vocab for token in row] for row in ROWS]
    heads = [len(head) for head in common(rows, list(KINDS), list(SUBJECT))]
    walk = embed(model, rows, list(KINDS), list(SUBJECT), [list(range(len(rows)))])
    passed = through(walk)
    begin = torch.tensor([at - heads[kind] for at, kind in zip(SUBJECT, KINDS, strict=True)])
    part = passed.entry.parts[0]
    upper = lift(passed, part, pass_heads(passed.entry)[1], begin.to(part.rows.device))
    keys = passed.parts[0][torch.arange(len(rows)), begin]
    hidden = in_projection_units(sites(model, (0,))[0], passed.gain, keys, upper.hidden[:, 0])
    length = hidden.norm(dim=1, keepdim=True)
    value = torch.randn(*hidden.shape, generator=torch.Generator().manual_seed(0))
    value = value.to(length) * length / 2 / value.norm(dim=1, keepdim=True).to(length)
    own, whole = [], []
    for delta in (torch.zeros_like(value), value):
        states = upper.run(delta)
        ends = [states[i, len(row) - 1 - at]
                for i, (row, at) in enumerate(zip(rows, SUBJECT, strict=True))]  # fmt: skip
        own.append(head_of(model)(torch.stack(ends)).log_softmax(-1))
        whole.append(_whole(model, rows, delta.to(device)).to(own[-1]))
    spread = (whole[0] - whole[0].mean(-1, keepdim=True)).norm()
    moved = whole[1] - whole[0]
    run, shift = own[0] - whole[0], own[1] - own[0] - moved
    return float(run.norm() / spread), float(shift.norm() / moved.norm())


def _whole(model: nn.Module, rows: list[list[int]], delta: Tensor) -> Float[Tensor, "row vocab"]:
    """Log-probabilities at the rows' ends by the whole model, row by row."""
    found = []
    for row, at, value in zip(rows, SUBJECT, delta, strict=True):
        ids = torch.tensor([row], device=delta.device)
        with add_at(sites(model, (0,))[0], torch.tensor([at], device=delta.device), value[None]):
            found.append(model(ids, use_cache=False).logits[0, -1].log_softmax(-1))
    return torch.stack(found)


def widen(model: nn.Module, layers: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    """Hold the edit layers' down-projections in `dtype`, in place; the rest stays as it is.

    This removes the rounding of the written update (`Report.rounding`), not that of the run.
    """
    for site in sites(model, layers):
        if (narrow := site.module.weight.dtype) == dtype:
            continue
        module = site.module.to(dtype)
        module.register_forward_pre_hook(lambda own, given: (given[0].to(own.weight.dtype),))
        module.register_forward_hook(lambda _, __, output, narrow=narrow: output.to(narrow))
