"""Edits facts of one's own, from a table, and saves what changed: the commands edit and edits."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_type_hints

import pandas as pd
import torch
from torch import nn
from tyro.conf import Positional

from ece import Config, Fact, Strategy, edit_sequence, engine, load
from ece.baselines import STRATEGIES
from ece.data.counterfact import facts_from_counterfact
from ece.data.schema import read_records
from ece.data.table import facts_from_table
from ece.data.texts import PYTHON_DOCS
from ece.engine.parallel import Processes, Together
from ece.errors import ConfigError, EditError, checked, shown
from ece.evaluation.checks import check_lengths
from ece.evaluation.generation import answer
from ece.evaluation.metrics import KINDS, evaluate
from ece.experiments.crew import Sharding, is_first, load_for, open_folder
from ece.experiments.flags import reader_of
from ece.experiments.inputs import check_edits, statistics
from ece.experiments.spec import Count, Dtype, Settings
from ece.facts import encode
from ece.fingerprint import fingerprint
from ece.loading.sharding import save_model
from ece.model import room
from ece.presets import preset_of
from ece.storage import run_sequence, save_adapter, snapshot
from ece.storage.edits import EditSet, edits_since, load_edits, save_edits, standing, toggle
from ece.storage.files import check_writable, explained
from ece.storage.held import held

SHOWN, TOKENS = 10, 8
"""Facts whose answers are shown, and their length in tokens."""


@checked
class Options:
    """Edit the facts of a CSV table into a model, and save what changed."""

    file: Positional[str] = "facts.csv"
    """CSV table with the columns prompt (with {} for the subject), subject and target; where they
    are known also true, relation, paraphrases and neighbours. Or a .json file of records in
    CounterFact's schema."""
    model: str = "smollm2-135m"
    """Embedded model, hub name, folder or GGUF file."""
    method: str = "ece-plus"
    """The paper's ECE with one of its scorers (ece-as, ece-wi, ece-rs); ece-plus, this book's own
    setting of it; or memit-history, memit, rome, alphaedit, blue, rect."""
    batch: Count = 100
    """Facts written at once."""
    device: str | None = None
    """Where the model goes, as torch names it, or "auto"; without it the CPU."""
    dtype: Dtype = "float32"
    """Number format of the weights."""
    preset: str | None = None
    """Preset file with the model's numbers, as `ece tune` writes it; without it the model's own."""
    sharding: Sharding | None = None
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
    set: str = ""
    """Numbers of the method in place of the preset's, as "layers=4,5 lr=0.5"; the help of
    `ece run --method NAME` lists them."""
    out: str = "edits.safetensors"
    """File for the edits, from which `ece edits --toggle` applies them and takes them back."""
    force: bool = False
    """Replace the file `out` if it is there."""
    adapter: str | None = None
    """Folder for the edits as a LoRA adapter."""
    save: str | None = None
    """Folder for the whole edited model, as transformers reads it."""
    json: bool = False
    """Print one line of JSON instead of a table."""

    def settings(self, count: int) -> Settings:
        """Say the same as the settings of a run, which checks them."""
        shared = ("model", "method", "device", "dtype", "preset", "sharding", "stats",
                  "stats_text", "stats_tokens")  # fmt: skip
        found = {name: getattr(self, name) for name in shared}
        own = {"config": numbers(self.method, self.set)}
        made = Settings(**found, **own, facts=count, batch=min(self.batch, count))
        if not (made.embedded or made.stats_text or (made.stats and Path(made.stats).exists())):
            made = replace(made, stats_text=PYTHON_DOCS)
        if not made.edits:
            raise ConfigError(f"setting 'method' is {self.method!r}; it edits no chosen layers, so "
                              "there are no edits to save; choose another")  # fmt: skip
        if type(made.strategy()).view is not Strategy.view:
            raise ConfigError(f"setting 'method' is {self.method!r}; it restrains the update when "
                              "the model is used, which no file of edits does; choose another, or "
                              "measure it by `ece run`")  # fmt: skip
        return made


