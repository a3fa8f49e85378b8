"""Results: long tables that lose nothing, and what the book shows was run."""

import json
import subprocess
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ece import load
from ece.experiments import grid
from ece.experiments.results import (
    SIX,
    TABLES,
    ResultError,
    collect,
    commit,
    read,
    read_record,
    write_record,
)
from ece.experiments.runner import run
from ece.experiments.spec import run_id
from ece.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parent.parent
FILE, FOLDER = ROOT / "book" / "grid.toml", ROOT / "results"
SMALL = grid.cells(FILE, ["small"])
FLOAT = 0.1 + 0.2


def rates(value: float) -> dict:
    """The least that a record states, with one interval."""
    kinds = ("efficacy", "generalization", "specificity")
    found = dict.fromkeys((*kinds, "score", *(f"{kind}_top1" for kind in kinds)), value)
    return found | {"fluency": 500.0, "efficacy_ci": FLOAT, "consistency": None}


def record(seed: int = 0, value: float = 50.0) -> dict:
    """A run's record with every part that one can have."""
    six = dict(zip(SIX, ("atlas-gpt2", "ece-rs", "counterfact", 4, 2, seed), strict=True))
    config = {"layers": [0, 1], "lam": 3.0, "seed": seed, "clusters": None}
    identity = {
        **six, "config": config, "strategy": {"history": True}, "adaptive": 0, "text_facts": 3,
        "sources": {"model": "f", "data": None},
    }  # fmt: skip
    step = {"at_write": rates(value), "after": rates(FLOAT)}
    return {
        **six,
        **{when: rates(value) for when in ("pre", "at_write", "after")},
        "batches": [{"edited": end, **step} for end in (2, 4)],
        "points": [{"edited": 4, **rates(1.0)}],
        "edit": {"steps": 1.5},
        "seconds": {"values": 2.0},
        "provenance": {"command": "ece run", "commit": "c", "settings": config, "name": f"s{seed}",
                       "run": run_id(identity), "identity": identity},
    }  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    """Folders of records and of tables, with two runs collected."""
    for seed in (0, 1):
        write_record(record(seed), tmp_path / "cells" / f"{seed}.json")
    assert collect(tmp_path / "cells", tmp_path / "results") == 2
    return tmp_path / "cells", tmp_path / "results"


def test_a_record_becomes_rows_and_loses_no_digit(folders):
    found = read(folders[1])
    line = found.where(seed=0).runs.iloc[0]
    assert (line["lam"], line["layers"], line["history"]) == (3.0, "0,1", True)
    assert line.provenance == {"command": "ece run", "commit": "c"}
    assert line.edit == {"steps": 1.5} and line.seconds == {"values": 2.0}
    cells = found.cells(seed=0).set_index(["when", "metric"])
    assert cells.loc[("after", "efficacy"), ["value", "ci", "n"]].tolist() == [50.0, FLOAT, 4]
    assert cells.loc[("pre", "fluency"), "n"] == 3, "texts are about the first facts only"
    assert ("after", "consistency") not in cells.index, "nothing was measured"
    steps = found.batches(seed=0).set_index(["edited", "when", "metric"]).sort_index()
    assert steps.loc[(2, "after", "score"), "value"] == FLOAT
    assert steps.loc[(4, "so_far", "efficacy"), "ci"] == FLOAT
    assert len(cells) == 3 * 8 and len(steps) == 8 * (2 * 2 + 1)


def test_collecting_again_changes_nothing_and_a_new_record_replaces(folders):
    records, folder = folders
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    collect(*folders)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_record(record(0, 70.0), records / "again.json")
    (records / "0.json").unlink()
    collect(*folders)
    found = read(folder).cells()
    scores = found[(found.when == "after") & (found.metric == "score")].set_index("seed").value
    assert scores.to_dict() == {0: 70.0, 1: 50.0} and len(read(folder).runs) == 2


@given(order=st.permutations(range(3)), parts=st.integers(1, 3))
def test_the_order_of_collecting_plays_no_part(order, parts):
    with TemporaryDirectory() as name:
        folder = Path(name)
        for part in range(parts):
            for seed in order[part::parts]:
                write_record(record(seed), folder / f"cells{part}" / f"{seed}.json")
            collect(folder / f"cells{part}", folder / "results")
        text = [(folder / "results" / f"{table}.csv").read_bytes() for table in TABLES]
        lines = (folder / "results" / "runs.jsonl").read_bytes()
        for seed in range(3):
            write_record(record(seed), folder / "all" / f"{seed}.json")
        collect(folder / "all", folder / "once")
        assert text == [(folder / "once" / f"{table}.csv").read_bytes() for table in TABLES]
        assert lines == (folder / "once" / "runs.jsonl").read_bytes()


def test_a_bad_record_is_named_and_nothing_is_merged(folders):
    records, folder = folders
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_record(record(5), records / "5.json")
    (records / "6.json").write_text("{")
    with pytest.raises(ResultError, match="6.json, field '.whole file.': is not JSON"):
        collect(*folders)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (records / "empty").mkdir()
    assert collect(records / "empty", folder) == 0
    with pytest.raises(ResultError, match="is no folder; run `ece grid` first"):
        collect(records / "nothing", folder)


def test_runs_are_chosen_by_settings(folders):
    found = read(folders[1])
    assert len(found.where(seed=[0, 1], layers=(0, 1), clusters=None, lam=3.0).runs) == 2
    assert found.where(seed=1).runs.name.tolist() == ["s1"]
    assert len(found.where(lam=4.0).runs) == 0 and found.cells(lam=4.0).empty
    order = list(found.runs.run)[::-1]
    assert list(found.of(order).runs.run) == order
    assert list(dict.fromkeys(found.of(order).cells().run)) == order
    with pytest.raises(ResultError, match="no run has a setting 'lama'; known: .*lam"):
        found.where(lama=3.0)


