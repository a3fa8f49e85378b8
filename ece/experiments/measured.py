"""What a run has measured so far, on disk: one small file per batch, beside the run's state."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ece.errors import StateError
from ece.evaluation.metrics import Scores
from ece.storage.files import read_json, write_json


@dataclass(frozen=True)
class Measured:
    """What was measured when a batch had been written."""

    scores: Scores
    """The batch's own."""
    seconds: dict[str, float]
    """What measuring took, by stage."""
    curve: dict | None = None
    """Rates of all facts so far, where they were asked for."""


def claim(folder: Path, command: str) -> None:
    """Make the folder that of the run `command`; `StateError` if it is another one's.

    What is edited is checked with the state itself; this is for what is asked about it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "asked.json"
    if not path.exists():
        write_json(path, {"command": command})
    elif (found := read_json(path)["command"]) != command:
        raise StateError(f"{folder} holds the work of another run ({found}); name another folder")


def keep(folder: Path, number: int, found: Measured) -> None:
    """Write what was measured; a file that is there is replaced."""
    told = {f.name: getattr(found.scores, f.name) for f in fields(Scores)}
    columns = {name: column.tolist() for name, column in told.items() if column is not None}
    record = {"scores": columns, "seconds": found.seconds, "curve": found.curve}
    write_json(folder / f"scores-{number:05d}.json", record)


def kept(folder: Path, number: int) -> Measured:
    """The inverse of `keep`, to the same bits; `StateError` if the file is damaged."""
    record = read_json(folder / f"scores-{number:05d}.json")
    said = record["scores"].pop("said", None)
    columns = {name: np.array(column, dtype=float) for name, column in record["scores"].items()}
    if said is not None:
        columns["said"] = np.empty(len(said), dtype=object)
        columns["said"][:] = [tuple(map(tuple, own)) for own in said]
    return Measured(Scores(**columns), record["seconds"], record["curve"])
