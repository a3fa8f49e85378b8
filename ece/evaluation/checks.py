"""Check facts and texts before a run: what the model cannot read is named, and nothing has run."""

from collections.abc import Sequence

from ece.errors import DataError, FactError
from ece.facts import Fact, encode_all, is_broken, target_ids
from ece.model import room


def check_lengths(model, tokenizer, facts: Sequence[Fact]) -> None:
    """Check that the model can read every prompt of every fact, with its answers.

    Raises `FactError` that names the fact and the field. Prefixes of the edit prompt count in
    `ece.checks.validate`; every other prompt counts here alone.
    """
    limit = room(model, whole=True)
    for fact in facts:
        prompts = [("prompt", fact.text)]
        for field in ("paraphrases", "neighbours", "generation"):
            prompts += [(field, text) for text in getattr(fact, field)]
        for field, text in [("target", fact.target), ("true", fact.true), *prompts]:
            if is_broken(text):
                reason = f"{text!r} holds half of a surrogate pair"
                raise FactError(fact.id, field, reason, "give valid Unicode")
        # An answer's last token is predicted, not read.
        answer = max(len(target_ids(tokenizer, text)) for text in (fact.target, fact.true)) - 1
        coded = encode_all(tokenizer, [text for _, text in prompts])
        for (field, text), (ids, _) in zip(prompts, coded, strict=True):
            size = len(ids) + (0 if field == "generation" else answer)
            if not ids:
                raise FactError(fact.id, field, f"{text!r} has no tokens", "give visible text")
            if size > limit:
                reason = f"{text!r} takes {size} tokens with its answer, the model reads {limit}"
                raise FactError(fact.id, field, reason, "shorten it or leave this fact out")


def check_texts(name: str, texts):
    """Return the texts; refuse one string in their place, which would be read letter by letter."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{name} are {texts!r:.60}; give a list of texts")
    return texts
