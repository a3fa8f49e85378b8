"""Edits facts of one's own, from a table, and saves what changed: the commands edit and edits."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import distributed, nn
from tyro.conf import Positional

from ece import Fact, edit_sequence, engine, load
from ece.data.table import facts_from_table
from ece.data.texts import PYTHON_DOCS
from ece.engine.parallel import Processes, Together
from ece.errors import ConfigError, EditError, checked
from ece.evaluation.generation import answer
from ece.evaluation.metrics import KINDS, evaluate
from ece.experiments.inputs import check_writable, statistics
from ece.experiments.spec import Count, Dtype, Settings
from ece.fingerprint import fingerprint
from ece.loading.sharding import save_model
from ece.storage import (
    Folder,
    edits_since,
    load_edits,
    run_sequence,
    save_adapter,
    save_edits,
    snapshot,
)
from ece.storage.edits import EditSet, standing
from ece.storage.folder import Shared

SHOWN, TOKENS = 10, 8
"""Facts whose answers are shown, and their length in tokens."""


@checked
class Options:
    """Edit the facts of a CSV table into a model, and save what changed."""

    file: Positional[str] = "facts.csv"
    """CSV table with the columns prompt (with {} for the subject), subject and target; where they
    are known also true, relation, paraphrases and neighbours."""
    model: str = "smollm2-135m"
    """Embedded model, hub name, folder or GGUF file."""
    method: str = "ece-plus"
    """ECE with one of its scores, or a rival that edits weights in closed form."""
    batch: Count = 100
    """Facts written at once."""
    device: str | None = None
    """Where the model goes, as torch names it, or "auto"; without it the CPU."""
    dtype: Dtype = "float32"
    """Number format of the weights."""
    preset: str | None = None
    """Preset file with the model's numbers, as `ece tune` writes it; without it the model's own."""
    sharding: Literal["tp", "fsdp"] | None = None
    """How the processes that `torchrun` started share the model's weights: each computes with its
    part of every matrix, or gathers block by block; without it each has the whole model and some
    of the facts."""
    work: str | None = None
    """Folder where every batch is saved: the same command, started again, goes on from there."""
    stats: str | None = None
    """File of second moments: read if it is there, otherwise written."""
    stats_text: str | None = None
    """Plain text for the second moments, one document a line; without it that of the embedded
    world for its models, and Python's language reference for all others."""
    stats_tokens: Count = 100_000
    """Largest number of tokens that the second moments are taken over."""
    out: str = "edits.safetensors"
    """File for the edits, from which they are applied and taken back."""
    adapter: str | None = None
    """Folder for the edits as a LoRA adapter."""
    save: str | None = None
    """Folder for the whole edited model, as transformers reads it."""
    json: bool = False
    """Print one line of JSON instead of a table."""

    def settings(self, count: int) -> Settings:
        """Say the same as the settings of a run, which checks them."""
        shared = ("model", "method", "device", "dtype", "preset", "stats", "stats_text",
                  "stats_tokens")  # fmt: skip
        found = {name: getattr(self, name) for name in shared}
        made = Settings(**found, facts=count, batch=min(self.batch, count))
        if not (made.embedded or made.stats_text or (made.stats and Path(made.stats).exists())):
            made = replace(made, stats_text=PYTHON_DOCS)
        if not made.edits:
            raise ConfigError(f"setting 'method' is {self.method!r}; it edits no chosen layers, so "
                              "there are no edits to save; choose another")  # fmt: skip
        return made


@contextmanager
def crew(sharding: str | None) -> Iterator[Processes | None]:
    """Join the processes that `torchrun` started; None for a process alone."""
    if not distributed.is_torchelastic_launched():
        yield None
        return
    distributed.init_process_group()
    try:
        yield Processes() if sharding else Together()
    finally:
        distributed.destroy_process_group()


