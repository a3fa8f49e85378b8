"""`python -m ece.bench.cli`: what editing costs, from the published loop to this engine, in one run.

    python -m ece.bench.cli --model atlas-gpt2 --facts 100 --json
    python -m ece.bench.cli --shapes gpt2-xl,gpt-j-6b,llama-3-8b --device cuda --dtype bfloat16 --json

The first edits an embedded model; the second runs models of the named shapes with random
weights, whose cost is that of the real ones as long as nothing stops early.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from functools import partial

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, LlamaConfig

from ece import atlas
from ece.bench.profiling import ceiling
from ece.bench.stages import STAGES, Bench, Stage, long_run, stage_row, sweep, throughput
from ece.config import configure
from ece.covariance import second_moment
from ece.data.loading import load_facts
from ece.errors import ConfigError, EditError
from ece.experiments.results import provenance, write_result
from ece.experiments.spec import DTYPES, MATMUL
from ece.facts import Fact
from ece.facts import contexts as written
from ece.model import load

SHAPES: dict[str, Callable] = {
    "gpt2-xl": lambda: GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "gpt-j-6b": GPTJConfig,
    "llama-3-8b": lambda: LlamaConfig(
        vocab_size=128256, intermediate_size=14336, num_key_value_heads=8
    ),
}
"""Real shapes; what is not named here is the default of the family's configuration."""
WRITER = "atlas-gpt2"
"""Whose tokenizer and prefixes a model of random weights takes."""
SIZES = (1, 10, 100, 1000)
"""Batch sizes of the sweep."""


def run(bench: Bench, options: argparse.Namespace, every: list[Fact]) -> dict:
    """All measurements of one model, as one record."""
    show = partial(tqdm, file=sys.stderr, disable=not sys.stderr.isatty())
    rows = []
    for stage in show(stages_of(bench), desc=bench.name):
        if stage.way != "naive":
            bench = bench.cast(getattr(torch, options.dtype))
        times = options.times if stage.way == "engine" else 1  # the others take long
        some = None if stage.way == "engine" else options.naive
        rows.append(stage_row(bench, stage, some, times))
    origin = provenance(options.command, bench.config("ece-rs"), bench.model, bench.stats.tokens)
    top = ceiling(bench.device, bench.model.dtype, 1024 if bench.device.type == "cpu" else 8192)
    for row in rows:
        row["flops_per_second"] = row["flops"] / row["total"]
        row["share_of_ceiling"] = row["flops_per_second"] / top
    total = {row["stage"]: row["total"] for row in rows}
    held = sum(p.numel() * p.element_size() for p in bench.model.parameters())
    record = {
        "model": bench.name,
        "facts": len(bench.facts),
        "random_weights": bench.random,
        "naive_dtype": options.naive_dtype or options.dtype,
        "weights_bytes": held,
        "ceiling_flops_per_second": top,
        "speedup_vs_naive": total["naive"] / total["memit"],
        "ece_vs_memit": total["memit"] / total["ece"],
        "stages": rows,
        "batches": sweep(bench, every, options.sizes),
        "statistics": throughput(bench),
        "provenance": origin,
    }
    if options.edits:
        record["long"] = long_run(bench, every, options.edits, options.batch, show)
    return record


def stages_of(bench: Bench) -> list[Stage]:
    """The rows of a table; where weights are random nothing is learned, so nothing may stop."""
    found = [(stage, stage.config(bench)) for stage in STAGES]
    return [stage for stage, config in found if not (bench.random and config.stop is not None)]


