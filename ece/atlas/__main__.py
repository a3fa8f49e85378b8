"""`python -m ece.atlas train | check`: make the embedded models, or say what they know."""

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from ece.atlas.check import RECALL, check
from ece.atlas.recipes import RECIPES
from ece.atlas.train import train
from ece.model import CHECKPOINTS, load


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 1 if a model falls short."""
    parser = argparse.ArgumentParser(prog="python -m ece.atlas", description=__doc__)
    parser.add_argument("command", choices=("train", "check"))
    parser.add_argument("--model", choices=list(RECIPES), action="append", help="default: all")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS, help="folder of the checkpoints")
    parser.add_argument("--work", type=Path, default=Path("_build/atlas"), help="resumable state")
    parser.add_argument("--json", action="store_true", help="one line of JSON on standard output")
    options = parser.parse_args(arguments)
    names = options.model or list(RECIPES)
    if options.command == "train":
        for name in names:
            _train(name, options)
    report = {name: check(*load(str(options.out / name))) for name in names}
    sys.stdout.write(json.dumps(report) + "\n" if options.json else _table(report))
    low = [n for n, r in report.items() if min(r["recall_edit"], r["recall_unseen"]) < RECALL]
    return 1 if low else 0


def _train(name: str, options: argparse.Namespace) -> None:
    with tqdm(desc=name, unit="step", file=sys.stderr) as bar:

        def progress(step: int, steps: int, loss: float) -> None:
            bar.total = steps
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update(step - bar.n)

        train(name, RECIPES[name], options.out / name, options.work, progress)


def _table(report: dict) -> str:
    lines = []
    for name, rates in report.items():
        lines.append(name)
        lines += [f"  {key:18} {value}" for key, value in rates.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
