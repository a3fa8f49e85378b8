"""Results in long form: writes what a run found, merges it into tables, and reads these.

A folder of results holds `runs.jsonl` (a line per run: settings, times, provenance), `cells.csv`
(run, when, metric, value, half width of its 95 % interval, facts behind it) and `batches.csv` (the
same batch by batch). A run's identity is a hash of its settings (`ece.experiments.spec`).
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pandas as pd
import torch

from ece.errors import EditError
from ece.evaluation.metrics import KINDS
from ece.storage.files import write

SIX = ("model", "method", "dataset", "facts", "batch", "seed")
"""What a reader selects runs by first."""
TIMES = ("pre", "at_write", "after")
"""When the rates of a run are taken: before any edit, at each batch's writing, at the end."""
RATES = (*KINDS, "score", *(f"{kind}_top1" for kind in KINDS))
"""The metrics that every run states, in percent."""
TEXTS = ("fluency", "consistency")
"""The metrics of free texts, which may be written about some of the facts only."""
TABLES = {
    "cells": ("run", "when", "metric", "value", "ci", "n"),
    "batches": ("run", "edited", "when", "metric", "value", "ci"),
}
LINE = ("run", "name", *SIX, "settings", "edit", "seconds", "provenance")


class ResultError(EditError):
    """A result is not there, is damaged, or is of another run than the one wanted."""


@dataclass(frozen=True)
class Results:
    """Runs, and what was measured of them: three tables that share the column `run`."""

    runs: pd.DataFrame
    """One row per run: run, name, every setting as a column (lists as "4,5,6"), and the columns
    settings, edit, seconds and provenance as they are on disk."""
    measured: pd.DataFrame
    """The table cells.csv."""
    stepwise: pd.DataFrame
    """The table batches.csv."""

    def of(self, runs: Iterable[str]) -> "Results":
        """Keep these runs, in this order."""
        order = {run: place for place, run in enumerate(runs)}
        parts = (part[part.run.isin(order)] for part in (self.runs, self.measured, self.stepwise))
        sort = {"key": lambda column: column.map(order), "kind": "stable", "ignore_index": True}
        return Results(*(part.sort_values("run", **sort) for part in parts))

    def where(self, **wanted) -> "Results":
        """Keep the runs whose settings have these values; a list allows any of its members."""
        left = self.runs
        for name, value in wanted.items():
            if name not in left:
                raise ResultError(f"no run has a setting '{name}'; known: {', '.join(left)}")
            known = [_plain(v) for v in (value if isinstance(value, list) else [value])]
            left = left[[v in known or (v != v and None in known) for v in left[name]]]
        return self.of(left.run)

    def cells(self, **wanted) -> pd.DataFrame:
        """List what was measured, a row per run, time and metric, with the settings of the run."""
        return self.where(**wanted)._joined("measured")

    def batches(self, **wanted) -> pd.DataFrame:
        """List the same by number of edits.

        `at_write` and `after` are of the batch that ends there, `so_far` of all facts up to there.
        """
        return self.where(**wanted)._joined("stepwise")

    def _joined(self, name: str) -> pd.DataFrame:
        settings = self.runs.drop(columns=[n for n in LINE[2 + len(SIX) :] if n in self.runs])
        return getattr(self, name).merge(settings, on="run", how="left")


def read(folder: str | Path = "results") -> Results:
    """Read the tables of a folder; `ResultError` names the file, the field and the remedy."""
    folder = Path(folder)
    tables = {name: _table(folder, name, columns) for name, columns in TABLES.items()}
    found = Results(_frame(_lines(folder / "runs.jsonl")), *tables.values())
    for name, part in tables.items():
        strange = set(part.run) - set(found.runs.run)
        if strange:
            reason = f"{min(strange)} has no line in runs.jsonl"
            raise _broken(folder / f"{name}.csv", "run", reason)
    return found


