"""Facts, and everything that a tokenizer decides: ids, positions, padding, prefixes.

No other module of the method touches a tokenizer.
"""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ece.config import Config
from ece.errors import FactError, ModelError
from ece.model import blocks

STARTS = ("The", "It", "In", "He", "They")  # first words of the random prefixes
TOP_K = 5  # the sampled prefixes choose among the likeliest tokens


@dataclass(frozen=True)
class Fact:
    """An edit request: after it, `text` should go on with `target`.

    Fact("The capital of {} is", "France", "Lyon", true="Paris")
    """

    prompt: str
    """Text with exactly one "{}" where the subject goes."""
    subject: str
    """The subject $s$."""
    target: str
    """The new object $o$."""
    true: str = ""
    """The old object $o^c$, for evaluation."""
    relation: str = ""
    """The relation's id; empty: the prompt stands for the relation."""
    id: int = 0
    """A number by which reports and errors name the fact."""
    paraphrases: tuple[str, ...] = ()
    """Whole prompts with the same meaning."""
    neighbours: tuple[str, ...] = ()
    """Whole prompts about other subjects whose answer is `true`."""
    generation: tuple[str, ...] = ()
    """Whole prompts from which free text is generated."""

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace("{}", self.subject)


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of `text`, with a leading BOS if this tokenizer adds one, never an EOS."""
    return _encode(tokenizer, text)[0]


def _encode(tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids, and for each the span of characters it covers."""
    return _encode_all(tokenizer, [text])[0]


def _encode_all(tokenizer, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """`_encode` of many texts in one call, which costs little more than one text."""
    out = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True)
    found = []
    for ids, special, spans in zip(
        out["input_ids"], out["special_tokens_mask"], out["offset_mapping"], strict=True
    ):
        while ids and special[len(ids) - 1] and len(ids) > 1:
            ids = ids[:-1]
        found.append((ids, spans[: len(ids)]))
    return found


NAME = re.compile(r"[A-Z][\w'-]+(?: (?:(?:of|the|de|van|von) )?[A-Z][\w'-]+)*")
"""Capitalised words in a row, with the small words that stand inside names."""


def ends_of_names(tokenizer, text: str, names: bool = True) -> list[tuple[int, bool]]:
    """Token ids as by `encode`, each with whether it ends a name (never, unless `names`)."""
    ids, spans = _encode(tokenizer, text)
    ends = {found.end() for found in NAME.finditer(text)} if names else set()
    return [(token, stop > start and stop in ends) for token, (start, stop)
            in zip(ids, spans, strict=True)]  # fmt: skip


def decode(tokenizer, ids) -> str:
    """Text of `ids`, special tokens left out."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def target_ids(tokenizer, target: str) -> list[int]:
    """Ids of the target as a continuation: one leading space, no BOS; may be empty."""
    return list(tokenizer(" " + target.strip(), add_special_tokens=False)["input_ids"])


def locate(tokenizer, template: str, subject: str) -> tuple[list[int], int]:
    """`(ids, position)` of `template` with `subject` at its "{}".

    `position` is the token that holds the subject's last character. The offsets decide, so
    a BOS, a merge across a space, or a second mention elsewhere cannot shift it.
    """
    return locate_all(tokenizer, [(template, subject)])[0]


def locate_all(tokenizer, pairs: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """`locate` of many (template, subject) in one call of the tokenizer."""
    coded = _encode_all(tokenizer, [template.replace("{}", subject) for template, subject in pairs])
    found = []
    for (template, subject), (ids, spans) in zip(pairs, coded, strict=True):
        end = template.index("{}") + len(subject)
        holds = [i for i, (start, stop) in enumerate(spans) if start < end <= stop]
        if not holds:
            raise ValueError(f"no token of '{template}' holds the last character of '{subject}'")
        found.append((ids, holds[-1]))
    return found


def subject_last(tokenizer, prompt: str, subject: str) -> int:
    """Position of the subject's last token in `prompt` (with one "{}" for the subject)."""
    return locate(tokenizer, prompt, subject)[1]


