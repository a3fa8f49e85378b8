"""Chooses a method's settings for a model, one after another, and writes them as a preset file."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from ece import Config, Fact, Strategy, load, presets
from ece.data.loading import records_file
from ece.errors import ConfigError, ModelError, SolveError, checked
from ece.evaluation.causal_tracing import swap
from ece.evaluation.metrics import KINDS, known
from ece.experiments.flags import flags_of, parse, text_of
from ece.experiments.inputs import facts, gather
from ece.experiments.results import commit, read_record, source, write_record
from ece.experiments.runner import run
from ece.experiments.spec import Settings, run_id
from ece.facts import target_ids
from ece.fingerprint import fingerprint
from ece.storage.files import check_writable, write

FLAGS = "model method dataset data sha256 skip_bad stats stats_text stats_tokens seed device dtype"
"""The settings of a run that can be given, beside the number of facts."""
LEAST, MOST, STATED = 10, 64, 1000
"""Pairs that causal tracing needs and takes, and facts among which it looks for them."""
RATED = ("score", *KINDS)


@checked
class Options:
    """Choose settings for a model by editing facts set aside for it, and write a preset file."""

    out: str = "preset.toml"
    """Preset file to write; one that is there is replaced."""
    work: str = "_build/tune"
    """Folder of the runs: a search that was killed goes on there, with the same code."""
    dry_run: bool = False
    """Print what would be tried, and run nothing."""


def main(words: list[str]) -> None:
    """Search, and write the preset file; or print what would be tried."""
    start, options = _read(words)
    first = start.configure()
    if options.dry_run:
        sys.stdout.write(_plan(start, alternatives(first, start.strategy())))
        return
    for folder in (Path(options.out).parent, options.work):
        check_writable(folder)
    _, _, sources = gather(start, None)  # refuses what the first run would refuse
    mark, first, traced, note = _traced(start)
    others = alternatives(first, start.strategy())
    others["layers"] = [layers for layers in traced if layers != first.layers]
    found, work = [], Path(options.work) / source()
    with tqdm(total=1 + sum(map(len, others.values())), unit="run", disable=None) as bar:

        def measure(trial: dict) -> float:
            bar.set_description(_words(trial))
            after, code = _measured(replace(start, config=trial), mark, work)
            found.append({n: text_of(v) for n, v in trial.items()} | after | {"commit": code})
            bar.update()
            return after["score"]

        now = vars(first) | vars(start.strategy())
        best = search({name: now[name] for name in others}, others, measure)
    if not any(one["score"] for one in found):
        raise ConfigError(f"setting 'facts' is {start.facts}; no run scores above 0, so there is "
                          "nothing to choose by; edit fewer facts, or check the data")  # fmt: skip
    notes = [shlex.join(["ece", "tune", *words]), f"{start.short}, fingerprint {mark}", note]
    notes += _notes(start, sources["data"], pd.DataFrame(found))
    text = preset(replace(start, config=best), notes)
    write(options.out, text.encode(errors="backslashreplace"))
    sys.stdout.write(f"{options.out}: {_words(best)}\n")


def _read(words: list[str]) -> tuple[Settings, Options]:
    """Read the flags: settings of the first run, and where the search and its result lie."""
    shown = {own.name: own.default for own in fields(Settings) if own.name in FLAGS.split()}
    shown |= {own.name: own.default for own in fields(Options)} | {"facts": 100, "batch": 100}
    flags = flags_of([Settings, Options], shown, Options.__doc__)
    given = vars(parse(flags, words, prog="ece tune", description=Options.__doc__))
    options = Options(**{own.name: given.pop(own.name) for own in fields(Options)})
    start = Settings(**given, part="tune" if given["data"] else "all")
    for name, wrong, remedy in (
        ("method", not start.edits, "it has none of the settings searched; name one of the editor"),
        ("stats_text", not (start.embedded or start.stats or start.stats_text),
         f"{start.model} is no embedded model; name a file of plain text"),
        ("stats", start.stats and not Path(start.stats).is_file(),
         "that is no file; leave it out, second moments are then saved in the folder 'work'"),
        ("out", not options.out.endswith(".toml") or Path(options.out).is_dir(),
         "name a file that ends in .toml"),
    ):  # fmt: skip
        if wrong:
            value = {**vars(start), **vars(options)}[name]
            raise ConfigError(f"setting '{name}' is {value!r}; {remedy}")
    return start, options


def search(start: dict, others: dict[str, list], measure: Callable[[dict], float]) -> dict:
    """Choose one setting after another, and return the settings with the best measure on the way.

    others: values to try beside the present one, in the order of the settings. Nothing is measured
    twice, and a tie goes to what was tried first.
    """
    best, scores = dict(start), {}
    for name, values in others.items():
        trials = [best, *({**best, name: value} for value in values)]
        for trial in trials:
            key = tuple(trial.values())
            scores[key] = scores[key] if key in scores else measure(trial)
        best = max(trials, key=lambda trial: scores[tuple(trial.values())])
    return best


def alternatives(config: Config, strategy: Strategy) -> dict[str, list]:
    """List what to try beside the settings of `config`; the layers are left to causal tracing."""
    tried: dict[str, list] = {"layers": [], "lr": [config.lr * by for by in (0.5, 2)]}
    if hasattr(strategy, "prompts"):  # before lambda, as both weigh old knowledge
        tried["prompts"] = [weight for weight in (0.0, 0.3) if weight != strategy.prompts]
    tried["lam"] = [config.lam * by for by in (0.25, 4)]
    if strategy.chooses and config.scorer != "all":
        tried["p"] = [share for share in (0.8, 0.9, 1.0) if share != config.p]
    phases = config.shared in ("anchor", "mean") and config.own_steps < config.steps
    if config.clusters is not None and phases:
        tried["clusters"] = [max(1, config.clusters // 2), config.clusters * 2]
    return tried


def window(effect: Tensor, width: int) -> tuple[int, ...]:
    """Take `width` layers that end where the effect `[layer]` is largest, the last of equals.

    Where fewer lie below, the window ends higher up, at most in the second last block.
    """
    inner = effect[:-1]
    last = max(int((inner == inner.max()).nonzero().max()), min(width, len(inner)) - 1)
    return tuple(range(max(0, last - width + 1), last + 1))


def pairs_of(facts: list[Fact], tokenizer) -> list[tuple[Fact, Fact]]:
    """Pair facts of one relation whose answers begin differently, at most `MOST`, of all relations.

    A prompt that ends in its subject is left out: there, any late state carries the answer.
    """
    inner = [fact for fact in facts if not fact.prompt.rstrip().endswith("{}")]
    ordered = sorted(inner, key=lambda fact: fact.relation or fact.prompt)
    first = [(fact.relation or fact.prompt, target_ids(tokenizer, fact.true)[0])
             for fact in ordered]  # fmt: skip
    found = [pair for pair, (a, b) in zip(pairwise(ordered), pairwise(first), strict=True)
             if a[0] == b[0] and a[1] != b[1]]  # fmt: skip
    return found[:: -(-len(found) // MOST) or 1]


def _traced(settings: Settings) -> tuple[str, Config, list[tuple[int, ...]], str]:
    """Find the fingerprint, the first settings, and layers by causal tracing, if any; say how."""
    model, tokenizer = load(settings.model, settings.device, getattr(torch, settings.dtype))
    drawn = facts(settings, records_file(settings.dataset, settings.data, settings.sha256))
    some = [fact for fact in drawn if fact.true][:STATED]
    pairs = pairs_of(known(model, tokenizer, some) if some else [], tokenizer)
    mark, first = fingerprint(model), settings.fitted(model)
    note = f"causal tracing, {len(pairs)} pairs that the model states"
    if len(pairs) < LEAST:
        return mark, first, [], f"{note}: left out, {LEAST} are needed"
    try:
        layers = window(swap(model, tokenizer, pairs), len(first.layers))
    except ModelError as error:  # where a norm follows the MLPs
        return mark, first, [], f"{note}: left out, {error}"
    return mark, first, [layers], f"{note}: layers {text_of(layers)}"


def _measured(settings: Settings, mark: str, work: Path) -> tuple[dict[str, float], str]:
    """Run one candidate, or read its record; returns its rates after all edits, and the commit."""
    name = run_id(settings.identity(mark))
    path, folder = work / f"{name}.json", work / name
    if not path.exists():
        try:
            record = run(settings, work=folder, cache=work / "cache")
        except SolveError:  # not to be chosen, and no reason to end the search
            return dict.fromkeys(RATED, 0.0), commit()
        if record["after"]["score"] is None:
            raise ConfigError(f"setting 'dataset' is '{settings.dataset}'; these facts lack "
                              "paraphrases, neighbours or true answers, and have no score; name "
                              "others")  # fmt: skip
        write_record(record, path)
        shutil.rmtree(folder, ignore_errors=True)
    record = read_record(path)
    return {rate: record["after"][rate] for rate in RATED}, record["provenance"]["commit"]


def preset(settings: Settings, notes: list[str]) -> str:
    """Write the numbers of a method as a preset file; what makes the method stands under it."""
    config, strategy = asdict(settings.configure()), asdict(settings.strategy())
    own = {name: config[name] for name in presets.makes(settings.method)}
    shared = {n: v for n, v in config.items() if n not in own or n in ("layers", "lam")}
    lines = [f"# {line}" for note in notes for line in note.splitlines()]
    for title, numbers in (("config", shared), (f"methods.{settings.method}", own | strategy)):
        lines.append(f"[{title}]")
        lines += [f"{n} = {json.dumps('none' if v is None else v)}" for n, v in numbers.items()]
    return "\n".join(lines) + "\n"


def _words(trial: dict) -> str:
    return " ".join(f"{name} {text_of(value)}" for name, value in trial.items())


def _notes(settings: Settings, source: dict | None, found: pd.DataFrame) -> list[str]:
    """Say what was edited, by which code, and list every run."""
    file = f"{source['file']}, SHA-256 {source['sha256']}" if source else "the embedded world"
    return [
        f"{settings.facts} facts of {settings.dataset}, {settings.batch} a batch, seed "
        f"{settings.seed}, part '{settings.part}' of {file}",
        f"commit {', '.join(sorted(set(found.pop('commit'))))}; rates in percent after all edits",
        found.to_string(index=False, float_format="{:.2f}".format),
    ]


def _plan(start: Settings, others: dict[str, list]) -> str:
    """Say what would be tried, and in how many runs at most."""
    now = vars(start.configure()) | vars(start.strategy())
    shown = {n: [now[n], *values] for n, values in others.items()}
    lines = [f"{name}: {' | '.join(map(text_of, values))}" for name, values in shown.items()]
    lines[0] += " | as many by causal tracing"
    count = 2 + sum(map(len, others.values()))
    return "\n".join([*lines, f"at most {count} runs of {start.facts} facts\n"])
