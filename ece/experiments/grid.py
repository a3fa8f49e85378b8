"""Runs declared experiments one after another, each once, and finds their results.

Each table of the grid file names lists of models, methods, datasets and seeds, and single values of
other settings, or under `vary` lists of them; its cells are all combinations. What one method has
on one model stands under `per`, as in `per.atlas-gpt2.memit = { lam = 50.0 }`.
"""

import shutil
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import field, fields, replace
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from joblib import Parallel, delayed
from pydantic import Field
from tqdm import tqdm
from tyro.conf import Positional

from ece.engine.parallel import Processes
from ece.errors import ConfigError, EditError, checked
from ece.experiments.crew import Sharding, is_first, joined
from ece.experiments.results import SIX, Results, read, source, write_record
from ece.experiments.runner import run
from ece.experiments.spec import UNKNOWN, Count, Settings, run_id
from ece.storage.files import check_writable

AXES = {"models": "model", "methods": "method", "datasets": "dataset", "seeds": "seed"}
"""Lists in a table of the file, and the setting that each of them varies."""
Names = Annotated[list[str], Field(min_length=1)]


@checked
class Options:
    """Run the experiments that a grid file declares, and that have no results yet."""

    file: Positional[str] = "book/grid.toml"
    """TOML file that declares the experiments."""
    only: str = "*"
    """Names of the cells to run, as in "atlas-gpt2_*"."""
    list: bool = False
    """Print the names and whether they are done, and run nothing."""
    dry_run: bool = False
    """Print what would run and how long it may take, and run nothing."""
    device: str | None = None
    """Where the models go, as torch names it; without it where each cell says."""
    sharding: Sharding | None = None
    """How the processes that `torchrun` started share the models; see `ece run`."""
    jobs: Count = 1
    """Cells that run at the same time, each in a process of its own."""
    results: str = "results"
    """Folder of the results."""
    records: str = "_build/cells"
    """Folder to which finished cells are written; `ece collect` merges them into the results."""
    work: str = "_build/grid"
    """Folder of unfinished cells and of what they share; a grid that is killed goes on there, as
    long as the code is the same."""


def main(options: Options) -> None:
    """List, plan or run the cells that a grid file declares."""
    found = read(options.results)
    index = _index(found)
    chosen = [s for s in cells(options.file).values() if fnmatch(s.name, options.only)]
    ready = {s.name for s in chosen if _record(s, options).exists() or _found(s, index)}
    left = [settings for settings in chosen if settings.name not in ready]
    if options.list:
        lines = (f"{'done' if s.name in ready else '-':5}{s.name}\n" for s in chosen)
        sys.stdout.write("".join(lines))
    elif options.dry_run:
        sys.stdout.write(_plan(left, found))
    else:
        with joined(options.sharding) as crew:
            _run(left, options, crew)


def cells(path: str | Path, only: Iterable[str] | None = None) -> dict[str, Settings]:
    """List the cells of a grid file, or of its tables `only`, by a hash of their settings.

    `ConfigError` names the file, the table and what is wrong there.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a grid file") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}; correct it") from error
    only = None if only is None else list(only)
    unknown = sorted(set(only or ()) - set(tables))
    if unknown:
        raise ConfigError(f"{path} has no table '{unknown[0]}'; known: {', '.join(tables)}")
    found: dict[str, Settings] = {}
    for table in tables if only is None else only:
        try:
            for settings in _table(tables[table]).combinations():
                found.setdefault(run_id(settings.identity()), settings)
        except ConfigError as error:
            raise ConfigError(f"{path}, table '{table}': {error}") from error
    return found


@checked
class Table:
    """One table of a grid file."""

    models: Names
    methods: Names
    datasets: Names
    seeds: Annotated[list[int], Field(min_length=1)]
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = field(default_factory=dict)
    """Lists of values of other settings."""
    per: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Model -> method -> settings that it alone has."""
    single: dict[str, Any] = field(default_factory=dict)
    """Values of other settings."""

    def __post_init__(self):
        """Check that settings of one method on one model have a cell, and nothing stands twice."""
        parts = [self.vary, self.single, *(p for own in self.per.values() for p in own.values())]
        if twice := [name for part in parts for name in AXES.values() if name in part]:
            raise ConfigError(f"it gives '{twice[0]}' beside its list '{twice[0]}s'; leave one out")
        for model, own in self.per.items():
            for method in own:
                if model not in self.models or method not in self.methods:
                    raise ConfigError(f"'per' has {model}.{method}, which is no cell; correct it")

    def combinations(self) -> Iterator[Settings]:
        """Combine the values of all lists."""
        own = {setting.name for setting in fields(Settings)}
        lists = [*(getattr(self, axis) for axis in AXES), *self.vary.values()]
        for values in product(*lists):
            given = {**self.single, **dict(zip((*AXES.values(), *self.vary), values, strict=True))}
            given |= self.per.get(given["model"], {}).get(given["method"], {})
            given = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
            config = {name: given.pop(name) for name in list(given) if name not in own}
            yield Settings(**given, config=config)


