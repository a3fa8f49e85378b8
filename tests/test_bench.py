"""The benchmark measures what it says and leaves the model as it was. Times are not tested."""

import json
from dataclasses import replace
from itertools import islice

import pytest
import torch
from transformers import GPT2Config

from ece import atlas, presets
from ece.bench import cli, profiling, reference, stages
from ece.bench.cli import Options, run, table
from ece.bench.profiling import ceiling, counted, measured
from ece.bench.stages import STAGES, Bench, joined, long_run, stage_row, sweep
from ece.data import python_docs, world
from ece.editor import compute_values
from ece.errors import ConfigError, ModelError
from ece.state import new_state

gpt2 = pytest.mark.parametrize("family", ["gpt2"], indirect=True)
NAIVE, MEMIT = STAGES[0], STAGES[2]


@pytest.fixture(autouse=True)
def quick(facts, monkeypatch):
    """Leave out what costs seconds and decides nothing."""
    monkeypatch.setattr(atlas, "facts", lambda: facts)
    monkeypatch.setattr(profiling.gc, "collect", lambda: 0)
    monkeypatch.setattr(stages, "PAIRS", 1)
    monkeypatch.setattr(stages, "COUNTED", 1)
    monkeypatch.setattr(stages, "counted", lambda work: 1)
    monkeypatch.setattr(cli, "TEXTS", 2)
    monkeypatch.setattr(cli, "TIMED", 2)
    monkeypatch.setattr(cli, "ceiling", lambda device, dtype, size: ceiling(device, dtype, 8))


@pytest.fixture
def bench(family, model, tokenizer, facts, stats, monkeypatch):
    """The small models under the presets of an atlas model, with fewer and gentler steps."""
    small = dict(lr=0.1, lam=20.0, contexts=2, context_tokens=3, steps=3, own_steps=1)
    real = Bench.config

    def config(self, method, **settings):
        two = {"clusters": 2} if method.startswith("ece") else {}
        return real(self, method, **{**small, **two, **settings})

    monkeypatch.setattr(Bench, "config", config)
    return Bench("atlas-gpt2", model, tokenizer, facts[:4], stats, random=True)


@pytest.fixture
def tiny(monkeypatch):
    """A shape of three narrow blocks, edited with one step."""
    real, short = presets.configure, dict(layers=(0, 1), steps=1, own_steps=1)

    def configure(name, method, **settings):
        return real(name, method, **{**short, **settings})

    def shape():
        return GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=60_000)

    monkeypatch.setattr(presets, "configure", configure)
    monkeypatch.setattr(cli, "SHAPES", {"gpt2-xl": shape})


