"""What a baseline learns ahead of editing, kept under a name that says what it was learned from."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save as serialise

from ece.baselines.base import Baseline, Task, Weights, mark_of
from ece.facts import Fact
from ece.storage.files import read_json, read_tensors, write, write_json


def trained(
    baseline: Baseline,
    task: Task,
    facts: list[Fact],
    folder: str | Path | None = None,
    progress: Callable | None = None,
) -> Weights:
    """What `baseline.train` learns from `facts`; with a folder, learned once and kept there.

    The name of the file is a digest of the model, the facts and the numbers. A training that
    was killed goes on from its last state in the folder.
    """
    task = baseline.learning(task)
    if folder is None:
        return baseline.train(task, facts, None, progress)
    name = f"{type(task.numbers).__name__.lower()}-{mark_of(task, facts)[:16]}"
    head, file = Path(folder) / f"{name}.json", Path(folder) / f"{name}.safetensors"
    if head.exists():
        return read_tensors(file, read_json(head)["checksum"])
    Path(folder).mkdir(parents=True, exist_ok=True)
    learned = baseline.train(task, facts, Path(folder) / f"{name}.part", progress)
    held = {key: value.cpu().contiguous() for key, value in learned.items()}
    write_json(head, {"checksum": write(file, serialise(held)), "facts": len(facts)})
    for part in Path(folder).glob(f"{name}.part*"):
        part.unlink()
    return learned