def main(options: Options, progress: Callable, crew: Processes | None = None) -> None:
    """Edit, measure before and after, save, and print what was done.

    Processes that work together each have a device of their own; the first one saves and prints.
    """
    facts = facts_from_table(options.file)
    settings = options.settings(len(facts))
    for path in filter(None, (Path(options.out).parent, options.adapter, options.save)):
        check_writable(path)
    if options.sharding and options.adapter:
        raise ConfigError("settings 'sharding' and 'adapter' are both given; write the edits, and "
                          "the adapter from them in one process")  # fmt: skip
    model, tokenizer = _loaded(options, crew)
    config, strategy = settings.configure(), settings.strategy()
    mark = fingerprint(model)
    stats, _ = statistics(model, tokenizer, settings, config, strategy, mark, None, progress, crew)
    old, before = _measured(model, tokenizer, facts), snapshot(model, config.layers)
    more = {"strategy": strategy, "progress": progress,
            "engine": crew if isinstance(crew, Together) else engine}  # fmt: skip
    given = (model, tokenizer, facts, stats, config, settings.batch)
    if options.work is None:
        edit_sequence(*given, **more)
    else:
        with Folder(options.work) if crew is None else Shared(options.work, crew) as folder:
            run_sequence(*given, folder, **more)
    new = _measured(model, tokenizer, facts)
    rates = {"before": old["rates"], "after": new["rates"]}
    about = {"model": settings.short, "method": options.method, "batch": settings.batch, **rates}
    edits = edits_since(before, model, facts, about)
    if crew is not None:
        crew.agree("the edited weights", edits.edited)
    if options.save is not None:
        save_model(model, options.save)
    if crew is not None and crew.rank:
        return
    answers = {"answer before": old["answers"], "answer now": new["answers"]}
    _finish(options, model, tokenizer, edits, about, answers)


def _loaded(options: Options, crew: Processes | None) -> tuple:
    """Load the model, whole or this process's part of it."""
    device, dtype = options.device, getattr(torch, options.dtype)
    if options.sharding is not None:
        return load(options.model, device, dtype, options.sharding)
    if crew is not None and device not in (None, "auto"):
        device += f":{crew.rank % torch.get_device_module(device).device_count()}"
    return load(options.model, device, dtype)


def _finish(options: Options, model, tokenizer, edits: EditSet, about: dict, answers: dict) -> None:
    """Write the files and say what was done."""
    save_edits(options.out, edits)
    record = {**about, "facts": len(edits.facts), "neurons": edits.neurons, "bytes": edits.bytes}
    if options.adapter is not None:
        record["adapter_error"] = save_adapter(options.adapter, model, edits)
    if options.save is not None:
        tokenizer.save_pretrained(options.save)
    table = _table(options, list(edits.facts), record, answers)
    sys.stdout.write(json.dumps(record) + "\n" if options.json else table)


def _measured(model: nn.Module, tokenizer, facts: list[Fact]) -> dict:
    """Measure how often the target is the likeliest answer, and what answers some prompts get."""
    rates = evaluate(model, tokenizer, facts).summary("top1")
    prompts = [fact.text for fact in facts[:SHOWN]]
    return {"rates": {kind: rates[f"{kind}_top1"] for kind in KINDS},
            "answers": answer(model, tokenizer, prompts, TOKENS)}  # fmt: skip


def _table(options: Options, facts: list[Fact], record: dict, answers: dict) -> str:
    """Show the answers before and after, and what was saved."""
    texts = pd.DataFrame({"prompt": [fact.text for fact in facts[:SHOWN]], **answers})
    names = {"efficacy": "the prompts themselves", "generalization": "their paraphrases",
             "specificity": "neighbours (the old answer)"}  # fmt: skip
    rates = pd.DataFrame({when: record[when] for when in ("before", "after")}).rename(names)
    size = f"{record['bytes'] / 1e6:.1f} MB, {record['neurons']} columns"
    wide = {"float_format": "{:.1f}".format, "na_rep": "-"}
    parts = [texts.to_string(index=False, justify="left"), "",
             "right answer the likeliest, in percent:", rates.dropna().astype(float)
             .to_string(**wide), "", f"{options.out}: {size}"]  # fmt: skip
    if "adapter_error" in record:
        parts.append(f"{options.adapter}: adapter, relative error {record['adapter_error']:.1e}")
    if options.save is not None:
        parts.append(f"{options.save}: the edited model")
    return "\n".join(parts) + "\n"


@checked
class Listing:
    """List files of edits, and tell whether a model has them."""

    files: Positional[tuple[str, ...]] = ("edits.safetensors",)
    """Files that `ece edit` wrote, as a.safetensors,b.safetensors."""
    model: str | None = None
    """Model to compare, which each of the files finds "unedited", "edited", or "neither"."""


def listing(options: Listing) -> None:
    """Print one line per file."""
    model = load(options.model)[0] if options.model else None
    rows = [_row(path, load_edits(path), model) for path in options.files]
    sys.stdout.write(pd.DataFrame(rows).to_string(index=False) + "\n")


def _row(path: str, edits: EditSet, model: nn.Module | None) -> dict:
    """Describe one file of edits."""
    row = {"file": path, "facts": len(edits.facts), "method": edits.about.get("method", "-"),
           "layers": ",".join(map(str, edits.columns)), "columns": edits.neurons,
           "MB": round(edits.bytes / 1e6, 2)}  # fmt: skip
    if model is not None:
        try:
            row["model is"] = standing(model, edits)
        except EditError:
            row["model is"] = "neither"
    return row
