"""What the model knew before: second moments of the keys, $C_0 = E[k k^T]$ (Eq 4)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ece.errors import StatsError, check_finite, check_mode
from ece.facts import encode, probe
from ece.fingerprint import digest, fingerprint
from ece.hooks import capture, states_at
from ece.model import room, sites

ROW = 1024  # longest packed row; a model that reads less sets its own


@dataclass(frozen=True)
class Sums:
    """An unfinished pass: sums of $k k^T$, from which another pass can go on."""

    sums: dict[int, Tensor]
    """Per layer `[ff, ff]`, float64: in float32 small eigenvalues would fall below zero."""
    tokens: int
    forwards: int
    """Forward passes done; going on skips as many groups of rows."""


@dataclass(frozen=True)
class Stats:
    """Second moments of one model's keys."""

    moments: dict[int, Tensor]
    """Per layer, the mean of $k k^T$ over tokens, `[ff, ff]`, float64."""
    tokens: int
    """The number of tokens seen."""
    fingerprint: str
    """The model they belong to."""
    probe: tuple[int, ...] = ()
    """How the tokenizer encodes a fixed text; empty where that is not known."""

    @cached_property
    def digest(self) -> str:
        """A hash of all moments: what an edit state remembers them by."""
        parts = (digest(C) * (2 * layer + 1) for layer, C in self.moments.items())
        return f"{sum(parts) % 2**64:016x}"

    @property
    def own(self) -> tuple[int, ...]:
        """Layers whose moments are here: all, unless processes share them (`ece.storage.held`)."""
        return tuple(self.moments)

    def solved(self, layer: int, solve: Callable[[], Any]) -> Any:
        """Solve for one layer's update where its moments are."""
        return solve()

    def whole(self, sums: dict[int, Tensor]) -> dict[int, Tensor]:
        """Bring sums per layer to the process that saves them."""
        return sums


def elsewhere(like: Float[Tensor, "_ ff"]) -> Float[Tensor, "ff ff"]:
    """Stand in for a matrix that another process holds: nan everywhere, and no memory."""
    size = like.shape[-1]
    return like.new_full((), torch.nan, dtype=torch.double).expand(size, size)


def blend(first: Stats, second: Stats, share: float) -> Stats:
    """Mix two statistics of one model: `(1 - share) * first + share * second`."""
    if not isinstance(share, float | int) or not 0 <= share <= 1:
        raise StatsError(f"share is {share!r}; give a number in [0, 1]")
    if first.fingerprint != second.fingerprint or first.moments.keys() != second.moments.keys():
        raise StatsError("statistics of two models or of other layers; blend those of one model")
    moments = {n: (1 - share) * C + share * second.moments[n] for n, C in first.moments.items()}
    return replace(first, moments=moments)


@torch.no_grad()
def second_moment(
    model: nn.Module, tokenizer, texts: Iterable[str], layers: tuple[int, ...],
    max_tokens: int = 16384, select: Callable | None = None, start: Sums | None = None,
    on_forward: Callable[[Sums], None] | None = None, crew: Any = None,
) -> Stats:  # fmt: skip
    """Compute the second moments (Eq 4) of all `layers` in one pass that stops at the last.

    Texts are packed end to end into rows of the model's context length (`ROW` at most), so no
    token is padding; `max_tokens` bounds the tokens of one forward pass. `select(tokenizer, text)`
    says per token whether it counts. `start` goes on from the `Sums` that `on_forward` was given;
    these change after the call: save or copy them in it. `StatsError` without a token.
    `crew`: processes that share the passes (`ece.engine.parallel.Together`); all get all sums.
    """
    if isinstance(texts, str | bytes | dict) or not isinstance(texts, Iterable):
        raise StatsError(f"texts is a {type(texts).__name__}; give a list of texts")
    counts = isinstance(layers, tuple) and layers and (*layers, max_tokens)
    if not counts or {type(count) for count in counts} != {int} or max_tokens < 1:
        raise StatsError(f"layers is {layers!r}, max_tokens {max_tokens!r}; give a tuple of layers "
                         "and a whole number of tokens")  # fmt: skip
    check_mode(model)
    length = min(room(model, whole=True), ROW, max_tokens)
    start = start or Sums({}, 0, 0)
    sums, tokens, done = {n: t.clone() for n, t in start.sums.items()}, start.tokens, start.forwards
    groups = packed(tokenizer, texts, length, max(1, max_tokens // length), select)
    if crew is not None:
        groups = crew.share(groups)
    for number, (rows, counted) in enumerate(islice(groups, done, None), done + 1):
        with capture(sites(model, layers)) as keys:
            states_at(model, rows, max(layers))
        for layer in layers:
            found = keys[layer][torch.tensor(counted, device=keys[layer].device)].double()
            product = found.T @ found
            sums[layer] = sums[layer].to(product).add_(product) if layer in sums else product
        tokens += sum(map(sum, counted))
        if on_forward is not None:
            on_forward(Sums(sums, tokens, number))
    if crew is not None:
        tokens = int(crew.total(torch.tensor(tokens)))
        sums = {n: crew.total(_sum(model, sums, n)) for n in layers}
    return Stats(_means(sums, tokens), tokens, fingerprint(model), probe(tokenizer))


def _means(sums: dict[int, Tensor], tokens: int) -> dict[int, Tensor]:
    """Divide the sums, which are taken away, by the tokens."""
    if not tokens:
        raise StatsError("no token was counted; give texts with at least one")
    moments = {}
    for layer in list(sums):  # a sum goes as its mean comes: at full size each takes gigabytes
        total = sums.pop(layer)
        moments[layer] = (total + total.T) / (2 * tokens)  # symmetric to the last bit
        check_finite(f"second moments of layer {layer}", moments[layer])
    return moments


def _sum(model: nn.Module, sums: dict[int, Tensor], layer: int) -> Float[Tensor, "ff ff"]:
    """Give a process's sum, zero where it made no pass."""
    (site,) = sites(model, (layer,))
    device = site.module.weight.device
    if layer in sums:
        return sums[layer].to(device)
    return torch.zeros(site.shape[1], site.shape[1], dtype=torch.float64, device=device)


def packed(tokenizer, texts, length: int, count: int, select: Callable | None = None):
    """Yield (rows, counted): up to `count` rows of exactly `length` ids; the last may be shorter.

    A shorter row comes alone, so that a list never needs padding. `counted[row][token]` says
    whether the token counts: all, or those that `select` chose.
    """

    def rows():
        buffer: list[tuple[int, bool]] = []
        for text in texts:
            if not isinstance(text, str):
                raise StatsError(f"texts hold {text!r:.60}; give a list of texts")
            ids = encode(tokenizer, text)
            marks = select(tokenizer, text) if select else [True] * len(ids)
            buffer.extend(zip(ids, marks, strict=True))
            while len(buffer) >= length:
                yield buffer[:length]
                buffer = buffer[length:]
        yield buffer

    stream = rows()
    while full := list(islice(stream, count)):
        whole = [row for row in full if len(row) == length]
        for group in (whole, [row for row in full if 0 < len(row) < length]):
            if group:
                yield tuple([[part[i] for part in row] for row in group] for i in (0, 1))