def weights(model) -> list[torch.Tensor]:
    return [p.clone() for p in model.parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@gpt2
def test_every_stage_runs_and_the_weights_come_back(bench, monkeypatch):
    monkeypatch.setattr(stages, "counted", counted)
    before = weights(bench.model)
    rows = {stage.name: stage_row(bench, stage) for stage in STAGES}
    assert equal(before, weights(bench.model))
    for row in rows.values():
        assert row["total"] == pytest.approx(sum(row["seconds"].values())) and row["flops"] > 0
        assert row["quality"] is None  # random weights know nothing
    assert rows["naive"]["steps_per_fact"] == rows["memit"]["steps_per_fact"] == 3
    assert rows["own"]["steps_per_fact"] == 1
    assert rows["ece"]["steps_per_fact"] == (2 * 2 + 4 * 1) / 4  # anchors' steps, then own
    assert rows["cached"]["flops"] < rows["naive"]["flops"] / 2
    assert rows["ece"]["flops"] < rows["memit"]["flops"]


@gpt2
def test_the_naive_stage_may_run_on_some_facts_only(bench, monkeypatch):
    monkeypatch.setattr(stages, "counted", counted)
    real, seconds = stages.measured, {"values": 1.0, "keys": 2.0, "solve": 4.0}
    monkeypatch.setattr(stages, "measured", lambda *job: ((real(*job)[0][0], seconds), 0.0, None))
    some = stage_row(bench, NAIVE, 2)
    assert some["facts_run"] == 2
    assert some["seconds"] == {"values": 2.0, "keys": 4.0, "solve": 4.0}  # one solve a batch
    assert some["flops"] == pytest.approx(stage_row(bench, NAIVE)["flops"], rel=0.3)


@gpt2
def test_of_several_runs_the_median_counts(bench, monkeypatch):
    before, seconds = weights(bench.model), iter((5.0, 1.0, 3.0))
    real = stages.measured

    def timed(work, device):
        (steps, _), whole, peak = real(work, device)
        return (steps, {"values": next(seconds)}), whole, peak

    monkeypatch.setattr(stages, "measured", timed)
    row = stage_row(bench, MEMIT, times=3)
    assert (row["total"], row["times_run"]) == (3.0, 3)
    assert equal(before, weights(bench.model))


@pytest.mark.parametrize("stop", [None, 1.0])
def test_the_published_loop_finds_the_values_of_the_engine(bench, stop):
    config = bench.config("memit", steps=8, lr=0.5, clamp=0.5, weight_decay=2.0, stop=stop)
    state = bench.state(config, "memit")
    for fact in bench.facts[:2]:
        fast = compute_values(bench.model, bench.tokenizer, [fact], state, config)
        slow, curve = reference.descend(bench.model, bench.tokenizer, fact, state.contexts, config)
        assert len(curve) == int(fast.steps) + 1
        torch.testing.assert_close(fast.delta[0], slow, rtol=2e-3, atol=2e-4)
        torch.testing.assert_close(
            fast.losses[: len(curve), 0], torch.tensor(curve), rtol=2e-3, atol=2e-4
        )


def test_values_joined_fact_by_fact_equal_a_batch(bench):
    config = bench.config("memit", stop=None)
    state = new_state(bench.model, bench.tokenizer, config)
    whole = compute_values(bench.model, bench.tokenizer, bench.facts, state, config)
    parts = [compute_values(bench.model, bench.tokenizer, [f], state, config) for f in bench.facts]
    torch.testing.assert_close(joined(parts).z, whole.z, rtol=2e-3, atol=2e-4)
    assert joined(parts).facts == whole.facts


@gpt2
def test_sweep(bench, facts):
    before = weights(bench.model)
    rows = sweep(bench, facts, (1, 2, 99))
    assert [(row["stage"], row["batch"]) for row in rows] == [
        ("memit", 1), ("ece", 1), ("memit", 2), ("ece", 2)
    ]  # fmt: skip
    assert equal(before, weights(bench.model))


@gpt2
def test_the_ends_of_a_long_run_are_compared_on_the_same_facts_in_turn(bench, facts, monkeypatch):
    monkeypatch.setattr(stages, "PAIRS", 3)
    before, real, calls, drift = weights(bench.model), stages.measured, [], iter(range(1, 99))

    def timed(work, device):
        done = work.args[4].done
        calls.append((work.args[2], done))
        return real(work, device)[0], float(next(drift) * (1 + done)), None

    monkeypatch.setattr(stages, "measured", timed)
    result = long_run(bench, facts, 8, 2)
    assert [done for _, done in calls[:4]] == [0, 1, 2, 3]
    assert [done for _, done in calls[4:]] == [1, 4] * stages.PAIRS
    assert all(part == calls[4][0] for part, _ in calls[4:])
    assert [row["edits"] for row in result["rows"]] == [2, 4, 6, 8]
    assert (result["first"]["edits"], result["last"]["edits"]) == (2, 8)
    # The machine grows slower all the time; work grows 2.5 times: the pairs nearly see that alone.
    assert 2.5 < result["ratio"] < 3
    assert equal(before, weights(bench.model))


@pytest.mark.parametrize("name", ["atlas-llama", "gpt2-xl"])
@gpt2
def test_ece_is_timed_with_the_papers_schedule_whatever_the_preset(model, tokenizer, stats, name):
    bench = Bench(name, model, tokenizer, [], stats, random=True)
    for stage in STAGES:
        preset = presets.configure(name, stage.method, **stage.settings)
        config = stage.config(bench)
        own = {25: 5, 20: 4}[config.steps] if stage.method == "ece-rs" else preset.own_steps
        assert config == replace(preset, own_steps=own)


def test_counts_and_costs():
    a, b = torch.randn(8, 16), torch.randn(16, 4)
    assert counted(lambda: a @ b) == 2 * 8 * 16 * 4
    result, seconds, peak = measured(lambda: 7, torch.device("cpu"))
    assert result == 7 and seconds >= 0 and (peak is None or peak > 0)
    assert ceiling(torch.device("cpu"), torch.float32, 64) > 0


def test_where_the_system_shows_no_memory_none_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(profiling, "STATUS", tmp_path / "status")
    monkeypatch.setattr(profiling, "CLEAR", tmp_path)  # cannot be written to
    assert measured(lambda: 7, torch.device("cpu"))[2] is None


def test_a_shape_runs_without_what_may_stop_and_in_the_wanted_dtype(tiny, capsys):
    options = Options(shapes=("gpt2-xl",), facts=2, naive=1, times=1, sizes=(2,), edits=0,
                      dtype="bfloat16", naive_dtype="float32", json=True)  # fmt: skip
    cli.main(options)
    record = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in record["stages"]] == ["naive", "cached", "memit", "ece", "own"]
    assert [row["facts_run"] for row in record["stages"]] == [1, 1, 2, 2, 2]
    assert (record["naive_dtype"], record["provenance"]["dtype"]) == ("float32", "bfloat16")


