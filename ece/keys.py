"""The key of a fact: what enters the down-projection at the subject's last token."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ece.facts import Fact, by_length, locate
from ece.hooks import capture
from ece.model import sites
from ece.upper import states_at


def subject_rows(tokenizer, facts: list[Fact], templates: tuple[str, ...]) -> list[list[int]]:
    """Ids up to the subject's last token, fact by fact, template by template.

    What follows cannot change the key there (causality), so it is not run.
    """
    placed = [
        locate(tokenizer, template.replace("{}", fact.prompt), fact.subject)
        for fact in facts
        for template in templates
    ]
    return [ids[: last + 1] for ids, last in placed]


def mix(keys: Float[Tensor, "edit context ff"], how: str) -> Float[Tensor, "edit ff"]:
    """One key per fact: context 0 is the bare prompt, the others have prefixes.

    "mixed": half the bare key, half the mean of the others; "bare": the bare key.
    """
    if how == "bare" or keys.shape[1] == 1:
        return keys[:, 0]
    return keys[:, 0] / 2 + keys[:, 1:].mean(1) / 2


@torch.no_grad()
def read(
    model: nn.Module, rows: list[list[int]], layer: int, max_tokens: int
) -> tuple[Float[Tensor, "row ff"], Float[Tensor, "row model"]]:
    """Keys at `layer` and states after its block, both at each row's last token."""
    keys, states = [], []
    chunks = by_length([len(row) for row in rows], max_tokens)
    for chunk in chunks:
        last = torch.tensor([len(rows[i]) - 1 for i in chunk])
        with capture(sites(model, (layer,))) as found:
            stream = states_at(model, [rows[i] for i in chunk], layer)
        each = torch.arange(len(chunk))
        keys.append(found[layer][each, last])
        states.append(stream[each, last])
    back = torch.tensor([i for chunk in chunks for i in chunk]).argsort()
    return torch.cat(keys)[back], torch.cat(states)[back]


def keys_and_states(
    model: nn.Module, rows: list[list[int]], edits: int, layer: int, at: int, max_tokens: int
) -> tuple[Float[Tensor, "edit context ff"], Float[Tensor, "edit model"]]:
    """Keys of all contexts at `layer`, and the bare prompts' states after block `at`.

    `rows` come from `subject_rows`. Only the bare rows go on from `layer` to `at`.
    """
    each = len(rows) // edits
    keys, states = read(model, rows, layer, max_tokens)
    if at == layer:
        bare = states[::each]
    else:
        bare = read(model, rows[::each], at, max_tokens)[1]
    return keys.unflatten(0, (edits, each)), bare.float()
