"""Computes what editing a model will take, from its configuration alone: the command `ece plan`.

Nothing here is measured. Memory is that of the tensors the method makes, time that of its matrix
products at the rate given. `tests/test_plan.py` compares the operations, and the memory that
stays, with runs; what a descent holds for its backward pass is a rough count.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig
from tyro.conf import Positional

from ece import presets
from ece.config import Positive, Share
from ece.data.schema import read_text
from ece.errors import ConfigError, EditError, ModelError, checked, shown
from ece.experiments.spec import Count, Dtype
from ece.hooks import gain
from ece.loading import builder, check, configuration
from ece.model import blocks, sites

DOUBLE = torch.double.itemsize
SMALL = dict(
    vocab_size=64, hidden_size=256, d_model=256, n_embd=256, word_embed_proj_dim=256,
    intermediate_size=512, ffn_dim=512, n_inner=512, num_hidden_layers=4, num_layers=4, n_layer=4,
    n_layers=4, num_attention_heads=4, n_head=4, n_heads=4, num_key_value_heads=2, head_dim=64,
    pad_token_id=0, bos_token_id=1, eos_token_id=1, image_token_id=61, video_token_id=62,
    audio_token_id=63,
)  # fmt: skip
"""Sizes of the copy on which a family is tried, by the names that families have for them."""
STATES = 14
"""States of the stream's width that a block holds per token for the backward pass, about."""


@checked
class Options:
    """Compute memory and time of editing a model, from its configuration, before any download."""

    model: Positional[str] = "config.json"
    """The model's config.json, or an embedded model, a hub name or a folder."""
    layers: tuple[int, ...] | None = None
    """Edit layers; those of the model's preset, or suggested by its depth."""
    facts: Count = 100
    """Facts of a batch."""
    steps: Positive = 25.0
    """Gradient steps of a fact, on average: the schedule's, or fewer with early stop."""
    rows: Count = 7
    """Texts of a fact: its prompt, that with random prefixes, and one more."""
    tokens: Count = 24
    """Tokens of such a text."""
    suffix: Count = 6
    """Tokens from the subject's last to the target's, which every step runs."""
    neurons: Share = 1.0
    """Share of an edit layer's neurons that are chosen."""
    stats_tokens: Count = 100_000
    """Tokens of the second moments."""
    max_tokens: Count = 16384
    """Tokens that one pass holds, as the method's setting of that name."""
    dtype: Dtype = "bfloat16"
    """Number format of the weights."""
    gpus: tuple[Count, ...] = (1, 2, 4, 8)
    """Numbers of devices to plan for; they share the weights, not the work."""
    memory: Positive = 80.0
    """Memory of a device, in 10^9 bytes."""
    teraflops: Positive = 400.0
    """Products of the weights' format that a device reaches, in 10^12 FLOP/s."""
    teraflops64: Positive = 20.0
    """The same in float64, in which the update is solved for."""
    json: bool = False
    """Print one line of JSON instead of a table."""


@dataclass(frozen=True)
class Shape:
    """What the arithmetic needs to know of a model."""

    weights: int
    """All parameters."""
    block: int
    """Parameters of one block."""
    head: int
    """Parameters of the output head."""
    depth: int
    width: int
    ff: int
    """Neurons of an edit layer."""


@dataclass(frozen=True)
class Stage:
    """One stage's cost."""

    name: str
    flops: float | int
    double: float | int = 0
    """The part of it in float64."""


def shape(config) -> Shape:
    """Read a model's sizes off a copy without memory; `ModelError` for one that is no decoder."""
    try:
        with torch.device("meta"):
            model = builder(config).from_config(config)
    except Exception as error:  # of any kind: an unknown type, sizes that do not fit
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise ModelError(f"model type '{config.model_type}' cannot be built as a decoder ({why}); "
                         "ece edits dense decoders") from error  # fmt: skip
    every, site = blocks(model), sites(model, (0,))[0]
    head = model.get_output_embeddings().weight.numel()
    sizes = (_size(model), _size(every[0]), head, len(every))
    return Shape(*sizes, *site.weight.shape)


def tried(config) -> tuple[float | None, str]:
    """Try the family on a small copy with random weights.

    Returns what the stream gets of an MLP (`ece.hooks.gain`; 1.0 if not known), and a sentence.
    """
    small = deepcopy(config)
    parts = small, *(getattr(small, name) for name in small.sub_configs)
    for part, (name, size) in product(parts, SMALL.items()):
        with suppress(Exception):  # a family's own checks: some names cannot be read, or set
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, size)
    with suppress(Exception):  # most families have none
        text = small.get_text_config(decoder=True)
        text.layer_types = text.layer_types[: SMALL["n_layer"]]
    try:
        model = builder(small).from_config(small).eval().requires_grad_(False)
        model(torch.tensor([[1, 2, 3]]))
    except Exception as error:  # a family's own code, at sizes that are not its own
        return 1.0, f"A small copy could not be made to try the family ({type(error).__name__})."
    try:
        check(model)
    except ModelError as error:
        return 1.0, f"ece would not edit this model; a small copy was refused: {error}."
    return gain(model, 0), "A small copy with random weights was served."


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def stages(model: Shape, layers: tuple[int, ...], options: Options) -> Iterator[Stage]:
    """List the work: second moments once per model, the rest once per batch.

    A product with a matrix of n numbers takes 2 n operations per token, and in a descent as many
    again for the gradient of its input; the weights have none.
    """
    below, above = layers[-1] + 1, model.depth - layers[-1] - 1
    rows, run = options.facts * options.rows, 2 * model.block
    moments = 2 * model.ff**2 * options.stats_tokens * len(layers)
    yield Stage("second moments, once", options.stats_tokens * run * below + moments, moments)
    yield Stage("below the values", rows * options.tokens * run * model.depth)
    step = options.suffix * run * above + 2 * model.head
    yield Stage("descent", rows * step * (2 * options.steps + 1))
    yield Stage("keys", (rows - options.facts) * options.tokens * run * below)
    chosen = round(options.neurons * model.ff)
    one = chosen**3 / 3 + 2 * chosen**2 * options.facts + 2 * model.width * chosen * options.facts
    yield Stage("solve", one * len(layers), one * len(layers))


