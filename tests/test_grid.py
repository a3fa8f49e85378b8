"""The grid: what is declared runs once, and only that."""

import json
from pathlib import Path

import pytest

from ece.errors import ConfigError
from ece.experiments import grid
from ece.experiments.grid import cells, main, name_of
from ece.experiments.spec import Settings

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


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(FILE)
    return path


def test_cells_are_all_combinations(file):
    found = cells(file)
    assert len(found) == 4
    name = "atlas-gpt2_memit_counterfact_4x2_lam-20.0_s1"
    assert found[name] == Settings(method="memit", seed=1, facts=4, batch=2, config={"lam": 20.0})
    assert all(name == name_of(settings) for name, settings in found.items())


def test_other_settings_can_vary_too(file):
    file.write_text(FILE + "[one.vary]\nbatch = [1, 2]\nlayers = [[0], [0, 1]]\n")
    found = cells(file)
    assert len(found) == 16
    assert {(s.batch, s.config["layers"]) for s in found.values()} == {
        (batch, layers) for batch in (1, 2) for layers in ((0,), (0, 1))
    }
    assert all(settings.config["lam"] == 20.0 for settings in found.values())
    assert "atlas-gpt2_memit_counterfact_4x1_lam-20.0_layers-0+1_s0" in found


def test_one_method_on_one_model_can_have_its_own(file):
    text = FILE.replace('["atlas-gpt2"]', '["atlas-gpt2", "atlas-llama"]')
    file.write_text(text + "per.atlas-llama.memit = { lam = 5.0, layers = [1] }\n")
    own = {s.seed: s.config for s in cells(file).values() if s.config != {"lam": 20.0}}
    assert own == {seed: {"lam": 5.0, "layers": (1,)} for seed in (0, 1)}
    assert {(s.model, s.method) for s in cells(file).values() if s.config["lam"] == 5.0} == {
        ("atlas-llama", "memit")
    }


def test_tables_can_be_asked_for_by_name(file, tmp_path):
    file.write_text(FILE + FILE.replace("[one]", "[two]").replace("[0, 1]", "[7]"))
    assert {settings.seed for settings in cells(file, ["two"]).values()} == {7}
    with pytest.raises(ConfigError, match="has no table 'three'; known: one, two"):
        cells(file, ["three"])
    found, missing = grid.results(file, "two", tmp_path)
    assert found == [] and len(missing) == 2
    assert all("python -m ece.experiments.cli" in command for command in missing.values())


@pytest.mark.parametrize(
    "change, message",
    [
        (("seeds = [0, 1]", ""), "table 'one': the list 'seeds'"),
        (('"memit"', '"mimit"'), "setting 'method' is 'mimit'"),
        (("lam = 20.0", "lama = 2"), "unknown setting"),
        (("lam = 20.0", "lam = "), "is not TOML"),
        (("lam = 20.0", "per.atlas-gptj.memit = { lam = 2.0 }"), "'per' has atlas-gptj.memit"),
        (("lam = 20.0", "per.atlas-gpt2.rome = { lam = 2.0 }"), "'per' has atlas-gpt2.rome"),
    ],
)
def test_what_is_declared_wrongly_is_named(file, change, message):
    file.write_text(FILE.replace(*change))
    with pytest.raises(ConfigError, match=message):
        cells(file)


def test_a_cell_runs_once(file, tmp_path, monkeypatch, capsys):
    ran = []

    def run(settings, work, cache):
        ran.append(name_of(settings))
        record = dict.fromkeys(("efficacy", "generalization", "specificity", "score"), 50.0)
        record |= {f"{kind}_top1": 50.0 for kind in list(record)[:3]}
        names = ("model", "method", "dataset", "facts", "batch", "seed")
        config = json.loads(json.dumps(vars(settings.configure())))
        return {
            **{name: getattr(settings, name) for name in names},
            **dict.fromkeys(("pre", "at_write", "after"), record),
            "seconds": {"values": 8.0},
            "provenance": {"command": settings.command(), "settings": config},
        }

    monkeypatch.setattr(grid, "run", run)
    words = [str(file), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    main([*words, "--only", "*memit*"])
    assert [name.split("_")[1] for name in ran] == ["memit", "memit"]
    main([*words, "--list"])
    assert capsys.readouterr().out.count("done ") == 2
    main([*words, "--dry-run"])
    plan = capsys.readouterr().out
    assert "2 cells" in plan and "8 s  atlas-gpt2_ece-rs" in plan
    main(words)
    assert len(ran) == 4 and len(set(ran)) == 4
    file.write_text(FILE.replace("20.0", "30.0"))
    kept = next((tmp_path / "out").glob("*memit*_s1.json"))
    kept.rename(kept.with_name(kept.name.replace("20.0", "30.0")))
    with pytest.raises(SystemExit):
        main(words)
    assert "other settings" in capsys.readouterr().err


def test_the_books_grid_is_declared_rightly():
    found = cells(Path(__file__).parent.parent / "book" / "grid.toml")
    assert len(found) >= 18 and "atlas-llama_ece-rs_counterfact_200x25_s0" in found
