"""The command `ece`: one subcommand per job, its flags made from the fields of a dataclass.

    ece run --model atlas-gpt2 --method ece-rs --facts 200 --batch 25 --json

prints one line of JSON on standard output and everything else on standard error. Every setting of
the method is a flag, with the preset of that model and method as default: see the help of a method
by `ece run --method memit --help`. Lists are written 4,5,6, and nothing is written none.
"""

import ast
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, field, fields, make_dataclass
from functools import partial
from pathlib import Path
from textwrap import dedent
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pandas as pd
import torch
import tyro
from tqdm import tqdm
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ece.errors import EditError, checked
from ece.evaluation.metrics import KINDS
from ece.experiments import grid
from ece.experiments.inputs import check_writable
from ece.experiments.results import TIMES, ResultError, collect, read_record, write_record
from ece.experiments.runner import run
from ece.experiments.spec import Settings

ALIASES = {"lam": ["--lambda"]}
REGISTRY = ConstructorRegistry()


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
    if name not in COMMANDS:
        lines = (f"  {n:9}{inspect.getdoc(f).splitlines()[0]}\n" for n, f in COMMANDS.items())
        wanted = name in ("-h", "--help")
        (sys.stdout if wanted else sys.stderr).write(
            f"usage: ece {{{','.join(COMMANDS)}}} ... (each has --help)\n\n{''.join(lines)}"
        )
        return 0 if wanted else 2
    try:
        code = COMMANDS[name](words) or 0
        sys.stdout.flush()
        return code
    except (EditError, OSError, UnicodeError, RecursionError, torch.OutOfMemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.filename is None:
            text = f"standard output: {text}; send it to a place with room"
            sys.stdout = open(os.devnull, "w")  # what it still holds can go nowhere
        text = f"ece {name}: error: {_named_flag(text)}\n"
        sys.stderr.write(text.encode(errors="backslashreplace").decode())
        return 2


def _run(words: list[str]) -> None:
    """Edit facts by one method, and measure."""
    first = make_dataclass("First", [("model", str, "atlas-gpt2"), ("method", str, "ece-rs")])
    given, _ = _parse(first, words, return_unknown_args=True, add_help=False)
    settings = Settings(given.model, given.method)
    taken = {own.name for own in fields(Settings)}
    parts = [part for part in (settings.configure(), settings.strategy()) if part is not None]
    plain = {n: v for part in parts for n, v in asdict(part).items() if n not in taken}
    kinds = [("settings", _plain(Settings, vars(settings), skip=("config",))),
             ("numbers", _plain([type(part) for part in parts], plain,
                                f"Numbers of {given.method} on {settings.short}.")),
             ("output", _plain(Output))]  # fmt: skip
    chosen = _parse(make_dataclass("Run", kinds), words, prog="ece run",
                    description="Edit facts by one method, and measure.")  # fmt: skip
    own = {name: value for name, value in vars(chosen.numbers).items() if value != plain[name]}
    settings, output = Settings(**vars(chosen.settings), config=own), Output(**vars(chosen.output))
    if output.out is not None:
        _check_out(Path(output.out), settings)
    show = output.progress or sys.stderr.isatty()
    with tqdm(disable=not show, file=sys.stderr) as bar:
        progress = partial(_advance, bar)
        record = run(settings, progress=progress, work=output.work, cache=output.cache)
    if output.out is not None:
        write_record(record, output.out)
    sys.stdout.write(json.dumps(record, allow_nan=False) + "\n" if output.json else _table(record))


def _grid(words: list[str]) -> None:
    """Run the experiments that a file declares, each once."""
    grid.main(_options(grid.Options, words, "ece grid"))


def _collect(words: list[str]) -> None:
    """Merge finished runs into the tables of results."""
    options = _options(Collect, words, "ece collect")
    count = collect(options.records, options.results)
    sys.stdout.write(f"{count} runs merged into {options.results}\n")


def _bench(words: list[str]) -> None:
    """Measure what editing costs, stage by stage."""
    from ece.bench.cli import Options, main  # stands above this package

    main(_options(Options, words, "ece bench"))


def _atlas(words: list[str]) -> int:
    """Train the embedded models, or check what they know."""
    from ece.atlas.command import Options, main  # imports the trainer

    return main(_options(Options, words, "ece atlas"))


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "run": _run, "grid": _grid, "collect": _collect, "bench": _bench, "atlas": _atlas,
}  # fmt: skip


