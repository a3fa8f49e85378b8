"""Facts, and everything that a tokenizer decides: ids, positions, padding, prefixes.

No other module of the method touches a tokenizer.
"""

import re

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ece.config import Config
from ece.errors import ConfigError, FactError, ModelError, checked

STARTS = ("The", "It", "In", "He", "They")  # first words of the random prefixes
TOP_K = 5  # a prefix is sampled among the likeliest tokens
ENOUGH = 1024  # tokens that keep a device busy: beyond them, less padding is worth more


@checked
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


def encode_all(tokenizer, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Encode texts: per text its ids, and for each id the span of characters it covers.

    A leading BOS stays if this tokenizer adds one; an EOS never does.
    """
    out = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True)
    found = []
    for ids, special, spans in zip(
        out["input_ids"], out["special_tokens_mask"], out["offset_mapping"], strict=True
    ):
        while ids and special[len(ids) - 1] and len(ids) > 1:
            ids = ids[:-1]
        found.append((ids, spans[: len(ids)]))
    return found


def encode(tokenizer, text: str) -> list[int]:
    """Encode one text, with a leading BOS if this tokenizer adds one, never an EOS."""
    return encode_all(tokenizer, [text])[0][0]


def decode(tokenizer, ids) -> str:
    """Decode ids to text, without special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def target_ids(tokenizer, target: str) -> list[int]:
    """Encode a target as a continuation: one leading space, no BOS; may be empty."""
    return list(tokenizer(" " + target.strip(), add_special_tokens=False)["input_ids"])


def locate_all(tokenizer, pairs: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """Encode each (template, subject), and find the token of the subject's last character.

    The offsets decide, so a BOS, a merge across a space, or a second mention cannot shift it.
    """
    coded = encode_all(tokenizer, [template.replace("{}", subject) for template, subject in pairs])
    found = []
    for (template, subject), (ids, spans) in zip(pairs, coded, strict=True):
        end = template.index("{}") + len(subject)
        holds = [i for i, (start, stop) in enumerate(spans) if start < end <= stop]
        if not holds:
            raise ModelError(f"no token of '{template}' holds the last character of '{subject}'; "
                             "use a fast tokenizer that keeps all characters")  # fmt: skip
        found.append((ids, holds[-1]))
    return found


def locate(tokenizer, template: str, subject: str) -> tuple[list[int], int]:
    """Encode one template with its subject, and find the subject's last token."""
    return locate_all(tokenizer, [(template, subject)])[0]


def subject_last(tokenizer, prompt: str, subject: str) -> int:
    """Find the position of the subject's last token in `prompt` (with one "{}")."""
    return locate(tokenizer, prompt, subject)[1]


def pad(
    rows: list[list[int]], side: str = "right", value: int = 0
) -> tuple[Int[Tensor, "row token"], Bool[Tensor, "row token"]]:
    """Put rows of ids into one tensor, with a mask that is True on real tokens."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, at] = torch.tensor(row, dtype=torch.long)
        mask[i, at] = True
    return ids, mask


@torch.no_grad()
def contexts(model, tokenizer, config: Config) -> tuple[str, ...]:
    """Draw the templates of a run: "{}" first, then `config.contexts` of "prefix. {}".

    The model itself writes the prefixes; the draws repeat and disturb no other random numbers.
    Raises `ModelError` if the model's logits are not finite.
    """
    draw = torch.Generator().manual_seed(config.seed)
    device = next(model.parameters()).device
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and config.contexts and config.context_tokens >= room:
        raise ConfigError(f"setting 'context_tokens' is {config.context_tokens}; the model reads "
                          f"{room} tokens, so choose a smaller number")  # fmt: skip
    prefixes = []
    for i in range(config.contexts):
        ids = encode(tokenizer, STARTS[i % len(STARTS)])
        for _ in range(config.context_tokens - 1):
            logits = model(torch.tensor([ids], device=device), use_cache=False).logits[0, -1]
            if not torch.isfinite(logits).all():
                raise ModelError("the model's logits are not finite; check its weights")
            top = logits.float().cpu().softmax(-1).topk(min(TOP_K, logits.numel()))
            ids = ids + [int(top.indices[torch.multinomial(top.values, 1, generator=draw)])]
        text = decode(tokenizer, ids).replace("{", " ").replace("}", " ")
        prefixes.append(" ".join(text.split()).rstrip(". "))
    return ("{}",) + tuple(prefix + ". {}" for prefix in prefixes)


def by_length(lengths: list[int] | list[tuple[int, ...]], max_tokens: int) -> list[list[int]]:
    """Group indices of rows by like length, each group within `max_tokens` padded (or one row).

    A group of `ENOUGH` tokens ends where lengths grow, so that little of it is padding. A row of
    several parts, each padded by itself, gives their lengths, the most important one first.
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


def validate(facts: list[Fact], tokenizer, model, templates: tuple[str, ...] = ("{}",)) -> None:
    """Raise `FactError` for the first fact that cannot be edited in one batch with the others.

    `templates` are the contexts under which the prompts will be seen; they count for the length.
    """
    if not isinstance(facts, list) or not all(isinstance(fact, Fact) for fact in facts):
        raise FactError(-1, "facts", f"{type(facts).__name__} given", "give a list of ece.Fact")
    if not facts:
        raise FactError(-1, "facts", "the batch is empty", "give at least one fact")
    room = getattr(model.config, "max_position_embeddings", None)
    for fact in facts:
        _check_text(fact)
        if not target_ids(tokenizer, fact.target):
            raise FactError(fact.id, "target", "it tokenizes to nothing", "give visible text")
        texts = [template.replace("{}", fact.text) for template in templates]
        longest = max(len(ids) for ids, _ in encode_all(tokenizer, texts))
        size = longest + len(target_ids(tokenizer, fact.target))
        if room is not None and size > room:
            reason = f"prompt, prefix and target take {size} tokens, the model reads {room}"
            raise FactError(fact.id, "prompt", reason, "shorten the prompt or the contexts")
    _check_pairs(facts)


def _check_text(fact: Fact) -> None:
    slots = fact.prompt.count("{}")
    if slots != 1:
        where = "not in the prompt" if slots == 0 else f"in the prompt {slots} times"
        raise FactError(fact.id, "prompt", f"the subject is {where}", 'mark its one place by "{}"')
    for field in ("prompt", "subject", "target"):
        text = getattr(fact, field)
        if not text.strip():
            raise FactError(fact.id, field, "it is empty", "give visible text")
        if any(0xD800 <= ord(letter) < 0xE000 for letter in text):
            raise FactError(fact.id, field, "it holds half of a surrogate pair", "give valid text")
    if fact.subject != fact.subject.strip():
        reason = "it starts or ends with white space"
        raise FactError(fact.id, "subject", reason, "put the space into the prompt")
    again = rf"(?<!\w){re.escape(fact.subject)}(?!\w)"
    if re.search(again, fact.prompt.replace("{}", "\0")):
        reason = f"the prompt mentions '{fact.subject}' again beside its slot"
        raise FactError(fact.id, "subject", reason, "word the prompt with one mention")


def _check_pairs(facts: list[Fact]) -> None:
    """Refuse two facts of one batch about the same subject and relation, prompt, or whole text."""
    seen: dict[tuple[str, str], int] = {}
    for number, fact in enumerate(facts):
        pairs = {(fact.subject, fact.relation or fact.prompt), (fact.subject, fact.prompt)}
        for key in (*pairs, ("", fact.text)):
            other = facts[seen.setdefault(key, number)]
            if seen[key] != number:
                word = "repeats" if other.target.strip() == fact.target.strip() else "contradicts"
                reason = f"it {word} fact {other.id} (same subject and relation)"
                raise FactError(fact.id, "subject", reason, "keep one of the two in a batch")
