"""Read the reference texts of the consistency measure from ROME's file of attribute snippets.

The file is a list of {"relation_id", "target_id", "samples": [{"text", ...}, ...]}: per relation
and object, texts about subjects of which that object is true. It names objects by id; the records
of a data set have both id and text of their objects, so they say which text belongs to which fact.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from ece.data.downloads import fetch
from ece.data.schema import BadRecord, items, read_records, text
from ece.errors import DataError
from ece.evaluation.text_quality import vectorizer

SNIPPETS, IDF, VOCABULARY = "attribute_snippets.json", "idf.npy", "tfidf_vocab.json"


class References(NamedTuple):
    """Holds the texts with which `ece.evaluation.text_quality.consistencies` compares."""

    texts: dict[tuple[str, str], str]
    """(relation, object) -> a text."""
    vectors: TfidfVectorizer | None
    """Their TF-IDF weights."""


def load_references(path: str | Path, records: Sequence) -> References:
    """Read the texts about the records' objects, and the weights beside them or of their own."""
    texts = read_references(path, records)
    return References(texts, read_weights(path) or vectorizer(texts))


def references_file(path: str | Path | None, progress: bool = False) -> Path | None:
    """Find the file that `path` means: None for None; "public" is fetched with its weights."""
    if path != "public":
        return path and Path(path)
    for name in (IDF, VOCABULARY):
        fetch(name, progress=progress)
    return fetch(SNIPPETS, progress=progress)


def read_references(path: str | Path, records: Sequence) -> dict[tuple[str, str], str]:
    """Join the texts per (relation, object), for the objects that the CounterFact records name.

    The whole file is read at once: for ROME's, of about 900 MB, that takes a few GB of memory.
    Raises `DataError` that names file, entry, field, reason and remedy.
    """
    names, found = dict(_names(records)), {}
    for place, entry in enumerate(read_records(path)):
        try:
            key = text(entry, "relation_id"), text(entry, "target_id")
            samples = range(len(items(entry, "samples")))
            texts = [text(entry, "samples", i, "text", empty=True) for i in samples]
        except BadRecord as bad:
            raise DataError(bad.at(f"{path}, entry {place}")) from None
        if key in names:
            found.setdefault((key[0], names[key]), []).extend(texts)
    if not found:
        raise DataError(f"{path}: no text is about an object of the records; give the file that "
                        "belongs to them, and records that have 'target_new.id'")  # fmt: skip
    return {key: " ".join(texts) for key, texts in found.items()}


def read_weights(path: str | Path) -> TfidfVectorizer | None:
    """Read the published TF-IDF weights that lie beside the file of texts, if there are any.

    These are idf.npy, one weight per word, and tfidf_vocab.json, word -> its place among them.
    """
    idf, words = (Path(path).with_name(name) for name in (IDF, VOCABULARY))
    if not (idf.is_file() and words.is_file()):
        return None
    try:
        vectors = TfidfVectorizer(vocabulary=json.loads(words.read_text(encoding="utf-8")))
        vectors.idf_ = np.asarray(np.load(idf, allow_pickle=False), dtype=float)
    except (OSError, EOFError, RecursionError, ValueError, TypeError, AttributeError) as error:
        remedy = "get both files again, or take them away to use weights of the texts themselves"
        raise DataError(f"{idf} and {words.name} do not fit: {error}; {remedy}") from error
    return vectors


def _names(records: Sequence) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield ((relation, id of an object), the object) of everything that the records name."""
    for record in records:
        for target in ("target_new", "target_true"):
            try:
                relation = text(record, "requested_rewrite", "relation_id")
                number = text(record, "requested_rewrite", target, "id")
                yield (relation, number), text(record, "requested_rewrite", target, "str")
            except BadRecord:  # without an id nothing in the file is about it
                continue
