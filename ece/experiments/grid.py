"""`python -m ece.experiments.grid`: declared experiments, one after another, resumable.

    python -m ece.experiments.grid book/grid.toml --list
    python -m ece.experiments.grid book/grid.toml --only "atlas-gpt2_*_s0" --dry-run
    python -m ece.experiments.grid book/grid.toml

Each table of the file names lists of models, methods, datasets and seeds, and single values of
other settings, or under `vary` lists of them; its cells are all combinations. What one method
has on one model goes under `per`, as in `per.atlas-gpt2.memit = { lam = 50.0 }`. A cell that has
its result is not run again.
"""

import argparse
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from statistics import mean

from tqdm import tqdm

from ece.errors import ConfigError, EditError
from ece.experiments.cli import check_out
from ece.experiments.results import read_result, write_result
from ece.experiments.runner import run
from ece.experiments.spec import Settings

AXES = {"models": "model", "methods": "method", "datasets": "dataset", "seeds": "seed"}
"""Lists in a table of the file, and the setting that each of them varies."""


def cells(path: str | Path, only: Iterable[str] | None = None) -> dict[str, Settings]:
    """Name -> settings of every cell of the file, or of its tables `only`.

    `ConfigError` names what is wrong.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    unknown = sorted(set(only or ()) - set(tables))
    if unknown:
        raise ConfigError(f"{path} has no table '{unknown[0]}'; known: {', '.join(tables)}")
    found: dict[str, Settings] = {}
    for table, entry in tables.items():
        if only is not None and table not in only:
            continue
        missing = [axis for axis in AXES if not entry.get(axis)]
        if missing:
            raise ConfigError(f"{path}, table '{table}': the list '{missing[0]}' is missing")
        strange = [f"{m}.{n}" for m, own in entry.get("per", {}).items() for n in own
                   if m not in entry["models"] or n not in entry["methods"]]  # fmt: skip
        if strange:
            raise ConfigError(f"{path}, table '{table}': 'per' has {strange[0]}, which is no cell")
        for settings in _combinations(entry):
            settings.configure()
            other = found.setdefault(name_of(settings), settings)
            if other != settings:
                raise ConfigError(f"{path}: two cells are called {name_of(settings)}")
    return found


def _combinations(entry: dict) -> Iterator[Settings]:
    vary, per = entry.get("vary", {}), entry.get("per", {})
    single = {name: value for name, value in entry.items() if name not in (*AXES, "vary", "per")}
    lists = [*(entry[axis] for axis in AXES), *vary.values()]
    for values in product(*lists):
        told = {**single, **dict(zip((*AXES.values(), *vary), values, strict=True))}
        told |= per.get(told["model"], {}).get(told["method"], {})
        told = {n: tuple(v) if isinstance(v, list) else v for n, v in told.items()}
        own = {name: told.pop(name) for name in list(told) if name in _NAMES}
        yield Settings(**own, config=told)


_NAMES = {field.name for field in fields(Settings)}


def name_of(settings: Settings) -> str:
    """What a cell's file is called; settings of the method that differ are part of it."""
    model = settings.model.rstrip("/").split("/")[-1]
    extra = "".join(f"_{name}-{_said(value)}" for name, value in sorted(settings.config.items()))
    extra += f"_adaptive-{settings.adaptive}" if settings.adaptive else ""
    size = f"{settings.facts}x{settings.batch}"
    return f"{model}_{settings.method}_{settings.dataset}_{size}{extra}_s{settings.seed}"


def _said(value) -> str:
    """A value as part of a file's name."""
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def done(name: str, settings: Settings, out: Path) -> bool:
    """Whether the cell has its result; `ResultError` if the file is of other settings."""
    path = out / f"{name}.json"
    check_out(str(path), settings)
    return path.exists()


def results(path: str | Path, table: str, out: str | Path) -> tuple[list[dict], dict[str, str]]:
    """The results of a table's cells, in order, and name -> command of those not run yet."""
    found, missing = [], {}
    for name, settings in cells(path, [table]).items():
        file = Path(out) / f"{name}.json"
        if done(name, settings, Path(out)):
            found.append(read_result(file))
        else:
            missing[name] = f"{settings.command()} --out {file.name}"
    return found, missing


def estimate(settings: Settings, out: Path) -> float | None:
    """Seconds a cell may take: those of the model's results so far, per fact; None: unknown."""
    model = settings.model.rstrip("/").split("/")[-1]
    known = [read_result(path) for path in sorted(out.glob(f"{model}_*_s*.json"))]
    rates = [sum(result["seconds"].values()) / result["facts"] for result in known]
    return settings.facts * mean(rates) if rates else None


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit code is 2 for a file or a result that cannot be used."""
    parser = argparse.ArgumentParser(
        "python -m ece.experiments.grid", description=__doc__.split("\n")[0]
    )
    parser.add_argument("file", help="TOML file that declares the cells")
    parser.add_argument("--only", default="*", help='names to run, as in "atlas-gpt2_*"')
    parser.add_argument("--list", action="store_true", help="print names and whether they are done")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and how long")
    parser.add_argument("--out", type=Path, default=Path("book/results"), help="folder of results")
    parser.add_argument("--work", type=Path, default=Path("_build/grid"), help="resumable state")
    options = parser.parse_args(argv)
    try:
        chosen = {n: s for n, s in cells(options.file).items() if fnmatch(n, options.only)}
        ready = {name: done(name, settings, options.out) for name, settings in chosen.items()}
        left = {name: settings for name, settings in chosen.items() if not ready[name]}
        if options.list:
            sys.stdout.write("".join(f"{'done' if ready[n] else '-':5}{n}\n" for n in chosen))
        elif options.dry_run:
            sys.stdout.write(_plan(left, options.out))
        else:
            _run(left, options)
    except (EditError, OSError) as error:
        parser.error(str(error))
    return 0


def _plan(left: dict[str, Settings], out: Path) -> str:
    times = {name: estimate(settings, out) for name, settings in left.items()}
    lines = [f"{'?' if t is None else f'{t:.0f} s':>8}  {name}\n" for name, t in times.items()]
    known = sum(t for t in times.values() if t is not None)
    unknown = sum(t is None for t in times.values())
    end = f"{len(left)} cells, about {known / 60:.0f} min"
    return "".join(lines) + end + (f" and {unknown} of unknown length\n" if unknown else "\n")


def _run(left: dict[str, Settings], options: argparse.Namespace) -> None:
    with tqdm(left.items(), unit="cell", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        for name, settings in bar:
            bar.set_description(name)
            result = run(settings, work=options.work / name, cache=options.work / "cache")
            write_result(result, options.out / f"{name}.json")


if __name__ == "__main__":
    sys.exit(main())
