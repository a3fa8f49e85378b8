"""A setting of our own, not the paper's: no anchors, renewed values, old keys at ends of names."""

import re
from typing import Annotated, Literal

from pydantic import Field

from ece.errors import checked
from ece.facts import encode_all
from ece.strategy import Strategy

NAME = re.compile(r"[A-Z][\w'-]+(?: (?:(?:of|the|de|van|von) )?[A-Z][\w'-]+)*")
"""Capitalised words in a row, with the small words that stand inside names."""


@checked
class EcePlus(Strategy):
    """ECE that finds values anew for subjects edited before, and knows what names look like."""

    values_from: Literal["original", "current", "again"] = "again"
    """Weights that values come from; see `ece.Strategy`."""
    names: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of $C_0$ taken over the last tokens of names alone (`ece.blend`): the old keys that
    edits lie among. Whoever computes the statistics follows it."""


def ends_of_names(tokenizer, text: str) -> list[bool]:
    """Say per token of `text` whether it ends a name; for `ece.second_moment(select=...)`."""
    (_, spans) = encode_all(tokenizer, [text])[0]
    ends = {found.end() for found in NAME.finditer(text)}
    return [stop > start and stop in ends for start, stop in spans]
