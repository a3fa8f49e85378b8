"""The command: one line of JSON, every setting a flag, errors that name it and exit with 2."""

import json
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import FAST, records, without_seconds, write_files, write_model

import ece
from ece import Config, presets
from ece.baselines import BASELINES, STRATEGIES
from ece.evaluation.metrics import KINDS
from ece.experiments.cli import COMMANDS, main
from ece.experiments.flags import field_docs, reader_of, text_of
from ece.experiments.results import read_record
from ece.experiments.spec import Settings

KEYS = ["model", "method", "dataset", "facts", "batch", "seed", "pre", "at_write", "after",
        "batches", "edit", "seconds", "provenance"]  # fmt: skip
ORIGIN = ["command", "commit", "versions", "device", "dtype", "threads", "settings",
          "model_fingerprint", "statistics_tokens", "data", "references", "compat"]  # fmt: skip


@pytest.fixture
def settings(tmp_path, tokenizers):
    """A run of two facts on a tiny model in a folder."""
    folder = write_model(tmp_path, tokenizers["gpt2"])
    return Settings(folder, facts=2, batch=2, config=FAST, **write_files(tmp_path))


def words(settings: Settings) -> list[str]:
    return shlex.split(settings.command())[1:]


def failed(capsys, *given: str) -> str:
    """The last lines of what a command says that must fail, as one."""
    try:
        code = main(list(given))
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and "Traceback" not in err
    return " ".join(err.replace("│", " ").split())


