"""The command line of one cell of the grid.

    python -m ece.experiments.cli --model atlas-gpt2 --method ece-rs --facts 200 --batch 25 --json

prints one line of JSON on stdout and everything else on stderr. Every number of the method is a
flag of its own, made from the fields of `ece.config.Config`.
"""

import argparse
import json
import re
import sys
from dataclasses import MISSING, asdict, fields
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ece.baselines import BASELINES
from ece.baselines.ft import GOALS
from ece.config import CHOICES, Config
from ece.errors import EditError
from ece.evaluation.metrics import KINDS
from ece.experiments.flags import add_flags
from ece.experiments.results import TIMES, ResultError, read_result, write_result
from ece.experiments.runner import run
from ece.experiments.spec import KNOWN, Settings

__all__ = ["Settings", "main", "read_result", "run"]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code, 2 for arguments that cannot be used."""
    parser = _parser()
    given = vars(parser.parse_args(argv))
    as_json, out, show = given.pop("json"), given.pop("out"), given.pop("progress")
    folders = {name: given.pop(name) for name in ("work", "cache")}
    names = {field.name for field in fields(Settings)}
    try:
        chosen = {name: given.pop(name) for name in names & given.keys()}
        settings = Settings(**chosen, config=given)
        check_out(out, settings)
        with tqdm(disable=not (show or sys.stderr.isatty()), file=sys.stderr) as bar:
            result = run(settings, progress=partial(_advance, bar), **folders)
        if out is not None:
            write_result(result, out)
    except (EditError, OSError) as error:
        parser.error(_named_flag(str(error)))
    sys.stdout.write(json.dumps(result, allow_nan=False) + "\n" if as_json else _table(result))
    return 0


def check_out(path: str | None, settings: Settings) -> None:
    """`ResultError` if the file already holds the result of other settings."""
    config = settings.configure()
    if path is None or not Path(path).exists():
        return
    origin = read_result(path)["provenance"]
    told = json.loads(json.dumps(asdict(config)))
    # A file written before a number was there had its default.
    defaults = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    found = {**json.loads(json.dumps(defaults)), **origin["settings"]}
    if settings.adaptive:  # the layers are found on the run
        found["layers"] = told["layers"]
    # The command tells every setting that is given, the numbers what presets made of it.
    if origin["command"] != settings.command() or found != told:
        raise ResultError(f"{path} holds the result of other settings; name another file")


def _parser() -> argparse.ArgumentParser:
    name = "python -m ece.experiments.cli"
    usage = f"{name} [--model NAME] [--method NAME] [--facts N] [--batch N] ... (see --help)"
    parser = argparse.ArgumentParser(name, usage=usage, description=__doc__)
    add_flags(parser, Settings, KNOWN, skip=("config",))
    numbers = parser.add_argument_group("numbers of the method (default: preset of the model)")
    add_flags(numbers, Config, CHOICES, skip=("seed",), aliases={"lam": "lambda"})
    taken = {field.name for field in fields(Config)} | {field.name for field in fields(Settings)}
    for kind in dict.fromkeys(baseline.numbers for baseline in BASELINES.values()):
        said = f"numbers of {', '.join(n for n, b in BASELINES.items() if b.numbers is kind)}"
        own = parser.add_argument_group(f"{said} (beside those above)")
        add_flags(own, kind, {"goal": GOALS}, skip=taken)
        taken |= {field.name for field in fields(kind)}
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    parser.add_argument("--out", metavar="FILE", help="also write the JSON, indented, to FILE")
    parser.add_argument("--work", metavar="FOLDER", help="keep state there; a killed run goes on")
    parser.add_argument("--cache", metavar="FOLDER", help="keep second moments and training there")
    parser.add_argument("--progress", action="store_true", help="progress bar without a terminal")
    return parser


def _named_flag(message: str) -> str:
    """`message` with the flag in front where it speaks of a setting."""
    found = re.search(r"(?:field|setting) '(\w+)'", message)
    return f"argument --{found[1].replace('_', '-')}: {message}" if found else message


def _advance(bar: tqdm, stage: str, done: int, total: int) -> None:
    bar.set_description(stage)
    bar.total, bar.n = total, done
    bar.refresh()


def _table(result: dict) -> str:
    names = (*KINDS, "score")
    head = "{model}, {method}, {dataset}: {facts} facts, {batch} a batch, seed {seed}"
    lines = [head.format(**result), " " * 9 + "".join(f"{name:>16}" for name in names)]
    for row in TIMES:
        cells = ["-" if result[row][n] is None else f"{result[row][n]:.1f}" for n in names]
        lines.append(f"{row:9}" + "".join(f"{cell:>16}" for cell in cells))
    times = (f"{name} {seconds:.1f} s" for name, seconds in result["seconds"].items())
    return "\n".join([*lines, ", ".join(times)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