def _table(entry) -> Table:
    if not isinstance(entry, dict):
        raise ConfigError(f"it is {entry!r}; write settings under [name]")
    names = {own.name for own in fields(Table)}
    single = {name: value for name, value in entry.items() if name not in names}
    if strange := {"config", "single"} & {*entry}:
        raise ConfigError(f"it has '{min(strange)}', which is no setting; write its own beside the "
                          "others")  # fmt: skip
    return Table(**{n: v for n, v in entry.items() if n in names}, single=single)


def results(
    path: str | Path, only: str | Iterable[str] | None = None, folder: str | Path = "results"
) -> tuple[Results, dict[str, str]]:
    """Find the results of the cells of some tables, in order; and name -> command of the others."""
    everything, found, missing = read(folder), [], {}
    index = _index(everything)
    for settings in cells(path, [only] if isinstance(only, str) else only).values():
        runs = _found(settings, index)
        found += runs
        if not runs:
            missing[settings.name] = settings.command()
    return everything.of(found), missing


def _index(found: Results) -> dict[str, list[tuple[str, dict]]]:
    """Hash of the settings -> the runs of these settings, each with its sources."""
    index: dict[str, list[tuple[str, dict]]] = {}
    for line in found.runs[["run", *SIX, "settings"]].to_dict("records"):
        run, settings = line.pop("run"), line.pop("settings")
        key = run_id({**line, **settings, "sources": None})
        index.setdefault(key, []).append((run, settings["sources"]))
    return index


def _found(settings: Settings, index: dict) -> list[str]:
    """Find the run of these settings, if any, as far as their sources are at hand."""
    wanted = settings.identity()
    near = index.get(run_id({**wanted, "sources": None}), [])
    found = [run for run, sources in near if all(
        sources[name] is not None if value == UNKNOWN else sources[name] == value
        for name, value in wanted["sources"].items()
    )]  # fmt: skip
    if len(found) > 1:
        raise ConfigError(f"{settings.name} has results of several models or files: "
                          f"{', '.join(found)}; remove those that are outdated")  # fmt: skip
    return found


def _record(settings: Settings, options: Options) -> Path:
    return Path(options.records) / f"{run_id(settings.identity())}.json"


def _plan(left: list[Settings], found: Results) -> str:
    """Say what is to run and how long it may take: as long a fact as other runs of the model."""
    runs = found.runs
    rates = runs.seconds.map(lambda own: sum(own.values())) / runs.facts
    means = rates.groupby(runs.model).mean()
    times = {s.name: s.facts * means[s.short] if s.short in means else None for s in left}
    lines = [f"{'?' if t is None else f'{t:.0f} s':>8}  {name}\n" for name, t in times.items()]
    known = [time for time in times.values() if time is not None]
    end = f"{len(left)} cells, about {sum(known) / 60:.0f} min"
    unknown = len(left) - len(known)
    return "".join(lines) + end + (f" and {unknown} of unknown length\n" if unknown else "\n")


def _run(left: list[Settings], options: Options, crew: Processes | None) -> None:
    """Run cells, some at a time; what was finished stays when one of them fails."""
    if crew is not None and options.jobs > 1:
        raise ConfigError(f"setting 'jobs' is {options.jobs}, and torchrun's processes run each "
                          "cell together; leave one of the two out")  # fmt: skip
    for folder in (options.records, options.work):
        check_writable(folder)
    work, names = Path(options.work) / source(), ("device", "sharding")
    ways = {name: getattr(options, name) for name in names if getattr(options, name)}
    calls = (delayed(_cell)(s, replace(s, **ways), options, work, crew) for s in left)
    done = Parallel(n_jobs=options.jobs, return_as="generator_unordered", batch_size=1)(calls)
    with tqdm(done, total=len(left), unit="cell", disable=None if is_first(crew) else True) as bar:
        for name in bar:
            bar.set_description(name)


def _cell(declared: Settings, settings: Settings, options: Options, work: Path, crew) -> str:
    """Run one cell and write its record, under the name of what was declared."""
    path = _record(declared, options)
    try:
        record = run(settings, work=work / path.stem, cache=work / "cache", crew=crew)
    except EditError as error:
        raise EditError(f"{declared.name}: {error}") from error
    if is_first(crew):
        write_record(record, path)
        shutil.rmtree(work / path.stem, ignore_errors=True)
    return declared.name
