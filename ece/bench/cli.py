"""`ece bench`: measures what editing costs, from the published loop to this engine, in one run.

    ece bench --model atlas-gpt2 --facts 100 --json
    ece bench --model smollm2-135m --world --naive 10 --edits 0 --json
    ece bench --shapes gpt2-xl,gpt-j-6b,llama-3-8b --device cuda --dtype bfloat16 --json

The last runs models of the named shapes with random weights, whose cost is that of the real ones
as long as nothing stops early.
"""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from itertools import islice
from typing import Annotated

import pandas as pd
import torch
from pydantic import Field
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, LlamaConfig

from ece import atlas, presets
from ece.baselines.ece_plus import ends_of_names
from ece.bench.profiling import ceiling
from ece.bench.stages import STAGES, Bench, long_run, stage_row, sweep, throughput
from ece.covariance import second_moment
from ece.data import python_docs, world
from ece.errors import ConfigError, checked
from ece.experiments.results import provenance, write_record
from ece.experiments.runner import matmul
from ece.experiments.spec import Count, Dtype, Matmul, words
from ece.facts import Fact, contexts
from ece.fingerprint import fingerprint
from ece.loading import check_device, load
from ece.storage.files import check_file

SHAPES: dict[str, Callable] = {
    "gpt2-xl": lambda: GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "gpt-j-6b": GPTJConfig,
    "llama-3-8b": lambda: LlamaConfig(
        vocab_size=128256, intermediate_size=14336, num_key_value_heads=8
    ),
}
"""Real shapes; what is not named here is the default of the family's configuration."""
NEEDED = {"naive", "memit", "ece"}
"""Stages without which there is nothing to compare."""
WRITER = "atlas-gpt2"
"""The model whose tokenizer and prefixes a model of random weights uses."""
TEXTS, TIMED = 2500, 1000
"""Texts for the second moments (random weights need one only), and texts that are timed."""


@checked
class Options:
    """Measure what editing costs, stage by stage: the published loop, this engine, ECE."""

    model: str = "atlas-gpt2"
    """Embedded model, hub name or folder; not used where shapes are given."""
    world: bool = False
    """Edit facts of the real world, with Python's reference as text: for pretrained models."""
    shapes: tuple[str, ...] = ()
    """Shapes to run with random weights instead: gpt2-xl, gpt-j-6b, llama-3-8b."""
    facts: Count = 100
    """Facts of a batch."""
    naive: Count | None = None
    """Facts to run where they are edited one by one, scaled up to all; all by default."""
    naive_dtype: Dtype | None = None
    """Number format of the weights in the naive loop, where it differs."""
    stages: tuple[str, ...] = ("all",)
    """Stages to measure, for a short time on a device: "naive", "memit" and "ece" among them."""
    times: Count = 3
    """Runs of the short stages, an odd number: the median counts."""
    sizes: tuple[Count, ...] = (1, 10, 100, 1000)
    """Batch sizes to compare."""
    edits: Annotated[int, Field(ge=0)] = 10_000
    """Length of the long run; 0 leaves it out."""
    batch: Count = 100
    """Facts of a batch in the long run."""
    device: str = "cpu"
    """Where the model goes, as torch names it."""
    dtype: Dtype = "float32"
    """Number format of the weights."""
    matmul: Matmul = "highest"
    """Precision of float32 products, as torch names it: "high" is TF32 where there is any."""
    json: bool = False
    """Print one line of JSON per model instead of a table."""
    out: str | None = None
    """File to write the record to as well."""

    def __post_init__(self):
        """Check what types and ranges leave open."""
        unknown = [name for name in self.shapes if name not in SHAPES]
        if unknown:
            known = ", ".join(SHAPES)
            raise ConfigError(f"setting 'shapes' holds '{unknown[0]}'; known: {known}")
        if self.out is not None and len(self.shapes) > 1:
            raise ConfigError(f"setting 'out' is '{self.out}'; it holds one record, so give one "
                              "shape, or print the records with 'json'")  # fmt: skip
        names = {stage.name for stage in STAGES}
        if self.stages != ("all",) and not NEEDED <= {*self.stages} <= names:
            raise ConfigError(f"setting 'stages' is {','.join(self.stages)}; choose from "
                              f"{', '.join(sorted(names))}, and naive, memit and ece among "
                              "them")  # fmt: skip
        if self.times % 2 == 0:
            raise ConfigError(f"setting 'times' is {self.times}; it should be odd")
        if 0 < self.edits < self.batch:
            raise ConfigError(f"setting 'edits' is {self.edits}; it should be 0, or at least "
                              f"the 'batch' of {self.batch}")  # fmt: skip

    def command(self) -> str:
        """Write the command line that measures this."""
        plain = {own.name: own.default for own in fields(self)}
        changed = {n: getattr(self, n) for n, v in plain.items() if getattr(self, n) != v}
        return shlex.join(["ece", "bench", *words(changed)])


