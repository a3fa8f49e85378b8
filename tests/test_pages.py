"""The two small extensions that pages are built with."""

import alt_text
from docstrings import to_rst
from docutils import nodes


def test_docstrings_in_markdown_become_restructured_text():
    given = ["Give `x`, see `ece.solver.solve`.", "", "    x = 1", "    # `not code`", "",
             "By $a_b$:", "- one", "  goes on", "- two"]  # fmt: skip
    assert to_rst(given) == [
        "Give ``x``, see :py:obj:`ece.solver.solve`.", "", "::", "", "    x = 1",
        "    # `not code`", "", "By :math:`a_b`:", "", "- one", "  goes on", "- two",
    ]  # fmt: skip


def test_a_picture_without_a_text_gets_the_one_below_it():
    bare, named = nodes.image(uri="a.png"), nodes.image(uri="b.png", alt="a dog")
    before, below = nodes.paragraph(text="before"), nodes.paragraph(text="a cat")
    document = nodes.section("", before, bare, below, named)
    alt_text.describe(None, document, "page")
    assert bare["alt"] == "a cat" and named["alt"] == "a dog"
