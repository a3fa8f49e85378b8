"""The grid: what is declared runs once, and only that."""

import json
from pathlib import Path

import pytest
from small_runs import without_seconds

from ece.engine.parallel import Processes
from ece.errors import ConfigError
from ece.experiments import grid
from ece.experiments.cli import main
from ece.experiments.grid import cells
from ece.experiments.results import read, source
from ece.experiments.spec import Settings, run_id

FILE = """
[one]
models = ["atlas-gpt2"]
methods = ["ece-rs", "memit"]
datasets = ["counterfact"]
seeds = [0, 1]
facts = 4
batch = 2
lam = 20.0
"""
GRID = Path(__file__).parent.parent / "book" / "grid.toml"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(FILE)
    return path


def names(found) -> list[str]:
    return [settings.name for settings in found.values()]


def test_cells_are_all_combinations(file):
    found = cells(file)
    assert cells(file, (name for name in ["one"])) == found, "any iterable of names will do"
    assert len(found) == 4 and names(found)[3] == "atlas-gpt2_memit_counterfact_4x2_lam-20.0_s1"
    wanted = Settings(method="memit", seed=1, facts=4, batch=2, config={"lam": 20.0})
    assert list(found.values())[3] == wanted
    assert all(run == run_id(settings.identity()) for run, settings in found.items())


def test_other_settings_can_vary_too(file):
    file.write_text(FILE + "[one.vary]\nbatch = [1, 2]\nlayers = [[0], [0, 1]]\nhistory = [true]\n")
    found = cells(file).values()
    assert len(found) == 16
    assert {(s.batch, s.config["layers"]) for s in found} == {
        (batch, layers) for batch in (1, 2) for layers in ((0,), (0, 1))
    }
    assert all(settings.config["lam"] == 20.0 for settings in found)
    name = "atlas-gpt2_memit_counterfact_4x1_history-True_lam-20.0_layers-0,1_s0"
    assert name in names(cells(file))


def test_one_method_on_one_model_can_have_its_own(file):
    text = FILE.replace('["atlas-gpt2"]', '["atlas-gpt2", "atlas-llama"]')
    file.write_text(text + "per.atlas-llama.memit = { lam = 5.0, layers = [1] }\n")
    found = cells(file).values()
    own = {s.seed: s.config for s in found if s.config != {"lam": 20.0}}
    assert own == {seed: {"lam": 5.0, "layers": (1,)} for seed in (0, 1)}
    other = {(s.model, s.method) for s in found if s.config["lam"] == 5.0}
    assert other == {("atlas-llama", "memit")}


def test_equal_settings_are_one_cell_whatever_their_table_and_words(file):
    file.write_text(
        FILE + FILE.replace("[one]", "[two]") + "per.atlas-gpt2.ece-rs = { p = 0.99 }\n"
    )
    assert len(cells(file)) == 4, "ECE's p is that of its preset"


@pytest.mark.parametrize(
    "change, message",
    [
        (("seeds = [0, 1]", ""), "table 'one': .*'seeds'"),
        (('["ece-rs", "memit"]', '"memit"'), "table 'one': setting 'methods' is 'memit'"),
        (('["atlas-gpt2"]', "[3]"), "table 'one': setting 'models' is 3"),
        (("[0, 1]", "[0.5]"), "table 'one': setting 'seeds' is 0.5"),
        (("facts = 4", 'facts = "4"'), "table 'one': setting 'facts' is '4'"),
        (('"memit"', '"mimit"'), "setting 'method' is 'mimit'"),
        (("lam = 20.0", "lama = 2"), "'lama' is no setting"),
        (("lam = 20.0", "lam = "), "is not TOML"),
        (("lam = 20.0", "vary = 3"), "setting 'vary' is 3"),
        (("lam = 20.0", "p = 0.99"), "setting 'p' is 0.99; memit has no use for it"),
        (("lam = 20.0", "config = { lam = 3 }"), "it has 'config', which is no setting"),
        (("lam = 20.0", "single = { lam = 3 }"), "it has 'single', which is no setting"),
        (("lam = 20.0", "vary.p = 0.5"), "setting 'vary' is 0.5"),
        (("lam = 20.0", "per.atlas-gpt2.memit = 2"), "setting 'per' is 2"),
        (("lam = 20.0", "per.atlas-gptj.memit = { lam = 2.0 }"), "'per' has atlas-gptj.memit"),
        (("lam = 20.0", "per.atlas-gpt2.rome = { lam = 2.0 }"), "'per' has atlas-gpt2.rome"),
        (("lam = 20.0", "vary.seed = [3]"), "gives 'seed' beside its list 'seeds'"),
        (("lam = 20.0", "model = 'gpt2-xl'"), "gives 'model' beside its list 'models'"),
        (("lam = 20.0", "per.atlas-gpt2.memit = { method = 'rome' }"), "'method' beside its list"),
        (("[one]\n", "one = 3\n[[list]]\n"), "table 'one': it is 3; write settings under"),
    ],
)
def test_what_is_declared_wrongly_is_named(file, change, message):
    file.write_text(FILE.replace(*change))
    with pytest.raises(ConfigError, match=message):
        cells(file)


