"""The command `ece`: one subcommand per job, its flags made from the fields of a dataclass.

    ece run --model atlas-gpt2 --method ece-rs --facts 200 --batch 25 --json

prints one line of JSON on standard output and everything else on standard error. Every setting of
the method is a flag, with the preset of that model and method as default: see the help of a method
by `ece run --method memit --help`. Lists are written 4,5,6, and nothing is written none.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, make_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError
from torch import distributed
from tqdm import tqdm

from ece.atlas import command as atlas
from ece.bench import cli as bench
from ece.bench import plan
from ece.engine.parallel import Processes
from ece.errors import ConfigError, EditError, checked
from ece.evaluation.metrics import KINDS
from ece.experiments import edit, grid, tune
from ece.experiments.crew import is_first, joined
from ece.experiments.flags import flags_of, parse, read_options
from ece.experiments.results import TIMES, ResultError, collect, read_record, write_record
from ece.experiments.runner import run
from ece.experiments.spec import Settings
from ece.storage.files import check_file

KNOWN = (EditError, OSError, UnicodeError, RecursionError, torch.OutOfMemoryError, SafetensorError)
"""Errors that say what was wrong; all others are faults of this package."""


@checked
class Output:
    """Where the result goes."""

    json: bool = False
    """Print one line of JSON instead of a table."""
    out: str | None = None
    """File to which the JSON is written as well, indented."""
    work: str | None = None
    """Folder of the run's state: a run that was killed goes on there."""
    cache: str | None = None
    """Folder for what does not depend on the facts: second moments, trained baselines."""
    progress: bool = False
    """Draw a progress bar also where standard error is no terminal."""


@checked
class Collect:
    """Merge the records of finished runs into the tables of results."""

    records: str = "_build/cells"
    """Folder of the records that `ece grid` and `ece run --out` wrote."""
    results: str = "results"
    """Folder of the tables."""


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit code, 2 for what cannot be used."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words else "--help"
    if name == "--version":
        sys.stdout.write(f"ece {version('ece')}\n")
        return 0
    if name not in COMMANDS:
        lines = (f"  {n:9}{one.__doc__.splitlines()[0]}\n" for n, (one, _) in COMMANDS.items())
        wanted = name in ("-h", "--help")
        (sys.stdout if wanted else sys.stderr).write(
            f"usage: ece {{{','.join(COMMANDS)}}} ... (each has --help)\n\n{''.join(lines)}"
        )
        return 0 if wanted else 2
    try:
        kind, call = COMMANDS[name]
        if distributed.is_torchelastic_launched() and name not in SEVERAL:
            raise ConfigError(f"ece {name} runs in one process; by torchrun only ece "
                              f"{', '.join(SEVERAL)} do")  # fmt: skip
        if "" in words:  # as an unset variable of a shell gives it
            raise ConfigError(f"argument {[name, *words][words.index('')]}: it is empty; give a "
                              "value, or leave the flag out")  # fmt: skip
        given = words if call in OWN else read_options(kind, words, f"ece {name}")
        code = call(given) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        sys.stderr.write(f"ece {name}: stopped; a run with --work goes on by the same command\n")
        return 130
    except KNOWN as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.filename is None:
            text = f"standard output: {text}; send it to a place with room"
            sys.stdout = open(os.devnull, "w")  # what it still holds can go nowhere
        text = f"ece {name}: error: {_named_flag(text, None if call in OWN else kind)}\n"
        sys.stderr.write(text.encode(errors="backslashreplace").decode())
        return 2


