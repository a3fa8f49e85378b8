"""Facts, and everything that a tokenizer decides: ids, positions, padding, prefixes.

No other module of the method touches a tokenizer.
"""

import re

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ece.config import Config
from ece.errors import ConfigError, DataError, ModelError, checked
from ece.model import room

STARTS = ("The", "It", "In", "He", "They")  # first words of the random prefixes
CUT = "a"  # a text of one token, before which targets are encoded
BROKEN = re.compile("[\ud800-\udfff]")
PROBE = "It is said, in the year 1984, that "
TOP_K = 5  # a prefix is sampled among the likeliest tokens


@checked
class Fact:
    """An edit request: after it, `text` should go on with `target`.

    >>> Fact("The capital of {} is", "France", "Lyon", true="Paris").text
    'The capital of France is'
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


def names_of(facts: list[Fact]) -> tuple[tuple[str, str, str], ...]:
    """By what values and states know their facts; ids may repeat."""
    return tuple((fact.prompt, fact.subject, fact.target) for fact in facts)


def is_broken(text: str) -> bool:
    """Tell whether a text holds half of a surrogate pair, which no tokenizer reads."""
    return BROKEN.search(text) is not None


def encode_all(tokenizer, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Encode texts: per text its ids, and for each id the span of characters it covers.

    A leading BOS stays if this tokenizer adds one; an EOS never does.
    """
    for text in filter(is_broken, texts):
        raise DataError(f"text {text!r:.60} holds half of a surrogate pair; give valid text")
    out = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True)
    names, found = ("input_ids", "special_tokens_mask", "offset_mapping"), []
    for ids, special, spans in zip(*(out[name] for name in names), strict=True):
        while len(ids) > 1 and special[len(ids) - 1]:
            ids = ids[:-1]
        found.append((ids, spans[: len(ids)]))
    return found


def encode(tokenizer, text: str) -> list[int]:
    """Encode one text, with a leading BOS if this tokenizer adds one, never an EOS."""
    return encode_all(tokenizer, [text])[0][0]


def probe(tokenizer) -> tuple[int, ...]:
    """Encode a fixed text, by which one tokenizer is known from another."""
    return tuple(encode(tokenizer, PROBE))


def decode(tokenizer, ids) -> str:
    """Decode ids to text, without special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def target_ids(tokenizer, target: str) -> list[int]:
    """Encode a target as a continuation: one leading space, no BOS; empty for an empty text.

    It is cut from a longer text, as some tokenizers put a space of their own before every text.
    """
    if not (target := target.strip()):
        return []
    texts = [CUT, f"{CUT} {target}", f" {target}"]
    before, both, alone = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return list(both[len(before) :] if both[: len(before)] == before else alone)


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
    """Encode one template with its subject, and find the subject's last token (Eq 3)."""
    return locate_all(tokenizer, [(template, subject)])[0]


def pad(
    rows: list[list[int]], side: str = "right", value: int = 0
) -> tuple[Int[Tensor, "row token"], Bool[Tensor, "row token"]]:
    """Put rows of ids into one tensor, with a mask that is True on real tokens."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    real = [torch.ones_like(row, dtype=torch.bool) for row in ids]
    return pad_sequence(ids, True, value, side), pad_sequence(real, True, False, side)


@torch.no_grad()
def contexts(model, tokenizer, config: Config) -> tuple[str, ...]:
    """Draw the templates of a run: "{}" first, then `config.contexts` of "prefix. {}".

    The model itself writes the prefixes; the draws repeat and disturb no other random numbers.
    """
    draw, device = torch.Generator().manual_seed(config.seed), next(model.parameters()).device
    prefixes = []
    for i in range(config.contexts):
        ids = encode(tokenizer, STARTS[i % len(STARTS)])
        if len(ids) + config.context_tokens > room(model):
            raise ConfigError(f"setting 'context_tokens' is {config.context_tokens}; the model "
                              f"reads {room(model)} tokens, choose a smaller number")  # fmt: skip
        for _ in range(config.context_tokens - 1):
            logits = model(torch.tensor([ids], device=device), use_cache=False).logits[0, -1]
            if not torch.isfinite(logits).all():
                raise ModelError("the model's logits are not finite; check its weights")
            top = logits.float().cpu().softmax(-1).topk(min(TOP_K, logits.numel()))
            ids = ids + [int(top.indices[torch.multinomial(top.values, 1, generator=draw)])]
        text = decode(tokenizer, ids).replace("{", " ").replace("}", " ")
        prefixes.append(" ".join(text.split()).rstrip(". ") + ". {}")
    return ("{}", *prefixes)
