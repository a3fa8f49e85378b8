"""What a run has measured so far, on disk: one small file per batch, beside the run's state."""

from dataclasses import fields
from pathlib import Path

import numpy as np

from ece.files import read_json, write_json
from ece.metrics import Scores


def keep(folder: Path, number: int, scores: Scores, seconds: dict[str, float]) -> None:
    """Write a batch's scores and times; a file that is there is replaced."""
    told = {f.name: getattr(scores, f.name) for f in fields(Scores)}
    columns = {name: column.tolist() for name, column in told.items() if column is not None}
    write_json(folder / f"scores-{number:05d}.json", {"scores": columns, "seconds": seconds})


def kept(folder: Path, number: int) -> tuple[Scores, dict[str, float]]:
    """The inverse of `keep`, to the same bits; `StateError` if the file is damaged."""
    record = read_json(folder / f"scores-{number:05d}.json")
    said = record["scores"].pop("said", None)
    columns = {name: np.array(column, dtype=float) for name, column in record["scores"].items()}
    if said is not None:
        columns["said"] = np.empty(len(said), dtype=object)
        columns["said"][:] = [tuple(map(tuple, own)) for own in said]
    return Scores(**columns), record["seconds"]
