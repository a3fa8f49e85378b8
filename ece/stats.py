"""What the model knew before: second moments of the keys, $C_0 = E[k k^T]$ (Eq 4)."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ece.errors import StatsError
from ece.facts import encode
from ece.hooks import capture
from ece.model import fingerprint, sites
from ece.upper import states_at

ROW = 1024  # longest packed row; a model with less context sets its own


class SecondMoment:
    """Running sum of $k k^T$ over tokens, in float64."""

    def __init__(self) -> None:
        self.sum_: Tensor | None = None
        self.count = 0

    def update(self, keys: Float[Tensor, "token ff"]) -> None:
        """Add a block of keys.

        The products are float64 too: keys often nearly fill a subspace only, and float32
        rounding would then push small eigenvalues below zero.
        """
        product = keys.double().T @ keys.double()
        self.sum_ = product if self.sum_ is None else self.sum_ + product
        self.count += len(keys)

    @property
    def mean(self) -> Float[Tensor, "ff ff"]:
        """$E[k k^T]$, per token; symmetric to the last bit."""
        if self.sum_ is None:
            raise StatsError("no keys were seen; give texts with at least one token")
        return (self.sum_ + self.sum_.T) / (2 * self.count)


@dataclass(frozen=True)
class Stats:
    """Second moments of one model's keys."""

    moments: dict[int, Tensor]
    """Per layer, the mean of $k k^T$ over tokens, `[ff, ff]`, float64."""
    tokens: int
    """The number of tokens seen."""
    fingerprint: str
    """The model they belong to."""


@torch.no_grad()
def second_moment(
    model: nn.Module,
    tokenizer,
    texts: Iterable[str],
    layers: tuple[int, ...],
    max_tokens: int = 16384,
) -> Stats:
    """Second moments of all `layers` in one pass that stops at the last of them.

    Texts are packed end to end into rows of the model's context length (1024 at most), so
    no token is padding; `max_tokens` bounds the tokens of one forward.
    """
    length = min(getattr(model.config, "max_position_embeddings", ROW), ROW, max_tokens)
    places, totals = sites(model, layers), {layer: SecondMoment() for layer in layers}
    for rows in packed(tokenizer, texts, length, max(1, max_tokens // length)):
        with capture(places) as keys:
            states_at(model, rows, max(layers))
        for layer, total in totals.items():
            total.update(keys[layer].flatten(0, 1))
    moments = {layer: total.mean for layer, total in totals.items()}
    if not all(torch.isfinite(moment).all() for moment in moments.values()):
        raise StatsError("the keys' second moments are not finite; look at the model's weights")
    return Stats(moments, next(iter(totals.values())).count, fingerprint(model))


def packed(tokenizer, texts: Iterable[str], length: int, count: int):
    """Yield lists of up to `count` rows of exactly `length` ids; the last row may be shorter.

    A shorter row comes alone, so that a list never needs padding.
    """

    def rows():
        buffer: list[int] = []
        for text in texts:
            buffer.extend(encode(tokenizer, text))
            while len(buffer) >= length:
                yield buffer[:length]
                buffer = buffer[length:]
        yield buffer

    stream = rows()
    while full := list(islice(stream, count)):
        whole = [row for row in full if len(row) == length]
        yield from (group for group in (whole, [r for r in full if 0 < len(r) < length]) if group)


def save(stats: Stats, path: str | Path) -> None:
    """Write to one safetensors file, with the fingerprint and a checksum in its header."""
    tensors = {str(layer): moment.cpu() for layer, moment in stats.moments.items()}
    head = {"tokens": stats.tokens, "fingerprint": stats.fingerprint, "checksum": _sum(tensors)}
    temporary = Path(f"{path}.tmp")
    save_file(tensors, temporary, metadata={"stats": json.dumps(head)})
    temporary.replace(path)


def load(path: str | Path, model: nn.Module | None = None) -> Stats:
    """Read `save`'s file; `StatsError` if damaged or, given a model, not that model's."""
    with safe_open(path, framework="pt") as file:
        head = json.loads((file.metadata() or {}).get("stats", "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if head.get("checksum") != _sum(tensors):
        raise StatsError(f"{path} is damaged or no file of statistics; compute it again")
    moments = {int(name): tensors[name] for name in sorted(tensors, key=int)}
    stats = Stats(moments, head["tokens"], head["fingerprint"])
    if model is not None:
        check(stats, fingerprint(model), tuple(moments))
    return stats


def _sum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def check(stats: Stats, model_fingerprint: str, layers: tuple[int, ...]) -> None:
    """`StatsError` unless `stats` belong to the model and hold finite moments of `layers`."""
    if stats.fingerprint != model_fingerprint:
        raise StatsError("these statistics are of another model; compute them for this one")
    missing = [layer for layer in layers if layer not in stats.moments]
    if missing:
        have = ", ".join(map(str, stats.moments))
        raise StatsError(f"no statistics for layer {missing[0]}; the file holds layers {have}")
    for layer in layers:
        if not torch.isfinite(stats.moments[layer]).all():
            raise StatsError(f"the statistics of layer {layer} are not finite; compute them again")
