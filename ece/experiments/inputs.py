"""Gathers what a run starts from, as its settings name it: facts, reference texts, statistics."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import nn

from ece import Config, Fact, Stats, Strategy, atlas, blend
from ece.baselines.ece_plus import ends_of_names
from ece.data.loading import load_facts, records_file
from ece.data.references import References, load_references, references_file
from ece.data.schema import checksum, read_lines, read_records
from ece.errors import ConfigError
from ece.evaluation.text_quality import vectorizer
from ece.experiments.spec import Settings, run_id
from ece.facts import encode
from ece.storage import load_moments, moments

TENTH = 10
"""Of so many facts, one is set aside for tuning."""
DOCUMENT = 20
"""Tokens that a document of the embedded corpus has at least, on average."""


def gather(settings: Settings, progress: Callable | None) -> tuple[list[Fact], References, dict]:
    """Read facts and reference texts (none where no texts are written).

    Also returned are name and SHA-256 of their files, None for what is embedded.
    """
    data = records_file(settings.dataset, settings.data, settings.sha256, progress is not None)
    path = references_file(settings.references, progress is not None)
    references = References({}, None)
    if settings.text_tokens and path is None:
        references = References(texts := atlas.references(), vectorizer(texts))
    elif settings.text_tokens:
        records = atlas.records(settings.dataset) if data is None else read_records(data)
        references = load_references(path, records)
    sources = {"data": _source(data), "references": _source(path)}
    return facts(settings, data, settings.facts), references, sources


def facts(settings: Settings, data: str | Path | None, count: int | None = None) -> list[Fact]:
    """Draw facts of the data set (None: all); those that the run edits come first."""
    kind, seed = settings.dataset, settings.seed
    if data is None:
        found = atlas.facts(kind, None if settings.part != "all" else count, seed)
    else:
        alone = settings.part == "all"
        found = load_facts(kind, count if alone else None, seed, data, skip_bad=settings.skip_bad)
    if settings.part == "all":
        return found
    found = [fact for fact in found if (fact.id % TENTH == 0) == (settings.part == "tune")]
    if count is not None and count > len(found):
        raise ConfigError(f"setting 'facts' is {count}; the part to {settings.part} has "
                          f"{len(found)} facts")  # fmt: skip
    return found[:count]


def _source(path: Path | None) -> dict | None:
    return path and {"file": path.name, "sha256": checksum(path)}


def statistics(
    model: nn.Module, tokenizer, settings: Settings, config: Config, strategy: Strategy,
    mark: str, cache: str | Path | None = None, progress: Callable | None = None,
) -> tuple[Stats, dict]:  # fmt: skip
    """Find second moments: in the file of statistics or the cache, else from a text.

    Returns them with what a run's origin states about them. `mark`: the model's fingerprint.
    """
    text, path = settings.stats_text, settings.stats
    if path is None and cache is not None:
        parts = [mark, config.layers, config.max_tokens, settings.stats_tokens]
        name = run_id({"parts": parts, "text": text and checksum(text)})
        path = Path(cache) / f"stats-{name}.safetensors"
    there, silent = path and Path(path).exists(), text is None and not settings.embedded
    if silent and not there:
        raise ConfigError(
            f"setting 'stats_text' is None; {settings.model} is no embedded model, so name a file "
            "of plain text for the second moments, or by 'stats' a file that holds them"
        )

    def passed(place: str | Path | None, select: Callable | None = None) -> tuple[Stats, str]:
        if silent:
            return load_moments(place, model), ""
        hear = progress and (lambda n: progress("statistics", n, settings.stats_tokens))
        more = (config.layers, place, config.max_tokens, select, hear)
        return moments(model, tokenizer, _texts(settings, tokenizer), *more)

    stats, digest = passed(path)
    if share := getattr(strategy, "names", 0):
        ends, _ = passed(path and f"{path}.names", ends_of_names)
        stats = blend(stats, ends, share)
    return stats, {"digest": stats.digest, "texts": digest}


def _texts(settings: Settings, tokenizer) -> Iterator[str]:
    """Texts for the second moments, until they have the tokens allowed."""
    if settings.stats_text is not None:
        texts = read_lines(settings.stats_text)
    else:
        texts = atlas.corpus(1 + settings.stats_tokens // DOCUMENT)
    left = settings.stats_tokens
    for text in filter(str.strip, texts):
        if left <= 0:
            return
        left -= len(encode(tokenizer, text))
        yield text


def check_writable(folder: str | Path) -> None:
    """Make a folder and write into it, to find now what would fail at the end of a run."""
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"{folder}: {error.strerror}; name a folder that can be written"
        ) from error