def test_some_stages_alone_are_compared(tiny, capsys):
    chosen = ("naive", "memit", "ece")
    cli.main(Options(shapes=("gpt2-xl",), facts=2, naive=1, times=1, sizes=(1,), edits=0,
                     stages=chosen, json=True))  # fmt: skip
    record = json.loads(capsys.readouterr().out)
    assert tuple(row["stage"] for row in record["stages"]) == chosen
    assert record["speedup_vs_naive"] > 0


def test_a_shape_is_seen_under_prefixes_of_real_length(tiny):
    made, _ = cli.open_bench("gpt2-xl", Options(facts=2, edits=0))
    templates = made.state(made.config("memit"), "memit").contexts
    assert templates[0] == "{}" and len(templates) == 6
    lengths = [len(made.tokenizer(text.replace("{}", ""))["input_ids"]) for text in templates[1:]]
    assert min(lengths) >= 8, "ids beyond the tokenizer's vocabulary would decode to nothing"


def test_a_real_model_has_statistics_over_the_embedded_texts():
    made, _ = cli.open_bench("atlas-gpt2", Options(facts=3, edits=0))
    assert (len(made.facts), made.random, made.contexts) == (3, False, None)
    assert made.stats.moments.keys() == set(presets.configure("atlas-gpt2", "ece-rs").layers)
    mixed = made.mixed(presets.strategy("atlas-gpt2", "ece-plus")).stats.moments
    assert torch.equal(mixed[0], made.stats.moments[0] / 2 + made.named.moments[0] / 2)
    assert made.mixed(presets.strategy("atlas-gpt2", "memit")) is made


def test_a_pretrained_model_is_timed_on_facts_of_the_real_world():
    made, every = cli.open_bench("atlas-gpt2", Options(facts=3, edits=0, world=True))
    assert made.facts == world.facts()[:3] and len(every) > 2000
    texts = list(islice(python_docs(), 2))
    assert cli.read(Options(world=True), 2) == texts and cli.read(Options(), 2) != texts


@gpt2
def test_the_record_is_json_and_says_where_it_comes_from(
    bench, facts, monkeypatch, capsys, tmp_path
):
    made, seen = replace(bench, random=False), []
    monkeypatch.setattr(cli, "open_bench", lambda name, options: (made, facts))
    some = [stage for stage in STAGES if stage.name in ("naive", "memit", "ece")]
    monkeypatch.setattr(cli, "STAGES", some)
    monkeypatch.setattr(cli, "throughput", lambda *_: seen.append(
        torch.get_float32_matmul_precision()) or {})  # fmt: skip
    options = Options(sizes=(1,), edits=4, batch=2, times=1, matmul="high", json=True,
                      out=str(tmp_path / "bench.json"))  # fmt: skip
    cli.main(options)
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "bench.json").read_text())
    assert record["speedup_vs_naive"] > 0 and record["ece_vs_memit"] > 0
    assert record["provenance"]["command"].startswith("ece bench --times 1 --sizes 1 --edits 4")
    assert "--json" in record["provenance"]["command"].split()
    assert len(record["long"]["rows"]) == 2
    assert record["stages"][0]["quality"]["efficacy"] is None
    assert "naive" in table(record)
    assert (seen, torch.get_float32_matmul_precision()) == (["high"], "highest")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"facts": 0}, "'facts' is 0"),
        ({"naive": 0}, "'naive' is 0"),
        ({"times": 2}, "odd"),
        ({"times": -1}, "'times' is -1"),
        ({"sizes": (0,)}, "'sizes'"),
        ({"edits": 20}, "'batch'"),
        ({"shapes": ("gpt5",)}, "known: gpt2-xl"),
        ({"stages": ("naive", "memit")}, "naive, memit and ece"),
        ({"stages": ("naive", "memit", "ece", "fast")}, "choose from"),
        ({"shapes": ("gpt2-xl", "gpt-j-6b"), "out": "one.json"}, "one record"),
        ({"dtype": "int8"}, "'dtype' is 'int8'"),
        ({"facts": "many"}, "'facts' is 'many'"),
    ],
)
def test_options_that_cannot_be_measured_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Options(**wrong)


@pytest.mark.parametrize("device", ["toaster", "", "meta"])
def test_a_shape_on_a_device_that_does_not_work_is_an_error(device):
    with pytest.raises(ModelError, match="setting 'device' is"):
        run(Options(shapes=("gpt2-xl",), device=device, facts=2, edits=0), "gpt2-xl")


@pytest.mark.parametrize("setting", ["facts", "batch"])
def test_more_facts_than_there_are_is_an_error_that_leaves_no_trace(setting):
    options = Options(**{"facts": 2, setting: 99_999, "edits": 100_000}, matmul="high")
    with pytest.raises(ConfigError, match=f"'{setting}' is 99999; there are"):
        run(options)
    assert torch.get_float32_matmul_precision() == "highest"
