"""The paper map is made from the code, and leaves out no equation."""

import re

import paper_map
import pytest

EQUATIONS = range(1, 27)
PAGE = (paper_map.ROOT / "book" / "paper-map.md").read_text(encoding="utf-8")
TITLES = re.search(r"```{paper-map}\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()


def test_every_equation_has_a_title():
    assert [int(line.partition(": ")[0]) for line in TITLES] == list(EQUATIONS)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_every_equation_has_a_function_a_chapter_and_a_test(equation):
    functions = [name for name, named in paper_map.tags().items() if equation in named]
    chapters, tests = zip(*map(paper_map.places, functions), strict=True)
    assert any(chapters), functions
    assert any(tests), functions


def test_a_docstring_names_one_equation_several_or_a_range():
    assert paper_map.numbers("as in Eq 4, 11-13, and (Eq 8); Equation 9, 10") == [4, 8, 11, 12, 13]


def test_a_name_is_followed_to_where_it_is_defined():
    source = """
        import ece
        from ece import scoring as by, solver
        from ece.scoring import select as choose
        from torch import solve
        ece.edit_batch(choose(by.residual(solver.nothing)), solve)
    """
    expected = {"ece.editor.edit_batch", "ece.scoring.select", "ece.scoring.residual"}
    assert paper_map.used(source.replace("        ", "")) == expected


def test_a_method_counts_where_its_class_is_used():
    assert paper_map.places("ece.strategy.Strategy.solve")[1]
    assert paper_map.places("ece.scoring.no_such_function") == ([], [])


def test_a_link_goes_to_the_name_that_a_user_imports():
    assert paper_map._public("ece.editor.edit_batch") == "ece.edit_batch"
    assert paper_map._public("ece.scoring.select") == "ece.scoring.select"
    assert paper_map._public("ece.strategy.Strategy.solve") == "ece.Strategy.solve"


def test_a_chapter_closes_with_the_functions_it_uses():
    used = dict((name, named) for named, name in paper_map.shown("03_scoring"))
    assert used["ece.scoring.scores"] == [5, 6, 7]
    assert "ece.descent.descend" not in used
    assert paper_map.shown("no_such_chapter") == []