def test_a_run_prints_one_line_of_json_and_writes_the_same(settings, tmp_path, capsys):
    path = tmp_path / "new" / "cell.json"
    assert main([*words(settings), "--json", "--out", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    record = json.loads(out)
    assert list(record) == KEYS and list(record["provenance"])[: len(ORIGIN)] == ORIGIN
    assert read_record(path) == record
    assert set(record["seconds"]) >= {"values", "keys", "solve", "evaluate"}
    assert min(record["seconds"].values()) > 0
    assert main([*shlex.split(record["provenance"]["command"])[1:], "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert without_seconds(again) == without_seconds(record), "its command runs the same"


def test_without_json_a_table_names_rows_and_columns(settings, capsys):
    main(words(settings))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [*KINDS, "score"]
    assert [line.split()[0] for line in lines[2:5]] == ["pre", "at_write", "after"]
    assert "solve" in lines[5]


def test_the_file_of_statistics_is_written_once_and_then_read(settings, tmp_path, capsys):
    path = tmp_path / "moments.safetensors"
    given = [*words(settings), "--json", "--stats", str(path)]
    main(given)
    first, written = json.loads(capsys.readouterr().out), path.stat().st_mtime_ns
    main(given)
    assert json.loads(capsys.readouterr().out)["after"] == first["after"]
    alone = replace(settings, stats_text=None, stats=str(path))
    main([*words(alone), "--json"])
    assert json.loads(capsys.readouterr().out)["after"] == first["after"]
    assert path.stat().st_mtime_ns == written
    assert "moments.safetensors" in failed(capsys, *given, "--stats-tokens", "40")


KINDS_OF_FLAGS = {
    int: st.integers(),
    float: st.floats(allow_nan=False),
    float | None: st.none() | st.floats(allow_nan=False),
    tuple[int, ...]: st.lists(st.integers()).map(tuple),
    tuple[int, ...] | None: st.none() | st.lists(st.integers()).map(tuple),
    Literal["a", "b"] | None: st.sampled_from(["a", "b", None]),
}


@given(data=st.data(), kind=st.sampled_from(list(KINDS_OF_FLAGS)))
def test_a_value_reads_back_as_it_was_written(data, kind):
    value = data.draw(KINDS_OF_FLAGS[kind])
    assert reader_of(kind)[1](text_of(value)) == value


def test_flags_become_the_settings_they_name(monkeypatch, capsys):
    seen = []

    def run(settings, **named):
        seen.append(settings)
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("ece.experiments.cli.run", run)
    given = "--layers 0,1 --lambda 3 --clusters none --no-history --shared learned --points 2,4"
    given += " --batch 2 --stop 0.5 --text-tokens 7 --dtype bfloat16 --values-from again"
    text = failed(capsys, "run", *given.split())
    assert "ece run: error: [Errno 28] No space left on device: 'somewhere'" in text
    own = {"layers": (0, 1), "lam": 3.0, "clusters": None, "history": False, "shared": "learned",
           "stop": 0.5, "values_from": "again"}  # fmt: skip
    wanted = Settings(points=(2, 4), batch=2, text_tokens=7, dtype="bfloat16", config=own)
    assert seen == [wanted]
    failed(capsys, *shlex.split(wanted.command())[1:])
    assert seen == [wanted, wanted], "the command runs the settings it was made from"
    failed(capsys, "run", "--method", "mend", "--layers", "1,2")
    assert seen.pop().config == {"layers": (1, 2)}
    failed(capsys, "run", "--p", "0.99", "--facts", "200")
    assert seen[2] == Settings(), "what the preset has is no setting of its own"


WRONG = [
    ("--facts many", "--facts", "int"),
    ("--facts 0", "argument --facts: setting 'facts' is 0", ""),
    ("--facts 4.5", "--facts", "4.5"),
    ("--batch -1", "--batch", ""),
    ("--seed 1180591620717411303424", "argument --seed:", ""),
    ("--text-facts 3", "argument --text-facts:", "'text_tokens'"),
    ("--text-tokens -1", "--text-tokens", ""),
    ("--sha256 abc", "argument --sha256:", "'data'"),
    ("--method ecce", "argument --method:", "ece-rs"),
    ("--dataset wiki", "argument --dataset:", "counterfact"),
    ("--model gpt-17", "model 'gpt-17' has no preset", "cannot be read"),
    ("--p 1.5", "argument --p:", "less than or equal to 1"),
    ("--own-steps 30", "argument --own-steps:", "at most"),
    ("--layers 2,1", "argument --layers: setting 'layers' is 2,1", "increasing"),
    ("--layers a", "--layers", "'a'"),
    ("--scorer best", "--scorer", "residual"),
    ("--clusters 2.5", "--clusters", "2.5"),
    ("--clusters none --shared mean", "argument --shared:", "has no use for it here"),
    ("--clusters none --own-steps 3", "argument --own-steps:", "has no use for it here"),
    ("--stats .", ". cannot be read: it is a folder", "name another place"),
    ("--dtype int8", "--dtype", "bfloat16"),
    ("--data absent.json", "absent.json", "No such file"),
    ("--frobnicate", "--frobnicate", ""),
    ("--method ft-l --lam 3", "--lam", ""),
    ("--method", "--method", ""),
    ("--out .", "is no file; name a file", ""),
    ("--work ''", "argument --work: it is empty", "leave the flag out"),
]


@pytest.mark.parametrize(("given", "named", "also"), WRONG)
def test_bad_arguments_exit_with_2_and_name_the_flag(given, named, also, capsys):
    text = failed(capsys, "run", *shlex.split(given))
    assert named in text and also in text


def test_only_what_is_a_flag_is_called_one(settings, tmp_path, capsys):
    """A field of a record is none: `--subject` was named once for a prompt without its subject."""
    wrong = records()
    wrong[0]["requested_rewrite"]["prompt"] = "Mira Velan lives in"
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(wrong))
    text = failed(capsys, *words(replace(settings, data=str(path))))
    assert "field 'requested_rewrite.prompt'" in text and "argument" not in text


def hostile(folder: Path) -> dict[str, str]:
    """Files that are not what a run needs."""
    found = {"deep": "[" * 100_000, "surrogate": json.dumps(records()).replace("Mira", "\\ud800"),
             "binary": "\0\0\0"}  # fmt: skip
    for name, text in found.items():
        (folder / name).write_text(text)
    return {name: str(folder / name) for name in found}


def test_hostile_files_are_errors_that_name_them(settings, tmp_path, capsys):
    for name, path in hostile(tmp_path).items():
        assert name in failed(capsys, *words(replace(settings, data=path)))
    binary = str(tmp_path / "binary")
    assert "binary" in failed(capsys, *words(replace(settings, stats_text=binary)))
    assert "\\udc80" in failed(capsys, *words(settings), "--data", "\udc80.json")
    assert "context_tokens" in failed(capsys, *words(settings), "--context-tokens", "500")
    assert "argument --stats-text" in failed(capsys, *words(replace(settings, stats_text=None)))


@pytest.mark.parametrize("device", ["toaster", "", "meta"])
def test_a_device_that_does_not_work_is_an_error(settings, device, capsys):
    assert "argument --device:" in failed(capsys, *words(settings), "--device", device)


def test_damaged_model_folders_are_errors(settings, capsys):
    weights = Path(settings.model) / "model.safetensors"
    data, config = weights.read_bytes(), weights.with_name("config.json")
    weights.write_bytes(data[: len(data) // 2])
    assert "gpt2-xl' cannot be loaded" in failed(capsys, *words(settings))
    config.write_text('{"model_type": "unknown"}')
    assert "gpt2-xl' cannot be loaded" in failed(capsys, *words(settings))
    for path in weights.parent.iterdir():
        path.unlink()
    assert "gpt2-xl' cannot be loaded" in failed(capsys, *words(settings))
    weights.parent.rmdir()
    assert "gpt2-xl' cannot be loaded" in failed(capsys, *words(settings))


def test_places_that_cannot_be_written_are_found_before_the_run(settings, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    wrong = words(replace(settings, data="missing.json"))
    for flag in ("--out", "--work", "--cache"):
        text = failed(capsys, *wrong, flag, str(tmp_path / "file" / "x" / "y"))
        assert "Not a directory" in text and "missing" not in text


def test_a_result_of_other_settings_is_not_overwritten(settings, tmp_path, capsys):
    path = tmp_path / "cell.json"
    given = [*words(settings), "--out", str(path)]
    assert main(given) == 0
    held = path.read_text()
    capsys.readouterr()
    for other in ("--lam 21", "--seed 1", "--text-tokens 3", "--no-history"):
        assert "holds the result of other settings" in failed(capsys, *given, *other.split())
    assert path.read_text() == held
    assert main(given) == 0, "the same settings may run again"
    path.write_text(held[:99])
    capsys.readouterr()
    assert "cell.json, field '(whole file)': is not JSON" in failed(capsys, *given)


@pytest.mark.parametrize("method", [*STRATEGIES, *BASELINES])
def test_every_number_of_a_method_is_a_flag_with_its_help(method, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", "--method", method, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    kinds = [Settings, type(presets.numbers("atlas-gpt2", method))] if method in BASELINES else [
        Settings, Config, type(STRATEGIES[method])]  # fmt: skip
    for kind in kinds:
        docs = field_docs(kind)
        fixed = {"config", "history", "values_from"}  # ROME's and PRUNE's cannot be chosen
        for name in {own.name for own in fields(kind)} - fixed:
            assert f"--{name.replace('_', '-')}" in text and docs[name], name


def test_the_command_lists_its_subcommands(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.split()[:1] == [name] for line in lines) for name in COMMANDS)
    assert main(["frobnicate"]) == 2
    assert (
        "usage: ece {edit,edits,run,grid,tune,collect,bench,plan,atlas}" in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "run"])
def test_the_other_subcommands_have_help_and_name_bad_flags(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0 and f"usage: ece {name}" in capsys.readouterr().out
    assert "--frobnicate" in failed(capsys, name, "--frobnicate")


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "ece", "run", "--method", "none"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 2 and "ece-rs" in done.stderr and done.stdout == ""


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ece {ece.__version__}\n"


def test_folders_are_there_when_they_are_used():
    assert ece.presets.METHODS and ece.storage.Folder
    with pytest.raises(AttributeError, match="nowhere"):
        ece.nowhere  # noqa: B018
