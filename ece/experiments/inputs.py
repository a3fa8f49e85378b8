"""What a run starts from, as its settings name it: facts, texts, the model, second moments."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from ece import atlas
from ece import covariance as stats
from ece.covariance import Stats
from ece.data.loading import load_facts, load_records, records_file
from ece.data.references import References, load_references, references_file
from ece.errors import ConfigError
from ece.evaluation.text_quality import vectorizer
from ece.experiments.results import source
from ece.experiments.spec import Settings
from ece.facts import Fact, encode
from ece.model import CHECKPOINTS, fingerprint, load

DOCUMENT = 20
"""Tokens that a document of the embedded corpus has at the least, on average."""


def material(settings: Settings, progress: Callable | None) -> tuple[list[Fact], References, dict]:
    """Facts, what free texts are compared with (empty if none are written), files read."""
    data = records_file(settings.dataset, settings.data, settings.sha256, progress)
    path = references_file(settings.references, progress)
    facts = load_facts(settings.dataset, settings.facts, settings.seed, data, settings.skip_bad)
    if not settings.text_tokens:
        references = References({}, None)
    elif path is None:
        references = References(texts := atlas.references(), vectorizer(texts))
    else:
        references = load_references(path, load_records(settings.dataset, data))
    return facts, references, {"data": source(data), "references": source(path)}


def facts_of(settings: Settings) -> list[Fact]:
    """All facts of the data set; those that the run edits come first."""
    return load_facts(settings.dataset, None, settings.seed, settings.data, settings.skip_bad)


def device_of(name: str | None) -> torch.device:
    """The device called `name` (None: the CPU), seen to work; else a `ConfigError`."""
    try:
        return torch.empty(0, device=name or "cpu").device
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"setting 'device' is {name!r}: {why}") from error


def model_of(settings: Settings):
    """(model, tokenizer); a device or a name that does not work is a `ConfigError` naming it."""
    dtype = settings.dtype and getattr(torch, settings.dtype)
    if settings.device != "auto":
        device_of(settings.device)
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
    settings: Settings,
    layers: tuple[int, ...],
    cache: str | Path | None = None,
    names: bool = False,
) -> Stats:
    """Second moments: from the file of statistics, the file of text, or the embedded corpus.

    With a folder `cache`, those of the same model, text and layers are taken from there.
    `names`: those over the ends of names too, which few methods ask for and all would hold.
    """
    path = settings.stats
    if path is None and cache is not None:
        path = _place(model, settings, layers, names, cache)
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
    found = stats.second_moment(model, tokenizer, some, layers, save_to=part, names=names)
    if path is not None:
        stats.save(found, path)
        Path(part).unlink(missing_ok=True)
    return found


def _place(model, settings: Settings, layers, names: bool, cache: str | Path) -> Path:
    """Where the cache holds the moments of this model, these layers, this text."""
    text = settings.stats_text
    said = "" if text is None else hashlib.sha256(Path(text).read_bytes()).hexdigest()
    told = f"{fingerprint(model)} {layers} {settings.stats_tokens} {said} {names}"
    Path(cache).mkdir(parents=True, exist_ok=True)
    return Path(cache) / f"stats-{hashlib.sha256(told.encode()).hexdigest()[:16]}.safetensors"


def _first(texts: list[str], tokenizer, tokens: int) -> Iterator[str]:
    """Texts that are not blank, until `tokens` tokens are reached."""
    for text in filter(str.strip, texts):
        if tokens <= 0:
            return
        tokens -= len(encode(tokenizer, text))
        yield text
