"""What the book shows was run: files fit their declaration, and a small one comes out again."""

from pathlib import Path

import pytest

from ece.experiments import grid
from ece.experiments.results import read_result
from ece.experiments.runner import run

ROOT = Path(__file__).resolve().parent.parent
FILE, RESULTS = ROOT / "book" / "grid.toml", ROOT / "book" / "results"
SMALL = grid.cells(FILE, ["small"])


def test_every_cell_at_hand_is_of_the_settings_that_are_declared():
    """`done` raises for a file of other settings; files that nothing declares are left over."""
    declared = grid.cells(FILE)
    ready = {name for name, settings in declared.items() if grid.done(name, settings, RESULTS)}
    left_over = {path.stem for path in RESULTS.glob("atlas-*_s[0-9].json")} - set(declared)
    assert ready and not left_over


def test_every_cell_comes_from_committed_code_and_names_its_command():
    for path in RESULTS.glob("atlas-*_s[0-9].json"):
        origin = read_result(path)["provenance"]
        assert len(origin["commit"]) == 40, f"{path.name}: {origin['commit']}"
        assert origin["command"].startswith("python -m ece.experiments.cli --model")


@pytest.mark.parametrize("name", SMALL)
def test_a_small_cell_comes_out_again_to_the_same_digits(name):
    stored, again = read_result(RESULTS / f"{name}.json"), run(SMALL[name])
    for part in ("pre", "at_write", "after", "batches"):
        assert again[part] == stored[part], part
    assert again["edit"]["neurons"] == stored["edit"]["neurons"]
    assert again["provenance"]["command"] == stored["provenance"]["command"]
    assert again["provenance"]["model_fingerprint"] == stored["provenance"]["model_fingerprint"]
