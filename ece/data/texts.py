"""Texts for second moments: the lines of a file, or plain English that comes with Python."""

import re
from collections.abc import Iterable, Iterator
from pydoc_data.topics import topics

from ece.data.schema import read_lines

PYTHON_DOCS = "python-docs"
SENTENCES = re.compile(r'[A-Z"*][^<>]*[.:]')
"""A paragraph of prose: code, grammar and headings begin or end otherwise."""


def python_docs() -> Iterator[str]:
    """Yield the pages of Python's language reference, one a text, without code and grammar.

    The text is that of the Python that runs: another release may word a page otherwise.
    """
    for page in topics.values():
        paragraphs = (" ".join(paragraph.split()) for paragraph in page.split("\n\n"))
        if prose := list(filter(SENTENCES.fullmatch, paragraphs)):
            yield "\n".join(prose)


def read_texts(source: str) -> Iterable[str]:
    """Read the texts that `source` means: "python-docs", or a file with one a line."""
    return python_docs() if source == PYTHON_DOCS else read_lines(source)