def memory(model: Shape, layers: tuple[int, ...], options: Options) -> dict[str, float | int]:
    """List bytes: what stays, and what a pass and a solve hold for a while."""
    item, squares = getattr(torch, options.dtype).itemsize, DOUBLE * model.ff**2
    held = min(options.max_tokens, options.facts * options.rows * options.suffix)
    above, chosen = model.depth - layers[-1] - 1, round(options.neurons * model.ff)
    token = (STATES * model.width + 4 * model.ff) * above * item + 3 * model.head / model.width * 4
    return {
        "weights": model.weights * item,
        "second moments": squares * len(layers),
        "history": squares * len(layers),
        "descent": held * token,
        "solve": 2 * DOUBLE * chosen**2,
    }


def plan(options: Options, config: PretrainedConfig | None = None) -> dict:
    """Compute the whole plan, of `config` if it is given.

    "fullest" tells for each number of devices what the fullest one holds, in 10^9 bytes.

    Blocks are spread evenly over devices, and with them the edit layers; a pass or a solve happens
    on one device at a time.
    """
    config = config or _configuration(options.model)
    model, (factor, family) = shape(config), tried(config)
    layers = options.layers or _layers(options.model, model.depth)
    if factor is None and not options.layers:  # no residual can be spread behind a norm
        layers = layers[-1:]
    if not 0 <= layers[0] <= layers[-1] < model.depth - 1 or layers != tuple(sorted({*layers})):
        raise ConfigError(f"setting 'layers' is {shown(layers)}; the model has {model.depth} "
                          "blocks: name some in order, with one above them")  # fmt: skip
    parts, fits = memory(model, layers, options), {}
    for count in options.gpus:
        here = -(-len(layers) // min(count, len(layers))) / len(layers)
        most = parts["weights"] / count + here * (parts["second moments"] + parts["history"])
        fits[count] = (most + max(parts["descent"] / count, parts["solve"])) / 1e9
    work = [{**asdict(stage), "seconds": _seconds(stage, options)}
            for stage in stages(model, layers, options)]  # fmt: skip
    return {"model": options.model, "family": family, "shape": asdict(model), "layers": [*layers],
            "bytes": parts, "fullest": fits, "stages": work}  # fmt: skip


def _seconds(stage: Stage, options: Options) -> float:
    fast = (stage.flops - stage.double) / (options.teraflops * 1e12)
    return fast + stage.double / (options.teraflops64 * 1e12)


def _configuration(name: str):
    """Read a model's configuration, from its own file or from where the model is."""
    if not name.endswith(".json"):
        return configuration(name)
    try:
        found = json.loads(read_text(Path(name), "a model's config.json"))
        return AutoConfig.for_model(found.pop("model_type"), **found)
    except EditError:
        raise
    except Exception as error:  # transformers checks sizes in ways of its own
        raise ModelError(f"{name} is no configuration of a model ({error!r}); name the config.json "
                         "of one that transformers knows") from error  # fmt: skip


def _layers(name: str, depth: int) -> tuple[int, ...]:
    return presets.configure(name, "ece-rs", depth).layers


def main(options: Options) -> None:
    """Print the plan."""
    found = plan(options)
    sys.stdout.write(json.dumps(found) + "\n" if options.json else _table(found, options))


def _table(found: dict, options: Options) -> str:
    """Show memory, time and what fits."""
    size = found["shape"]["weights"] / 1e9
    head = (f"{found['model']}: {size:.2f} billion parameters in {options.dtype}, edit layers "
            f"{','.join(map(str, found['layers']))}, {options.facts} facts a batch")  # fmt: skip
    parts = pd.Series({name: part / 1e9 for name, part in found["bytes"].items()})
    times = pd.Series({part["name"]: part["seconds"] for part in found["stages"]})
    rows = {f"{n} x {options.memory:g} GB": [most, "yes" if most < options.memory else "no"]
            for n, most in found["fullest"].items()}  # fmt: skip
    fits = pd.DataFrame(rows, ["the fullest holds, GB", "fits"]).T
    batch = times.iloc[1:].sum()
    return "\n".join((
        head, found["family"], "Computed from the model's shape, not measured.", "",
        "memory, GB", parts.to_string(float_format="{:.2f}".format), "",
        fits.to_string(float_format="{:.1f}".format), "",
        f"seconds at {options.teraflops:g} TFLOP/s, in float64 {options.teraflops64:g}",
        times.to_string(float_format="{:.3f}".format),
        f"a batch of {options.facts}: {batch:.2f} s, {options.facts / batch:.0f} facts a second",
    )) + "\n"  # fmt: skip
