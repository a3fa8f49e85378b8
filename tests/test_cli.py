"""The experiment: one line of JSON, equal runs give equal results, errors name the flag."""

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from conftest import CITIES, SUBJECTS, TEXTS, build
from ece.baselines import BASELINES, numbers_of
from ece.config import METHODS, Config, configure
from ece.data.loading import load_facts
from ece.errors import ConfigError, DataError, StateError
from ece.evaluation.metrics import KINDS, evaluate, harmonic
from ece.experiments import scoring as asking
from ece.experiments.cli import main
from ece.experiments.flags import field_docs
from ece.experiments.results import ResultError, commit, read_result, write_result
from ece.experiments.runner import run
from ece.experiments.spec import Settings

FAST = {"layers": (0, 1), "lam": 20.0, "steps": 3, "own_steps": 1, "clusters": 2, "contexts": 1}


class Killed(BaseException):
    """As abrupt as a signal."""


QUICK: dict[str, dict] = {
    **{name: dict(steps=2, layers=(1,)) for name in ("ft-l", "ft-w", "ft-m")},
    "mend": dict(steps=2, rank=4),
    **{name: dict(steps=2, scope_steps=2, width=32, batch=2) for name in ("serac", "serac-seen")},
}
"""Settings with which a baseline is done in a moment."""


@pytest.fixture
def files(tmp_path):
    """Records about the people that the test tokenizer knows, and text about them."""
    records = [
        {
            "case_id": i,
            "requested_rewrite": {
                "prompt": "{} lives in",
                "relation_id": "P1",
                "target_new": {"str": CITIES[i]},
                "target_true": {"str": CITIES[i - 1]},
                "subject": subject,
            },
            "paraphrase_prompts": [f"The home of {subject} is"],
            "neighborhood_prompts": [f"{SUBJECTS[i - 1]} lives in"],
            "generation_prompts": [f"{subject} is"],
        }
        for i, subject in enumerate(SUBJECTS)
    ]
    data, text = tmp_path / "records.json", tmp_path / "text.txt"
    data.write_text(json.dumps(records))
    text.write_text("\n".join(["", *TEXTS[:40]]))
    return {"data": str(data), "stats_text": str(text)}


@pytest.fixture
def folder(tmp_path, tokenizers):
    """A tiny GPT-2 on disk under the name of a known model."""
    path = tmp_path / "atlas-gpt2"
    build("gpt2").save_pretrained(path)
    tokenizers["gpt2"].save_pretrained(path)
    return str(path)


@pytest.fixture
def settings(files):
    return Settings(facts=5, batch=2, config=FAST, **files)


def without_seconds(result):
    return {name: value for name, value in result.items() if name != "seconds"}


def test_a_run_measures_before_at_write_and_after(family, tokenizer, settings):
    model = build(family)
    result = run(settings, (model, tokenizer))
    facts = load_facts("counterfact", 5, 0, settings.data)
    pre = evaluate(build(family), tokenizer, facts).summary()
    after = evaluate(model, tokenizer, facts).summary()
    for name in (*KINDS, "score"):
        assert result["pre"][name] == pytest.approx(pre[name], abs=1e-4)
        assert result["after"][name] == pytest.approx(after[name], abs=1e-4)
    assert [batch["edited"] for batch in result["batches"]] == [2, 4, 5]
    rates = [batch["at_write"]["efficacy"] for batch in result["batches"]]
    mean = (2 * rates[0] + 2 * rates[1] + rates[2]) / 5
    assert result["at_write"]["efficacy"] == pytest.approx(mean, abs=1e-3)
    last = result["batches"][-1]
    assert last["at_write"] == last["after"], "nothing was written in between"
    before = build(family).state_dict()
    changed = {n for n, w in model.state_dict().items() if not torch.equal(w, before[n])}
    assert len(changed) == len(FAST["layers"])
    assert result["after"]["score"] == pytest.approx(
        harmonic([result["after"][kind] for kind in KINDS]), abs=1e-3
    )


