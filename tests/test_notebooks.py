"""The two files of a chapter agree, its outputs are those of a whole run, and most are compared.

nbval runs the cells and compares outputs, nearly (`book/compare_outputs.py`); but it passes a cell
that was never run, and one whose tags exclude it from comparison. Both are checked here.
"""

import base64
import io
import re

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import run_chapters
from compare_outputs import PICTURE, compare, same_number, same_picture, same_text
from nbval.plugin import IPyNbCell, find_comment_markers, find_metadata_tags

FOLDER = run_chapters.ROOT / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
WIDEST_LINE = 75  # wider code is cut off on the page
LONGEST_CELL = 12
LONGEST_FOLDED = 25  # cells of set-up and drawing, which a page shows on a click
EXCLUDED = 1 / 3  # share of outputs that may be excluded from nbval's comparison

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
    made, there = shape(run_chapters.notebook(source)), shape(stored(source))
    for number, (new, old) in enumerate(zip(made, there, strict=False)):
        assert new == old, f"{source.name}, cell {number} differs: make refresh"
    assert len(made) == len(there), f"{source.name} has another number of cells: make refresh"


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
            folded = "hide-input" in cell.metadata.get("tags", [])
            longest = LONGEST_FOLDED if folded else LONGEST_CELL
            assert len(lines) <= longest, f"cell {number} has {len(lines)} lines"


@each_chapter
def test_a_chapter_looks_for_no_files_beside_it(source):
    """`make book` runs chapters in a folder of their own, where the other sources are not."""
    code = "\n".join(cell.source for cell in stored(source).cells if cell.cell_type == "code")
    assert not re.search(r"Path\(\)|cwd\(|listdir|scandir", code)


# Comparison with the stored outputs.


NO_NUMBERS = re.compile(
    r"```.*?```|`[^`]*`|\{[^}]*\}|\$\$.*?\$\$|\$[^$]*\$|\[[^]]*\]\([^)]*\)|^#+ .*?$"
    r"|\b[A-Za-z]\w*-[\w.-]*\d\w*"
    r"|\b(?:Eq|Fig|Figures?|Tables?|Sec|Sections?|Appendix|Observations?) [\d.–]+"
    r"(?:(?:,| and| to) \d+)*|\b95 % interval|\b2,000 (?:edits|facts)",
    re.DOTALL | re.MULTILINE,
)
"""Nothing measured: code, formulas, links, headings, names, parts of the paper, its 2,000 edits."""
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:,\d{3})*(?:\.\d+)?")


def words(book) -> str:
    """Write out what a chapter says: its prose, and what stands below and behind its figures."""
    texts = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    looks = [cell.metadata.get("mystnb", {}) for cell in book.cells]
    texts += [look.get("figure", {}).get("caption", "") for look in looks]
    texts += [look.get("image", {}).get("alt", "") for look in looks]
    return "\n\n".join(NO_NUMBERS.sub("", text) for text in texts)


def unbound(book) -> list[str]:
    """Numbers that a chapter says and that stand neither in its code nor in an output."""
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    texts = [cell.source for cell in code]
    for output in (output for cell in code for output in cell.outputs):
        data = output.get("data", {})
        texts += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    known = " ".join(texts).replace("−", "-").replace(",", "")
    plain = (number.lstrip("-+−").replace(",", "") for number in NUMBER.findall(words(book)))
    return [n for n in plain if not re.search(rf"(?<![\d.]){re.escape(n)}(?!\d)", known)]


@each_chapter
def test_what_a_chapter_says_is_bound_to_the_run(source):
    """A number there is asserted, or shown by a cell: a changed result cannot leave it behind."""
    assert not unbound(stored(source))


def test_a_number_from_nowhere_is_found():
    book = nbformat.v4.new_notebook()
    text = "See Fig 3 and 4.\n\n97 % of 1,000, by −2.5 points on SmolLM2-135M (`p = 3`, $K=7$)."
    drawn = nbformat.v4.new_code_cell("assert rate == 97 and gap == -2.5")
    drawn.metadata["mystnb"] = {"figure": {"caption": "97 and 12"}, "image": {"alt": "from 8"}}
    book.cells = [nbformat.v4.new_markdown_cell(text), drawn]
    assert unbound(book) == ["1000", "12", "8"]