def _frame(lines: list[dict]) -> pd.DataFrame:
    """Make a table of the lines of `runs.jsonl`, with every setting as a column."""
    rows = []
    for line in lines:
        own = dict(line["settings"])
        parts = {**own.pop("config"), **own.pop("strategy")}
        flat = {**own.pop("sources"), **own, **parts}
        rows.append({**{n: _plain(v) for n, v in flat.items()}, **line})
    return pd.DataFrame(rows, columns=None if rows else list(LINE))


def _plain(value):
    """Make a setting one value that can be compared and grouped by."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def _lines(path: Path) -> list[dict]:
    try:
        text = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(path, "(whole file)", f"cannot be read ({error})") from error
    lines = []
    for number, line in enumerate(text, 1):
        lines.append(found := _parsed(line, path, f"line {number}"))
        missing = [name for name in LINE if not isinstance(found, dict) or name not in found]
        if missing:
            raise _broken(path, f"line {number}, {missing[0]}", "is missing")
    return lines


def _parsed(text: str, path: Path, field: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(path, field, f"is not JSON ({error})") from error


def _table(folder: Path, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    path, kinds = folder / f"{name}.csv", dict.fromkeys(("run", "when", "metric"), str)
    if not path.exists():
        return pd.DataFrame(columns=columns)
    try:
        found = pd.read_csv(path, dtype=kinds | {"value": float})
    except (ValueError, OSError) as error:
        raise _broken(path, "(whole file)", f"cannot be read as a table ({error})") from error
    if tuple(found.columns) != columns:
        raise _broken(path, "(first line)", f"is {','.join(found)}, not {','.join(columns)}")
    return found


def collect(records: str | Path = "_build/cells", folder: str | Path = "results") -> int:
    """Merge the records of finished runs into the tables; returns how many there were.

    A record replaces what the tables hold of the same settings. Everything is read and checked
    before the first file is written, and the order on disk depends on nothing but the runs, so
    that merging twice changes nothing.
    """
    if not Path(records).is_dir():
        raise ResultError(f"{records} is no folder; run `ece grid` first, or name its records")
    new = [read_record(path) for path in sorted(Path(records).glob("*.json"))]
    if not new:
        return 0
    folder, fresh = Path(folder), {record["provenance"]["run"] for record in new}
    old, parts = read(folder), [long_form(record) for record in new]
    lines = [line for line in _lines(folder / "runs.jsonl") if line["run"] not in fresh]
    lines += [line for line, _, _ in parts]
    for place, (name, table) in enumerate((("cells", old.measured), ("batches", old.stepwise)), 1):
        rows = [row for part in parts for row in part[place]]
        added = pd.DataFrame(rows, columns=TABLES[name])
        whole = pd.concat([part for part in (table[~table.run.isin(fresh)], added) if len(part)])
        text = whole.sort_values("run", kind="stable").to_csv(index=False, lineterminator="\n")
        write(folder / f"{name}.csv", text.encode())
    ordered = sorted(lines, key=lambda line: line["run"])
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in ordered)
    write(folder / "runs.jsonl", text.encode())
    return len(new)


def long_form(record: Mapping) -> tuple[dict, list[tuple], list[tuple]]:
    """Split a run's record into its line of `runs.jsonl`, its cells and its batches."""
    origin = dict(record["provenance"])
    run, settings, numbers = (origin.pop(name) for name in ("run", "identity", "settings"))
    if settings["adaptive"]:
        origin["layers"] = numbers["layers"]  # chosen on the run
    line = {**record, **settings, "run": run, "name": origin.pop("name"), "provenance": origin}
    line["settings"] = {name: value for name, value in settings.items() if name not in SIX}
    some = min(settings["text_facts"] or record["facts"], record["facts"])
    cells = []
    for when, rates in ((when, record[when]) for when in TIMES):
        for metric, value, ci in _pairs(rates):
            count = some if metric in TEXTS else rates.get(f"{metric}_n", record["facts"])
            cells.append((run, when, metric, value, ci, count))
    steps = [(step["edited"], when, step[when]) for step in record["batches"] for when in TIMES[1:]]
    steps += [(point["edited"], "so_far", point) for point in record.get("points", ())]
    batches = [(run, end, when, *pair) for end, when, rates in steps for pair in _pairs(rates)]
    return {n: line[n] for n in (*LINE, "texts") if n in line}, cells, batches