def test_equal_settings_give_equal_results_and_another_seed_another_order(tokenizers, settings):
    def once(seed):
        chosen = Settings(**{**vars(settings), "seed": seed})
        return run(chosen, (build("gpt2"), tokenizers["gpt2"]))

    first = without_seconds(once(0))
    assert first == without_seconds(once(0))
    assert first != without_seconds(once(1))


def words_of(settings, folder):
    """The command line of a run with the model in `folder`."""
    return Settings(**{**vars(settings), "model": folder}).command().split()[3:]


def test_the_command_line_prints_one_line_of_json_and_writes_the_same(
    settings, folder, tmp_path, capsys
):
    path = tmp_path / "results" / "cell.json"
    assert main([*words_of(settings, folder), "--json", "--out", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result = json.loads(out)
    assert read_result(path, method="ece-rs", seed=0) == result
    assert set(result["seconds"]) >= {"values", "keys", "solve", "evaluate"}
    assert min(result["seconds"].values()) > 0
    origin = result["provenance"]
    config = configure(folder, "ece-rs", **FAST)
    assert origin["settings"] == json.loads(json.dumps(vars(config)))
    assert origin["dtype"] == "float32" and origin["threads"] == torch.get_num_threads()
    main([*origin["command"].split()[3:], "--json"])
    again = json.loads(capsys.readouterr().out)
    assert without_seconds(again) == without_seconds(result), "its command runs the same"


def test_without_json_a_table_names_rows_and_columns(settings, folder, capsys):
    main(words_of(settings, folder))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [*KINDS, "score"]
    assert [line.split()[0] for line in lines[2:5]] == ["pre", "at_write", "after"]
    assert "solve" in lines[5]


def test_the_file_of_statistics_is_written_once_and_then_read(settings, folder, tmp_path, capsys):
    path = tmp_path / "moments.safetensors"
    words = [*words_of(settings, folder), "--json", "--stats", str(path)]
    main(words)
    first = json.loads(capsys.readouterr().out)
    written = path.stat().st_mtime_ns
    Path(settings.stats_text).unlink()
    main(words)
    assert json.loads(capsys.readouterr().out)["after"] == first["after"]
    assert path.stat().st_mtime_ns == written


def test_statistics_stop_at_the_tokens_allowed(tokenizers, settings):
    few = Settings(**{**vars(settings), "stats_tokens": 100})
    result = run(few, (build("gpt2"), tokenizers["gpt2"]))
    longest = max(len(tokenizers["gpt2"](text)["input_ids"]) for text in TEXTS)
    assert 100 <= result["provenance"]["statistics_tokens"] < 100 + longest


WRONG = [
    (["--method", "ecce"], "--method", "ece-rs"),
    (["--dataset", "wiki"], "--dataset", "counterfact"),
    (["--model", "gpt-17"], "unknown model 'gpt-17'", "atlas-gpt2"),
    (["--facts", "many"], "--facts", "int"),
    (["--facts", "0"], "--facts", ">= 1"),
    (["--p", "1.5"], "--p", "(0, 1]"),
    (["--own-steps", "30"], "--own-steps", "at most"),
    (["--layers", "2,1"], "--layers", "increasing"),
    (["--layers", "a"], "--layers", "list of numbers"),
    (["--scorer", "best"], "--scorer", "residual"),
    (["--data", "absent.json"], "absent.json", "No such file"),
    (["--frobnicate"], "--frobnicate", ""),
    (["--device", "toaster"], "argument --device", "toaster"),
    (["--model", "/no/such/folder/gpt2-xl"], "argument --model", "is no folder"),
]


@pytest.mark.parametrize(("words", "named", "also"), WRONG)
def test_bad_arguments_exit_with_2_and_name_the_flag(words, named, also, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert named in last and also in last


def test_a_model_without_text_for_its_statistics_asks_for_it(settings, folder, capsys):
    without = Settings(**{**vars(settings), "stats_text": None})
    with pytest.raises(SystemExit):
        main(words_of(without, folder))
    assert "argument --stats-text" in capsys.readouterr().err


def test_every_number_of_the_method_is_a_flag_with_its_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in field_docs(Config):
        assert "--" + name.replace("_", "-") in text
    assert set(field_docs(Config)) == set(vars(configure("atlas-gpt2", "ece-rs")))
    assert "--lambda" in text and "--no-history" in text


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(method, tokenizers, settings):
    own = {n: value for n, value in FAST.items() if n not in METHODS[method]}
    own["steps"] = max(6, METHODS[method].get("own_steps", 0))
    chosen = Settings(**{**vars(settings), "method": method, "facts": 2, "config": own})
    result = run(chosen, (build("llama"), tokenizers["llama"]))
    wanted = configure("atlas-gpt2", method, **own)
    for name in METHODS[method]:
        assert result["provenance"]["settings"][name] == getattr(wanted, name)


@pytest.mark.parametrize("method", BASELINES)
def test_every_baseline_runs_and_goes_on_when_killed(method, tokenizers, settings, tmp_path):
    own = QUICK.get(method, {})
    chosen = Settings(**{**vars(settings), "method": method, "facts": 3, "config": own})
    cache = tmp_path / "cache"
    whole = run(chosen, (build("llama"), tokenizers["llama"]), cache=cache)
    assert whole["provenance"]["statistics_tokens"] is None
    assert len(whole["batches"]) == 2 and "edit" in whole["seconds"]
    for name, value in asdict(numbers_of("atlas-gpt2", method, **own)).items():
        assert whole["provenance"]["settings"][name] == json.loads(json.dumps(value))
    seen = []

    def deadly(stage, done, total):
        seen.append(done)
        if stage == "edit" and done == 1:
            raise Killed

    pair = lambda: (build("llama"), tokenizers["llama"])  # noqa: E731
    with pytest.raises(Killed):
        run(chosen, pair(), deadly, work=tmp_path / "work", cache=cache)
    again = run(chosen, pair(), work=tmp_path / "work", cache=cache)
    assert without_seconds(again) == without_seconds(whole)


def test_a_setting_of_another_method_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--method", "ft-l", "--lam", "3"])
    assert "'lam' is not one of method ft-l" in capsys.readouterr().err


def test_rates_at_points_are_those_of_a_run_that_ends_there(tokenizers, settings):
    chosen = Settings(**{**vars(settings), "points": (2, 4), "facts": 6})
    result = run(chosen, (build("gpt2"), tokenizers["gpt2"]))
    short = Settings(**{**vars(settings), "facts": 4})
    assert [point["edited"] for point in result["points"]] == [2, 4]
    ended = run(short, (build("gpt2"), tokenizers["gpt2"]))["after"]
    # Which neighbours are edited is a matter of the whole run, so that all points ask the same.
    part = {k for k in ended if "unedited" not in k}
    assert {k: v for k, v in result["points"][1].items() if k in part} == {
        k: ended[k] for k in part
    }
    with pytest.raises(ConfigError, match="'points' holds 3; it takes ends of batches of 2"):
        Settings(batch=2, points=(3,))


def test_layers_can_be_chosen_by_attribution(tokenizers, settings):
    chosen = Settings(**{**vars(settings), "adaptive": 1})
    result = run(chosen, (build("gpt2"), tokenizers["gpt2"]))
    assert len(result["provenance"]["settings"]["layers"]) == 1
    assert "--adaptive 1" in result["provenance"]["command"]


def test_texts_may_be_written_of_the_first_facts_only(tokenizers, settings):
    some = Settings(**{**vars(settings), "text_tokens": 12, "text_facts": 2})
    result = run(some, (build("gpt2"), tokenizers["gpt2"]))
    whole = Settings(**{**vars(some), "text_facts": 5})
    assert result["after"]["fluency"] is None or result["after"]["fluency"] >= 0
    assert run(whole, (build("gpt2"), tokenizers["gpt2"]))["after"].keys() == result["after"].keys()


def test_settings_reject_what_no_run_can_use():
    with pytest.raises(ConfigError, match="'method' is 'x'; known: ece-as"):
        Settings(method="x")
    with pytest.raises(ConfigError, match="'batch' is 0"):
        Settings(batch=0)


def test_a_result_file_is_checked(tokenizers, settings, tmp_path):
    result = run(settings, (build("gpt2"), tokenizers["gpt2"]))
    path = tmp_path / "cell.json"
    write_result(result, path)
    assert read_result(path) == result
    with pytest.raises(ResultError, match="cell.json, field 'seed': is 0, wanted is 1"):
        read_result(path, seed=1)
    write_result({**result, "after": {**result["after"], "score": 101}}, path)
    with pytest.raises(ResultError, match="field 'after.score': 101 is no rate"):
        read_result(path)
    write_result({k: v for k, v in result.items() if k != "provenance"}, path)
    with pytest.raises(ResultError, match="'provenance': is missing"):
        read_result(path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(ResultError, match="is not JSON"):
        read_result(path)
    with pytest.raises(ResultError, match="No such file"):
        read_result(tmp_path / "absent.json")


def git(folder, *words):
    names = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "-C", str(folder), *names, *words], check=True, capture_output=True)


def test_the_commit_says_whether_the_code_is_changed(tmp_path):
    assert commit(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    code = tmp_path / "ece"
    code.mkdir()
    (code / "a.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    assert len(commit(code)) == 40
    (tmp_path / "result.json").write_text("{}")
    assert len(commit(code)) == 40, "a new result is no change of the code"
    (code / "a.py").write_text("2\n")
    assert commit(code).endswith("-dirty")


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "ece.experiments.cli", "--method", "none"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 2 and "ece-rs" in done.stderr and done.stdout == ""


def test_an_embedded_model_takes_its_statistics_from_its_own_corpus(settings, folder, monkeypatch):
    parent = Path(folder).parent
    monkeypatch.setattr("ece.experiments.inputs.CHECKPOINTS", parent)
    monkeypatch.setattr("ece.model.CHECKPOINTS", parent)
    own = Settings(**{**vars(settings), "stats_text": None, "stats_tokens": 300})
    result = run(own)
    assert result["model"] == "atlas-gpt2"
    assert 300 <= result["provenance"]["statistics_tokens"] < 600


def test_free_texts_are_measured_when_asked_for(tokenizers, settings):
    chosen = Settings(**{**vars(settings), "text_tokens": 12})
    result = run(chosen, (build("gpt2"), tokenizers["gpt2"]))
    assert "--text-tokens 12" in result["provenance"]["command"]
    assert "fluency" in result["after"] and "consistency" in result["at_write"]
    assert "fluency" not in run(settings, (build("gpt2"), tokenizers["gpt2"]))["after"]


def test_the_files_that_were_read_are_told_by_checksum(tokenizers, settings, tmp_path):
    loaded = build("gpt2"), tokenizers["gpt2"]
    total = hashlib.sha256(Path(settings.data).read_bytes()).hexdigest()
    checked = replace(settings, sha256=total, facts=1)
    origin = run(checked, loaded)["provenance"]
    assert origin["data"] == {"file": "records.json", "sha256": total}
    assert origin["references"] is None and not origin["compat"]
    assert f"--sha256 {total}" in origin["command"]
    with pytest.raises(DataError, match="its SHA-256 is"):
        run(replace(checked, sha256="0" * 64), loaded)


def test_consistency_is_taken_against_a_file_of_references(tokenizers, settings, tmp_path):
    records = json.loads(Path(settings.data).read_text())
    for i, record in enumerate(records):
        record["requested_rewrite"]["target_new"]["id"] = f"Q{i}"
        record["generation_prompts"] = ["Mira Velan lives"]
    data, path = tmp_path / "with_ids.json", tmp_path / "snippets.json"
    data.write_text(json.dumps(records))
    texts = [
        {"relation_id": "P1", "target_id": f"Q{i}", "samples": [{"text": "Mira Velan lives"}]}
        for i in range(len(records))
    ]
    path.write_text(json.dumps(texts))
    chosen = replace(
        settings, data=str(data), references=str(path), text_tokens=12, facts=2, batch=2
    )
    result = run(chosen, (build("gpt2"), tokenizers["gpt2"]))
    assert 0 < result["after"]["consistency"] <= 100
    assert result["provenance"]["references"]["file"] == "snippets.json"
    with pytest.raises(ConfigError, match="setting 'references' needs free texts"):
        replace(chosen, text_tokens=0)


def test_compat_changes_what_is_asked_of_zsre_alone(tokenizers, tmp_path, settings):
    records = [
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
    path.write_text(json.dumps(records))
    loaded = build("llama"), tokenizers["llama"]
    chosen = replace(settings, data=str(path), dataset="zsre", facts=2, batch=2)
    for compat in (False, True):
        result = run(replace(chosen, compat=compat), (build("llama"), tokenizers["llama"]))
        facts = load_facts("zsre", 2, 0, path)
        pre = evaluate(*loaded, facts, compat=compat).summary("accuracy")
        assert result["pre"]["specificity"] == pytest.approx(pre["specificity"], abs=1e-4)
        assert ("--compat" in result["provenance"]["command"]) is compat
        assert result["provenance"]["compat"] is compat
    same = replace(settings, facts=1)
    plain, compat = (
        run(replace(same, compat=c), (build("llama"), tokenizers["llama"])) for c in (False, True)
    )
    assert plain["after"] == compat["after"]


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_killed_run_goes_on_to_the_same_result(
    tokenizers, settings, tmp_path, monkeypatch, calls
):
    """Killed while a batch is measured, before or after its state is on disk."""
    chosen = Settings(**{**vars(settings), "batch": 2})
    whole = run(chosen, (build("gpt2"), tokenizers["gpt2"]))
    real, seen = asking.evaluate, []

    def deadly(*arguments, **named):
        seen.append(1)
        if len(seen) == calls + 1:  # the first is before any edit
            raise Killed
        return real(*arguments, **named)

    monkeypatch.setattr(asking, "evaluate", deadly)
    with pytest.raises(Killed):
        run(chosen, (build("gpt2"), tokenizers["gpt2"]), work=tmp_path)
    monkeypatch.undo()
    again = run(chosen, (build("gpt2"), tokenizers["gpt2"]), work=tmp_path)
    assert without_seconds(again) == without_seconds(whole)
    assert min(again["seconds"].values()) > 0


def test_a_work_folder_belongs_to_one_run(tokenizers, settings, tmp_path):
    """Else the scores of a run that asked in another way would be mixed with this one's."""
    run(settings, (build("gpt2"), tokenizers["gpt2"]), work=tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = replace(settings, text_tokens=3)
    with pytest.raises(StateError, match="another run .*name another folder"):
        run(other, (build("gpt2"), tokenizers["gpt2"]), work=tmp_path)
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_run_that_could_not_start_claims_no_folder(tokenizers, settings, tmp_path):
    wrong = replace(settings, data=str(tmp_path / "missing.json"))
    with pytest.raises(DataError):
        run(wrong, (build("gpt2"), tokenizers["gpt2"]), work=tmp_path / "work")
    result = run(settings, (build("gpt2"), tokenizers["gpt2"]), work=tmp_path / "work")
    assert len(result["batches"]) > 0


def test_a_result_of_other_settings_is_not_overwritten(settings, folder, tmp_path, capsys):
    path = tmp_path / "cell.json"
    words = [*words_of(settings, folder), "--out", str(path)]
    assert main(words) == 0
    held = path.read_text()
    with pytest.raises(SystemExit):
        main([*words, "--lam", "21"])
    assert "holds the result of other settings" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--compat"])
    other = Path(settings.data).with_name("others.json")
    other.write_text(Path(settings.data).read_text())
    with pytest.raises(SystemExit):
        main([*words, "--data", str(other)])
    assert path.read_text() == held
    assert main(words) == 0  # the same settings may run again
    older = json.loads(path.read_text())
    del older["provenance"]["settings"]["restrain"]  # a file from before this number was there
    path.write_text(json.dumps(older))
    assert main(words) == 0
