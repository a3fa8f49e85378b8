"""What a run starts from: the model that its settings name, and the second moments."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ece import atlas, stats
from ece.errors import ConfigError
from ece.facts import encode
from ece.model import CHECKPOINTS, fingerprint, load
from ece.stats import Stats

DOCUMENT = 20
"""Tokens that a document of the embedded corpus has at the least, on average."""


def model_of(settings):
    """(model, tokenizer); a device or a name that does not work is a `ConfigError` naming it."""
    dtype = settings.dtype and getattr(torch, settings.dtype)
    try:
        if settings.device not in (None, "auto"):
            torch.empty(0, device=settings.device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"setting 'device' is {settings.device!r}: {why}") from error
    try:
        return load(settings.model, settings.device, dtype)
    except OSError as error:
        why = str(error).splitlines()[0]
        raise ConfigError(
            f"setting 'model' is {settings.model!r}, which is no folder and cannot be had from "
            f"the hub ({why}); name an embedded model, a folder, or a hub model within reach"
        ) from error


def statistics_of(
    model: nn.Module,
    tokenizer,
    settings,
    layers: tuple[int, ...],
    cache: str | Path | None = None,
) -> Stats:
    """Second moments: from the file of statistics, the file of text, or the embedded corpus.

    With a folder `cache`, those of the same model, text and layers are taken from there.
    """
    path = settings.stats or (None if cache is None else _place(model, settings, layers, cache))
    if path is not None and Path(path).exists():
        return stats.load(path, model)
    if settings.stats_text is not None:
        texts = Path(settings.stats_text).read_text(encoding="utf-8").splitlines()
    elif (folder := CHECKPOINTS / settings.model).is_dir() and folder.parent == CHECKPOINTS:
        texts = atlas.corpus(1 + settings.stats_tokens // DOCUMENT)
    else:
        raise ConfigError(
            f"setting 'stats_text' is missing: {settings.model} is no embedded model, so name a "
            "file of plain text for the second moments, or 'stats' with a file of them"
        )
    some = _first(texts, tokenizer, settings.stats_tokens)
    part = path and f"{path}.part"
    found = stats.second_moment(model, tokenizer, some, layers, save_to=part)
    if path is not None:
        stats.save(found, path)
        Path(part).unlink(missing_ok=True)
    return found


def _place(model: nn.Module, settings, layers, cache: str | Path) -> Path:
    """Where the cache holds the moments of this model, these layers, this text."""
    text = settings.stats_text
    said = "" if text is None else hashlib.sha256(Path(text).read_bytes()).hexdigest()
    told = f"{fingerprint(model)} {layers} {settings.stats_tokens} {said} and ends of names"
    Path(cache).mkdir(parents=True, exist_ok=True)
    return Path(cache) / f"stats-{hashlib.sha256(told.encode()).hexdigest()[:16]}.safetensors"


def _first(texts: list[str], tokenizer, tokens: int) -> Iterator[str]:
    """Texts that are not blank, until `tokens` tokens are reached."""
    for text in filter(str.strip, texts):
        if tokens <= 0:
            return
        tokens -= len(encode(tokenizer, text))
        yield text
