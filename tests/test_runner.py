"""Runs: equal settings give equal records, measured when they say, and go on when killed."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from small_runs import FAST, QUICK, records, without_seconds, write_files

from conftest import CITIES, SUBJECTS, TEXTS, build
from ece import atlas, load, storage
from ece.baselines import BASELINES, STRATEGIES
from ece.data import world
from ece.data.loading import load_facts
from ece.engine.parallel import Processes
from ece.errors import ConfigError, DataError, EditError, FactError, StateError
from ece.evaluation.metrics import KINDS, evaluate, harmonic
from ece.experiments import inputs, runner, scoring
from ece.experiments.results import long_form
from ece.experiments.runner import matmul, run
from ece.experiments.spec import Settings


class Killed(BaseException):
    """As abrupt as a signal."""


@pytest.fixture
def settings(tmp_path):
    return Settings(facts=5, batch=2, config=FAST, **write_files(tmp_path))


@pytest.fixture
def again(tokenizers):
    """Run settings on a fresh model."""
    return lambda settings, *more, family="gpt2", **named: run(
        settings, (build(family), tokenizers[family]), *more, **named
    )


def test_a_run_measures_before_at_write_and_after(family, tokenizer, settings):
    model = build(family)
    record = run(settings, (model, tokenizer))
    facts = load_facts("counterfact", 5, 0, settings.data)
    pre = evaluate(build(family), tokenizer, facts).summary()
    after = evaluate(model, tokenizer, facts).summary()
    for name in (*KINDS, "score"):
        assert record["pre"][name] == pytest.approx(pre[name], abs=1e-4)
        assert record["after"][name] == pytest.approx(after[name], abs=1e-4)
    assert [batch["edited"] for batch in record["batches"]] == [2, 4, 5]
    rates = [batch["at_write"]["efficacy"] for batch in record["batches"]]
    mean = (2 * rates[0] + 2 * rates[1] + rates[2]) / 5
    assert record["at_write"]["efficacy"] == pytest.approx(mean, abs=1e-3)
    last = record["batches"][-1]
    assert last["at_write"] == last["after"], "nothing was written in between"
    before = build(family).state_dict()
    changed = {n for n, w in model.state_dict().items() if not torch.equal(w, before[n])}
    assert len(changed) == len(FAST["layers"])
    three = harmonic([record["after"][kind] for kind in KINDS])
    assert record["after"]["score"] == pytest.approx(three, abs=1e-3)


def test_batches_need_not_be_measured_when_they_are_written(again, settings):
    whole, short = again(settings), again(replace(settings, at_write=False))
    assert short["after"] == whole["after"] and short["pre"] == whole["pre"]
    assert set(short["at_write"].values()) == {None}
    for one, other in zip(whole["batches"], short["batches"], strict=True):
        assert one["after"] == other["after"] and one["edited"] == other["edited"]
        assert set(other["at_write"].values()) == {None}
    when = {row[1] for row in long_form(short)[1]}
    assert when == {"pre", "after"}


def test_the_unedited_model_is_measured_once_for_the_same_facts(again, settings, tmp_path):
    """Runs that share a cache share what was measured before; other facts are measured anew."""
    plain = again(replace(settings, method="memit"))
    again(settings, cache=tmp_path / "cache")
    found = again(replace(settings, method="memit"), cache=tmp_path / "cache")
    assert without_seconds(found) == without_seconds(plain)
    count = lambda: len(list((tmp_path / "cache").glob("before-*")))  # noqa: E731
    assert count() == 1
    again(replace(settings, seed=1), cache=tmp_path / "cache")
    assert count() == 2


def test_facts_to_tune_on_are_no_facts_to_test_on(again, settings):
    parts = [replace(settings, part=part, facts=n) for part, n in (("tune", 1), ("test", 4))]
    tune, test = (again(part)["provenance"]["facts"] for part in parts)
    assert all(number % 10 == 0 for number in tune)
    assert all(number % 10 for number in test) and len(set(tune + test)) == 5
    with pytest.raises(ConfigError, match="the part to tune has"):
        again(replace(settings, part="tune"))


def test_equal_settings_give_equal_records_and_another_seed_another_order(again, settings):
    first = without_seconds(again(settings))
    assert first == without_seconds(again(settings))
    other = without_seconds(again(replace(settings, seed=1)))
    assert first["provenance"]["facts"] != other["provenance"]["facts"]
    assert first["provenance"]["run"] != other["provenance"]["run"]


def test_the_origin_says_everything_that_decides_the_result(again, settings):
    total = hashlib.sha256(Path(settings.data).read_bytes()).hexdigest()
    origin = again(replace(settings, sha256=total))["provenance"]
    assert origin["data"] == {"file": "records.json", "sha256": total}
    assert f"--sha256 {total}" in origin["command"] and origin["references"] is None
    assert sorted(origin["facts"])[0] >= 10 and len(origin["facts"]) == 5, "ids of the records"
    assert origin["statistics"].keys() == {"digest", "texts"}
    assert origin["dtype"] == "float32" and origin["threads"] == torch.get_num_threads()
    assert origin["settings"] == json.loads(json.dumps(asdict(settings.configure())))
    with pytest.raises(DataError, match="its SHA-256 is"):
        again(replace(settings, sha256="0" * 64))


@pytest.mark.parametrize("method", STRATEGIES)
def test_every_method_of_the_editor_runs(method, again, settings):
    own = FAST | {"steps": 16, "own_steps": settings.configure().own_steps}
    chosen = replace(settings, method=method, facts=2, config=own)
    record = again(chosen, family="llama")
    stated = json.loads(json.dumps(asdict(chosen.strategy())))
    stated.pop("prompts", None)  # off: as if there were no such setting
    assert record["provenance"]["identity"]["strategy"] == stated
    assert record["edit"]["steps"] > 0 and record["edit"]["neurons"].keys() == {"0", "1"}


@pytest.mark.parametrize("method", BASELINES)
def test_every_baseline_runs_and_goes_on_when_killed(method, again, settings, tmp_path):
    chosen = replace(settings, method=method, facts=3, config=QUICK[method])
    cache = tmp_path / "cache"
    whole = again(chosen, family="llama", cache=cache)
    assert whole["provenance"]["statistics_tokens"] is None
    assert len(whole["batches"]) == 2 and "edit" in whole["seconds"]
    line, cells, batches = long_form(whole)
    assert line["settings"]["strategy"] == {} and cells and batches

    def deadly(stage, done, total):
        if stage == "edit" and done == 1:
            raise Killed

    with pytest.raises(Killed):
        again(chosen, deadly, tmp_path / "work", cache, family="llama")
    resumed = again(chosen, None, tmp_path / "work", cache, family="llama")
    assert without_seconds(resumed) == without_seconds(whole)


@pytest.mark.parametrize(
    "method, calls", [("ece-plus", 1), ("ece-plus", 3), ("rome", 3), ("prune", 4)]
)
def test_a_killed_run_goes_on_to_the_same_record(
    again, settings, tmp_path, monkeypatch, method, calls
):
    own = {n: v for n, v in FAST.items() if n not in ("clusters", "own_steps")}
    own |= {"own_steps": 3} if method == "ece-plus" else {}
    chosen = replace(settings, method=method, config=own)
    whole = again(chosen)
    plain, left = scoring.evaluate, iter(range(calls))

    def deadly(*arguments, **named):
        if next(left, None) is None:
            raise Killed
        return plain(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "evaluate", deadly)
        try:
            again(chosen, work=tmp_path / "work")
        except Killed:
            assert next(left, None) is None
    resumed = again(chosen, work=tmp_path / "work")
    assert without_seconds(resumed) == without_seconds(whole)
    assert min(resumed["seconds"].values()) > 0


def test_a_work_folder_belongs_to_one_run(again, settings, tmp_path):
    """Else what a run measured in another way would be mixed with this one."""
    work = tmp_path / "work"
    again(settings, work=work)
    files = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    text = tmp_path / "other.txt"
    text.write_text("\n".join(TEXTS[12:24]))
    for other in (
        dict(text_tokens=3),
        dict(stats_tokens=60),  # statistics are part of the run
        dict(stats_text=str(text)),
        dict(config=FAST | {"lam": 21.0}),
    ):
        with pytest.raises(StateError, match="work.*(text_tokens|stats_tokens|sources|config)"):
            again(replace(settings, **other), work=work)
    assert files == {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}


def test_a_run_that_could_not_start_claims_no_folder(again, settings, tmp_path):
    wrong = replace(settings, data=str(tmp_path / "missing.json"))
    with pytest.raises(DataError):
        again(wrong, work=tmp_path / "work")
    assert len(again(settings, work=tmp_path / "work")["batches"]) == 3


def test_a_folder_that_cannot_be_written_is_found_first(again, settings, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("work", "cache"):
        with pytest.raises(ConfigError, match="file/.*: Not a directory; name a folder"):
            again(replace(settings, data="missing"), **{name: tmp_path / "file" / "folder"})


@pytest.mark.parametrize(
    "size, error", [(500, "setting 'context_tokens' is 500"), (120, "prompt, prefix and target")]
)
def test_prefixes_that_do_not_fit_are_found_before_the_statistics(
    size, error, again, settings, monkeypatch
):
    monkeypatch.setattr(runner, "statistics", lambda *_: pytest.fail("began"))
    with pytest.raises((ConfigError, FactError), match=error):
        again(replace(settings, config=FAST | {"context_tokens": size}))


def test_rates_at_points_are_those_of_a_run_that_ends_there(again, settings):
    record = again(replace(settings, points=(2, 4)))
    run = again(replace(settings, facts=4, points=(4,), text_tokens=9))
    (last,), ended = run["points"], run["after"]
    assert [point["edited"] for point in record["points"]] == [2, 4]
    # Which neighbours are edited is a matter of the whole run; free texts are read at its end.
    late = ("unedited", "fluency", "consistency")
    part = {name for name in ended if not any(word in name for word in late)}
    assert {n: record["points"][1][n] for n in part} == {n: ended[n] for n in part}
    # The last point is not measured again: it is what was measured at the end.
    plain = {name for name in last if "unedited" not in name}
    assert last.keys() == record["points"][1].keys() and "first_score" in plain
    assert {n: record["points"][1][n] for n in plain} == {n: last[n] for n in plain}


def test_layers_can_be_chosen_by_attribution(again, settings):
    record = again(replace(settings, adaptive=1))
    assert len(record["provenance"]["settings"]["layers"]) == 1
    assert record["provenance"]["identity"]["config"]["layers"] is None
    assert "--adaptive 1" in record["provenance"]["command"]


def test_texts_are_written_about_the_first_facts_only(again, settings, monkeypatch):
    counts, plain = [], scoring.write_texts

    def counted(model, tokenizer, facts, *more):
        counts.append(len(facts))
        return plain(model, tokenizer, facts, *more)

    monkeypatch.setattr(scoring, "write_texts", counted)
    record = again(replace(settings, text_tokens=12, text_facts=3))
    # Before the edits; then of the first batch both facts, of the second one; then at the end.
    assert counts == [3, 2, 1, 3]
    assert record["after"]["fluency"] > 0 and "fluency" in record["at_write"]
    counts.clear()
    assert "fluency" not in again(settings)["after"] and not counts


def test_consistency_is_taken_against_a_file_of_references(again, settings, tmp_path):
    named = records()
    for i, record in enumerate(named):
        record["requested_rewrite"]["target_new"]["id"] = f"Q{i}"
        record["generation_prompts"] = ["Mira Velan lives"]
    data, path = tmp_path / "with_ids.json", tmp_path / "snippets.json"
    data.write_text(json.dumps(named))
    samples = [{"text": "Mira Velan lives"}]
    entries = [{"relation_id": "P1", "target_id": f"Q{i}", "samples": samples} for i in range(6)]
    path.write_text(json.dumps(entries))
    files = dict(data=str(data), references=str(path))
    record = again(replace(settings, **files, text_tokens=12, facts=2))
    assert 0 < record["after"]["consistency"] <= 100
    assert record["provenance"]["references"]["file"] == "snippets.json"


def test_compat_changes_the_questions_of_zsre_alone(again, tokenizers, tmp_path, settings):
    questions = [
        {
            "subject": subject,
            "src": f"Where does {subject} live?",
            "rephrase": f"What is the home of {subject}?",
            "answers": [CITIES[i]],
            "loc": "nq question: where is it cold",
            "loc_ans": "Oslo",
        }
        for i, subject in enumerate(SUBJECTS[:3])
    ]
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps(questions))
    chosen, rates = replace(settings, data=str(path), dataset="zsre", facts=2), {}
    for compat in (False, True):
        record = again(replace(chosen, compat=compat), family="llama")
        facts = load_facts("zsre", 2, 0, path)
        pre = evaluate(build("llama"), tokenizers["llama"], facts, compat=compat)
        expected = pre.summary("accuracy")["specificity"]
        assert record["pre"]["specificity"] == pytest.approx(expected, abs=1e-4)
        assert record["provenance"]["identity"]["compat"] is compat
        rates[compat] = again(replace(settings, facts=1, compat=compat))["after"]
    assert rates[False] == rates[True], "CounterFact has nothing to repeat"


@pytest.mark.parametrize("dataset", ["counterfact", "zsre"])
def test_facts_of_the_world_and_a_text_of_python_need_no_file(again, settings, dataset):
    named = dict(data="world", stats_text="python-docs", stats_tokens=60, dataset=dataset)
    record = again(replace(settings, facts=2, at_write=dataset == "counterfact", **named))
    assert (record["at_write"]["score"] is None) == (dataset == "zsre")
    origin = record["provenance"]
    sources = origin["identity"]["sources"]
    assert origin["data"] == {"file": "world", "sha256": sources["data"]}
    assert origin["facts"] == [fact.id for fact in world.facts(dataset, 2)]
    assert sources["stats_text"] and origin["statistics_tokens"] >= 60
    assert "--data world" in origin["command"] and "--stats-text python-docs" in origin["command"]


def test_known_facts_alone_are_edited(settings, tmp_path):
    """Every other record gets a wrong answer, which no model states."""
    named = atlas.records()[:40]
    for record in named[::2]:
        rewrite = record["requested_rewrite"]
        rewrite["target_true"], rewrite["target_new"] = (
            rewrite["target_new"],
            rewrite["target_true"],
        )
    path = tmp_path / "half.json"
    path.write_text(json.dumps(named))
    loaded = load("atlas-gpt2")
    half = replace(settings, data=str(path), known=True)
    ids = run(half, loaded)["provenance"]["facts"]
    drawn = [fact.id for fact in load_facts("counterfact", seed=0, path=path)]
    right = {record["case_id"] for record in named[1::2]}
    assert set(ids) <= right and len(ids) == 5
    assert ids == sorted(ids, key=drawn.index), "in the order of the seed"
    with pytest.raises(ConfigError, match="'facts' is 40; the model states .* of the 40 facts"):
        run(replace(half, facts=40), loaded)


def test_a_baseline_learns_from_the_facts_that_are_not_edited(again, settings, monkeypatch):
    """Also where known facts alone are edited, which need not be the first of the seed."""
    monkeypatch.setattr(inputs, "known", lambda model, tokenizer, facts: facts[::2])
    seen, plain = [], runner.trained

    def watched(baseline, task, others, *more):
        seen.extend(others)
        return plain(baseline, task, others, *more)

    monkeypatch.setattr(runner, "trained", watched)
    chosen = replace(settings, method="mend", config=QUICK["mend"], facts=2, known=True)
    ids = again(chosen, family="llama")["provenance"]["facts"]
    every = [fact.id for fact in load_facts("counterfact", seed=0, path=settings.data)]
    assert ids == every[::2][:2] and [fact.id for fact in seen] == [
        i for i in every if i not in ids
    ]


def test_statistics_stop_at_the_tokens_allowed(again, settings, tokenizers):
    origin = again(replace(settings, stats_tokens=60))["provenance"]
    longest = max(len(tokenizers["gpt2"](text)["input_ids"]) for text in TEXTS)
    assert 60 <= origin["statistics_tokens"] < 60 + longest


def test_the_passes_of_the_second_moments_have_the_presets_memory(again, settings, monkeypatch):
    seen = []

    def moments(model, tokenizer, texts, layers, path, max_tokens, *more):
        seen.append(max_tokens)
        return storage.moments(model, tokenizer, texts, layers, path, max_tokens, *more)

    monkeypatch.setattr(inputs, "moments", moments)
    again(replace(settings, config=FAST | {"max_tokens": 200}))
    assert seen == [200]


def test_the_cache_holds_statistics_by_what_they_are_of(again, settings, tmp_path):
    cache = tmp_path / "cache"
    first = again(settings, cache=cache)
    names = {path.name: path.stat().st_mtime_ns for path in cache.glob("stats-*.safetensors")}
    assert again(replace(settings, seed=4), cache=cache) and len(names) == 1
    assert without_seconds(again(settings, cache=cache)) == without_seconds(first)
    assert names == {
        path.name: path.stat().st_mtime_ns for path in cache.glob("stats-*.safetensors")
    }
    again(replace(settings, stats_tokens=60), cache=cache)
    assert len(list(cache.glob("stats-*.safetensors"))) == 2
    again(settings, None, tmp_path / "one", cache)
    before = {kind: len(list(cache.glob(f"{kind}-*"))) for kind in ("stats", "values")}
    again(replace(settings, matmul="medium"), None, tmp_path / "two", cache)
    for kind, count in before.items():  # other products, other numbers
        assert len(list(cache.glob(f"{kind}-*"))) > count > 0, kind


def test_a_fact_that_the_model_cannot_read_is_named_before_the_run(again, settings, tmp_path):
    long = records()
    long[0]["neighborhood_prompts"] = ["Ilo lives in " * 60]
    path = tmp_path / "long.json"
    path.write_text(json.dumps(long))
    with pytest.raises(FactError, match="fact 10, field 'neighbours': .* the model reads 128"):
        again(replace(settings, data=str(path), facts=6))
    with pytest.raises(EditError, match="context_tokens"):
        again(replace(settings, config=FAST | {"context_tokens": 500}))


def test_of_an_answer_of_two_tokens_half_can_be_right():
    """The embedded world's answers are single tokens, where accuracy and top-1 are the same."""
    model, tokenizer = load("atlas-gpt2")
    facts = atlas.facts("counterfact", 20)
    plain = [replace(fact, target=fact.true, true="") for fact in facts]
    longer = [replace(fact, target=f"{fact.target} {facts[0].target}") for fact in plain]
    one, two = (evaluate(model, tokenizer, some) for some in (plain, longer))
    assert (one.efficacy_accuracy == one.efficacy_top1).all() and one.efficacy_top1.mean() > 0.9
    assert (two.efficacy_accuracy == one.efficacy_top1 / 2).all() and not two.efficacy_top1.any()


def test_the_precision_of_products_is_restored():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), matmul("high"):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


def test_a_baseline_of_its_own_runs_in_one_process():
    with pytest.raises(ConfigError, match="'ft-l', which runs in one process"):
        run(Settings(method="ft-l", facts=1, batch=1), crew=object.__new__(Processes))