def record(settings: Settings, work, cache) -> dict:
    """What a run of these settings would return."""
    rates = dict.fromkeys(("efficacy", "generalization", "specificity", "score"), 50.0)
    rates |= {f"{kind}_top1": 50.0 for kind in list(rates)[:3]}
    identity = settings.identity("fingerprint")
    six = ("model", "method", "dataset", "facts", "batch", "seed")
    return {
        **{name: getattr(settings, name) for name in six},
        **dict.fromkeys(("pre", "at_write", "after"), rates),
        "batches": [{"edited": 4, "at_write": rates, "after": rates}],
        "edit": {},
        "seconds": {"values": 8.0},
        "provenance": {
            "command": settings.command(), "settings": identity["config"], "name": settings.name,
            "run": run_id(identity), "identity": identity,
        },
    }  # fmt: skip


@pytest.fixture
def command(file, tmp_path, monkeypatch):
    """Call `ece grid` on the file; the list of names that it ran."""
    ran: list[str] = []

    def run(settings, work, cache, crew):
        ran.append(settings.name)
        return record(settings, work, cache)

    monkeypatch.setattr(grid, "run", run)
    monkeypatch.chdir(tmp_path)
    return (lambda *words: main(["grid", str(file), *words])), ran


def test_a_cell_runs_once(command, file, tmp_path, capsys):
    call, ran = command
    assert call("--only", "*memit*") == 0
    assert [name.split("_")[1] for name in ran] == ["memit", "memit"]
    assert main(["collect"]) == 0
    assert "2 runs merged" in capsys.readouterr().out
    call("--list")
    assert capsys.readouterr().out.count("done ") == 2
    call("--dry-run")
    plan = capsys.readouterr().out
    assert "2 cells, about 0 min" in plan and "8 s  atlas-gpt2_ece-rs" in plan
    call()
    assert len(ran) == 4 and len(set(ran)) == 4
    call()
    assert len(ran) == 4, "a record that is not collected yet counts as well"
    file.write_text(FILE.replace("20.0", "30.0"))
    call("--only", "*ece-rs*")
    assert len(ran) == 6, "other settings are other cells"


