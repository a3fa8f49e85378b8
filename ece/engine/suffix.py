"""Run part of a model: the blocks up to a layer once, the blocks above it many times.

A value enters the residual stream at the subject's last token, after block `layer`. By
causality nothing before that token ever changes, in any block, and nothing below that
block changes at all. So states at `layer` and the keys and values of earlier tokens are
computed once, and a descent step runs only the blocks above, from that token on. Where a norm
follows the MLP, the value enters before it, and a step runs that block, too.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache

from ece.engine.prefix import Part, Passed, Past, Walk, cached, masked, run_on
from ece.hooks import add_at
from ece.model import between, sites


@dataclass(frozen=True)
class Upper:
    """Rows ready to run above block `layer`, from each row's subject-last token on."""

    model: nn.Module
    """The model; between runs it is whole and unchanged."""
    layer: int
    """The last block that is done."""
    hidden: Float[Tensor, "row token d"]
    """States after that block; token 0 is the subject's last."""
    positions: Int[Tensor, "row token"]
    """The tokens' places in their rows."""
    mask: Float[Tensor, "row 1 token seen"]
    """Added to the attention scores: earlier tokens, then these."""
    past: Past
    """Keys and values of the earlier tokens, per upper block."""
    gain: float | None
    """What the states get of a value; None: it enters at the next block's down-projection."""

    @property
    def before(self) -> int:
        """Places for earlier tokens."""
        return self.mask.shape[-1] - self.hidden.shape[1]

    def run(self, delta: Float[Tensor, "row d"]) -> Float[Tensor, "row token d"]:
        """Final states (after the last norm) with `delta` added at the subject's last token."""
        entry, first = nullcontext(), self.hidden[:, :1]
        if self.gain is None:
            site, at = sites(self.model, (self.layer + 1,))[0], torch.zeros_like(self.positions)
            entry = add_at(site, at[:, 0], delta)
        else:
            first = (first.float() + self.gain * delta[:, None]).to(first.dtype)
        cache = DynamicCache()
        for block, (keys, values) in enumerate(self.past, self.layer + 1):
            cache.update(keys, values, block)
        with entry, between(self.model, self.layer + 1, embedded=True) as base:
            states = torch.cat([first, self.hidden[:, 1:]], 1)
            states = run_on(base, states, self.mask, self.positions, cache)
        return states.to(self.hidden.device)

    def take(self, rows: Int[Tensor, " kept"], width: int | None = None) -> "Upper":
        """Take some of the rows, without the tokens from `width` on."""
        past = [(k[rows.to(k.device)], v[rows.to(v.device)]) for k, v in self.past]
        hidden, positions = self.hidden[rows, :width], self.positions[rows, :width]
        mask = self.mask[rows, :, :width, : self.before + hidden.shape[1]]
        return replace(self, hidden=hidden, positions=positions, mask=mask, past=past)


def stacked(uppers: list[Upper]) -> Upper:
    """Join the rows of several, padded to the widest; pads are masked and never read."""
    size = max(upper.hidden.shape[1] for upper in uppers)
    before = max(upper.before for upper in uppers)
    like = next((upper.past for upper in uppers if upper.past), [])
    wide, pasts = [], []
    for upper in uppers:
        after, old = size - upper.hidden.shape[1], before - upper.before
        mask = pad(upper.mask, (old, after, 0, after), value=torch.finfo(upper.mask.dtype).min)
        places = pad(upper.positions, (0, after))
        wide.append((pad(upper.hidden, (0, 0, 0, after)), places, mask))
        none = [tuple(t.new_zeros(len(mask), t.shape[1], 0, t.shape[3]) for t in pair)
                for pair in like]  # fmt: skip
        pasts.append([tuple(pad(t, (0, 0, old, 0)) for t in pair) for pair in upper.past or none])
    hidden, positions, mask = (torch.cat(parts) for parts in zip(*wide, strict=True))
    past = [tuple(torch.cat(parts) for parts in zip(*block, strict=True))
            for block in zip(*pasts, strict=True)]  # fmt: skip
    return replace(uppers[0], hidden=hidden, positions=positions, mask=mask, past=past)


@torch.no_grad()
def lift(passed: Passed, part: Part, above: Past, begin: Int[Tensor, " row"]) -> Upper:
    """Make a part of `passed.entry` ready: the value enters at token `begin`.

    `above`: keys and values of the beginnings from the next block on; `begin` counts in the
    part's own tokens.
    """
    walk = passed.entry
    before, size = int(begin.max()), int((part.last - begin).max()) + 1
    steps = torch.arange(size, device=begin.device)
    # Pads repeat the row's last state; they come after every real token and are never read.
    at = torch.minimum(begin[:, None] + steps, part.last[:, None])
    hidden = part.states.gather(1, at[..., None].expand(-1, -1, part.states.shape[-1]))
    shared = walk.heads.states.shape[1]
    # The beginnings come first, then the row's own earlier tokens; each may be shorter than wide.
    lead = part.mask[:, :, :1, :shared].expand(-1, -1, size, -1)
    mask = torch.cat([lead, masked(begin, before, size, part.states.dtype)], 3)
    places, past = part.positions.gather(1, at), _past(walk, part, above, before)
    return Upper(walk.model, walk.layer - 1, hidden, places, mask, past, passed.gain)


def _past(walk: Walk, part: Part, above: Past, before: int) -> Past:
    """Keys and values of all tokens before the value's, per block from `walk.layer` on."""
    cache = cached(above, part.head, walk.layer)
    if before:
        cache = DynamicCache() if cache is None else cache
        shared = walk.heads.states.shape[1]
        with between(walk.model, walk.layer, embedded=True) as base:
            seen = part.mask[:, :, :before, : shared + before]
            run_on(base, part.states[:, :before], seen, part.positions[:, :before], cache)
    return [(c.keys, c.values) for c in cache.layers[walk.layer :]] if cache else []
