"""What the model knew before: second moments of the keys, $C_0 = E[k k^T]$ (Eq 4)."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ece.engine.suffix import states_at
from ece.errors import StatsError
from ece.facts import ends_of_names
from ece.hooks import capture
from ece.model import fingerprint, sites

SAVE_EVERY = 20  # forwards between two states from which a killed pass goes on
ROW = 1024  # longest packed row; a model with less context sets its own


_NO_ENDS = (
    "no moments over the ends of names for layer {layer}, and names is {names:g}; compute the "
    "statistics again with names=True, from a text that has names"
)


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
        self.sum_ = product if self.sum_ is None else self.sum_.to(product).add_(product)
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
    ends: dict[int, Tensor] = field(default_factory=dict)
    """The same over the tokens that end a name alone; empty where they were not asked for."""

    def moment(self, layer: int, names: float = 0.0) -> Float[Tensor, "ff ff"]:
        r"""$C_0 = (1 - \nu) E[k k^T] + \nu E_{ends}[k k^T]$ with $\nu$ = `names`.

        The paper has $\nu = 0$. Facts are read where a name ends, so the second mean holds the
        keys that the neighbours of an edit have; it is the book's own. `StatsError` without it.
        """
        if not names:
            return self.moments[layer]
        if layer not in self.ends:
            raise StatsError(_NO_ENDS.format(layer=layer, names=names))
        return (1 - names) * self.moments[layer] + names * self.ends[layer]


@torch.no_grad()
def second_moment(
    model: nn.Module,
    tokenizer,
    texts: Iterable[str],
    layers: tuple[int, ...],
    max_tokens: int = 16384,
    save_to: str | Path | None = None,
    progress: Callable | None = None,
    names: bool = True,
) -> Stats:
    """Second moments of all `layers` in one pass that stops at the last of them.

    Texts are packed end to end into rows of the model's context length (1024 at most), so
    no token is padding; `max_tokens` bounds the tokens of one forward. With `save_to`, sums
    go to that file now and then, and a killed pass over the same texts goes on from there to
    the same bits. `progress(tokens)` is called after each forward.

    `names`: take them over the tokens that end a name (capitalised words) as well, for
    `Config.names`. That is one matrix `[ff, ff]` more per layer.
    """
    length = min(getattr(model.config, "max_position_embeddings", ROW), ROW, max_tokens)
    places, mark = sites(model, layers), fingerprint(model)
    totals, done = _resumed(save_to, mark, layers, names)
    groups = packed(tokenizer, texts, length, max(1, max_tokens // length), names)
    for number, (rows, ends) in enumerate(islice(groups, done, None), done + 1):
        with capture(places) as keys:
            states_at(model, rows, max(layers))
        for layer in layers:
            totals[str(layer)].update(keys[layer].flatten(0, 1))
            if names:
                at = torch.tensor(ends, device=keys[layer].device)
                totals[f"names.{layer}"].update(keys[layer][at])
        if progress is not None:
            progress(totals[str(layers[0])].count)
        if save_to is not None and number % SAVE_EVERY == 0:
            _keep(save_to, mark, totals, number)
    count, seen = totals[str(layers[0])].count, names and totals[f"names.{layers[0]}"].count
    # A sum goes as its mean comes: at full size each takes gigabytes.
    moments = {n: totals.pop(str(n)).mean for n in layers}
    ends = {n: totals.pop(f"names.{n}").mean for n in layers} if seen else {}
    if not all(torch.isfinite(moment).all() for moment in (*moments.values(), *ends.values())):
        raise StatsError("the keys' second moments are not finite; look at the model's weights")
    return Stats(moments, count, mark, ends)


def _keep(path: str | Path, mark: str, totals: dict[str, SecondMoment], number: int) -> None:
    """Write the sums so far; the file is replaced whole or not at all."""
    tensors = {name: total.sum_.cpu() for name, total in totals.items()}
    counts = {name: total.count for name, total in totals.items()}
    head = {"done": number, "counts": counts, "fingerprint": mark, "checksum": _sum(tensors)}
    _write(path, tensors, {"partial": json.dumps(head)})


def _resumed(
    path, mark: str, layers: tuple[int, ...], names: bool
) -> tuple[dict[str, SecondMoment], int]:
    """Sums and number of forwards of an unfinished pass; `StatsError` if not this model's."""
    kinds = ("", "names.") if names else ("",)
    totals = {f"{kind}{layer}": SecondMoment() for kind in kinds for layer in layers}
    if path is None or not Path(path).exists():
        return totals, 0
    head, tensors = _read(path, "partial")
    if head.get("fingerprint") != mark or set(tensors) != set(totals):
        raise StatsError(f"{path} holds sums of another model or of other layers; remove it")
    for name, total in totals.items():
        total.sum_, total.count = tensors[name], head["counts"][name]
    return totals, head["done"]


