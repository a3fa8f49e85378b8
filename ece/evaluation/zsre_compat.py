"""ZsRE's questions as the published evaluation puts them, with its slips (`compat=True`).

It goes through text: the first i tokens of an answer are decoded, put after the prompt and
tokenized again with it, and the arg-max is compared with the first token of the decoded token
i. A tokenizer that adds no beginning-of-text token (BOS) thus reads what `ece.evaluation.teacher_forcing.read` does,
except where decoding and tokenizing again changes tokens. With one that does:

* on a neighbour's prompt the answer keeps its BOS: the BOS itself is asked for first, and stands
  between the prompt and the rest of the answer;
* elsewhere one more space is put before the tokens given, so there are two where the tokenizer
  decodes a leading space as such.

Texts of special tokens are tokenized as these tokens. This module alone needs the tokenizer to
make such detours, so it calls it directly.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from ece.evaluation.teacher_forcing import Answers, Asked, read_rows
from ece.facts import encode


def read_published(
    model, tokenizer, asked: Sequence[tuple[str, str, bool]], batch_tokens: int = 4096
) -> Answers:
    """`ece.evaluation.teacher_forcing.read` of (prompt, answer, whether the prompt is a neighbour's).

    Every column speaks of the tokens that the published evaluation scores, one question each;
    it uses none but `accuracy`.
    """
    unique = {one: i for i, one in enumerate(dict.fromkeys(asked))}
    parts = [questions(tokenizer, *one) for one in unique]
    names = [one[:2] for one, own in zip(unique, parts, strict=True) for _ in own]
    flat = list(chain.from_iterable(parts))
    nll, right, said = read_rows(model, flat, names, batch_tokens)
    ends = np.cumsum([len(own) for own in parts])
    nll, right, said = (np.split(column, ends[:-1]) for column in (nll, right, said))
    told = np.empty(len(parts), dtype=object)
    told[:] = [tuple(chain.from_iterable(own)) for own in said]
    nll, accuracy = (np.array([own.mean() for own in column]) for column in (nll, right))
    back = [unique[one] for one in asked]
    return Answers(nll[back], accuracy[back] == 1, accuracy[back], told[back])


def questions(tokenizer, prompt: str, answer: str, neighbour: bool) -> list[Asked]:
    """What is asked about one answer: each of its tokens after a row of its own."""
    bos = adds_bos(tokenizer)
    ids = tokenizer(" " + answer)["input_ids"][0 if neighbour else bos :]
    gap = " " if bos and not neighbour else ""
    rows = [encode(tokenizer, prompt)]
    rows += [
        encode(tokenizer, prompt + gap + tokenizer.decode(ids[:i])) for i in range(1, len(ids))
    ]
    return [
        Asked(row, len(row) - 1, [_first(tokenizer, tokenizer.decode([token]), bos)])
        for row, token in zip(rows, ids, strict=True)
    ]


def adds_bos(tokenizer) -> int:
    """Number of tokens (0 or 1) that the tokenizer puts before every text."""
    return len(encode(tokenizer, "a")) - len(tokenizer("a", add_special_tokens=False)["input_ids"])


def _first(tokenizer, text: str, bos: int) -> int:
    """The token that `text` begins with; for an empty one what a batch is padded with."""
    padding = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return [*tokenizer(text)["input_ids"][bos:], *(i for i in padding if i is not None)][0]