def test_a_cell_that_cannot_run_is_named_and_a_place_is_tried_first(file, tmp_path, capsys):
    file.write_text(FILE + "context_tokens = 500\n")
    words = ["grid", str(file), "--results", str(tmp_path), "--work", str(tmp_path / "work")]
    assert main([*words, "--records", str(tmp_path / "cells")]) == 2
    said = capsys.readouterr().err
    assert "error: atlas-gpt2_ece-rs_counterfact_4x2" in said and "'context_tokens' is 500" in said
    assert main([*words, "--records", str(file / "cells")]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_cells_run_on_the_device_given_under_their_own_names(command, file, tmp_path, monkeypatch):
    call, _ = command
    seen, before = [], grid.run

    def run(settings, **more):
        seen.append(settings.device)
        return before(settings, **more)

    monkeypatch.setattr(grid, "run", run)
    assert call("--device", "cpu", "--only", "*memit*") == 0 and seen == ["cpu", "cpu"]
    assert call("--only", "*memit*") == 0 and len(seen) == 2, "they are done"


def test_cells_run_at_the_same_time_give_the_records_of_one_after_the_other(file, tmp_path):
    file.write_text(FILE + "stats_tokens = 2000\ntext_tokens = 0\n")
    found = []
    for jobs in ("1", "2"):
        place = tmp_path / jobs
        words = ["--only", "*memit*", "--jobs", jobs, "--results", str(place / "results"),
                 "--records", str(place), "--work", str(place / "work")]  # fmt: skip
        assert main(["grid", str(file), *words]) == 0
        records = [json.loads(path.read_text()) for path in sorted(place.glob("*.json"))]
        assert len(records) == 2
        found.append([without_seconds(record) for record in records])
    assert found[0] == found[1]


def test_texts_of_the_grid_enter_no_file_name(command, file, tmp_path):
    call, ran = command
    file.write_text(FILE + 'stats = "../../out"\n')
    assert call() == 0 and len(ran) == 4
    found = {path.name for path in (tmp_path / "_build" / "cells").iterdir()}
    assert found == {f"{run}.json" for run in cells(file)}


def test_results_are_found_by_settings_whatever_they_are_called(command, file, tmp_path):
    call, _ = command
    call("--only", "*memit*")
    main(["collect"])
    found, missing = grid.results(file, "one", "results")
    assert list(found.runs.seed) == [0, 1] and set(found.runs.method) == {"memit"}
    assert [command.split()[:2] for command in missing.values()] == [["ece", "run"]] * 2
    file.write_text(FILE.replace("[one]", "[two]").replace("20.0", "20.0\nvary.history = [false]"))
    assert set(grid.results(file, ["two"], "results")[0].runs.run) == set(found.runs.run)
    with pytest.raises(ConfigError, match="has no table 'one'; known: two"):
        grid.results(file, "one", "results")
    lines = Path("results/runs.jsonl").read_text()
    other = lines.replace('"fingerprint"', '"another"').replace('"run": "', '"run": "f')
    Path("results/runs.jsonl").write_text(lines + other)
    with pytest.raises(ConfigError, match="results of several models or files: .*outdated"):
        grid.results(file, "two", "results")


def test_a_run_of_the_embedded_world_is_none_of_a_file_that_is_not_here(command, file):
    call, _ = command
    call()
    main(["collect"])
    assert len(grid.results(file, "one", "results")[0].runs) == 4
    file.write_text(FILE + 'data = "not-here.json"\n')
    assert len(grid.results(file, "one", "results")[0].runs) == 0
    text = Path("results/runs.jsonl").read_text().replace('"data": null', f'"data": "{"0" * 64}"')
    Path("results/runs.jsonl").write_text(text)
    assert len(grid.results(file, "one", "results")[0].runs) == 4, "whatever it holds"
    Path("not-here.json").write_text("[]")
    assert len(grid.results(file, "one", "results")[0].runs) == 0, "its content is another"


def test_the_books_grid_is_declared_rightly():
    found = cells(GRID, ["sequential", "small"])
    assert len(found) == 20 and "atlas-llama_ece-rs_counterfact_200x25_s0" in names(found)
    assert json.dumps(read(GRID.parents[1] / "results").runs.name.tolist()).count("8x4") == 2


def test_what_other_code_left_half_done_is_not_gone_on_with(file, tmp_path, monkeypatch):
    """Cells lie in a folder named after the code, which is removed when they are done."""
    places = []

    def run(settings, work, cache, crew):
        places.append(work)
        work.mkdir(parents=True)
        return record(settings, work, cache)

    monkeypatch.setattr(grid, "run", run)
    monkeypatch.chdir(tmp_path)
    main(["grid", str(file), "--only", "*_memit_*s0"])
    monkeypatch.setattr(grid, "source", lambda: "another")
    main(["grid", str(file), "--only", "*_memit_*s1"])
    assert len({place.parent for place in places}) == 2 and places[1].parent.name == "another"
    assert not any(place.exists() for place in places)


def test_the_code_s_hash_is_of_every_file(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.py").write_text("a = 1\n")
    first = source(tmp_path)
    (tmp_path / "notes.md").write_text("no code\n")
    assert source(tmp_path) == first
    (tmp_path / "deep" / "one.py").write_text("a = 2\n")
    assert source(tmp_path) != first


def test_several_processes_run_one_cell_at_a_time(file):
    with pytest.raises(ConfigError, match="'jobs' is 2, and torchrun's processes"):
        grid._run([], grid.Options(str(file), jobs=2), crew=object.__new__(Processes))