def packed(tokenizer, texts: Iterable[str], length: int, count: int, names: bool = False):
    """Yield (rows, ends): up to `count` rows of exactly `length` ids; the last may be shorter.

    A shorter row comes alone, so that a list never needs padding. `ends[row][token]` says
    whether the token ends a name; all False unless `names`.
    """

    def rows():
        buffer: list[tuple[int, bool]] = []
        for text in texts:
            buffer.extend(ends_of_names(tokenizer, text, names))
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


def save(stats: Stats, path: str | Path) -> None:
    """Write to one safetensors file, with the fingerprint and a checksum in its header."""
    tensors = {str(layer): moment.cpu() for layer, moment in stats.moments.items()}
    tensors |= {f"names.{layer}": moment.cpu() for layer, moment in stats.ends.items()}
    head = {"tokens": stats.tokens, "fingerprint": stats.fingerprint, "checksum": _sum(tensors)}
    _write(path, tensors, {"stats": json.dumps(head)})


def _write(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    temporary = Path(f"{path}.tmp")
    save_file(tensors, temporary, metadata=metadata)
    temporary.replace(path)


def _read(path: str | Path, what: str) -> tuple[dict, dict[str, Tensor]]:
    """Header and tensors of a file of `what`; `StatsError` if damaged or of something else."""
    with safe_open(path, framework="pt") as file:
        head = json.loads((file.metadata() or {}).get(what, "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if head.get("checksum") != _sum(tensors):
        raise StatsError(f"{path} is damaged or no file of statistics; compute it again")
    return head, tensors


def load(path: str | Path, model: nn.Module | None = None) -> Stats:
    """Read `save`'s file; `StatsError` if damaged or, given a model, not that model's."""
    head, tensors = _read(path, "stats")
    moments = {int(name): tensors[name] for name in tensors if "." not in name}
    ends = {int(name.split(".")[1]): tensors[name] for name in tensors if "." in name}
    moments, ends = ({n: part[n] for n in sorted(part)} for part in (moments, ends))
    stats = Stats(moments, head["tokens"], head["fingerprint"], ends)
    if model is not None:
        check(stats, fingerprint(model), tuple(moments))
    return stats


def _sum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def check(
    stats: Stats, model_fingerprint: str, layers: tuple[int, ...], names: float = 0.0
) -> None:
    """`StatsError` unless `stats` belong to the model and hold finite moments of `layers`.

    With `names`, those over the ends of names too.
    """
    if stats.fingerprint != model_fingerprint:
        raise StatsError("these statistics are of another model; compute them for this one")
    missing = [layer for layer in layers if layer not in stats.moments]
    if missing:
        have = ", ".join(map(str, stats.moments))
        raise StatsError(f"no statistics for layer {missing[0]}; the file holds layers {have}")
    for layer in layers:
        parts = (stats.moments, stats.ends) if names else (stats.moments,)
        if names and layer not in stats.ends:
            raise StatsError(_NO_ENDS.format(layer=layer, names=names))
        if not all(torch.isfinite(part[layer]).all() for part in parts):
            raise StatsError(f"the statistics of layer {layer} are not finite; compute them again")
