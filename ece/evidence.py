"""`python -m ece.evidence`: every method on real CounterFact records, from the public files alone.

    python -m ece.evidence --data multi_counterfact.json --text wikitext.txt --device cuda

trains a model of GPT-2's shape on the true statements of the records (`ece.organism`), then edits
it by each method and writes a result for each. What is done is not done again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ece.cell import run
from ece.data import load_facts, records_file
from ece.errors import EditError, ModelError, StateError
from ece.facts import Fact
from ece.fields import checksum
from ece.files import read_json, write_json
from ece.flags import add_flags
from ece.grid import done, name_of
from ece.inputs import device_of
from ece.metrics import KINDS
from ece.organism import Recipe, learn, new_model
from ece.results import ResultError, commit, read_result, source, write_result
from ece.settings import EVERY, MATMUL, Settings
from ece.statements import build_tokenizer, read_lines

NAME = "gpt2-real"
"""The model's folder, and its preset in `ece.config.PRESETS`."""
RECORD = "training.json"
"""The file of the model's folder that tells how it was made; it is written last."""


def organism(
    data: Path,
    text: Path,
    work: Path,
    recipe: Recipe,
    device: str | None = None,
    skip_bad: bool = False,
    accept: bool = False,
) -> dict:
    """Train the model into the folder `work`/gpt2-real unless it is there; returns its record.

    The record has "recall" (percent, on the edit prompts), "steps", "recipe", "mark" and the files
    read. `ModelError` if the recall is below `recipe.goal` and not to be accepted; `StateError` if
    the folder holds a model of other files or another recipe.
    """
    folder, sums = work / NAME, {"data": checksum(data), "text": checksum(text)}
    mark = recipe.mark(sums["data"], sums["text"], str(skip_bad))
    record = read_json(folder / RECORD) if (folder / RECORD).exists() else None
    if record is None:
        facts = load_facts("counterfact", None, recipe.train_seed, data, skip_bad)
        record = _train(facts, read_lines(text, recipe.lines), folder, recipe, mark, device)
        record |= {"data": source(data), "text": source(text), "commit": commit()}
        if accept or record["recall"] >= recipe.goal:
            write_json(folder / RECORD, record)
    if record["mark"] != mark:
        raise StateError(
            f"{folder} holds a model that was trained on other files or by another recipe; "
            "name another folder by --work, or remove it"
        )
    if record["recall"] < recipe.goal and not accept:
        raise ModelError(
            f"after {record['steps']} steps the model recalls {record['recall']:.1f} % of "
            f"{record['facts']} facts, wanted are {recipe.goal:g} %; raise --steps, which trains "
            "it anew, or take it as it is by --accept"
        )
    return record


def _train(
    facts: Sequence[Fact],
    lines: Sequence[str],
    folder: Path,
    recipe: Recipe,
    mark: str,
    device: str | None,
) -> dict:
    """Train, or go on with training, and save model and tokenizer into `folder`."""
    kept = folder.with_name(f"training-{mark}")
    if not (kept / "tokenizer.ready").exists():  # kept, so that a killed run goes on with the same
        build_tokenizer(facts, lines, recipe.vocabulary).save_pretrained(kept)
        (kept / "tokenizer.ready").touch()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(kept)
    model = new_model(recipe, len(tokenizer)).to(device_of(device))
    with tqdm(total=recipe.steps, unit="step", file=sys.stderr, desc=NAME) as bar:

        def advance(step: int, steps: int, loss: torch.Tensor, known: float) -> None:
            bar.update(step - bar.n)
            if step % 20 == 0:  # reading the loss waits for the device
                bar.set_postfix(loss=f"{loss.item():.3f}", recall=f"{known:.1f}%")

        steps, known = learn(
            model, tokenizer, facts, lines, recipe, mark, kept / "state.json", advance
        )
    model.eval().requires_grad_(False).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    told = {"recall": round(known, 4), "steps": steps, "facts": len(facts)}
    return told | {"mark": mark, "recipe": asdict(recipe)}