def main(options: Options) -> None:
    """Measure one model after the other, and print each record as a table or as JSON."""
    if options.out is not None:
        check_file(options.out)
    for name in options.shapes or (options.model,):
        record = run(options, name)
        sys.stdout.write(json.dumps(record) + "\n" if options.json else table(record))
        if options.out is not None:
            write_record(record, options.out)


def run(options: Options, name: str | None = None) -> dict:
    """Measure one model, a real one or one of random weights, and return the record."""
    with matmul(options.matmul):
        return measure(*open_bench(name or options.model, options), options)


def open_bench(name: str, options: Options) -> tuple[Bench, list[Fact]]:
    """Load the model (real, or random of a shape), its facts and its statistics."""
    every = (world if options.world else atlas).facts()
    for setting in ("facts", "batch") if options.edits else ("facts",):
        if (wanted := getattr(options, setting)) > len(every):
            raise ConfigError(f"setting '{setting}' is {wanted}; there are {len(every)} facts")
    check_device(options.device)
    dtype, random = getattr(torch, options.naive_dtype or options.dtype), name in SHAPES
    templates = None
    if random:
        torch.manual_seed(0)
        with torch.device(options.device):
            model = AutoModelForCausalLM.from_config(SHAPES[name](), dtype=dtype)
        model, (writer, tokenizer) = model.eval().requires_grad_(False), load(WRITER)
        # A random model writes no text: its prefixes would vanish in the tokenizer.
        templates = contexts(writer, tokenizer, presets.configure(WRITER, "memit"))
    else:
        model, tokenizer = load(name, options.device, dtype)
    texts = read(options, 1 if random else TEXTS)
    config = presets.configure(name, "ece-rs")
    passed = partial(second_moment, model, tokenizer, texts, config.layers, config.max_tokens)
    stats, named = passed(), None
    if random:  # a handful of texts leaves the moments singular; only their cost counts
        for moment in stats.moments.values():
            moment.diagonal().add_(moment.diagonal().mean())
    else:
        named = passed(select=ends_of_names)
    some = every[: options.facts]
    return Bench(name, model, tokenizer, some, stats, random, templates, named), every


def read(options: Options, count: int) -> list[str]:
    """Take the texts of second moments, at most `count`."""
    return list(islice(python_docs(), count)) if options.world else atlas.corpus(count)


def measure(bench: Bench, every: list[Fact], options: Options) -> dict:
    """Run all measurements of one model, as one record."""
    show = partial(tqdm, file=sys.stderr, disable=not sys.stderr.isatty())
    rows, chosen = [], options.stages
    stages = [stage for stage in STAGES if chosen == ("all",) or stage.name in chosen]
    for stage in show(stages, desc=bench.name):
        if bench.random and stage.config(bench).stop is not None:
            continue  # random weights learn nothing, so that nothing would stop
        if stage.way != "naive":
            bench = bench.cast(getattr(torch, options.dtype))
        short = stage.way == "engine"  # the others take long
        some, times = (None, options.times) if short else (options.naive, 1)
        rows.append(stage_row(bench, stage, some, times))
    top = ceiling(bench.device, bench.model.dtype, 1024 if bench.device.type == "cpu" else 8192)
    for row in rows:
        row["flops_per_second"] = row["flops"] / row["total"]
        row["share_of_ceiling"] = row["flops_per_second"] / top
    total = {row["stage"]: row["total"] for row in rows}
    numbers, mark = asdict(bench.config("ece-rs")), fingerprint(bench.model)
    origin = provenance(options.command(), numbers, bench.model, bench.stats.tokens, mark)
    record = {
        "model": bench.name,
        "facts": len(bench.facts),
        "random_weights": bench.random,
        "naive_dtype": options.naive_dtype or options.dtype,
        "weights_bytes": sum(p.numel() * p.element_size() for p in bench.model.parameters()),
        "ceiling_flops_per_second": top,
        "speedup_vs_naive": total["naive"] / total["memit"],
        "ece_vs_memit": total["memit"] / total["ece"],
        "stages": rows,
        "batches": sweep(bench, every, options.sizes),
        "statistics": throughput(bench, read(options, TIMED)),
        "provenance": origin,
    }
    if options.edits:
        record["long"] = long_run(bench, every, options.edits, options.batch, show)
    return record


def table(record: dict) -> str:
    """Format the record's stages as text."""
    slow = record["stages"][0]["total"]
    rows = [
        {"stage": row["stage"], "total s": row["total"], **row["seconds"], "x": slow / row["total"],
         "steps": row["steps_per_fact"], "GFLOP": row["flops"] / 1e9,
         "ceiling %": 100 * row["share_of_ceiling"], "score": (row["quality"] or {}).get("score")}
        for row in record["stages"]
    ]  # fmt: skip
    shown = pd.DataFrame(rows).set_index("stage").rename_axis(None).astype(float)
    head = f"{record['model']}: {record['facts']} facts, {record['provenance']['device']}"
    return f"{head}\n{shown.to_string(float_format='{:.2f}'.format, na_rep='-')}\n"
