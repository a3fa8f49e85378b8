"""Reads facts of one's own from a table: a CSV file with one fact a row."""

from pathlib import Path

import pandas as pd

from ece.data.schema import read_text
from ece.errors import DataError
from ece.facts import Fact, is_broken

NEEDED, MORE = ("prompt", "subject", "target"), ("true", "relation", "paraphrases", "neighbours")
SEVERAL = " | "
"""Stands between several prompts in one cell."""


def facts_from_table(path: str | Path) -> list[Fact]:
    """Read a CSV file with a head line and the columns prompt, subject and target.

    The prompt has "{}" where the subject goes. These columns may be there, too: "true" (the answer
    before the edit), "relation", "paraphrases" and "neighbours" (whole prompts, with " | " between
    several). A fact's id is the number of its row, from 1. Raises `DataError`.
    """
    read_text(path, "a CSV table of facts")  # a missing or binary file is named
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(f"{path}: is no CSV table ({error}); give one with the columns "
                        f"{', '.join(NEEDED)}") from error  # fmt: skip
    if missing := [name for name in NEEDED if name not in table]:
        raise DataError(f"{path}: has no column '{missing[0]}'; its first line should name "
                        f"{', '.join(NEEDED)}, with commas between them")  # fmt: skip
    if strange := [name for name in table if name not in NEEDED + MORE]:
        raise DataError(f"{path}: column '{strange[0]}' is not known; known: "
                        f"{', '.join(NEEDED + MORE)}")  # fmt: skip
    if not isinstance(table.index, pd.RangeIndex):  # pandas took the first column for an index
        raise DataError(f"{path}: its rows have more fields than its first line; put text that "
                        "holds a comma in quotes")  # fmt: skip
    if table.empty:
        raise DataError(f"{path}: has no rows below its first line; give at least one fact")
    return [_fact(path, i, row) for i, row in enumerate(table.to_dict("records"), 1)]


def _fact(path: str | Path, number: int, row: dict[str, str]) -> Fact:
    """Make the fact of one row."""
    texts = {name: text.strip() for name, text in row.items()}
    for name, text in texts.items():
        if is_broken(text) or (name in NEEDED and not text):
            raise DataError(f"{path}, row {number}, column '{name}': {text!r} is no text; "
                            "give one that is not empty")  # fmt: skip
    if texts["prompt"].count("{}") != 1:
        raise DataError(f"{path}, row {number}, column 'prompt': {texts['prompt']!r} should have "
                        'one "{}", where the subject goes')  # fmt: skip
    for name in MORE[2:]:
        if "{}" in texts.get(name, ""):
            raise DataError(f"{path}, row {number}, column '{name}': write whole prompts, with the "
                            "subject in the place of {}")  # fmt: skip
    if texts.get("neighbours") and not texts.get("true"):
        raise DataError(f"{path}, row {number}: 'neighbours' needs 'true', the answer that they "
                        "should go on to get")  # fmt: skip
    if texts["target"] == texts.get("true"):
        raise DataError(f"{path}, row {number}: 'target' and 'true' are both {texts['true']!r}; "
                        "give the new answer and the old one")  # fmt: skip
    lists = {name: tuple(filter(None, map(str.strip, texts.get(name, "").split(SEVERAL))))
             for name in MORE[2:]}  # fmt: skip
    return Fact(**(texts | lists), id=number)
