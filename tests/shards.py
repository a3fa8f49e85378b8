"""What each of several processes does for tests/test_sharding.py: torchrun shards.py WAY HOME."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed

import ece
from conftest import SUBJECTS, TEXTS
from ece.config import Config
from ece.covariance import second_moment
from ece.facts import Fact
from ece.loading.sharding import save_model
from ece.model import fingerprint
from ece.sequence import edit_sequence
from ece.state import undo
from ece.storage import edits_since, save_edits, snapshot

CONFIG = Config(layers=(0, 1), lr=0.1, lr_unit="stream", lam=20.0, ridge=1e-3, clusters=2, steps=5,
                own_steps=2, contexts=1, context_tokens=4, shared="learned")  # fmt: skip
PROMPTS = ("{} lives in", "The trade of {}, all agree, is", "It is cold, says {}")
FACTS = [Fact(PROMPTS[i % 3], name, ("Rome", "sea captain")[i % 2], id=i)
         for i, name in enumerate(SUBJECTS)]  # fmt: skip
ONE = ("gemma2", "olmo2")
"""Families with a norm behind the MLP, where one layer is edited."""


def edited(model, tokenizer, family: str, folder: Path, first: bool = True) -> None:
    """Edit two batches, take both back, and write down what is to be compared."""
    config = replace(CONFIG, layers=(1,)) if family in ONE else CONFIG
    folder.mkdir(parents=True)
    found = {"unedited": fingerprint(model)}
    stats = second_moment(model, tokenizer, TEXTS[:20], config.layers)
    before = snapshot(model, config.layers)
    state, _ = edit_sequence(model, tokenizer, FACTS, stats, config, 3)
    found |= {f"moment {n}": moment for n, moment in stats.moments.items()}
    found |= {f"edited {n}": w for n, w in snapshot(model, config.layers).weights.items()}
    edits = edits_since(before, model, FACTS)
    save_model(model, str(folder / "model"))
    if first:
        save_edits(folder / "edits.safetensors", edits)
    undo(model, state, 2)
    found["undone"] = fingerprint(model)
    torch.save(found, folder / "found.pt")


def main(way: str, home: Path) -> None:
    torch.set_num_threads(1)
    for folder in sorted(home.iterdir()):
        model, tokenizer = ece.load(folder, sharding=way)
        rank = distributed.get_rank()
        edited(model, tokenizer, folder.name, folder / str(rank), rank == 0)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
