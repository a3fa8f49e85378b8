"""Choose layers by attribution: the paper asks for it (Section 3.1) and gives no rule."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ece.engine import reader
from ece.errors import ConfigError
from ece.facts import Fact
from ece.model import blocks, sites
from ece.scoring import scores


@torch.no_grad()
def layer_shares(
    model: nn.Module, tokenizer, facts: list[Fact], scorer: str, max_tokens: int = 16384
) -> Float[Tensor, " layer"]:
    """Compute the share of each layer in the facts' total score (Eq 5-7), float64, sum 1.

    Over all layers that can be edited: the last one cannot, as a value there reaches nothing.
    Each fact counts the same. "all" scores as "residual".
    """
    kind, last = ("residual" if scorer == "all" else scorer), len(blocks(model)) - 1
    rows, totals = reader(model, tokenizer, facts, ("{}",), max_tokens), []
    for layer in range(last):
        keys, _, rows = rows.read(layer, layer)
        weight = sites(model, (layer,))[0].weight
        totals.append(scores(kind, keys[:, 0], weight).double().sum(1))
    each = torch.stack(totals, 1)  # [edit, layer]
    return (each / each.sum(1, keepdim=True)).mean(0)


def chosen_layers(
    model: nn.Module, tokenizer, facts: list[Fact], scorer: str, count: int
) -> tuple[int, ...]:
    """Choose the `count` layers with the largest shares, in increasing order; ties to the lower."""
    share = layer_shares(model, tokenizer, facts, scorer)
    if count > len(share):
        raise ConfigError(f"setting 'adaptive' is {count}; this model has {len(share)} layers to "
                          "choose from")  # fmt: skip
    order = share.sort(descending=True, stable=True).indices[:count]
    return tuple(sorted(order.tolist()))
