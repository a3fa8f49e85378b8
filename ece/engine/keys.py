"""The key of a fact: what enters the down-projection at the subject's last token."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ece.engine.prefix import Passed, Walk, advance, common, start, through
from ece.facts import Fact, by_length, locate_all


def subject_rows(tokenizer, facts: list[Fact], templates: tuple[str, ...]) -> list[list[int]]:
    """Ids up to the subject's last token, fact by fact, template by template.

    What follows cannot change the key there (causality), so it is not run.
    """
    pairs = [(t.replace("{}", fact.prompt), fact.subject) for fact in facts for t in templates]
    return [ids[: last + 1] for ids, last in locate_all(tokenizer, pairs)]


def mix(keys: Float[Tensor, "edit context ff"], how: str) -> Float[Tensor, "edit ff"]:
    """One key per fact: context 0 is the bare prompt, the others have prefixes.

    "mixed": half the bare key, half the mean of the others; "bare": the bare key.
    """
    if how == "bare" or keys.shape[1] == 1:
        return keys[:, 0]
    return keys[:, 0] / 2 + keys[:, 1:].mean(1) / 2


def walk_to_subjects(model: nn.Module, rows: list[list[int]], edits: int, max_tokens: int) -> Walk:
    """The rows of `subject_rows` before block 0, like rows sharing what they begin with."""
    kinds = list(range(len(rows) // edits)) * edits
    room = [len(row) - 1 for row in rows]
    heads = common(rows, kinds, room)
    sizes = [len(row) - len(heads[kind]) for row, kind in zip(rows, kinds, strict=True)]
    return start(model, rows, kinds, room, by_length(sizes, max_tokens))


def walk_past(
    walk: Walk, edits: int, layer: int, at: int
) -> tuple[Passed, Float[Tensor, "edit context ff"], Float[Tensor, "edit model"]]:
    """Keys of all contexts at `layer`, and the bare prompts' states after block `at`.

    Also the walk past `layer`, from where the keys of later layers go on: as it is, or
    `ece.engine.prefix.rewritten` once this layer's weights have changed. Only the bare rows go on to `at`.
    """
    passed = through(advance(walk, layer))
    walk = passed.walk
    order = torch.cat([part.rows for part in walk.parts]).argsort()
    ends = [keys[torch.arange(len(part.last), device=part.last.device), part.last]
            for part, keys in zip(walk.parts, passed.parts, strict=True)]  # fmt: skip
    keys = torch.cat(ends)[order]
    each = len(keys) // edits
    bare = advance(walk.only(torch.arange(0, len(keys), each)), at + 1)
    states = torch.cat([part.at_last() for part in bare.parts])
    back = torch.cat([part.rows for part in bare.parts]).argsort()
    return passed, keys.unflatten(0, (edits, each)), states[back].float()


def keys_and_states(
    model: nn.Module, rows: list[list[int]], edits: int, layer: int, at: int, max_tokens: int
) -> tuple[Float[Tensor, "edit context ff"], Float[Tensor, "edit model"]]:
    """`walk_past` for one layer, from the rows of `subject_rows`."""
    return walk_past(walk_to_subjects(model, rows, edits, max_tokens), edits, layer, at)[1:]