def test_damaged_tables_are_named(folders):
    folder = folders[1]
    lines = (folder / "runs.jsonl").read_text().splitlines()
    for text, message in (
        (lines[0][:-5], "runs.jsonl, field 'line 1': is not JSON"),
        ("3", "runs.jsonl, field 'line 1, run': is missing"),
        (json.dumps({**json.loads(lines[0]), "run": "x"}), "cells.csv, field 'run': .* no line"),
    ):
        (folder / "runs.jsonl").write_text(f"{text}\n{lines[1]}\n")
        with pytest.raises(ResultError, match=message):
            read(folder)
    (folder / "runs.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultError, match="runs.jsonl, field .*cannot be read"):
        read(folder)
    with pytest.raises(ResultError, match="cannot be read .*Not a directory"):
        read(folder / "runs.jsonl")
    (folder / "runs.jsonl").write_text("\n".join(lines))
    for text, message in (("run,when\n", "is run,when, not run,"), ('\0\n"', "cannot be read|is ")):
        (folder / "cells.csv").write_text(text)
        with pytest.raises(ResultError, match=f"cells.csv, field .*{message}"):
            read(folder)
    assert read(folder / "empty").cells().empty


def test_a_record_is_checked(tmp_path):
    path, good = tmp_path / "cell.json", record()
    write_record(good, path)
    assert read_record(path) == good
    write_record({**good, "after": {**good["after"], "score": 101}}, path)
    with pytest.raises(ResultError, match="cell.json, field 'after.score': 101 is no rate"):
        read_record(path)
    write_record({k: v for k, v in good.items() if k != "provenance"}, path)
    with pytest.raises(ResultError, match="'provenance': is missing; restore the file, or run"):
        read_record(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ResultError, match="is not text"):
        read_record(path)
    with pytest.raises(ResultError, match="No such file"):
        read_record(tmp_path / "absent.json")


def git(folder, *words):
    names = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "-C", str(folder), *names, *words], check=True, capture_output=True)


def test_the_commit_says_whether_the_code_is_changed(tmp_path):
    assert commit(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    code = tmp_path / "ece"
    (code / "deep").mkdir(parents=True)
    (code / "deep" / "a.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    assert len(commit(code)) == 40
    (tmp_path / "result.json").write_text("{}")
    assert len(commit(code)) == 40, "a new result is no change of the code"
    (code / "deep" / "a.py").write_text("2\n")
    assert commit(code).endswith("-dirty")


def test_the_whole_package_counts_as_the_code():
    assert signature(commit).parameters["folder"].default == ROOT / "ece"


BOOK = read(FOLDER)


def test_every_run_has_the_identity_of_its_settings_and_comes_from_committed_code():
    models = {name: fingerprint(load(name)[0]) for name in BOOK.runs.model.unique()}
    for line in BOOK.runs.to_dict("records"):
        settings = line["settings"]
        assert run_id({**{name: line[name] for name in SIX}, **settings}) == line["run"]
        assert settings["sources"]["model"] == models[line["model"]], "the shipped model"
        assert len(line["provenance"]["commit"]) == 40


def test_every_run_is_declared_and_every_cell_of_the_embedded_models_was_run():
    found, missing = grid.results(FILE, folder=FOLDER)
    real, _ = grid.results(FILE.with_name("grid-real.toml"), folder=FOLDER)  # not run in full yet
    assert not missing
    assert set(found.runs.run) | set(real.runs.run) == set(BOOK.runs.run)


def test_the_tables_are_sorted_and_read_and_written_without_a_change():
    for name, table in (("cells", BOOK.measured), ("batches", BOOK.stepwise)):
        text = (FOLDER / f"{name}.csv").read_text()
        assert table.to_csv(index=False, lineterminator="\n") == text
        assert table.run.is_monotonic_increasing and tuple(table.columns) == TABLES[name]
        keys = [column for column in table if column not in ("value", "ci", "n")]
        assert not table.duplicated(keys).any() and table.value.notna().all()
    assert BOOK.runs.run.is_monotonic_increasing and BOOK.runs.run.is_unique


def test_the_papers_numbers_are_a_long_table():
    paper = pd.read_csv(FOLDER / "paper.csv")
    key = ["table", "model", "method", "dataset", "metric"]
    assert not paper.duplicated(key).any() and set(paper.table) == {"table1", "table2"}
    one = paper.set_index(key).loc[("table1", "llama-3-8b", "pre", "counterfact", "efficacy")]
    assert one.tolist() == [7.85, 0.26]


@pytest.mark.parametrize("run_of", SMALL)
def test_a_small_cell_comes_out_again_to_the_same_digits(run_of, tmp_path):
    settings = SMALL[run_of]
    write_record(run(settings), tmp_path / "cells" / "cell.json")
    collect(tmp_path / "cells", tmp_path / "results")
    again = read(tmp_path / "results")
    (name,) = again.runs.run
    stored = BOOK.of([name])
    pd.testing.assert_frame_equal(again.measured, stored.measured, check_exact=True)
    pd.testing.assert_frame_equal(again.stepwise, stored.stepwise, check_exact=True)
    found, old = again.runs.iloc[0], stored.runs.iloc[0]
    assert found["settings"] == old["settings"] and found["name"] == old["name"]
    # What is recorded since (rounding, jitter) no stored run has.
    assert {name: found["edit"][name] for name in old["edit"]} == old["edit"]
