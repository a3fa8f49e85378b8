"""A model that lies in parts on several processes is edited as one that is whole."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from shards import CONFIG, LONG, edited, equal, resume
from small_runs import write_files
from torch import distributed
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import ece
from conftest import TEXTS, build, started
from ece.covariance import second_moment
from ece.errors import ModelError
from ece.experiments.cli import main
from ece.fingerprint import fingerprint
from ece.loading.sharding import spread
from ece.parts import in_parts
from ece.sequence import edit_sequence
from ece.storage import load_edits, load_moments
from ece.storage.edits import toggle

TP = ("llama", "phi3", "gemma2")
FSDP = ("gpt2", "gptj", "llama")
if os.environ.get("ECE_ALL_DIGITS"):
    TP, FSDP = (*TP, "qwen2", "gpt_neox", "olmo2"), (*FSDP, "gemma2")
SIZES = dict(vocab_size=328, hidden_size=32, intermediate_size=96, num_hidden_layers=4,
             num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=0.15,
             max_position_embeddings=128, bos_token_id=1, eos_token_id=1,
             pad_token_id=0)  # fmt: skip


def one_of(rank: int, count: int, port: int, call: Callable, *given) -> None:
    """Be one of several processes, in the environment that torchrun makes."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(number) for name, number in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "here"}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.set_num_threads(1)
    call(*given)
    distributed.destroy_process_group()


def together(count: int, call: Callable, *given) -> None:
    """Do without torchrun what `shards.py` does, in a third of the time."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    running = started(one_of, (count, store.port, call, *given), count)
    while not running.join():
        pass


def made(family: str):
    """A small random model of a family, whole."""
    if family in ("gpt2", "gptj", "llama"):
        return build(family)
    torch.manual_seed(0)
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3} if family == "qwen3" else {}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**SIZES | heads))
    return model.eval().requires_grad_(False)


def torchrun(count: int, *words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", str(count), str(Path(__file__).with_name("shards.py")),
               *map(str, words)]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def lines(done: subprocess.CompletedProcess) -> str:
    """What the processes themselves said, without torchrun's own report."""
    return "\n".join(line for line in done.stderr.splitlines() if "[rank" in line)


@pytest.mark.parametrize(
    "way, count, families",
    [("tp", 2, TP), ("tp", 3, ("qwen3",)), ("fsdp", 2, FSDP), ("fsdp", 3, FSDP)],
)
def test_a_model_in_parts_is_edited_as_a_whole_one(way, count, families, tokenizers, tmp_path):
    saved(tmp_path, tokenizers["llama"], *families)
    together(count, equal, way, tmp_path)
    for family in families:
        home = tmp_path / family
        model, tokenizer = ece.load(home)
        before = {site.layer: site.weight.clone() for site in ece.sites(model)}
        edited(model, tokenizer, family, home / "alone")
        alone = torch.load(home / "alone" / "found.pt")
        for rank in range(count):
            compare(torch.load(home / str(rank) / "found.pt"), alone, before)
        check_files(home, torch.load(home / "0" / "found.pt"))


def compare(found: dict, alone: dict, before: dict[int, torch.Tensor]) -> None:
    """Compare what one process has with what a process alone has."""
    assert found.keys() == alone.keys() and found["undone"] == found["unedited"]
    assert found["unedited"] == alone["unedited"]
    for name, value in alone.items():
        kind, *layer = name.split()
        if kind == "moment":
            assert (found[name] - value).norm() <= 1e-6 * value.norm()
        elif kind == "edited":
            change = value - before[int(*layer)]
            assert change.norm() > 0.1
            gap = (found[name] - value).norm()  # sums in another order
            assert gap <= 1e-6 * value.norm() and gap <= 1e-5 * change.norm(), name


def check_files(home: Path, found: dict) -> None:
    """Apply the edits and load the model that the first process saved: both have its weights."""
    model, _ = ece.load(home)
    saved = AutoModelForCausalLM.from_pretrained(home / "0" / "model")
    assert toggle(model, load_edits(home / "0" / "edits.safetensors")) == "edited"
    for name, value in found.items():
        if name.startswith("edited"):
            layer = int(name.split()[1])
            for one in (model, saved):
                assert torch.equal(ece.sites(one, (layer,))[0].weight, value)
    assert fingerprint(saved) == fingerprint(model)


def saved(home: Path, tokenizer, *families: str) -> None:
    for family in families:
        made(family).save_pretrained(home / family)
        tokenizer.save_pretrained(home / family)


@pytest.mark.parametrize("way, kills", [("facts", [(1, 40)]), ("tp", [(0, 60)])])
def test_a_run_that_lost_a_process_goes_on_to_the_same_bits(way, kills, tokenizers, tmp_path):
    for name in ("whole", "killed"):
        saved(tmp_path / name, tokenizers["llama"], "llama")
    together(2, resume, way, tmp_path / "whole")
    for rank, event in kills:
        done = torchrun(2, "resume", way, tmp_path / "killed", rank, event)
        assert done.returncode and "exitcode  : 9" in done.stderr, lines(done)
        assert not (tmp_path / "killed" / "marks").exists()
    together(2, resume, way, tmp_path / "killed")
    whole, killed = (json.loads((tmp_path / n / "marks").read_text()) for n in ("whole", "killed"))
    assert whole == killed
    if way == "facts":  # and as one process has it, up to the order of the moments' sums
        model, tokenizer = ece.load(tmp_path / "whole" / "llama")
        alone = second_moment(model, tokenizer, TEXTS, CONFIG.layers, 64)
        stats = load_moments(tmp_path / "whole" / "moments", model)
        assert stats.tokens == alone.tokens
        for layer, moment in alone.moments.items():
            assert (stats.moments[layer] - moment).norm() <= 1e-12 * moment.norm()
        edit_sequence(model, tokenizer, LONG, stats, CONFIG, 1)
        assert [fingerprint(model), stats.digest] == whole


