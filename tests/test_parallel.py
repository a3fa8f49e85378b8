"""Several processes that share the facts of a batch end with the bits of one."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import multiprocessing

from conftest import FAMILIES, SUBJECTS, TEXTS, build, started
from ece.config import Config
from ece.covariance import Stats, second_moment
from ece.engine.parallel import Together
from ece.errors import SolveError, StateError, StatsError
from ece.experiments.cli import main
from ece.facts import Fact
from ece.fingerprint import fingerprint
from ece.sequence import edit_sequence
from ece.state import undo
from ece.storage import load_edits, save_moments
from ece.storage.held import held

CONFIG = Config(layers=(0, 1), lr=0.1, lr_unit="stream", lam=20.0, ridge=1e-3, clusters=2, steps=5,
                own_steps=2, contexts=1, context_tokens=4, max_tokens=12)  # fmt: skip
"""Few tokens a pass, so that there are parts to share."""
PROMPTS = ("{} lives in", "The trade of {}, all agree, is", "It is cold, says {}")
WAYS = {"anchor": {}, "alone": {"clusters": None, "stop": 0.5}, "start": {"shared": "learned"}}


def edited(family: str, tokenizer, config: Config, crew: Together | None = None) -> dict[str, str]:
    """Edit two batches and take one back; the fingerprints on the way."""
    model, marks = build(family), {}
    facts = [Fact(PROMPTS[i % 3], name, ("Rome", "sea captain")[i % 2], id=i)
             for i, name in enumerate(SUBJECTS)]  # fmt: skip
    stats = second_moment(model, tokenizer, TEXTS[:20], config.layers)
    more = {}
    if crew is not None:
        stats, more = held(stats, crew), {"engine": crew}
    state, reports = edit_sequence(model, tokenizer, facts, stats, config, 3, **more)
    marks["edited"] = fingerprint(model, config.layers)
    marks["losses"] = str([report.loss_after for report in reports])
    undo(model, state)
    return marks | {"undone": fingerprint(model, config.layers)}


def work(rank: int, count: int, store: str, tokenizers: dict, results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count
    )
    together, found = Together(), {}
    for family in FAMILIES:
        for name, way in WAYS.items():
            config = replace(CONFIG, **way)
            found[family, name] = edited(family, tokenizers[family], config, together)
    parts = len(list(together.share(range(7))))
    together.agree("nothing", "same")
    try:
        together.agree("rank", str(rank))
    except StateError as error:
        found["differ"] = str(error)
    try:
        together.result_of(1, singular)
    except SolveError as error:
        found["failed"] = str(error)
    moments = {layer: torch.eye(2) for layer in range(4)}
    part = held(Stats(moments, 1, "model"), together)
    assert part.own == tuple(range(rank, 4, count)) and part.digest
    assert [n for n, C in part.moments.items() if C.isfinite().all()] == [*part.own]
    sums = part.whole({layer: layer * torch.eye(2) for layer in part.own})
    assert [float(C[0, 0]) for C in sums.values()] == [0, 1, 2, 3] * (rank == 0)
    with pytest.raises(StatsError, match="hold a part"):
        save_moments(part, store + ".moments")
    results.put((rank, parts, found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def singular():
    raise SolveError("singular")


def leave(rank: int, store: str, results) -> None:
    """Two processes, of which one ends as if it were killed."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    together = Together()
    together.total(torch.ones(3))
    if rank == 1:
        os._exit(0)
    try:
        together.total(torch.ones(3))
    except StateError as error:
        results.put(str(error))


def test_who_loses_another_process_says_so(tmp_path):
    results = multiprocessing.get_context("forkserver").Queue()
    running = started(leave, (str(tmp_path / "store"), results), 2)
    assert "process 0 of 2 lost another one" in results.get(timeout=120)
    while not running.join():
        pass


def test_torchrun_edits_a_table_as_one_process_does(tmp_path, capsys):
    (tmp_path / "facts.csv").write_text(
        "prompt,subject,target\n{} lives in,Mira Velan,Oslo\n{} lives in,Tor Asken,Rome\n"
    )
    words = ["edit", str(tmp_path / "facts.csv"), "--model", "atlas-gpt2", "--method", "memit",
             "--stats-tokens", "2000", "--device", "cpu", "--json", "--out"]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone",
              "--nproc-per-node", "2", "-m", "ece"]  # fmt: skip
    done = subprocess.run([*launch, *words, str(tmp_path / "two")], capture_output=True, text=True,
                          timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert main([*words, str(tmp_path / "one")]) == 0
    assert capsys.readouterr().out == done.stdout and done.stdout.count("\n") == 1
    one, two = (load_edits(tmp_path / name) for name in ("one", "two"))
    assert one.edited == two.edited != one.unedited


@pytest.fixture(scope="module")
def alone(tokenizers):
    """The marks of one process, by family and way."""
    return {(family, name): edited(family, tokenizers[family], replace(CONFIG, **way))
            for family in FAMILIES for name, way in WAYS.items()}  # fmt: skip


@pytest.mark.parametrize("count", [2, 3])
def test_processes_together_give_the_bits_of_one(count, alone, tokenizers, tmp_path):
    results = multiprocessing.get_context("forkserver").Queue()
    given = (count, str(tmp_path / "store"), tokenizers, results)
    running = started(work, given, count)
    found = [results.get(timeout=300) for _ in range(count)]
    while not running.join():
        pass
    assert sum(parts for _, parts, _ in found) == 7 and min(parts for _, parts, _ in found) >= 2
    for _, _, marks in found:
        assert "differ in rank" in marks.pop("differ")
        assert marks.pop("failed") == "singular"
        assert marks == alone


def test_a_batch_has_parts_to_share(tokenizers):
    """Otherwise the test above would compare a process with itself."""
    from ece.engine import prepare
    from ece.facts import contexts

    model, tokenizer = build("llama"), tokenizers["llama"]
    facts = [Fact(PROMPTS[i % 3], name, "Rome", id=i) for i, name in enumerate(SUBJECTS[:3])]
    objective = prepare(model, tokenizer, facts, contexts(model, tokenizer, CONFIG), CONFIG, 1)
    assert len(objective.merge(objective.parts)) >= 2