def pad(
    rows: list[list[int]], side: str = "right", value: int = 0
) -> tuple[Int[Tensor, "row token"], Bool[Tensor, "row token"]]:
    """Rows of ids as one tensor, and a mask that is True on real tokens."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, at] = torch.tensor(row, dtype=torch.long)
        mask[i, at] = True
    return ids, mask


ENOUGH = 1024  # tokens that keep a device busy: beyond them, less padding is worth more


def by_length(lengths: list[int] | list[tuple[int, ...]], max_tokens: int) -> list[list[int]]:
    """Indices in chunks of like length, each within `max_tokens` when padded (or one row).

    A chunk of `ENOUGH` tokens ends where lengths grow, so that little of it is padding.
    A row of several parts, each padded by itself, gives their lengths, the one that matters
    most first.
    """
    parts = [(length,) if isinstance(length, int) else length for length in lengths]
    chunks, wide = [], ()
    for i in sorted(range(len(parts)), key=lambda i: (parts[i], i)):
        padded = tuple(map(max, wide, parts[i])) if chunks else parts[i]
        full = not chunks or (len(chunks[-1]) + 1) * sum(padded) > max_tokens
        grows = not full and parts[i] != parts[chunks[-1][-1]]
        if full or (grows and len(chunks[-1]) * sum(wide) >= ENOUGH):
            chunks.append([])
            padded = parts[i]
        chunks[-1].append(i)
        wide = padded
    return chunks


@torch.no_grad()
def contexts(model, tokenizer, config: Config) -> tuple[str, ...]:
    """Templates a prompt is seen under: "{}" first, then `config.contexts` of "prefix. {}".

    The prefixes are sampled from the model itself with a generator of their own, seeded by
    `config.seed`, so they repeat exactly and disturb no other random numbers.
    `ModelError` if the model's logits are not finite.
    """
    draw = torch.Generator().manual_seed(config.seed)
    device = next(model.parameters()).device
    prefixes = []
    for i in range(config.contexts):
        ids = encode(tokenizer, STARTS[i % len(STARTS)])
        for _ in range(config.context_tokens - 1):
            logits = model(torch.tensor([ids], device=device), use_cache=False).logits[0, -1]
            if not torch.isfinite(logits).all():
                raise ModelError("the model's logits are not finite; look at its weights")
            top = logits.float().cpu().softmax(-1).topk(min(TOP_K, logits.numel()))
            ids = ids + [int(top.indices[torch.multinomial(top.values, 1, generator=draw)])]
        prefixes.append(_plain(decode(tokenizer, ids)))
    return ("{}",) + tuple(prefix + ". {}" for prefix in prefixes)


def _plain(text: str) -> str:
    """On one line, without braces (they mark the slot), without a stop at the end."""
    return " ".join(text.replace("{", " ").replace("}", " ").split()).rstrip(". ")


def validate(facts: list[Fact], tokenizer, model, templates: tuple[str, ...] = ("{}",)) -> None:
    """Raise `FactError` for the first fact that cannot be edited in one batch with the others.

    `templates` are the contexts the prompts will be seen under; they count for the length.
    """
    room = getattr(model.config, "max_position_embeddings", None)
    for fact in facts:
        _check_text(fact)
        if not target_ids(tokenizer, fact.target):
            raise FactError(fact.id, "target", "it tokenizes to nothing", "give visible text")
        texts = [template.replace("{}", fact.text) for template in templates]
        longest = max(len(ids) for ids, _ in _encode_all(tokenizer, texts))
        size = longest + len(target_ids(tokenizer, fact.target))
        if room is not None and size > room:
            reason = f"prompt, prefix and target take {size} tokens, the model has {room}"
            raise FactError(fact.id, "prompt", reason, "shorten the prompt or the contexts")
    _check_pairs(facts)
    if not facts:
        raise FactError(-1, "facts", "the batch is empty", "give at least one fact")
    if len(blocks(model)) < 2:
        raise FactError(-1, "facts", "the model has one block", "a value needs a block above it")


def _check_text(fact: Fact) -> None:
    slots = fact.prompt.count("{}")
    if slots != 1:
        where = "not in the prompt" if slots == 0 else f"in the prompt {slots} times"
        raise FactError(fact.id, "prompt", f"the subject is {where}", 'mark its one place by "{}"')
    for field in ("subject", "target"):
        if not getattr(fact, field).strip():
            raise FactError(fact.id, field, "it is empty", "give visible text")
    if fact.subject != fact.subject.strip():
        reason = "it starts or ends with white space"
        raise FactError(fact.id, "subject", reason, "put the space into the prompt")
    again = rf"(?<!\w){re.escape(fact.subject)}(?!\w)"
    if re.search(again, fact.prompt.replace("{}", "\0")):
        reason = f"the prompt mentions '{fact.subject}' again beside its slot"
        raise FactError(fact.id, "subject", reason, "word the prompt with one mention")


def _check_pairs(facts: list[Fact]) -> None:
    """No two facts of a batch may speak of the same subject and relation (or prompt)."""
    seen: dict[tuple[str, str], Fact] = {}
    for fact in facts:
        for key in {(fact.subject, fact.relation or fact.prompt), (fact.subject, fact.prompt)}:
            other = seen.setdefault(key, fact)
            if other is not fact:
                word = "repeats" if other.target.strip() == fact.target.strip() else "contradicts"
                reason = f"it {word} fact {other.id} (same subject and relation)"
                raise FactError(fact.id, "subject", reason, "keep one of the two in a batch")
