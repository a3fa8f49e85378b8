"""Reference texts of the consistency measure, from ROME's file of attribute snippets.

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

from ece.data.download import fetch
from ece.data.schema import Bad, read_records, text, value
from ece.errors import DataError
from ece.evaluation.text_quality import vectorizer

SNIPPETS, IDF, VOCABULARY = "attribute_snippets.json", "idf.npy", "tfidf_vocab.json"


class References(NamedTuple):
    """What `ece.evaluation.text_quality.consistencies` compares with."""

    texts: dict[tuple[str, str], str]
    """(relation, object) -> a text."""
    vectors: TfidfVectorizer | None
    """Their TF-IDF weights."""


def load_references(path: str | Path, records: Sequence) -> References:
    """Texts of the file about the records' objects; weights beside it, else of these texts."""
    texts = read_references(path, records)
    return References(texts, read_weights(path) or vectorizer(texts))


def references_file(path: str | Path | None, progress=None) -> Path | None:
    """The file that `path` means: None none; "public" the public one, fetched with its weights."""
    if path != "public":
        return path and Path(path)
    for name in (IDF, VOCABULARY):
        fetch(name, progress=progress)
    return fetch(SNIPPETS, progress=progress)


def read_references(path: str | Path, records: Sequence) -> dict[tuple[str, str], str]:
    """(relation, object) -> all its texts as one, for objects that the CounterFact records name.

    The whole file is read at once: for ROME's, of about 900 MB, that takes a few GB of memory.
    `DataError` names file, entry, field, reason and mend.
    """
    names, found = dict(_names(records)), {}
    for number, entry in enumerate(read_records(path)):
        try:
            key = text(entry, "relation_id"), text(entry, "target_id")
            told = [_sample(sample) for sample in _list(entry, "samples")]
        except Bad as bad:
            field, reason, mend = bad.args
            where = f"{path}, entry {number}, field '{field}'"
            raise DataError(f"{where}: {reason}; {mend}") from None
        if key in names:
            found.setdefault((key[0], names[key]), []).extend(told)
    if not found:
        raise DataError(
            f"{path}: no text is about an object of the records; give the file that belongs to "
            "them, and records that have 'target_new.id'"
        )
    return {key: " ".join(told) for key, told in found.items()}


def read_weights(path: str | Path) -> TfidfVectorizer | None:
    """The published TF-IDF weights that lie beside the file of texts; None if there are none.

    These are idf.npy, one weight per word, and tfidf_vocab.json, word -> its place among them.
    """
    idf, words = (Path(path).with_name(name) for name in (IDF, VOCABULARY))
    if not (idf.is_file() and words.is_file()):
        return None
    try:
        weights = np.load(idf, allow_pickle=False)
        places = json.loads(words.read_text(encoding="utf-8"))
        vectors = TfidfVectorizer(vocabulary=places)
        vectors.idf_ = np.asarray(weights, dtype=float)
    except (ValueError, TypeError, AttributeError) as error:
        mend = "get both files again, or take them away to use weights of the texts themselves"
        raise DataError(f"{idf} and {words.name} do not fit: {error}; {mend}") from error
    return vectors


def _names(records: Sequence) -> Iterator[tuple[tuple[str, str], str]]:
    """((relation, id of an object), the object) of everything that records name."""
    for record in records:
        for target in ("target_new", "target_true"):
            try:
                relation = text(record, "requested_rewrite", "relation_id")
                number = text(record, "requested_rewrite", target, "id")
                yield (relation, number), text(record, "requested_rewrite", target, "str")
            except Bad:  # without an id nothing in the file is about it
                continue


def _list(entry, key: str) -> list:
    found = value(entry, key)
    if not isinstance(found, list):
        raise Bad(key, f"{found!r} is no list", 'give a list of {"text": ...}')
    return found


def _sample(sample) -> str:
    """The sample's text, which may be empty; what else it has is not used."""
    found = value(sample, "text")
    if not isinstance(found, str):
        raise Bad("samples.text", f"{found!r} is no text", "give a text")
    return found
