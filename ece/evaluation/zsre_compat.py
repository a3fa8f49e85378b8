"""Score ZsRE answers as the published evaluation does, with its slips (`compat=True`).

It goes through text: the first i tokens of an answer are decoded, put after the prompt and
tokenized again with it, and the arg-max is compared with the first token of the decoded token i.
Where a tokenizer adds no beginning-of-text token (BOS), this equals
`ece.evaluation.teacher_forcing.score_answers`, unless decoding and tokenizing again changes tokens.
With one that does:

* on a neighbour's prompt the answer has its BOS still: the BOS comes first, and stands
  between the prompt and the rest of the answer;
* elsewhere one more space is put before the tokens given, so there are two where the tokenizer
  decodes a leading space as such.

Texts of special tokens are tokenized as these tokens. This module alone needs the tokenizer to
make such detours, so it calls it directly.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from ece.evaluation.teacher_forcing import AnswerRow, AnswerScores, score_rows
from ece.facts import encode


def score_published(
    model, tokenizer, triples: Sequence[tuple[str, str, bool]], batch_tokens: int = 4096
) -> AnswerScores:
    """Score (prompt, answer, whether the prompt is a neighbour's) like the published evaluation.

    Every column is about the tokens that it scores, each after a row of its own; the published
    evaluation itself uses only `accuracy`.
    """
    unique = {triple: i for i, triple in enumerate(dict.fromkeys(triples))}
    parts = [published_rows(tokenizer, *triple) for triple in unique]
    names = [triple[:2] for triple, own in zip(unique, parts, strict=True) for _ in own]
    scores = score_rows(model, list(chain.from_iterable(parts)), names, batch_tokens)
    ends = np.cumsum([len(own) for own in parts])[:-1]
    split = (np.split(column, ends) for column in (scores.nll, scores.accuracy))
    nll, accuracy = (np.array([own.mean() for own in column]) for column in split)
    predictions = np.empty(len(parts), dtype=object)
    predictions[:] = [tuple(chain.from_iterable(p)) for p in np.split(scores.predictions, ends)]
    back = [unique[triple] for triple in triples]
    return AnswerScores(nll[back], accuracy[back] == 1, accuracy[back], predictions[back])


def published_rows(tokenizer, prompt: str, answer: str, neighbour: bool) -> list[AnswerRow]:
    """Make the rows of one answer: each of its tokens follows a row of its own."""
    bos = adds_bos(tokenizer)
    ids = tokenizer(" " + answer)["input_ids"][0 if neighbour else bos :]
    gap = " " if bos and not neighbour else ""
    rows = [encode(tokenizer, prompt)]
    rows += [
        encode(tokenizer, prompt + gap + tokenizer.decode(ids[:i])) for i in range(1, len(ids))
    ]
    return [
        AnswerRow(row, len(row) - 1, [_first(tokenizer, tokenizer.decode([token]), bos)])
        for row, token in zip(rows, ids, strict=True)
    ]


def adds_bos(tokenizer) -> int:
    """Count the tokens (0 or 1) that the tokenizer puts before every text."""
    return len(encode(tokenizer, "a")) - len(tokenizer("a", add_special_tokens=False)["input_ids"])


def _first(tokenizer, text: str, bos: int) -> int:
    """Find the token that `text` begins with; for an empty one what a batch is padded with."""
    padding = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return [*tokenizer(text)["input_ids"][bos:], *(i for i in padding if i is not None)][0]
