"""Result files: what a run found, and everything needed to find it again."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from ece.data.schema import checksum
from ece.errors import EditError
from ece.evaluation.metrics import KINDS, Scores
from ece.model import fingerprint
from ece.report import Report

TIMES = ("pre", "at_write", "after")
"""When the rates of a result were taken."""
RATES = (*KINDS, "score", *(f"{kind}_top1" for kind in KINDS))
NAMES = ("model", "method", "dataset", "facts", "batch", "seed")


class ResultError(EditError):
    """A result file that is not there, is damaged, or is of another run than the one wanted."""


def batch_record(written: list[Scores], after: Scores, measure: str) -> list[dict]:
    """Each batch's rates at write and after the last batch: what is forgotten, and when."""
    record, first = [], 0
    for scores in written:
        end = first + len(scores)
        rates = {"at_write": scores, "after": after.part(first, end)}
        shown = {n: rounded(r.summary(measure), (*KINDS, "score")) for n, r in rates.items()}
        record.append({"edited": end, **shown})
        first = end
    return record


def edit_record(reports: list[Report]) -> dict:
    """Means over batches of what the editor did, and the number of facts that held before."""
    layers = sorted({layer for report in reports for layer in report.neurons})
    return {
        "neurons": {str(at): np.mean([r.neurons[at] for r in reports]).item() for at in layers},
        "clusters": np.mean([len(report.anchors) for report in reports]).item(),
        "steps": np.mean([step for report in reports for step in report.steps]).item(),
        "shared_steps": sum(sum(report.shared_steps) for report in reports),
        "held_before": sum(sum(report.held) for report in reports),
    }


def baseline_record(records) -> dict:
    """What a baseline changed: mean norm of a batch's change, by parameter."""
    names = sorted({name for record in records for name in record.norms})
    return {"norms": {n: np.mean([r.norms.get(n, 0.0) for r in records]).item() for n in names}}


def rounded(rates: dict, names=None) -> dict:
    """Rates to four decimals of a percent."""
    chosen = {name: rates[name] for name in names or rates}
    return {name: None if rate is None else round(rate, 4) for name, rate in chosen.items()}


def provenance(
    command: str,
    config,
    model,
    tokens: int | None,
    sources: Mapping[str, dict | None] | None = None,
) -> dict:
    """How a run came about, without times, so that equal runs give equal records.

    `config`: the method's numbers, a dataclass; `tokens` behind the second moments, None without.
    To be called before the first edit: the fingerprint is that of the model as loaded.
    sources: what was read from files, "data" and "references", as by `source`; None: embedded.
    """
    return {
        "command": command,
        "commit": commit(),
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("torch", "transformers", "ece")},
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "settings": json.loads(json.dumps(asdict(config))),
        "model_fingerprint": fingerprint(model),
        "statistics_tokens": tokens,
        "data": None,
        "references": None,
        **(sources or {}),
    }


def source(path: str | Path | None) -> dict | None:
    """Name and SHA-256 of a file that a run has read; None if it has read none."""
    return path and {"file": Path(path).name, "sha256": checksum(path)}


def commit(folder: Path = Path(__file__).parent) -> str:
    """The git revision of the code in `folder`, with "-dirty" if the code there differs from it.

    "unknown" where git, a repository, or the folder's place in it is missing.
    """
    try:
        revision = _git(folder, "rev-parse", "HEAD")
        tracked = _git(folder, "ls-files", "--", ".")
        changed = _git(folder, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return (revision + ("-dirty" if changed else "")) if tracked else "unknown"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def write_result(result: dict, path: str | Path) -> None:
    """Write `result` as indented JSON; a file of that name is replaced whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(result, indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_result(path: str | Path, **wanted) -> dict:
    """The result in `path`, checked; `ResultError` names file, field, reason and mend.

    wanted: fields that must have these values, e.g. read_result(path, method="ece-rs", seed=0).
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(
            f"{path}: {error.strerror}; run ece.experiments.cli --out {path}"
        ) from error
    except ValueError as error:
        raise _broken(path, "(whole file)", f"is not JSON: {error}") from error
    for name in (*NAMES, *TIMES, "seconds", "provenance"):
        if not isinstance(result, dict) or name not in result:
            raise _broken(path, name, "is missing")
    for time in TIMES:
        _check_rates(path, time, result[time])
    if "command" not in result["provenance"]:
        raise _broken(path, "provenance.command", "is missing")
    for name, value in wanted.items():
        if result.get(name) != value:
            reason = f"is {result.get(name)!r}, wanted is {value!r}"
            raise ResultError(f"{path}, field '{name}': {reason}; name the file of that run")
    return result


def _check_rates(path, time: str, rates: dict) -> None:
    for name in RATES:
        value = rates.get(name, "missing") if isinstance(rates, dict) else "missing"
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= 100):
            raise _broken(path, f"{time}.{name}", f"{value!r} is no rate in percent")


def _broken(path, field: str, reason: str) -> ResultError:
    return ResultError(f"{path}, field '{field}': {reason}; run the command that made it again")
