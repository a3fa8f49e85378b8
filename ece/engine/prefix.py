"""Rows on their way through a model: some blocks at a time, common beginnings only once.

The contexts of a call begin all facts with the same few prefixes. A prefix cannot see what
follows it (causality), so its states, keys and values are computed once per call, and each
row runs from where it differs.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from ece.facts import pad
from ece.hooks import capture, gain
from ece.model import between, sites

Past = list[tuple[Tensor, Tensor]]
"""Keys and values `[row, head, token, width]`, per block."""


@dataclass(frozen=True)
class Heads:
    """The common beginnings of rows."""

    states: Float[Tensor, "head token d"]
    """States after the blocks done so far; pads are junk."""
    length: Int[Tensor, " head"]
    """Tokens of each, maybe 0."""


@dataclass(frozen=True)
class Part:
    """Rows that run together, each from where its beginning ends."""

    rows: Int[Tensor, " row"]
    """Which rows of the walk these are."""
    head: Int[Tensor, " row"]
    """The beginning of each."""
    states: Float[Tensor, "row token d"]
    """States after the blocks done so far; pads repeat the last token's id."""
    positions: Int[Tensor, "row token"]
    """The tokens' places in their whole rows."""
    mask: Float[Tensor, "row 1 token seen"]
    """Added to the attention scores: the beginning's tokens, then these."""
    last: Int[Tensor, " row"]
    """Where the row ends, counted in this part's tokens."""

    def at_last(self) -> Float[Tensor, "row d"]:
        """States at the rows' last tokens."""
        return self.states[torch.arange(len(self.last), device=self.last.device), self.last]


@dataclass(frozen=True)
class Walk:
    """Rows before block `layer`; values that are passed on, never changed."""

    model: nn.Module
    layer: int
    heads: Heads
    parts: list[Part]

    def only(self, rows: Int[Tensor, " some"]) -> "Walk":
        """Take some of the rows."""
        some = [(part, torch.isin(part.rows, rows.to(part.rows)).nonzero()[:, 0])
                for part in self.parts]  # fmt: skip
        return replace(self, parts=[_take(part, at) for part, at in some if len(at)])


def _take(part: Part, at: Int[Tensor, " some"]) -> Part:
    """Take the part's rows `at`, without columns that are then only padding."""
    width = int(part.last[at].max()) + 1
    before = part.mask.shape[-1] - part.states.shape[1]
    return Part(
        part.rows[at],
        part.head[at],
        part.states[at, :width],
        part.positions[at, :width],
        part.mask[at, :, :width, : before + width],
        part.last[at],
    )


def common(rows: list[list[int]], kinds: list[int], room: list[int]) -> list[list[int]]:
    """Find per kind the ids that all its rows begin with: at most `room[i]` of row i's."""
    heads: dict[int, list[int]] = {}
    for ids, kind, most in zip(rows, kinds, room, strict=True):
        head = heads.setdefault(kind, ids)[:most]
        same = 0
        while same < min(len(head), len(ids)) and head[same] == ids[same]:
            same += 1
        heads[kind] = head[:same]
    return [heads[kind] for kind in range(len(heads))]


@torch.no_grad()
def embed(
    model: nn.Module, rows: list[list[int]], kinds: list[int], room: list[int],
    chunks: list[list[int]],
) -> Walk:  # fmt: skip
    """Embed the rows, split into beginnings and the rest.

    Rows of one kind share a beginning; `room[i]` is how much of row i it may take at most
    (less than all of it); `chunks` names the rows that run together.
    """
    heads = common(rows, kinds, room)
    device = model.get_input_embeddings().weight.device
    length = torch.tensor([len(head) for head in heads], device=device)
    ids = pad(heads)[0].to(device)
    count = torch.arange(ids.shape[1], device=device).expand(len(heads), -1)
    begun = Heads(_embedded(model, ids, count), length)
    parts = []
    for chunk in chunks:
        head = torch.tensor([kinds[i] for i in chunk], device=device)
        rest = [rows[i][len(heads[kinds[i]]) :] for i in chunk]
        last = torch.tensor([len(tokens) - 1 for tokens in rest], device=device)
        at = torch.minimum(torch.arange(max(map(len, rest)), device=device), last[:, None])
        positions = length[head][:, None] + at
        states = _embedded(model, pad(rest)[0].to(device).gather(1, at), positions)
        mask = masked(length[head], ids.shape[1], at.shape[1], states.dtype)
        parts.append(Part(torch.tensor(chunk, device=device), head, states, positions, mask, last))
    return Walk(model, 0, begun, parts)


def _embedded(model: nn.Module, ids: Tensor, positions: Tensor) -> Tensor:
    """Compute what enters block 0: the base model without blocks and final norm."""
    if not ids.shape[1]:
        return model.get_input_embeddings()(ids)
    seen = torch.ones_like(ids)  # no block runs; without a mask the padding would be warned of
    with between(model, 0, -1) as base:
        return base(
            ids, attention_mask=seen, position_ids=positions, use_cache=False
        ).last_hidden_state


