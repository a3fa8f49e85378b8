"""A setting of our own: no anchors, renewed values, old keys at ends of names and in prompts."""

import re
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ece.errors import checked
from ece.facts import Fact, encode_all, locate_all
from ece.hooks import capture, states_at
from ece.model import sites
from ece.strategy import Strategy

ROWS = 32  # prompts run at once

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
    prompts: Annotated[float, Field(ge=0, lt=1e6)] = 0.0
    """Weight, against an edit's key, of the keys at the other tokens of each edited prompt: what
    the layer says there is to stay, too."""

    def beside(self, model, tokenizer, facts, layer) -> Float[Tensor, "other ff"] | None:
        """Read the keys at the other tokens, scaled by the root of `prompts`."""
        if not self.prompts:
            return None
        keys = [other_keys(model, tokenizer, facts[i : i + ROWS], layer)
                for i in range(0, len(facts), ROWS)]  # fmt: skip
        return torch.cat(keys) * self.prompts**0.5


def other_keys(model, tokenizer, facts: list[Fact], layer: int) -> Float[Tensor, "other ff"]:
    """Read the keys of the bare prompts at all tokens but the first and the subject's last.

    (A first token's key is nearly the same whatever the token is, so where a subject of one token
    comes first, it is an edited one.)
    """
    rows = locate_all(tokenizer, [(fact.prompt, fact.subject) for fact in facts])
    with capture(sites(model, (layer,))) as found:
        states_at(model, [ids for ids, _ in rows], layer)
    others = torch.zeros(found[layer].shape[:2], dtype=torch.bool, device=found[layer].device)
    for row, (ids, last) in zip(others, rows, strict=True):
        row[1 : len(ids)] = True
        row[last] = False
    return found[layer][others]


def ends_of_names(tokenizer, text: str) -> list[bool]:
    """Say per token of `text` whether it ends a name; for `ece.second_moment(select=...)`."""
    (_, spans) = encode_all(tokenizer, [text])[0]
    ends = {found.end() for found in NAME.finditer(text)}
    return [stop > start and stop in ends for start, stop in spans]
