"""Saves what a baseline learned, under a name that says what it was learned from."""

from collections.abc import Callable
from pathlib import Path

import torch

from ece.baselines.base import Baseline, Task, Weights, identity
from ece.facts import Fact
from ece.storage import checksum, load, locked, remove, save


def trained(
    baseline: Baseline, task: Task, facts: list[Fact], folder: str | Path | None = None,
    progress: Callable | None = None,
) -> Weights:  # fmt: skip
    """Train `baseline` on `facts`; with a folder, once, and saved there under a name of its own.

    The name is a digest of the model, the facts, the settings and what computes. A training that
    was killed goes on from its last state there; one that another process is at is waited for.
    """
    task = baseline.learning(task)
    if folder is None:
        return baseline.train(task, facts, None, progress)
    by = torch.get_float32_matmul_precision(), task.model.device.type
    name = f"{type(task.numbers).__name__.lower()}-{checksum((identity(task, facts), by))[:16]}"
    path = Path(folder) / f"{name}.safetensors"
    with locked(path, wait=True):
        if not path.exists():
            learned = baseline.train(task, facts, Path(f"{path}.part"), progress)
            save(path, "trained weights", learned)
            remove(path.parent.glob(f"{path.name}.part*"))
        found = load(path, "trained weights")
    return {key: value.to(task.model.device) for key, value in found.items()}