def _run(words: list[str]) -> None:
    """Edit facts by one method, and measure."""
    decide = ("model", "method", "preset", "batch")  # the defaults of all numbers
    first = flags_of(Settings, {name: getattr(Settings, name) for name in decide})
    given, _ = parse(first, words, return_unknown_args=True, add_help=False)
    settings = Settings(**vars(given))
    taken = {own.name for own in fields(Settings)}
    parts = [part for part in (settings.configure(), settings.strategy()) if part is not None]
    plain = {n: v for part in parts for n, v in asdict(part).items() if n not in taken}
    kinds = [("settings", flags_of(Settings, vars(settings), skip=("config",))),
             ("numbers", flags_of([type(part) for part in parts], plain,
                                f"Numbers of {given.method} on {settings.short}.")),
             ("output", flags_of(Output))]  # fmt: skip
    chosen = parse(make_dataclass("Run", kinds), words, prog="ece run",
                    description="Edit facts by one method, and measure.")  # fmt: skip
    own = {name: value for name, value in vars(chosen.numbers).items() if value != plain[name]}
    settings, output = Settings(**vars(chosen.settings), config=own), Output(**vars(chosen.output))
    if output.out is not None:
        _check_out(Path(output.out), settings)
    if settings.data is None and not settings.embedded:
        sys.stderr.write(f"ece run: these facts are of the embedded world, which {settings.short} "
                         "does not know; --data names others\n")  # fmt: skip
    with joined(settings.sharding) as crew, _bar(output.progress, crew) as progress:
        record = run(settings, progress=progress, work=output.work, cache=output.cache, crew=crew)
    if not is_first(crew):
        return
    if output.out is not None:
        write_record(record, output.out)
    sys.stdout.write(json.dumps(record, allow_nan=False) + "\n" if output.json else _table(record))


def _edit(options: edit.Options) -> None:
    """Edit, with a progress bar, by all the processes that `torchrun` started."""
    with joined(options.sharding) as crew, _bar(crew=crew) as progress:
        edit.main(options, progress, crew)


def _collect(options: Collect) -> None:
    """Merge finished runs into the tables of results."""
    count = collect(options.records, options.results)
    sys.stdout.write(f"{count} runs merged into {options.results}\n")


COMMANDS: dict[str, tuple] = {
    "edit": (edit.Options, _edit), "edits": (edit.Listing, edit.listing), "run": (_run, _run),
    "grid": (grid.Options, grid.main), "tune": (tune.Options, tune.main),
    "collect": (Collect, _collect), "bench": (bench.Options, bench.main),
    "plan": (plan.Options, plan.main), "atlas": (atlas.Options, atlas.main),
}  # fmt: skip
"""Command -> what has its line of help, and what runs it: `run` and `tune` read their own flags."""
OWN = (_run, tune.main)
"""Jobs that read their own flags."""
SEVERAL = ("edit", "run", "grid")
"""Commands that the processes of `torchrun` run together."""


def _check_out(path: Path, settings: Settings) -> None:
    """Refuse a file that cannot be written, or that holds the result of other settings."""
    check_file(path)
    if path.exists():
        found, wanted = read_record(path)["provenance"]["identity"], settings.identity()
        if {**found, "sources": None} != {**wanted, "sources": None}:
            raise ResultError(f"{path} holds the result of other settings; name another file")


def _named_flag(message: str, kind: type | None) -> str:
    """Put the flag in front of a message about a setting, if `kind` (None: any) has one for it."""
    found = re.match(r"setting '(\w+)'", message)
    has = found and (kind is None or found[1] in {own.name for own in fields(kind)})
    return f"argument --{found[1].replace('_', '-')}: {message}" if has else message


@contextmanager
def _bar(always: bool = False, crew: Processes | None = None) -> Iterator[Callable]:
    """Draw a progress bar in the block, where standard error is a terminal."""
    seen = is_first(crew) and (always or sys.stderr.isatty())
    with tqdm(disable=not seen, file=sys.stderr) as bar:
        yield partial(_advance, bar)


def _advance(bar: tqdm, stage: str, done: int, total: int) -> None:
    bar.set_description(stage)
    bar.total, bar.n = total, done
    bar.refresh()


def _table(record: dict) -> str:
    """Show the main rates of a record, before, at writing and after, and its times."""
    head = "{model}, {method}, {dataset}: {facts} facts, {batch} a batch, seed {seed}"
    rates = pd.DataFrame({time: record[time] for time in TIMES}).T[[*KINDS, "score"]].astype(float)
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in record["seconds"].items())
    table = rates.to_string(float_format="{:.1f}".format, na_rep="-")
    return f"{head.format(**record)}\n{table}\n{times}\n"