def open_bench(name: str, options: argparse.Namespace) -> tuple[Bench, list[Fact]]:
    """The model (real, or random of a shape), its facts and statistics."""
    every = load_facts("counterfact", None, 0)
    if options.facts > len(every):
        raise ConfigError(f"setting 'facts' is {options.facts}; the world has {len(every)}")
    dtype, random = getattr(torch, options.naive_dtype or options.dtype), name in SHAPES
    contexts = None
    if random:
        torch.manual_seed(0)
        with torch.device(options.device):
            model = AutoModelForCausalLM.from_config(SHAPES[name](), dtype=dtype)
        model, (writer, tokenizer) = model.eval().requires_grad_(False), load(WRITER)
        # What a random model writes is no text: its prefixes would vanish in the tokenizer.
        contexts = written(writer, tokenizer, configure(WRITER, "memit"))
    else:
        model, tokenizer = load(name, options.device, dtype)
    layers = configure(name, "ece-rs").layers
    texts = atlas.corpus(1 if random else 2500)
    stats = second_moment(model, tokenizer, texts, layers, names=not random)
    if random:  # a handful of texts leaves the moments singular: their cost is what counts
        for moment in stats.moments.values():
            moment.diagonal().add_(moment.diagonal().mean())
    return Bench(name, model, tokenizer, every[: options.facts], stats, random, contexts), every


def table(record: dict) -> str:
    """The record's stages as text."""
    head = f"{record['model']}: {record['facts']} facts, {record['provenance']['device']}"
    lines = [head, f"{'':12}{'total s':>9}{'values':>8}{'keys':>7}{'solve':>7}{'x':>7}"
             f"{'steps':>7}{'GFLOP':>9}{'ceiling':>9}{'score':>7}"]  # fmt: skip
    slow = record["stages"][0]["total"]
    for row in record["stages"]:
        times = row["seconds"]
        known = row["quality"] and row["quality"]["score"] is not None
        score = f"{row['quality']['score']:.1f}" if known else "-"
        lines.append(
            f"{row['stage']:12}{row['total']:9.2f}{times['values']:8.2f}{times['keys']:7.2f}"
            f"{times['solve']:7.2f}{slow / row['total']:7.1f}{row['steps_per_fact']:7.1f}"
            f"{row['flops'] / 1e9:9.1f}{100 * row['share_of_ceiling']:8.1f}%{score:>7}"
        )
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m ece.bench.cli", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="atlas-gpt2", help="embedded model")
    parser.add_argument("--shapes", help=f"random weights instead: some of {','.join(SHAPES)}")
    parser.add_argument("--facts", type=int, default=100, help="facts of a batch (100)")
    parser.add_argument("--naive", type=int, help="facts that run where they go one by one, "
                        "scaled up (all)")  # fmt: skip
    parser.add_argument("--naive-dtype", choices=DTYPES, help="of the naive loop (--dtype)")
    parser.add_argument("--times", type=_odd, default=3, help="runs of the short stages, of which "
                        "the median counts: odd (3)")  # fmt: skip
    parser.add_argument("--sizes", type=_numbers, default=SIZES, help="batch sizes: 1,10,100,1000")
    parser.add_argument("--edits", type=int, default=10_000, help="length of the long run (10000)")
    parser.add_argument("--batch", type=int, default=100, help="its batches (100)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--matmul", default="highest", choices=MATMUL, help="high: TF32")
    parser.add_argument("--json", action="store_true", help="one line of JSON on standard output")
    parser.add_argument("--out", help="also write the JSON, indented, to this file")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _odd(text: str) -> int:
    if int(text) < 1 or int(text) % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text} is not an odd number of runs")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """The command line; several shapes give one line each."""
    parser = _parser()
    options = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    options.command = shlex.join(["python", "-m", "ece.bench.cli", *words])
    torch.set_float32_matmul_precision(options.matmul)
    names = options.shapes.split(",") if options.shapes else [options.model]
    try:
        unknown = [name for name in names if options.shapes and name not in SHAPES]
        if unknown:
            raise ConfigError(f"unknown shape '{unknown[0]}'; known: {', '.join(SHAPES)}")
        for name in names:
            bench, every = open_bench(name, options)
            record = run(bench, options, every)
            sys.stdout.write(json.dumps(record) + "\n" if options.json else table(record))
            if options.out:
                write_result(record, options.out)
    except (EditError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
