"""What a model organism is taught (`ece.organism`): true statements, lines of text, and tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ece.errors import DataError
from ece.facts import Fact, target_ids

END = "<|endoftext|>"
AT_ONCE = 1000
"""Lines that the tokenizer takes in one call."""


@dataclass(frozen=True)
class Statement:
    """A true statement as tokens; the subject is first..last (last < 0: not marked)."""

    ids: Int[np.ndarray, " token"]
    answer: int
    """Where the answer starts."""
    first: int = 0
    last: int = -1


def read_lines(path: str | Path, most: int) -> list[str]:
    """The first `most` lines of a text file that are not blank; `DataError` without any."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = list(islice((line.strip() for line in file if line.strip()), most))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a file of plain text") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text ({error.reason}); name a text file") from error
    if not lines:
        raise DataError(f"{path}: holds no text; give one document a line")
    return lines


def prompts_of(fact: Fact) -> list[list[str]]:
    """The prompts that `fact.true` answers, by kind: its own, paraphrases, neighbours."""
    kinds = [[fact.text], list(fact.paraphrases), list(fact.neighbours)]
    return [kind for kind in kinds if kind]


def build_tokenizer(facts: Sequence[Fact], lines: Sequence[str], size: int):
    """Byte-level BPE of at most `size` tokens, learned from the statements and the text."""
    said = (f"{p} {fact.true}" for fact in facts for kind in prompts_of(fact) for p in kind)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator([*said, *lines], trainer)
    ends = dict(bos_token=END, eos_token=END, pad_token=END)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)


def statement(tokenizer, prompt: str, fact: Fact) -> Statement:
    """`prompt` answered by `fact.true`; the subject is marked where the prompt names it."""
    out = tokenizer(prompt, return_offsets_mapping=True)
    ids = [*out["input_ids"], *target_ids(tokenizer, fact.true)]
    told = Statement(np.array(ids), len(out["input_ids"]))
    own = prompt == fact.text
    start = fact.prompt.index("{}") if own else prompt.find(fact.subject)
    if start < 0:
        return told
    stop, spans = start + len(fact.subject), list(enumerate(out["offset_mapping"]))
    first = next(i for i, (_, end) in spans if end > start)
    last = [i for i, (begin, end) in spans if begin < stop <= end][-1]
    return Statement(told.ids, told.answer, first, last)


def coded(tokenizer, lines: Sequence[str]) -> Iterator[Int[np.ndarray, " token"]]:
    """The lines as tokens, one after the other, `END` behind each."""
    for first in range(0, len(lines), AT_ONCE):
        for ids in tokenizer(list(lines[first : first + AT_ONCE]))["input_ids"]:
            yield np.array([*ids, tokenizer.eos_token_id], dtype=np.int32)
