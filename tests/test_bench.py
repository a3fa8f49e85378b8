"""The benchmark measures what it says, and leaves the model as it was. Times are not tested."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config

from ece.bench import cli as command
from ece.bench.cli import table
from ece.bench.profiling import Cost, ceiling, counted, measured
from ece.bench.stages import STAGES, Bench, joined, long_run, stage_row, sweep
from ece.config import PRESETS, configure


@pytest.fixture
def bench(family, model, tokenizer, facts, stats, monkeypatch):
    """The small models under the presets of an atlas model, with fewer and gentler steps."""
    small = dict(lr=0.1, lam=20.0, contexts=2, context_tokens=3, steps=4, own_steps=1)
    made = Bench("atlas-gpt2", model, tokenizer, facts[:4], stats, random=True)
    real = Bench.config

    def config(self, method, **settings):
        two = {} if method == "memit" else {"clusters": 2}
        return real(self, method, **{**small, **two, **settings})

    monkeypatch.setattr(Bench, "config", config)
    return made


def edited(model) -> list[torch.Tensor]:
    return [p.clone() for p in model.parameters()]


def test_every_stage_runs_and_the_weights_come_back(bench):
    kept = edited(bench.model)
    rows = {stage.name: stage_row(bench, stage) for stage in STAGES}
    assert all(torch.equal(a, b) for a, b in zip(kept, edited(bench.model), strict=True))
    for row in rows.values():
        assert row["total"] == pytest.approx(sum(row["seconds"].values())) and row["flops"] > 0
        assert row["quality"] is None  # random weights know nothing
    assert rows["naive"]["steps_per_fact"] == rows["memit"]["steps_per_fact"] == 4
    assert rows["own"]["steps_per_fact"] == 1
    assert rows["ece"]["steps_per_fact"] == (2 * 3 + 4 * 1) / 4  # anchors' steps, then own
    assert rows["cached"]["flops"] < rows["naive"]["flops"] / 2
    assert rows["ece"]["flops"] < rows["memit"]["flops"]


def test_the_naive_stage_may_run_some_facts_only(bench):
    stage = STAGES[0]
    some = stage_row(bench, stage, 2)
    assert some["facts_run"] == 2
    assert some["total"] == pytest.approx(sum(some["seconds"].values()))
    assert some["flops"] == pytest.approx(stage_row(bench, stage)["flops"], rel=0.3)


def test_of_several_runs_the_one_in_the_middle_counts(bench, monkeypatch):
    import ece.bench.stages as stages

    kept, seconds = edited(bench.model), iter((5.0, 1.0, 3.0))
    real = stages.measured

    def timed(work, device):
        (steps, _), cost = real(work, device)
        return (steps, {"values": next(seconds)}), cost

    monkeypatch.setattr(stages, "measured", timed)
    row = stage_row(bench, STAGES[4], times=3)
    assert (row["total"], row["times_run"]) == (3.0, 3)
    assert all(torch.equal(a, b) for a, b in zip(kept, edited(bench.model), strict=True))


def test_values_joined_fact_by_fact_equal_a_batch(bench):
    from ece.editor import compute_values
    from ece.state import new_state

    config = bench.config("memit", stop=None)
    state = new_state(bench.model, bench.tokenizer, config)
    whole = compute_values(bench.model, bench.tokenizer, bench.facts, state, config)
    parts = [compute_values(bench.model, bench.tokenizer, [f], state, config) for f in bench.facts]
    torch.testing.assert_close(joined(parts).z, whole.z, rtol=2e-3, atol=2e-4)


def test_sweep_and_long_run(bench, facts):
    kept = edited(bench.model)
    rows = sweep(bench, facts, (1, 4, 99))
    assert [(row["stage"], row["batch"]) for row in rows] == [
        ("memit", 1), ("ece", 1), ("memit", 4), ("ece", 4)
    ]  # fmt: skip
    run = long_run(bench, facts, 12, 3, iter)
    assert [row["edits"] for row in run["rows"]] == [3, 6, 9, 12]
    assert (run["first"]["edits"], run["last"]["edits"]) == (3, 12) and run["ratio"] > 0
    assert all(torch.equal(a, b) for a, b in zip(kept, edited(bench.model), strict=True))


def test_the_ends_of_a_long_run_are_compared_on_the_same_facts_in_turn(bench, facts, monkeypatch):
    import ece.bench.stages as stages

    real, asked, drift = stages.measured, [], iter(range(1, 99))

    def timed(work, device):
        asked.append((work.args[2], work.args[4].done))
        done = work.args[4].done
        return real(work, device)[0], Cost(float(next(drift) * (1 + done)), None)

    monkeypatch.setattr(stages, "measured", timed)
    run = long_run(bench, facts, 12, 3, iter)
    assert [done for _, done in asked[:4]] == [0, 1, 2, 3]
    assert [done for _, done in asked[4:]] == [1, 4] * stages.PAIRS
    assert all(part == asked[4][0] for part, _ in asked[4:])
    # The machine grows slower all the time; work grows 2.5 times: the pairs nearly see that alone.
    assert 2.5 < run["ratio"] < 2.8


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("family", ["gpt2"], indirect=True)
def test_ece_is_timed_with_the_papers_schedule_whatever_the_preset(model, tokenizer, stats, name):
    bench = Bench(name, model, tokenizer, [], stats, random=True)
    for stage in STAGES:
        config, preset = stage.config(bench), configure(name, stage.method, **stage.settings)
        own = {25: 5, 20: 4}[config.steps] if stage.method == "ece-rs" else preset.own_steps
        assert config == replace(preset, own_steps=own)


def test_counts_and_costs():
    a, b = torch.randn(8, 16), torch.randn(16, 4)
    assert counted(lambda: a @ b) == 2 * 8 * 16 * 4
    result, cost = measured(lambda: 7, torch.device("cpu"))
    assert result == 7 and cost.seconds >= 0 and (cost.peak is None or cost.peak > 0)
    assert ceiling(torch.device("cpu"), torch.float32, 64) > 0


@pytest.mark.parametrize("family", ["gpt2"], indirect=True)
def test_the_solve_of_some_facts_is_not_scaled(bench, monkeypatch):
    import ece.bench.stages as stages

    real, told = stages.measured, {"values": 1.0, "keys": 2.0, "solve": 4.0}
    monkeypatch.setattr(stages, "measured", lambda *job: ((real(*job)[0][0], told), real(*job)[1]))
    assert stage_row(bench, STAGES[0], 2)["seconds"] == {"values": 2.0, "keys": 4.0, "solve": 4.0}


def test_a_shape_runs_without_what_may_stop_and_in_the_wanted_dtype(monkeypatch, capsys):
    tiny = {
        "gpt2-xl": lambda: GPT2Config(n_embd=32, n_layer=19, n_head=2, vocab_size=60_000),
    }
    monkeypatch.setattr(command, "SHAPES", tiny)
    words = "--facts 4 --naive 1 --times 1 --sizes 2 --edits 0 --json".split()
    dtypes = ["--dtype", "bfloat16", "--naive-dtype", "float32"]
    assert command.main(["--shapes", "gpt2-xl", *words, *dtypes]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in record["stages"]] == ["naive", "cached", "memit", "ece", "own"]
    assert [row["facts_run"] for row in record["stages"]] == [1, 1, 4, 4, 4]
    assert (record["naive_dtype"], record["provenance"]["dtype"]) == ("float32", "bfloat16")


def test_a_shape_is_seen_under_prefixes_of_real_length(monkeypatch):
    tiny = {"gpt2-xl": lambda: GPT2Config(n_embd=32, n_layer=19, n_head=2, vocab_size=60_000)}
    monkeypatch.setattr(command, "SHAPES", tiny)
    options = command._parser().parse_args(["--facts", "2", "--shapes", "gpt2-xl"])
    made, _ = command.open_bench("gpt2-xl", options)
    told = made.state(made.config("memit")).contexts
    assert told[0] == "{}" and len(told) == 6
    lengths = [len(made.tokenizer(text.replace("{}", ""))["input_ids"]) for text in told[1:]]
    assert min(lengths) >= 8, "ids beyond the tokenizer's vocabulary would decode to nothing"


@pytest.mark.parametrize("family", ["gpt2"], indirect=True)
def test_the_record_is_json_and_says_where_it_comes_from(bench, facts, monkeypatch, capsys):
    made = replace(bench, random=False)
    monkeypatch.setattr(command, "open_bench", lambda name, options: (made, facts))
    for wrong in ("2", "0", "-1"):
        with pytest.raises(SystemExit):
            command.main(["--times", wrong])
    assert command.main(["--sizes", "1", "--edits", "12", "--batch", "3", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["speedup_vs_naive"] > 0 and record["provenance"]["command"].endswith("--json")
    assert len(record["long"]["rows"]) == 4 and record["stages"][0]["quality"]["efficacy"] is None
    assert "naive" in table(record)


@pytest.mark.parametrize(
    "words, message",
    [(["--shapes", "gpt5"], "known: gpt2-xl"), (["--facts", "99999"], "the world has")],
)
def test_what_cannot_be_measured_is_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        command.main(words)
    assert message in capsys.readouterr().err