def measure(cells: Sequence[Settings], record: dict, out: Path, work: Path) -> list[dict]:
    """The result of each cell, run and written to `out` unless it is there.

    `ResultError` if a file there is of other settings or of another model.
    """
    names = {name_of(settings): settings for settings in cells}
    ready = {name: _held(name, settings, record, out) for name, settings in names.items()}
    left = {name: settings for name, settings in names.items() if ready[name] is None}
    with tqdm(left.items(), unit="method", file=sys.stderr) as bar:
        for name, settings in bar:
            bar.set_description(settings.method)
            result = run(settings, work=work / "cells" / name, cache=work / "cache")
            ready[name] = result | {"training": record}
            write_result(ready[name], out / f"{name}.json")
    return list(ready.values())


def _held(name: str, settings: Settings, record: dict, out: Path) -> dict | None:
    """The result that is there, if it is; what its model was trained from must be the same."""
    if not done(name, settings, out):
        return None
    result = read_result(out / f"{name}.json")
    if result.get("training", {}).get("mark") != record["mark"]:
        raise ResultError(f"{out / name}.json is of another model; name another folder by --out")
    return result


def line_of(result: dict) -> str:
    """A method and its rates in percent after all edits, "-" where there is none."""
    rates = [result["after"][name] for name in (*KINDS, "score")]
    told = ["-" if rate is None else f"{rate:.1f}" for rate in rates]
    return f"{result['method']:15}" + "".join(f"{rate:>16}" for rate in told)


def _numbers(text: str) -> dict:
    """Settings of a method from JSON, where a list stands for a tuple."""
    told = json.loads(text)
    if not isinstance(told, dict):
        raise ValueError("no object of names and numbers")
    return {n: tuple(v) if isinstance(v, list) else v for n, v in told.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m ece.evidence", description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help='CounterFact records, or "public"')
    parser.add_argument("--text", required=True, type=Path, help="plain text, one document a line")
    parser.add_argument("--device", help="as torch names it (the CPU)")
    parser.add_argument("--out", type=Path, default=Path("book/results"), help="folder of results")
    parser.add_argument(
        "--work", type=Path, default=Path("_build/evidence"), help="model and state"
    )
    parser.add_argument("--methods", default=",".join(EVERY), help="some of %(default)s")
    parser.add_argument("--facts", type=int, default=2000, help="facts to edit (2000)")
    parser.add_argument("--batch", type=int, default=100, help="facts written at once (100)")
    parser.add_argument("--seed", type=int, default=0, help="decides which facts, and their order")
    parser.add_argument("--stats-tokens", type=int, default=1_000_000, help="for second moments")
    parser.add_argument("--matmul", default="highest", choices=MATMUL, help="high: TF32")
    parser.add_argument("--config", type=_numbers, default={}, help='numbers, as {"lam": 9000}')
    parser.add_argument("--skip-bad", action="store_true", help="leave unusable records out")
    parser.add_argument("--accept", action="store_true", help="take the model at any recall")
    training = parser.add_argument_group("training of the model")
    add_flags(training, Recipe, {})
    return parser


def _cells(options: argparse.Namespace, data: Path) -> list[Settings]:
    """One cell per method; `ConfigError` for a name or a number that is wrong, before any work."""
    cells = [
        Settings(
            model=str(options.work / NAME), method=method, data=str(data), device=options.device,
            facts=options.facts, batch=options.batch, seed=options.seed, matmul=options.matmul,
            skip_bad=options.skip_bad, stats_text=str(options.text), config=options.config,
            stats_tokens=options.stats_tokens,
        )
        for method in options.methods.split(",")
    ]  # fmt: skip
    for settings in cells:
        settings.configure()
    return cells


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit code is 2 for what cannot be used or was not learned."""
    parser = _parser()
    options = parser.parse_args(argv)
    names = {field.name for field in fields(Recipe)} & vars(options).keys()
    try:
        data = records_file("counterfact", options.data)
        recipe, cells = Recipe(**{n: getattr(options, n) for n in names}), _cells(options, data)
        told = (options.device, options.skip_bad, options.accept)
        record = organism(data, options.text, options.work, recipe, *told)
        results = measure(cells, record, options.out, options.work)
    except (EditError, OSError) as error:
        parser.error(str(error))
    head = f"{NAME}: recall {record['recall']:.1f} % after {record['steps']} steps of training"
    names = "".join(f"{name:>16}" for name in (*KINDS, "score"))
    sys.stdout.write("\n".join([head, " " * 15 + names, *map(line_of, results)]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
