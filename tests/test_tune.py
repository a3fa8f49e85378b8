"""Tuning: the best of what is tried is kept, runs once, and stands in a file that reads back."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import write_files

from ece import Fact, presets
from ece.config import Config
from ece.data.schema import checksum
from ece.errors import SolveError
from ece.experiments import tune
from ece.experiments.cli import main
from ece.experiments.results import SIX, source
from ece.experiments.spec import Settings, run_id
from ece.facts import target_ids

BEST = {"layers": (1, 2, 3), "lr": 30.0, "lam": 37.5, "p": 0.9, "clusters": 20}
"""What the runs below score best with, among what is tried for atlas-gpt2."""
WORDS = ["tune", "--facts", "4", "--batch", "2"]


@given(st.data())
def test_the_best_of_each_setting_is_kept_and_nothing_is_measured_twice(data):
    numbers = st.lists(st.integers(0, 9), min_size=1, max_size=4)
    lists = {name: data.draw(numbers) for name in "abc"}
    goal = {name: data.draw(st.sampled_from(values)) for name, values in lists.items()}
    start, seen = {name: values[0] for name, values in lists.items()}, []

    def measure(trial):
        seen.append(dict(trial))
        return -sum(abs(trial[name] - goal[name]) for name in goal)

    assert tune.search(start, lists, measure) == goal
    assert seen[0] == start and len(seen) == len({tuple(trial.values()) for trial in seen})
    assert len(seen) <= 1 + sum(len(set(values)) - 1 for values in lists.values()) + 2
    assert tune.search(start, lists, lambda trial: 1.0) == start, "a tie goes to the first"


@given(
    effect=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=40),
    width=st.integers(1, 45),
)
def test_a_window_never_passes_the_second_last_block(effect, width):
    found = tune.window(torch.tensor(effect), width)
    assert found == tuple(range(found[0], found[-1] + 1))
    assert 0 <= found[0] and found[-1] <= len(effect) - 2
    assert len(found) == min(width, len(effect) - 1)
    inner = effect[:-1]
    peak = max(i for i, share in enumerate(inner) if share == max(inner))
    assert found[-1] == max(peak, len(found) - 1)


def test_a_setting_is_tried_only_where_it_plays_a_part():
    tried = {}
    for method in ("ece-rs", "ece-plus", "memit", "blue"):
        config = presets.configure("gpt2-xl", method)
        tried[method] = tune.alternatives(config, presets.strategy("gpt2-xl", method))
    assert list(tried["ece-rs"]) == ["layers", "lr", "lam", "p", "clusters"]
    assert all(list(tried[m]) == ["layers", "lr", "lam"] for m in ("memit", "blue"))
    assert list(tried["ece-plus"]) == ["layers", "lr", "prompts", "lam"]
    assert tried["ece-plus"]["prompts"] == [0.3]
    one = Config(layers=(0,), lam=1.0, clusters=1, p=0.9)
    assert tune.alternatives(one, presets.strategy("gpt2-xl", "ece-rs"))["clusters"] == [1, 2]
    assert tune.alternatives(one, presets.strategy("gpt2-xl", "ece-rs"))["p"] == [0.8, 1.0]


def test_pairs_are_of_one_relation_with_other_answers_and_text_behind_the_subject(tokenizers):
    tokenizer = tokenizers["gpt2"]
    cities = ("Paris", "Lyon", "Oslo") * 40
    facts = [Fact("{} lives in", "Ilo", "Rome", true=c, relation=f"r{i % 8}")
             for i, c in enumerate(cities)]  # fmt: skip
    last = [Fact("In Oslo lives {}", "Ilo", "Rome", true=c, relation="r0") for c in cities]
    pairs = tune.pairs_of([*facts, *last], tokenizer)
    assert 20 < len(pairs) <= tune.MOST
    for a, b in pairs:
        assert a.relation == b.relation and "lives in" in a.prompt + b.prompt
        assert target_ids(tokenizer, a.true)[0] != target_ids(tokenizer, b.true)[0]
    assert tune.pairs_of([], tokenizer) == [] and not tune.pairs_of(facts[:1], tokenizer)


class Runs:
    """Stands in for `run`: scores by the distance from `BEST`, and can be killed."""

    def __init__(self):
        self.done, self.kill_at, self.score = [], None, True

    def __call__(self, settings: Settings, work, cache) -> dict:
        if len(self.done) == self.kill_at:
            raise KeyboardInterrupt
        config = settings.configure()
        if config.lam == 600.0:
            raise SolveError("the system has no solution")
        self.done.append(settings)
        wrong = sum(getattr(config, name) != value for name, value in BEST.items())
        rates = dict.fromkeys(("efficacy", "generalization", "specificity"), 90.0 - wrong)
        rates |= {f"{kind}_top1": 1.0 for kind in list(rates)}
        rates["score"] = self.score and rates["efficacy"]
        identity = settings.identity("f" * 16)
        return {
            **{name: getattr(settings, name) for name in SIX},
            **dict.fromkeys(("pre", "at_write", "after"), rates), "batches": [], "edit": {},
            "seconds": {},
            "provenance": {"run": run_id(identity), "name": settings.name, "identity": identity,
                           "settings": {}, "command": settings.command(), "commit": "abc"},
        }  # fmt: skip


@pytest.fixture
def runs(monkeypatch, tmp_path):
    found = Runs()
    real, traced = tune.gather, [BEST["layers"]]
    look = lambda settings: ("f" * 16, settings.configure(), traced, "causal tracing")  # noqa: E731
    quick = lambda settings, _: real(settings, _) if settings.data else ([], None, {"data": None})  # noqa: E731
    monkeypatch.setattr(tune, "run", found)
    monkeypatch.setattr(tune, "gather", quick)
    monkeypatch.setattr(tune, "_traced", look)
    monkeypatch.chdir(tmp_path)
    return found


def test_the_file_holds_the_best_in_full_and_is_its_own_record(runs, capsys):
    assert main([*WORDS, "--out", "own.toml"]) == 0
    assert capsys.readouterr().out == (
        "own.toml: layers 1,2,3 lr 30.0 lam 37.5 p 0.9 clusters 20\n"
    )
    found, plain = (presets.configure(name, "ece-rs") for name in ("own.toml", "atlas-gpt2"))
    for own in fields(Config):
        assert getattr(found, own.name) == BEST.get(own.name, getattr(plain, own.name)), own.name
    text = Path("own.toml").read_text()
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads[0] == "# ece tune --facts 4 --batch 2 --out own.toml"
    assert "4 facts of counterfact, 2 a batch, seed 0, part 'all' of the embedded" in heads[3]
    assert "commit" in heads[4] and "abc" in heads[4]
    # Layers 2, lr 2, lam 2 (one without a solution), p 3, clusters 2 beside the present ones.
    assert len(runs.done) == 10 and len(heads) == 6 + 11, "a line for every run"
    assert [line.split()[-4:] for line in heads if " 600.0 " in line] == [["0.00"] * 4]
    assert 'stop = "none"' in text and "layers = [1, 2, 3]" in text
    first = Settings(preset="own.toml", facts=4, batch=2)
    assert first.identity("f" * 16)["config"]["lam"] == 37.5


@pytest.mark.parametrize("method", ["alphaedit", "memit", "rome", "ece-plus", "prune"])
def test_what_makes_a_method_stays_with_it(runs, method):
    assert main([*WORDS, "--method", method]) == 0
    found = presets.configure("preset.toml", method)
    plain = presets.configure("atlas-gpt2", method)
    assert found.lr == 30.0 and found.lam in (plain.lam, plain.lam / 4)
    assert (found.p, found.scorer, found.clusters) == (plain.p, plain.scorer, plain.clusters)
    assert presets.strategy("preset.toml", method) == presets.strategy("atlas-gpt2", method)
    other = presets.configure("preset.toml", "ece-rs")
    assert (other.scorer, other.shared, other.clusters) == ("residual", "anchor", 10)


def test_a_killed_search_goes_on_and_runs_nothing_again(runs):
    runs.kill_at = 4
    assert main(WORDS) == 130
    assert not Path("preset.toml").exists()
    runs.kill_at = None
    assert main(WORDS) == 0 and len(runs.done) == 10
    assert len({run_id(settings.identity()) for settings in runs.done}) == 10
    text = Path("preset.toml").read_text()
    assert main(WORDS) == 0 and len(runs.done) == 10 and Path("preset.toml").read_text() == text
    assert main([*WORDS, "--seed", "1"]) == 0 and len(runs.done) == 20, "another seed runs anew"


def test_other_weights_under_the_same_name_run_anew(runs, monkeypatch):
    main(WORDS)
    monkeypatch.setattr(tune, "_traced", lambda s: ("0" * 16, s.configure(), [], "none"))
    main(WORDS)
    assert len(runs.done) == 19


def test_of_a_file_only_the_facts_set_aside_are_edited(runs, tmp_path):
    data = Path(write_files(tmp_path)["data"])
    given = ["tune", "--data", "records.json", "--facts", "1", "--batch", "1"]
    assert main(given) == 0, "ids are 10 to 15"
    assert {settings.part for settings in runs.done} == {"tune"}
    wanted = f"part 'tune' of records.json, SHA-256 {checksum(data)}\n"
    assert wanted in Path("preset.toml").read_text()
    data.write_text(json.dumps([{**json.loads(data.read_text())[0], "case_id": 11}]))
    runs.done.clear()
    assert main(given) == 2 and not runs.done, "none is set aside"


WRONG = {
    "--out": ("preset", ".", "file/x.toml"),
    "--work": ("file/x",),
    "--method": ("ft-l",),
    "--stats": ("absent.safetensors",),
    "--model": ("smollm2-135m",),
    "--facts": ("0",),
    "--data": ("absent.json",),
}


@pytest.mark.parametrize("flag, value", [(flag, v) for flag, vs in WRONG.items() for v in vs])
def test_what_cannot_be_used_is_refused_before_the_first_run(runs, flag, value, capsys):
    Path("file").write_text("")
    assert main([*WORDS, flag, value]) == 2
    out, err = capsys.readouterr()
    assert not runs.done and out == "" and "ece tune: error:" in err and not Path("p").exists()
    named = {"--model": "stats-text", "--facts": "--facts"}.get(flag, value.split("/")[0])
    assert named in err


def test_runs_without_a_score_end_the_search(runs, capsys):
    runs.score = None
    assert main(WORDS) == 2 and len(runs.done) == 1
    assert "have no score" in capsys.readouterr().err
    runs.score = 0.0
    assert main(WORDS) == 2 and "no run scores above 0" in capsys.readouterr().err
    assert not Path("preset.toml").exists()


def test_a_dry_run_says_what_would_be_tried(runs, capsys):
    assert main([*WORDS, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "lr: 15.0 | 7.5 | 30.0\n" in text and "at most 11 runs of 4 facts" in text
    assert not runs.done and not Path("_build").exists()


def test_a_flag_wins_over_the_preset_file_also_where_it_is_the_models_own(runs, monkeypatch):
    main(WORDS)
    seen = []
    monkeypatch.setattr("ece.experiments.cli.run", lambda settings, **named: seen.append(settings))
    monkeypatch.setattr("ece.experiments.cli._table", lambda record: "")
    plain = presets.configure("atlas-gpt2", "ece-rs").lam
    main(["run", "--preset", "preset.toml"])
    main(["run", "--preset", "preset.toml", "--lam", str(plain)])
    assert [settings.configure().lam for settings in seen] == [37.5, plain]


def test_an_embedded_model_is_tuned_from_its_facts_to_a_file(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "STATED", 60)
    monkeypatch.setattr(tune, "alternatives", lambda *_: {"layers": [], "lam": [2.0]})
    small = ("--facts", "2", "--batch", "2", "--stats-tokens", "200", "--method", "memit")
    assert main(["tune", *small]) == 0
    work = Path("_build/tune") / source()
    records = {path.stem: json.loads(path.read_text()) for path in work.glob("*.json")}
    assert 2 <= len(records) <= 3
    assert [path for path in work.parent.iterdir()] == [work], "runs of other code are not read"
    left = {path.name for path in work.iterdir() if path.is_dir()}
    assert left == {"cache"}, "the folder of a finished run is removed"
    assert all(name == record["provenance"]["run"] for name, record in records.items())
    chosen = Settings(method="memit", facts=2, batch=2, stats_tokens=200, preset="preset.toml")
    mark = next(iter(records.values()))["provenance"]["model_fingerprint"]
    best = records[run_id(chosen.identity(mark))]
    assert best["after"]["score"] == max(r["after"]["score"] for r in records.values())
    assert "pairs that the model states: layers " in Path("preset.toml").read_text()