def _pairs(rates: Mapping) -> list[tuple]:
    """List (metric, value, half width of its interval or None) of all that was measured."""
    names = [n for n in rates if not n.endswith(("_ci", "_n")) and n != "edited"]
    names = [name for name in names if rates[name] is not None]
    return [(name, float(rates[name]), rates.get(f"{name}_ci")) for name in names]


def rounded(rates: Mapping, names: Iterable[str] | None = None) -> dict:
    """Round rates to four decimals of a percent."""
    chosen = {name: rates[name] for name in names or rates}
    return {name: None if rate is None else round(rate, 4) for name, rate in chosen.items()}


def write_record(record: Mapping, path: str | Path) -> None:
    """Write a run's record as indented JSON; a file there is replaced whole or not at all."""
    write(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def read_record(path: str | Path) -> dict:
    """Read a run's record and check it; `ResultError` names the file, the field and the remedy."""
    path = Path(path)
    try:
        record = _parsed(path.read_text(encoding="utf-8"), path, "(whole file)")
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}; write it by `ece run --out`") from error
    except UnicodeDecodeError as error:
        raise _broken(path, "(whole file)", "is not text") from error
    for name in (*SIX, *TIMES, "batches", "edit", "seconds", "provenance"):
        if not isinstance(record, dict) or name not in record:
            raise _broken(path, name, "is missing")
    for time in TIMES:
        _check_rates(path, time, record[time])
    for name in ("run", "name", "identity", "settings", "command"):
        if name not in record["provenance"]:
            raise _broken(path, f"provenance.{name}", "is missing")
    return record


def _check_rates(path, time: str, rates: Mapping) -> None:
    for name in RATES:
        value = rates.get(name, "missing") if isinstance(rates, dict) else "missing"
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= 100):
            raise _broken(path, f"{time}.{name}", f"{value!r} is no rate in percent")


def _broken(path, field: str, reason: str) -> ResultError:
    remedy = "restore the file, or run again the command that made it"
    return ResultError(f"{path}, field '{field}': {reason}; {remedy}")


def provenance(command: str, numbers: Mapping, model, tokens: int | None, fingerprint: str) -> dict:
    """Say how a run came about, without times, so that equal runs give equal records.

    numbers: the method's settings. tokens: those behind the second moments, None without.
    fingerprint: that of the model before the first edit.
    """
    return {
        "command": command,
        "commit": commit(),
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("torch", "transformers", "ece")},
        "device": _device(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "settings": json.loads(json.dumps(numbers)),
        "model_fingerprint": fingerprint,
        "statistics_tokens": tokens,
    }


def _device(device: torch.device) -> str:
    """Name a device, an accelerator with its kind."""
    if device.type == "cpu":
        return str(device)
    return f"{device} ({torch.get_device_module(device).get_device_name(device)})"


def commit(folder: Path = Path(__file__).parents[1]) -> str:
    """Find the git revision of the code in `folder`, with "-dirty" if the code there differs.

    "unknown" where git, a repository, or the folder's place in it is missing. The environment
    variable ECE_COMMIT names the revision of a copy that has no repository.
    """
    if named := os.environ.get("ECE_COMMIT"):
        return named
    try:
        revision = _git(folder, "rev-parse", "HEAD")
        tracked = _git(folder, "ls-files", "--", ".")
        changed = _git(folder, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return (revision + ("-dirty" if changed else "")) if tracked else "unknown"


def source(folder: Path = Path(__file__).parents[1]) -> str:
    """Hash the code in `folder`, 16 digits: what other code left half done is not gone on with."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