RUNS = {
    "ece-rs": ["--points", "2", "--order", "spread", "--cases", "1", "--text-tokens", "9",
               "--text-facts", "1", "--also", "drift,answers,probes"],
    "ece-plus": [], "alphaedit": ["--lambda", "0.01"], "prune": [],
}  # fmt: skip
"""Methods that are run, and what else the run is to do."""
GRID = """[one]
models = ["{home}/llama"]
methods = ["memit"]
datasets = ["counterfact"]
seeds = [0]
facts = 4
batch = 2
data = "{home}/records.json"
stats_text = "{home}/text.txt"
contexts = 1
"""


def runs(home: Path, *ways: str) -> None:
    """Make each run by the command, and a grid of one cell; "alone" is one process."""
    common = ["--model", str(home / "llama"), "--facts", "4", "--batch", "2", "--contexts", "1",
              "--data", str(home / "records.json"), "--stats-text", str(home / "text.txt"),
              "--stats-tokens", "300", "--lambda", "20"]  # fmt: skip
    for way in ways:
        if way != "alone" and not distributed.is_initialized():
            distributed.init_process_group()
        own, share = home / way, ["--sharding", way] if way in ("tp", "fsdp") else []
        for method, more in list(RUNS.items())[: 1 if way == "tp" else None]:
            places = ["--work", own / method, "--out", own / f"{method}.json"]
            words = ["run", "--method", method, *common, *more, *share, *map(str, places)]
            assert main([*words, "--cache", str(own / "cache")]) == 0, method
        places = ["--records", own / "records", "--results", own / "none", "--work", own / "grid"]
        assert main(["grid", str(home / "grid.toml"), *share, *map(str, places)]) == 0


def test_runs_by_several_processes_measure_what_one_measures(tokenizers, tmp_path):
    write_files(tmp_path)
    text = (" ".join(TEXTS[i : i + 3]) for i in range(0, len(TEXTS) - 3, 3))
    (tmp_path / "text.txt").write_text("\n".join(text))
    (tmp_path / "grid.toml").write_text(GRID.format(home=tmp_path))
    saved(tmp_path, tokenizers["llama"], "llama")
    runs(tmp_path, "alone")
    together(2, runs, tmp_path, *(ways := ("facts", "fsdp", "tp")))
    alone = tmp_path / "alone"
    files = [file.relative_to(alone) for file in alone.rglob("*.json")]
    made = [(f, way) for f, way in product(files, ways) if (tmp_path / way / f).exists()]
    assert len(made) == 2 * (len(RUNS) + 1) + 2
    for file, way in made:
        one, two = (json.loads((tmp_path / n / file).read_text()) for n in ("alone", way))
        assert "processes" not in one["provenance"] and two["provenance"]["processes"] == 2
        assert one["provenance"]["run"] == two["provenance"]["run"]
        assert one["pre"] != one["after"]
        for name in ("pre", "at_write", "after", "batches", "points", "texts"):
            found, wanted = flat(two.get(name)), flat(one.get(name))
            gap = 0.0 if way == "facts" else 1e-3  # sums in another order
            for path in found.keys() | wanted.keys():
                value = wanted[path]
                near = isinstance(value, float) and abs(found[path] - value) <= gap * (1 + value)
                assert near or found[path] == value, (file, way, name, path)


def flat(record, name: str = "") -> dict:
    """Give what a nested record holds, by the path to it."""
    if not isinstance(record, (dict, list)):
        return {name: record}
    parts = record.items() if isinstance(record, dict) else enumerate(record)
    return {n: v for key, part in parts for n, v in flat(part, f"{name} {key}").items()}


def test_no_device_holds_the_whole_model(monkeypatch):
    """What goes to the device by `model.to` is what the blocks leave over, embeddings and head."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model, moved = build("llama"), []
        monkeypatch.setattr(type(model), "to", lambda own, device: moved.append(
            [name for name, p in own.named_parameters() if not in_parts(p)]) or own)  # fmt: skip
        assert spread(model, "fsdp") is model and len(moved) == 1
        assert moved[0] and not [name for name in moved[0] if ".layers." in name]
    finally:
        distributed.destroy_process_group()


def test_what_is_refused(tokenizers, tmp_path):
    saved(tmp_path, tokenizers["llama"], "llama", "gpt2")
    done = torchrun(2, "refuse", "tp", tmp_path)
    assert done.returncode == 0, lines(done)
    wanted = ("has no plan for sharding='tp'", "2 processes cannot share the model's 3",
              "are both given", "setting 'passes' is 'bfloat16'",
              "this baseline edits a model that is whole", "in use by another run")  # fmt: skip
    found = done.stdout.splitlines()
    assert len(found) == len(wanted)
    for text, line in zip(wanted, found, strict=True):
        assert text in line
    with pytest.raises(ModelError, match="this process is alone"):
        ece.load(tmp_path / "llama", sharding="fsdp")
    with pytest.raises(ModelError, match="choose one of tp, fsdp"):
        ece.load(tmp_path / "llama", sharding="pp")