def masked(
    seen: Int[Tensor, " row"], before: int, size: int, dtype: torch.dtype
) -> Float[Tensor, "row 1 token seen"]:
    """Make the additive mask of `size` new tokens after `before` old, the first `seen` real."""
    steps = torch.arange(size, device=seen.device)
    old = torch.arange(before, device=seen.device) < seen[:, None]
    causal = (steps[None] <= steps[:, None]).expand(len(seen), -1, -1)
    open_ = torch.cat([old[:, None].expand(-1, size, -1), causal], 2)[:, None]
    mask = torch.zeros(open_.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill(~open_, torch.finfo(dtype).min)


@torch.no_grad()
def advance(walk: Walk, to: int) -> Walk:
    """Advance the walk to the entry of block `to`, with the weights as they are now."""
    if to == walk.layer:
        return walk
    heads, past = pass_heads(walk, to - 1)
    parts = [replace(part, states=run(walk, part, past, to - 1)) for part in walk.parts]
    return replace(walk, layer=to, heads=heads, parts=parts)


@torch.no_grad()
def pass_heads(walk: Walk, last: int | None = None) -> tuple[Heads, Past]:
    """Run the beginnings through blocks `walk.layer..last`; returns them, and keys and values."""
    if not walk.heads.states.shape[1]:
        return walk.heads, []
    cache = DynamicCache()
    with between(walk.model, walk.layer, last, embedded=True) as base:
        states = base(
            inputs_embeds=walk.heads.states, past_key_values=cache, use_cache=True
        ).last_hidden_state
    past = [(layer.keys, layer.values) for layer in cache.layers[walk.layer :]]
    return replace(walk.heads, states=states.to(walk.heads.states.device)), past


def run(walk: Walk, part: Part, past: Past, last: int) -> Float[Tensor, "row token d"]:
    """Run the part to block `last`; `past` is the beginnings', from `walk.layer` on.

    States come back to where they were: a model may be spread over several devices.
    """
    cache = cached(past, part.head, walk.layer)
    with torch.no_grad(), between(walk.model, walk.layer, last, embedded=True) as base:
        states = run_on(base, part.states, part.mask, part.positions, cache)
    return states.to(part.states.device)


def run_on(base: nn.Module, states: Tensor, mask: Tensor, positions: Tensor, cache) -> Tensor:
    """Run the base model's blocks on states `[row, token, d]` that follow the cache's tokens."""
    return base(inputs_embeds=states, attention_mask=mask, position_ids=positions,
                past_key_values=cache, use_cache=cache is not None).last_hidden_state  # fmt: skip


def cached(past: Past, rows: Int[Tensor, " row"], first: int) -> DynamicCache | None:
    """Make a cache in which every row has the keys and values of its beginning."""
    if not past:
        return None
    cache = DynamicCache()
    for block, (keys, values) in enumerate(past, first):
        here = rows.to(keys.device)
        cache.update(keys[here], values[here], block)
    return cache


@dataclass(frozen=True)
class Passed:
    """A walk behind an edit layer, with what it takes to correct it once the layer is written."""

    walk: Walk
    """States entering the next block, by the weights as they were."""
    heads: Float[Tensor, "head before ff"] | None
    """The layer's keys at the beginnings' tokens (None: there are none)."""
    parts: list[Float[Tensor, "_ _ ff"]]
    """And at the parts' tokens."""
    before: Walk
    """States entering the layer's own block."""
    gain: float | None
    """What the stream gets of the layer's down-projection (`ece.hooks.gain`)."""

    @property
    def entry(self) -> Walk:
        """Where values enter: behind the block, or inside it where a norm follows the MLP."""
        return self.before if self.gain is None else self.walk


@torch.no_grad()
def through(walk: Walk) -> Passed:
    """Run the walk through block `walk.layer`, and hold that block's keys."""
    layer = walk.layer
    with capture(sites(walk.model, (layer,))) as found:
        heads, past = pass_heads(walk, layer)
        begun, parts, keys = found.pop(layer, None), [], []
        for part in walk.parts:
            parts.append(replace(part, states=run(walk, part, past, layer)))
            keys.append(found[layer])
    passed = replace(walk, layer=layer + 1, heads=heads, parts=parts)
    return Passed(passed, begun, keys, walk, gain(walk.model, layer))


def rewritten(passed: Passed, change: Float[Tensor, "model ff"]) -> Walk:
    """Correct the walk after `change` was added to the down-projection it passed.

    The block's other parts see the same input as before: only what the down-projection adds to
    the stream differs, by `change` times the key. Where a norm follows it, the block runs again.
    """
    if passed.gain is None:
        return advance(passed.before, passed.walk.layer)

    def corrected(states: Tensor, keys: Tensor) -> Tensor:
        more = passed.gain * (keys.float() @ change.T.to(keys.device))
        more = more.to(states.device)  # of a spread model
        return (states.float() + more).to(states.dtype)

    walk, heads = passed.walk, passed.walk.heads
    if passed.heads is not None:
        heads = replace(heads, states=corrected(heads.states, passed.heads))
    pairs = zip(walk.parts, passed.parts, strict=True)
    parts = [replace(part, states=corrected(part.states, keys)) for part, keys in pairs]
    return replace(walk, heads=heads, parts=parts)
