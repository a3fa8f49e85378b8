"""What each of several processes does for tests/test_sharding.py; by torchrun:

shards.py resume WAY HOME RANK EVENT     edit one, until process RANK is killed at an event
shards.py refuse WAY HOME                what is refused
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed

import ece
from conftest import SUBJECTS, TEXTS
from ece import engine as fast
from ece.baselines import BASELINES, Task
from ece.baselines.sequence import sequence
from ece.config import Config
from ece.covariance import second_moment
from ece.engine.parallel import Processes, Together
from ece.errors import EditError, StateError
from ece.evaluation.generation import answer
from ece.evaluation.metrics import evaluate
from ece.facts import Fact
from ece.fingerprint import fingerprint
from ece.loading.sharding import save_model
from ece.sequence import edit_sequence
from ece.state import new_state, undo
from ece.storage import Folder, edits_since, journal, moments, run_sequence, save_edits, snapshot
from ece.storage.folder import Shared
from ece.storage.held import held

CONFIG = Config(layers=(0, 1), lr=0.1, lr_unit="stream", lam=20.0, ridge=1e-3, clusters=2, steps=5,
                own_steps=2, contexts=1, context_tokens=4, shared="learned")  # fmt: skip
PROMPTS = ("{} lives in", "The trade of {}, all agree, is", "It is cold, says {}")
FACTS = [Fact(PROMPTS[i % 3], name, ("Rome", "sea captain")[i % 2], id=i)
         for i, name in enumerate(SUBJECTS)]  # fmt: skip
LONG = FACTS + [replace(fact, prompt=PROMPTS[(i + 1) % 3], id=len(FACTS) + i)
                for i, fact in enumerate(FACTS[:3])]  # fmt: skip
"""In batches of one these leave a history that is folded, and counts."""
ONE = ("gemma2", "olmo2")
"""Families with a norm behind the MLP, where one layer is edited."""


def edited(model, tokenizer, family: str, folder: Path, crew: Processes | None = None) -> None:
    """Edit two batches, take both back, and write down what is to be compared."""
    config = replace(CONFIG, layers=(1,)) if family in ONE else CONFIG
    folder.mkdir(parents=True)
    found = {"unedited": fingerprint(model)}
    evaluate(model, tokenizer, FACTS[:2])
    answer(model, tokenizer, [FACTS[0].text], 2)
    stats = second_moment(model, tokenizer, TEXTS[:20], config.layers)
    before = snapshot(model, config.layers)
    found |= {f"moment {n}": moment for n, moment in stats.moments.items()}
    stats = held(stats, crew) if crew else stats
    state, _ = edit_sequence(model, tokenizer, FACTS, stats, config, 3)
    found |= {f"edited {n}": w for n, w in snapshot(model, config.layers).weights.items()}
    edits = edits_since(before, model, FACTS)
    save_model(model, str(folder / "model"))
    if crew is None or crew.rank == 0:
        save_edits(folder / "edits.safetensors", edits)
    undo(model, state, 2)
    found["undone"] = fingerprint(model)
    torch.save(found, folder / "found.pt")


def equal(way: str, home: Path) -> None:
    for folder in sorted(home.iterdir()):
        model, tokenizer = ece.load(folder, sharding=way)
        crew = Processes()
        edited(model, tokenizer, folder.name, folder / str(crew.rank), crew)


def joined(way: str) -> tuple[Processes, dict]:
    """Join the others; "facts" shares facts, the other ways the model."""
    if not distributed.is_initialized():
        distributed.init_process_group()
    return (Together(), {}) if way == "facts" else (Processes(), {"sharding": way})


def resume(way: str, home: Path, rank: str = "", event: str = "") -> None:
    """Edit in a folder, moments included; each broadcast and each sum is an event."""
    crew, more = joined(way)
    model, tokenizer = ece.load(home / "llama", **more)
    if rank and crew.rank == int(rank):
        left = [int(event)]
        for name in ("broadcast_object_list", "all_reduce"):
            setattr(distributed, name, counted(getattr(distributed, name), left))
    stats, _ = moments(model, tokenizer, TEXTS, CONFIG.layers, home / "moments", 64, crew=crew)
    engine, stats, journal.COMPACT = crew if way == "facts" else fast, held(stats, crew), 2
    with Shared(home / "run", crew) as folder:
        state, _ = run_sequence(model, tokenizer, LONG, stats, CONFIG, 1, folder, engine=engine)
    here = {layer for layer, total in state.folded.items() if total.isfinite().all()}
    assert here == {*stats.own} and len(here) == 1
    marks = [fingerprint(model), stats.digest]
    crew.agree("the weights", marks[0])
    if crew.rank == 0:
        (home / "marks").write_text(json.dumps(marks))


def counted(call, left: list[int]):
    """End the process, as a kill does, when `left` calls were made."""

    def run(*given, **more):
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)
        return call(*given, **more)

    return run


def refuse(way: str, home: Path) -> None:
    """Print why some things cannot be done with a model in parts."""
    crew, more = joined(way)
    model, tokenizer = ece.load(home / "llama", **more)
    narrow = replace(CONFIG, passes="bfloat16")
    fine_tuning = BASELINES["ft-l"]
    task = Task(model, tokenizer, fine_tuning.configure("ft-l"), {})
    for call in (
        lambda: ece.load(home / "gpt2", sharding="tp"),
        lambda: ece.load("atlas-llama", sharding="tp"),
        lambda: ece.load(home / "llama", "cpu", sharding="tp"),
        lambda: new_state(model, tokenizer, narrow),
        lambda: sequence(fine_tuning, task, FACTS, 2),
    ):
        try:
            call()
        except EditError as error:
            if crew.rank == 0:
                print(error)
    with Shared(home / "run", crew):
        if crew.rank == 0:
            try:
                Folder(home / "run").__enter__()
            except StateError as error:
                print(error)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"resume": resume, "refuse": refuse}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
    distributed.destroy_process_group()
