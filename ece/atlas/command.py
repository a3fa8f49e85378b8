"""Trains the embedded models, or checks what they know: `ece atlas`."""

import json
import sys
from pathlib import Path
from typing import Literal

from tqdm import tqdm
from tyro.conf import Positional

from ece.atlas.check import RECALL, check
from ece.atlas.recipes import RECIPES
from ece.atlas.train import train
from ece.errors import ConfigError, checked
from ece.loading import CHECKPOINTS, load
from ece.storage.files import check_writable


@checked
class Options:
    """Train the embedded models, or check what they know; the exit code is 1 if one falls short."""

    command: Positional[Literal["train", "check"]] = "check"
    """What to do."""
    model: tuple[str, ...] = tuple(RECIPES)
    """Which models."""
    out: str = str(CHECKPOINTS)
    """Folder of the checkpoints."""
    work: str = "_build/atlas"
    """Folder of unfinished trainings, which go on there."""
    json: bool = False
    """Print one line of JSON instead of a table."""

    def __post_init__(self):
        """Check the names of the models."""
        for name in set(self.model) - set(RECIPES):
            raise ConfigError(f"setting 'model' holds '{name}'; known: {', '.join(RECIPES)}")


def main(options: Options) -> int:
    """Run one command; the exit code is 1 if a model falls short."""
    out = Path(options.out)
    for folder in (out, options.work) if options.command == "train" else ():
        check_writable(folder)
    for name in options.model if options.command == "train" else ():
        _train(name, out, Path(options.work))
    report = {name: check(*load(str(out / name))) for name in options.model}
    sys.stdout.write(json.dumps(report) + "\n" if options.json else _table(report))
    low = [n for n, r in report.items() if min(r["recall_edit"], r["recall_unseen"]) < RECALL]
    return 1 if low else 0


def _train(name: str, out: Path, work: Path) -> None:
    with tqdm(desc=name, unit="step", file=sys.stderr) as bar:

        def progress(step: int, steps: int, loss: float) -> None:
            bar.total = steps
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update(step - bar.n)

        train(name, RECIPES[name], out / name, work, progress)


def _table(report: dict) -> str:
    lines = []
    for name, rates in report.items():
        lines.append(name)
        lines += [f"  {key:18} {value}" for key, value in rates.items()]
    return "\n".join(lines) + "\n"