def is_compared(cell) -> bool:
    """Tell whether nbval compares a cell's outputs; the markers are nbval's own."""
    options = dict(find_metadata_tags(cell.metadata)) | dict(find_comment_markers(cell.source))
    return options.get("check", True) and not options.get("skip", False)


def test_most_outputs_are_compared():
    excluded, count = [], 0
    for source in SOURCES:
        for number, cell in enumerate(stored(source).cells):
            outputs = cell.get("outputs", [])
            count += len(outputs)
            if outputs and not is_compared(cell):
                line = cell.source.splitlines()[0]
                excluded += [f"{source.stem}, cell {number}: {line}"] * len(outputs)
    assert len(excluded) <= EXCLUDED * count, "\n".join(
        [f"{len(excluded)} of {count} outputs are excluded from comparison:", *excluded]
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0.44", "0.46", True),
        ("0.44", "0.47", False),
        ("4.26e+04", "4.28e+04", True),
        ("734", "741", True),
        ("2", "3", False),
        ("100", "98", False),
        ("3e-07", "9e-07", True),
        ("3e-07", "9e-03", False),
        ("-0.7", "+0.7", False),
    ],
)
def test_numbers_may_differ_in_the_last_digits(one, other, same):
    assert same_number(one, other) == same_number(other, one) == same


def test_texts_may_differ_in_numbers_and_spaces_only():
    assert same_text("eff.  99.9\nspec. 95", "eff. 100.1\nspec. 95")
    assert not same_text("eff. 99.9", "spec. 99.9")
    assert not same_text("eff. 99.9", "eff. 99.9 99.9")


def drawn(*heights: float, color: str = "tab:blue", width: float = 4) -> str:
    """Draw a line as a chapter does; the PNG in base64."""
    figure, axes = plt.subplots(figsize=(width, 2))
    axes.plot(heights, color=color)
    axes.set_ylim(0, 1)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    plt.close(figure)
    return base64.b64encode(file.getvalue()).decode()


def test_pictures_are_compared_by_sight():
    line = np.linspace(0.2, 0.8, 5)
    assert same_picture(drawn(*line), drawn(*line + 1e-3))
    assert not same_picture(drawn(*line), drawn(*line + 0.1))
    assert not same_picture(drawn(*line), drawn(*line[::-1]))
    assert not same_picture(drawn(*line), drawn(*line, color="tab:red"))
    assert not same_picture(drawn(*line), drawn(*line, width=5))


class Cell:
    """The part of nbval's cell that comparing needs; a whole one wants a running session."""

    skip_compare = ("output_type", "execution_count", "metadata", PICTURE)
    sanitize_patterns = {r"took \d+ s": "took TIME"}
    colors = type("NoColors", (), dict.fromkeys(("OKBLUE", "FAIL", "ENDC"), ""))
    sanitize = IPyNbCell.sanitize
    differs = None

    @property
    def parent(self):
        return self

    def format_output_compare(self, key, left, right):
        self.differs = key


def shown(text: str, height: float, count: int = 1) -> list[nbformat.NotebookNode]:
    picture = nbformat.v4.new_output("display_data", {PICTURE: drawn(0.5, height)})
    return [nbformat.v4.new_output("stream", text=text)] + [picture] * count


def test_the_rest_is_compared_as_nbval_does():
    reference = shown("score 99.1, took 3 s", 0.5)
    assert compare(Cell(), shown("score 99.2, took 8 s", 0.501), reference)
    for found, differs in (
        (shown("score 98.1, took 3 s", 0.5), "stdout"),
        (shown("score 99.1, took 3 s", 0.9), PICTURE),
        (shown("score 99.1, took 3 s", 0.5, count=2), None),
        (shown("score 99.1, took 3 s", 0.5, count=0), None),
    ):
        cell = Cell()
        assert not compare(cell, found, reference)
        assert cell.differs == differs
