"""Run part of a model: the blocks up to a layer once, the blocks above it many times.

A value enters the residual stream at the subject's last token, after block `layer`. By
causality nothing before that token ever changes, in any block, and nothing below that
block changes at all. So states at `layer` and the keys and values of earlier tokens are
computed once, and a descent step runs only the blocks above, from that token on.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from ece.facts import pad
from ece.model import between, blocks


@torch.no_grad()
def states_at(model: nn.Module, rows: list[list[int]], layer: int) -> Float[Tensor, "row token d"]:
    """Residual stream after block `layer` for right-padded rows (states at pads are junk)."""
    ids, _ = pad(rows)
    ids = ids.to(model.get_input_embeddings().weight.device)
    with between(model, 0, layer) as base:
        # Causal attention keeps right padding out of every real token: no mask is needed.
        return base(ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state


@dataclass(frozen=True)
class Upper:
    """Rows ready to run above `layer`, from each row's subject-last token on."""

    model: nn.Module
    """The model; between runs it is whole and unchanged."""
    layer: int
    """The block after which the value enters."""
    hidden: Float[Tensor, "row token d"]
    """States after that block; token 0 is the subject's last."""
    positions: Int[Tensor, "row token"]
    """The tokens' places in their rows."""
    mask: Float[Tensor, "row 1 token seen"]
    """Added to the attention scores: earlier tokens, then these."""
    past: list[tuple[Tensor, Tensor]]
    """Keys and values of the earlier tokens, `[row, head, before, width]`, per upper block."""

    def run(self, delta: Float[Tensor, "row d"]) -> Float[Tensor, "row token d"]:
        """Final states (after the last norm) with `delta` added at the subject's last token."""
        first = (self.hidden[:, :1].float() + delta[:, None]).to(self.hidden.dtype)
        cache = DynamicCache()
        for block, (keys, values) in enumerate(self.past, self.layer + 1):
            cache.update(keys, values, block)
        with between(self.model, self.layer + 1) as base:
            return base(
                inputs_embeds=torch.cat([first, self.hidden[:, 1:]], 1),
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state

    def take(self, rows: Int[Tensor, " kept"]) -> "Upper":
        """The same for some of the rows."""
        past = [(keys[rows], values[rows]) for keys, values in self.past]
        hidden, positions, mask = self.hidden[rows], self.positions[rows], self.mask[rows]
        return replace(self, hidden=hidden, positions=positions, mask=mask, past=past)


@torch.no_grad()
def lift(
    model: nn.Module,
    states: Float[Tensor, "row token d"],
    start: list[int],
    length: list[int],
    layer: int,
) -> Upper:
    """Make rows ready: `states` after block `layer`, subject-last tokens, real lengths."""
    device, before = states.device, max(start)
    begin = torch.tensor(start, device=device)
    size = max(n - s for n, s in zip(length, start, strict=True))
    steps = torch.arange(size, device=device)
    # Pads repeat the row's last state; they come after every real token and are never read.
    last = torch.tensor(length, device=device)[:, None] - 1
    positions = torch.minimum(begin[:, None] + steps, last)
    hidden = states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))
    seen = torch.arange(before, device=device) < begin[:, None]
    causal = (steps[None] <= steps[:, None]).expand(len(start), -1, -1)
    open_ = torch.cat([seen[:, None].expand(-1, size, -1), causal], 2)[:, None]
    mask = torch.zeros(open_.shape, dtype=states.dtype, device=device)
    mask = mask.masked_fill(~open_, torch.finfo(states.dtype).min)
    return Upper(model, layer, hidden, positions, mask, _past(model, states[:, :before], layer))


def _past(model: nn.Module, states: Float[Tensor, "row before d"], layer: int):
    """Keys and values of the tokens before the subject's last, for each block above `layer`."""
    if not states.shape[1]:
        return []
    cache = DynamicCache()
    with between(model, layer + 1) as base:
        base(inputs_embeds=states, past_key_values=cache, use_cache=True)
    return [(cache.layers[i].keys, cache.layers[i].values) for i in range(layer + 1, depth(model))]


def depth(model: nn.Module) -> int:
    """The number of blocks."""
    return len(blocks(model))
