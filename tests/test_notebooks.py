"""The two files of a chapter agree, and the stored notebook is one that ran without complaint.

nbval compares outputs but passes a cell that was never run, so that is checked here.
"""

import nbformat
import pytest
import run_chapters

FOLDER = run_chapters.ROOT / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
WIDEST_LINE = 75  # wider code is cut off on the page
LONGEST_CELL = 25

each_chapter = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def stored(source):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def shape(book):
    """What both files of a pair hold: kind, source and tags of each cell."""
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in book.cells]


def test_every_chapter_is_a_pair():
    notebooks = {path.stem for path in FOLDER.glob("*.ipynb")}
    assert notebooks and notebooks == {path.stem for path in SOURCES}


@each_chapter
def test_pair_is_equal_cell_by_cell(source):
    made, kept = shape(run_chapters.notebook(source)), shape(stored(source))
    for number, (new, old) in enumerate(zip(made, kept, strict=False)):
        assert new == old, f"{source.name}, cell {number} differs: make refresh"
    assert len(made) == len(kept), f"{source.name} has another number of cells: make refresh"


@each_chapter
def test_stored_notebook_ran_without_complaint(source):
    assert list(run_chapters.complaints(stored(source))) == []


@each_chapter
def test_cells_ran_in_order(source):
    counts = [cell.execution_count for cell in stored(source).cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


@each_chapter
def test_code_fits_the_page(source):
    for number, cell in enumerate(stored(source).cells):
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            wide = [line for line in lines if len(line) > WIDEST_LINE]
            assert not wide, f"cell {number} is wider than {WIDEST_LINE} characters"
            assert len(lines) <= LONGEST_CELL, f"cell {number} has {len(lines)} lines"
