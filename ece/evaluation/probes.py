"""Probe what an edit means to the model: the same fact denied, and judged true or false.

The frames are generic, so that any fact with an old answer can be probed. A model that merely
learnt to say the new word after the subject says it after a denial, too.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ece.evaluation.teacher_forcing import score_answers
from ece.facts import Fact

DENIED = "The following is false: {prompt}"
"""Frame of a denial; what completes it should be an answer that is wrong."""
CHECKED = "{prompt} {answer}. True or false? Answer:"
"""Frame of a check of the statement with one of the two answers."""
YES, NO = "True", "False"


class Probes(NamedTuple):
    """Rates per fact in [0, 1]; nan for a fact that names no old answer."""

    denied: Float[np.ndarray, " fact"]
    """Whether the new answer is likelier than the old one even where the statement is denied:
    after an edit that is understood it is not, as the old one is false by then."""
    checked: Float[np.ndarray, " fact"]
    """Whether the model holds the new statement to be truer than the old one: its log-odds of
    "True" against "False" are higher."""


def probe(model, tokenizer, facts: Sequence[Fact]) -> Probes:
    """Put both probes to the model for each fact."""
    posed = [fact for fact in facts if fact.true]
    denied = [DENIED.format(prompt=fact.text) for fact in posed]
    pairs = [(text, word) for text, fact in zip(denied, posed, strict=True)
             for word in (fact.target, fact.true)]  # fmt: skip
    checks = [(CHECKED.format(prompt=fact.text, answer=word), verdict) for fact in posed
              for word in (fact.target, fact.true) for verdict in (YES, NO)]  # fmt: skip
    nll = score_answers(model, tokenizer, [*pairs, *checks]).nll
    new, old = nll[: len(pairs)].reshape(-1, 2).T
    odds = nll[len(pairs) :].reshape(-1, 2, 2) @ [-1, 1]  # [fact, statement]
    made = Probes(*(np.full(len(facts), np.nan) for _ in Probes._fields))
    at = np.array([bool(fact.true) for fact in facts], dtype=bool)
    made.denied[at], made.checked[at] = new < old, odds[:, 0] > odds[:, 1]
    return made