def numbers(method: str, text: str) -> dict:
    """Read a method's numbers from "name=value name=value"; `Settings` refuses other names."""
    kinds = get_type_hints(Config, include_extras=True)
    kinds |= get_type_hints(type(STRATEGIES.get(method, Strategy())), include_extras=True)
    found = {}
    for word in text.split():
        name, sign, value = word.partition("=")
        if not sign:
            raise ConfigError(f"setting 'set' has {word!r}; write name=value, and lists as 4,5,6")
        try:
            found[name] = reader_of(kinds[name])[1](value) if name in kinds else value
        except ValueError as error:
            raise ConfigError(f"setting 'set' has {word!r}; {error}") from error
    return found


def read_facts(path: str) -> list[Fact]:
    """Read facts from a CSV table, or from records of CounterFact's schema (.json)."""
    if path.endswith(".json"):
        return facts_from_counterfact(read_records(path), path, False)
    return facts_from_table(path)


def check_out(options: Options) -> None:
    """Refuse places that cannot be written, hold what would be lost, or do not go together."""
    out = Path(options.out)
    if out.exists() and not out.is_file() or not out.name:
        raise ConfigError(f"setting 'out' is {options.out!r}, which is no file; name a file")
    if out.exists() and (not options.force or out.samefile(options.file)):
        raise ConfigError(f"setting 'out' is {options.out!r}, which is there already; name another "
                          "file, or replace edits by --force")  # fmt: skip
    if options.sharding and options.adapter:
        raise ConfigError("settings 'sharding' and 'adapter' are both given; write the edits, and "
                          "the adapter from them in one process")  # fmt: skip
    for name in ("adapter", "save"):
        check_new(name, getattr(options, name), options.force)
    check_writable(out.parent)


def check_new(name: str, folder: str | None, force: bool = False) -> None:
    """Refuse a folder that holds something already, unless that is to be replaced."""
    if folder is None:
        return
    check_writable(folder)
    if not force and any(Path(folder).iterdir()):
        raise ConfigError(f"setting '{name}' is {folder!r}, which holds files already; name a new "
                          "folder, or remove what is there")  # fmt: skip


def main(options: Options, progress: Callable, crew: Processes | None = None) -> None:
    """Edit, measure before and after, save, and print what was done.

    Processes that work together each have a device of their own; the first one saves and prints.
    """
    facts = read_facts(options.file)
    settings = options.settings(len(facts))
    check_out(options)
    model, tokenizer = load_for(settings, crew)
    config, strategy = settings.fitted(model), settings.strategy()
    check_edits(model, tokenizer, facts, config, strategy, settings.batch)
    check_lengths(model, tokenizer, facts)
    mark = fingerprint(model)
    stats, _ = statistics(model, tokenizer, settings, config, strategy, mark, None, progress, crew)
    stats = stats if crew is None else held(stats, crew)
    old, before = _measured(model, tokenizer, facts), snapshot(model, config.layers)
    more = {"strategy": strategy, "progress": progress,
            "engine": crew if isinstance(crew, Together) else engine}  # fmt: skip
    given = (model, tokenizer, facts, stats, config, settings.batch)
    if options.work is None:
        edit_sequence(*given, **more)
    else:
        with open_folder(options.work, crew) as folder:
            run_sequence(*given, folder, **more)
    new = _measured(model, tokenizer, facts)
    about = _about(options, settings, config, facts, old, new)
    edits = edits_since(before, model, facts, about)
    if crew is not None:
        crew.agree("the edited weights", edits.edited)
    if is_first(crew):  # before the model: a disk that it fills shall not take the edits along
        save_edits(options.out, edits)
    if options.save is not None:
        _save_whole(model, options.save)
    if not is_first(crew):
        return
    answers = {"answer before": old["answers"], "answer now": new["answers"]}
    _finish(options, model, tokenizer, edits, about, answers)


def _save_whole(model: nn.Module, folder: str) -> None:
    with explained(Path(folder), "written", "free some space, or name another folder"):
        save_model(model, folder)


def _about(options, settings: Settings, config: Config, facts: list[Fact], old, new) -> dict:
    """Gather what is to be known of the edits; a fact is not taken where an answer is likelier."""
    missed = [fact.id for fact, share in zip(facts, new["taken"], strict=True) if share < 1]
    return {"model": settings.short, "method": options.method, "batch": settings.batch,
            "dtype": options.dtype, "preset": preset_of(settings.preset or settings.model),
            "config": asdict(config), "strategy": asdict(settings.strategy()),
            "before": old["rates"], "after": new["rates"], "not_taken": missed}  # fmt: skip


