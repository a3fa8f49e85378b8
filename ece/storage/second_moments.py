"""Saves second moments of keys, and passes over texts that go on after an interruption."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from ece.checks import check_stats
from ece.covariance import Stats, Sums, second_moment
from ece.engine.parallel import Processes, Together
from ece.errors import StatsError
from ece.fingerprint import fingerprint
from ece.storage.archive import check_identity, checksum, load, save
from ece.storage.files import remove
from ece.storage.lock import locked

SAVE_EVERY = 20
"""Forward passes between two files from which an interrupted pass goes on."""


def moments(
    model: nn.Module, tokenizer, texts: Iterable[str], layers: tuple[int, ...],
    path: str | Path | None = None, max_tokens: int = 16384, select: Callable | None = None,
    progress: Callable[[int], None] | None = None, crew: Processes | None = None,
) -> tuple[Stats, str]:  # fmt: skip
    """Compute second moments (`ece.second_moment`) once; returns them and SHA-256 of the texts.

    With `path` they are saved there, and read the next time. A pass that was killed goes on from
    `path` + ".part" to the same bits. Another process at the same file is waited for. An error
    names a file that is of other texts, layers or tokens, or of another model. progress: called
    with the number of tokens so far. crew: processes that compute them together, over a disk that
    all of them see; `Together` shares the passes, and each goes on from a part of its own.
    """
    if isinstance(texts, str):
        raise StatsError("texts is one string; give a list of texts")
    texts, counted = list(texts), "all" if select is None else getattr(select, "__name__", "<")
    if counted.startswith("<"):
        raise StatsError(f"'select' is {select!r}; give a function with a name, by which the file "
                         "knows the tokens counted")  # fmt: skip
    shared, first = isinstance(crew, Together), crew is None or crew.rank == 0
    digest, part = checksum(texts), Path(f"{path}.part{crew.rank if shared else ''}")
    identity = {"model": fingerprint(model), "layers": layers, "max_tokens": max_tokens,
                "tokens counted": counted, "texts": digest,
                "processes": crew.count if shared else 1}  # fmt: skip
    where = part if path is not None and (first or shared) else None
    more = (_saving(where, identity, progress), crew if shared else None)
    numbers = (model, tokenizer, texts, layers, max_tokens, select)
    if path is None:
        return second_moment(*numbers, None, *more), digest
    with locked(path, wait=True) if first else nullcontext():
        there = Path(path).exists()
        if there if crew is None else crew.first(there):
            return _finished(Path(path), model, layers, counted, digest), digest
        stats = second_moment(*numbers, _begun(part, identity), *more)
        if first:
            save_moments(stats, path, digest, counted)
        remove([where] if where else [])
        if crew is not None:
            crew.first(None)  # nobody looks for the file before it is there
    return stats, digest


def _saving(part: Path | None, identity: dict, progress: Callable | None) -> Callable:
    """Make what is called after each forward pass."""

    def on_forward(sums: Sums) -> None:
        if part is not None and sums.forwards % SAVE_EVERY == 0:
            save(part, "sums", {"identity": identity, "sums": sums})
        if progress is not None:
            progress(sums.tokens)

    return on_forward


def _begun(part: Path, identity: dict) -> Sums | None:
    """Read the sums of a pass that was interrupted, if there are any."""
    if not part.exists():
        return None
    saved = load(part, "sums", [Sums])
    check_identity(part, saved["identity"], identity)
    return saved["sums"]


def _finished(path: Path, model, layers: tuple[int, ...], counted: str, digest: str) -> Stats:
    """Read a file of moments, and check that it is of this model, these layers and texts."""
    found = load(path, "moments", [Stats])
    check_stats(found["stats"], fingerprint(model), layers)
    held = {name: found[name] for name in ("tokens counted", "texts")}
    check_identity(path, held, {"tokens counted": counted, "texts": digest})
    return found["stats"]


def save_moments(stats: Stats, path: str | Path, texts: str = "", counted: str = "all") -> None:
    """Write second moments to one file.

    texts: SHA-256 of the texts they are of, if known. counted: the name of what chose the tokens.
    """
    if stats.own != tuple(stats.moments):
        raise StatsError("other processes hold a part of these second moments; save them before")
    save(path, "moments", {"stats": stats, "texts": texts, "tokens counted": counted})


def contents(path: str | Path) -> dict[str, Any]:
    """Say what a file of second moments holds: whose they are, of which layers, texts and size."""
    found = load(path, "moments", [Stats])
    stats = found["stats"]
    return {
        "model": stats.fingerprint,
        "layers": tuple(stats.moments),
        "neurons": {layer: len(moment) for layer, moment in stats.moments.items()},
        "tokens": stats.tokens,
        "tokens counted": found["tokens counted"],
        "texts": found["texts"],
        "digest": stats.digest,
    }


def load_moments(path: str | Path, model: nn.Module | None = None) -> Stats:
    """Read second moments; `StatsError` if they are not those of `model`, where one is given."""
    stats = load(path, "moments", [Stats])["stats"]
    if model is not None:
        check_stats(stats, fingerprint(model), ())
    return stats