def _check_out(path: Path, settings: Settings) -> None:
    """Refuse a file that cannot be written, or that holds the result of other settings."""
    check_writable(path.parent)
    if path.is_dir():
        raise ResultError(f"{path} is a folder; name a file")
    if path.exists():
        found, wanted = read_record(path)["provenance"]["identity"], settings.identity()
        if {**found, "sources": None} != {**wanted, "sources": None}:
            raise ResultError(f"{path} holds the result of other settings; name another file")


def _options(kind: type, words: list[str], prog: str):
    """Read the flags of a dataclass and build it, which checks its values."""
    return kind(**vars(_parse(_plain(kind), words, prog=prog, description=kind.__doc__)))


def _parse(kind: type, words: list[str], **more):
    return tyro.cli(
        kind, args=words, registry=REGISTRY, config=(tyro.conf.OmitArgPrefixes,), **more
    )


def _plain(
    kinds: type | list[type], defaults: Mapping[str, Any] | None = None, doc: str = "", skip=()
) -> type:
    """Make a dataclass of the same flags that checks nothing: who reads the flags builds `kind`.

    defaults: values of the fields it is to have; without it all, with their own defaults.
    """
    members = {}
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        hints, docs = get_type_hints(kind, include_extras=True), field_docs(kind)
        for own in fields(kind):
            default = own.default if defaults is None else defaults.get(own.name, MISSING)
            single = get_origin(hints[own.name]) is Literal and len(get_args(hints[own.name])) == 1
            if own.name in skip or single or default is MISSING:
                continue
            note = tyro.conf.arg(help=docs[own.name], aliases=ALIASES.get(own.name))
            hint = Annotated[hints[own.name], note]
            members[own.name] = (own.name, hint, field(default=default))
        doc = doc or kind.__doc__
    return make_dataclass("Flags", members.values(), namespace={"__doc__": doc})


def field_docs(kind: type) -> dict[str, str]:
    """Read the text under each field in the body of a dataclass and of those it comes from."""
    found = {}
    for cls in reversed([base for base in kind.__mro__ if base is not object]):
        (node,) = ast.parse(dedent(inspect.getsource(cls))).body
        for first, second in zip(node.body, node.body[1:], strict=False):
            if isinstance(first, ast.AnnAssign) and isinstance(second, ast.Expr):
                found[first.target.id] = " ".join(inspect.cleandoc(second.value.value).split())
    return found


@REGISTRY.primitive_rule
def _lists_and_none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Read lists as 4,5,6 and "none" as None; leave other types to tyro."""
    kinds = [_bare(kind) for kind in get_args(info.type)]
    listed = get_origin(info.type) is tuple and kinds[1:] == [...]
    optional = get_origin(info.type) in (Union, UnionType) and kinds[1:] == [NoneType]
    if not listed and not optional:
        return None
    read, names = (str, get_args(kinds[0])) if get_origin(kinds[0]) is Literal else (kinds[0], ())
    word = "|".join(names) or read.__name__.upper()

    def build(words: list[str]):
        (text,) = words
        if listed:
            return tuple(read(part) for part in text.split(",") if part)
        if names and text not in (*names, "none"):
            raise ValueError(f"'{text}' is none of {', '.join(names)}, none")
        return None if text == "none" else read(text)

    def show(value) -> list[str]:
        return [",".join(map(str, value)) if listed else "none" if value is None else str(value)]

    metavar = f"{word},{word},..." if listed else f"{word}|none"
    return PrimitiveConstructorSpec(1, metavar, build, lambda value: True, show)


def _bare(kind):
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _named_flag(message: str) -> str:
    """Put the flag in front of a message about a setting."""
    found = re.match(r"setting '(\w+)'", message)
    return f"argument --{found[1].replace('_', '-')}: {message}" if found else message


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