def _finish(options: Options, model, tokenizer, edits: EditSet, about: dict, answers: dict) -> None:
    """Write the other files and say what was done."""
    record = {**about, "facts": len(edits.facts), "neurons": edits.neurons, "bytes": edits.bytes}
    if options.adapter is not None and edits.neurons:
        record["adapter_error"] = save_adapter(options.adapter, model, edits)
    if options.save is not None:
        tokenizer.save_pretrained(options.save)
    table = _table(options, list(edits.facts), record, answers)
    sys.stdout.write(json.dumps(record) + "\n" if options.json else table)


def _measured(model: nn.Module, tokenizer, facts: list[Fact]) -> dict:
    """Measure how often the target is the likeliest answer, and what answers some prompts get."""
    scores = evaluate(model, tokenizer, facts)
    rates = scores.summary("top1")
    prompts = [fact.text for fact in facts[:SHOWN]]
    left = room(model, whole=True) - max(len(encode(tokenizer, text)) for text in prompts)
    texts = answer(model, tokenizer, prompts, min(TOKENS, left)) if left else [""] * len(prompts)
    return {"rates": {kind: rates[f"{kind}_top1"] for kind in KINDS},
            "taken": scores.efficacy_top1.tolist(),
            "answers": texts}  # fmt: skip


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
             .to_string(**wide), "", _settings(record), f"{options.out}: {size}"]  # fmt: skip
    if len(facts) > SHOWN:
        parts.insert(1, f"(the first {SHOWN} of {len(facts)} facts)")
    if missed := record["not_taken"]:
        lr, steps = record["config"]["lr"], record["config"]["steps"]
        rows = ", ".join(map(str, missed[:SHOWN])) + ", ..." * (len(missed) > SHOWN)
        parts.append(f"not the likeliest answer yet in {len(missed)} of {len(facts)} rows: {rows}; "
                     f'try --set "lr={2 * lr:g} steps={2 * steps}", or other layers')  # fmt: skip
    if "adapter_error" in record:
        parts.append(f"{options.adapter}: adapter, relative error {record['adapter_error']:.1e}")
    if options.save is not None:
        parts.append(f"{options.save}: the edited model")
    return "\n".join(parts) + "\n"


def _settings(record: dict) -> str:
    """Say by which settings the edits were made."""
    config, preset = record["config"], record["preset"]
    where = f"preset {preset}" if preset else "suggested by the model's depth (see ece tune)"
    used = {n: config[n] for n in ("layers", "lam", "lr", "steps")} | record["strategy"]
    numbers = ", ".join(f"{n} {shown(value)}" for n, value in used.items())
    return f"{record['method']}, {where}: {numbers}"


@checked
class Listing:
    """List files of edits, and tell whether a model has them."""

    files: Positional[tuple[str, ...]] = ("edits.safetensors",)
    """Files that `ece edit` wrote."""
    model: str | None = None
    """Model to check: of each file it is "unedited", "edited" or "neither"."""
    toggle: bool = False
    """Apply the edits to the model, or take them back from it, the files in the order given."""
    save: str | None = None
    """Folder for the model after `toggle`, as transformers reads it."""


def listing(options: Listing) -> None:
    """Print one line per file; with `toggle`, apply them or take them back, and save the model."""
    if (options.toggle or options.save) and not (options.toggle and options.model and options.save):
        raise ConfigError("settings 'toggle', 'model' and 'save' go together: the model that the "
                          "edits are for, and a folder for what it becomes")  # fmt: skip
    sets = [(path, load_edits(path)) for path in options.files]
    dtypes = {edits.about.get("dtype", "float32") for _, edits in sets}
    if options.model and len(dtypes) > 1:
        raise ConfigError(f"these edits are of models in {' and '.join(sorted(dtypes))}; name "
                          "files of one number format")  # fmt: skip
    model = tokenizer = None
    if options.model:
        if options.toggle:
            check_new("save", options.save)
        model, tokenizer = load(options.model, None, getattr(torch, *dtypes))
    rows = []
    for path, edits in sets:
        if options.toggle:
            try:
                toggle(model, edits)
            except EditError as error:
                raise EditError(f"{path}: {error}") from error
        rows.append(_row(path, edits, model))  # at once: later edits may lie on top of these
    if options.toggle:
        _save_whole(model, options.save)
        tokenizer.save_pretrained(options.save)
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
