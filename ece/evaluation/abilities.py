"""Measure general abilities: choices by likelihood, and by what the model writes (Section 4.5)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from sklearn.metrics import f1_score

from ece.evaluation.generation import answer
from ece.evaluation.teacher_forcing import score_answers

WRITTEN = 5
"""Tokens of text in which a choice is looked for, as in the published harness."""


@dataclass(frozen=True)
class Item:
    """Holds one test item: the prompt, its possible continuations, the index of the right one."""

    task: str
    prompt: str
    choices: tuple[str, ...]
    label: int

    @property
    def answer(self) -> str:
        """Take the right continuation."""
        return self.choices[self.label]


class Verdicts(NamedTuple):
    """The choice taken for each item, an index into its choices; -1: none."""

    likelihood: Int[np.ndarray, " item"]
    """The choice with the smallest NLL per token; the first of equals."""
    written: Int[np.ndarray, " item"] | None = None
    """The first choice that the model's greedy text names; None where no text was written."""


def verdicts(
    model, tokenizer, items: Sequence[Item], write: bool = True, batch_tokens: int = 4096
) -> Verdicts:
    """Let the model choose; `write`: by its own text, too."""
    pairs = [(item.prompt, choice) for item in items for choice in item.choices]
    nll = score_answers(model, tokenizer, pairs, batch_tokens).nll
    ends = np.cumsum([len(item.choices) for item in items])[:-1]
    chosen = np.array([part.argmin() for part in np.split(nll, ends)], dtype=int)
    if not write:
        return Verdicts(chosen)
    texts = answer(model, tokenizer, [item.prompt for item in items], WRITTEN)
    named = [named_first(text, item.choices) for text, item in zip(texts, items, strict=True)]
    return Verdicts(chosen, np.array(named, dtype=int))


def named_first(text: str, choices: Sequence[str]) -> int:
    """Find the choice that occurs first in the text, as whole words in any case; -1: none."""
    found = [re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", text, re.I) for choice in choices]
    places = [(match.start(), number) for number, match in enumerate(found) if match]
    return min(places)[1] if places else -1


def rates(items: Sequence[Item], found: Verdicts) -> dict[str, float]:
    """Compute accuracy and F1 in percent; those by the text written are called `written_`.

    F1 is the mean over the labels, weighted by how often each is right, as in the published
    harness; a text that names no choice counts as a label of its own there.
    """
    right, made = [item.label for item in items], {}
    for prefix, chosen in (("", found.likelihood), ("written_", found.written)):
        if chosen is not None:
            made[f"{prefix}accuracy"] = 100 * float(np.mean(chosen == right))
            f1 = f1_score(right, chosen, average="weighted", zero_division=0)
            made[f"{prefix}f1"] = 100 * float(f1)
    return made
