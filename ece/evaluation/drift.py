"""Measure how far a model has moved on text that no edit is about: KL divergence, perplexity.

A rate over neighbours changes only where an answer does; the divergence of the next-token
distribution from that of the unedited model shows a change long before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ece.errors import DataError
from ece.facts import encode, pad

ROWS = 16
"""Rows that are read together."""


def openings(
    tokenizer, texts: Iterable[str], count: int, least: int = 16, most: int = 64
) -> list[list[int]]:
    """Take the first tokens of the first `count` texts that have `least` of them; `most` each.

    Fewer if there are no more such texts; `DataError` if there is none.
    """
    rows = (encode(tokenizer, text)[:most] for text in texts)
    found = list(islice((row for row in rows if len(row) >= least), count))
    if not found:
        raise DataError(f"no text has {least} tokens; give more text, or longer documents")
    return found


def perplexity(model, rows: Sequence[Sequence[int]]) -> float:
    """Compute exp of the mean NLL per token, in nats, over all but the first token of each row."""
    total, count = 0.0, 0
    for ids, mask, logits in _passes(model, rows):
        nll = -logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        total += float((nll * mask[:, 1:]).double().sum())
        count += int(mask[:, 1:].sum())
    if not count:
        raise DataError("no row has two tokens, so no token is predicted; give longer texts")
    return float(np.exp(total / count))


@dataclass(frozen=True)
class Drift:
    """Next-token distributions of the unedited model, to compare an edited one with."""

    rows: tuple[tuple[int, ...], ...]
    """Tokens read."""
    last: bool
    """Whether only the token after each row is compared, or all tokens but the first."""
    before: tuple[Tensor, ...]
    """Log-probabilities of the unedited model, a tensor [position, vocab] per row."""

    @classmethod
    def of(cls, model, rows: Sequence[Sequence[int]], last: bool = False) -> "Drift":
        """Read the rows on the model as it is; memory: 4 bytes * vocabulary * positions."""
        rows = tuple(tuple(row) for row in rows)
        return cls(rows, last, tuple(_log_probs(model, rows, last)))

    def divergence(self, model) -> Float[np.ndarray, " row"]:
        r"""Compute $KL(p_{before} \| p_{now})$ in nats, the mean over the positions of each row."""
        found = []
        for old, new in zip(self.before, _log_probs(model, self.rows, self.last), strict=True):
            found.append(float((old.exp() * (old - new)).sum(-1).double().mean()))
        return np.array(found)


def _log_probs(model, rows, last: bool):
    """Yield the log-probabilities that each row is compared by, float32."""
    for _, mask, logits in _passes(model, rows):
        for own, size in zip(logits, mask.sum(1).tolist(), strict=True):
            yield own[size - 1 if last else 0 : size].log_softmax(-1).clone()


@torch.no_grad()
def _passes(model, rows):
    """Yield tokens, mask and logits `[row, token, vocab]` of rows, some at a time."""
    for first in range(0, len(rows), ROWS):
        ids, mask = (t.to(model.device) for t in pad([*map(list, rows[first : first + ROWS])]))
        yield ids, mask, model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
