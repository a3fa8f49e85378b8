"""Reference texts: keyed by relation and object text, weights beside them, errors by name."""

import json
from pathlib import Path

import numpy as np
import pytest

from ece.data import downloads
from ece.data.references import load_references, read_references, read_weights, references_file
from ece.errors import DataError
from ece.evaluation.text_quality import consistencies
from ece.facts import Fact


def record(new, true, relation="P1"):
    """What counts here of a CounterFact record; objects are (text, id)."""
    targets = {"target_new": new, "target_true": true}
    targets = {n: {"str": t, "id": i} if i else {"str": t} for n, (t, i) in targets.items()}
    return {"requested_rewrite": {"relation_id": relation, **targets}}


def entry(relation, target, *texts):
    samples = [{"name": "Somebody", "text": text} for text in texts]
    return {"relation_id": relation, "target_id": target, "samples": samples}


RECORDS = [record(("Rome", "Q1"), ("Oslo", "Q2")), record(("Lyon ", "Q3"), ("Rome", "Q1"), "P2")]
SNIPPETS = [
    entry("P1", "Q1", "old ruins", "warm stones"),
    entry("P2", "Q3", "two rivers"),
    entry("P1", "Q2", "snow and ships"),
    entry("P1", "Q9", "nobody asks"),
    entry("P1", "Q1", "more ruins"),
]


@pytest.fixture
def file(tmp_path):
    """A function that writes entries and gives the path."""

    def write(entries):
        path = tmp_path / "attribute_snippets.json"
        path.write_text(json.dumps(entries))
        return path

    return write


def test_texts_are_joined_under_relation_and_object(file):
    assert read_references(file(SNIPPETS), RECORDS) == {
        ("P1", "Rome"): "old ruins warm stones more ruins",
        ("P2", "Lyon"): "two rivers",
        ("P1", "Oslo"): "snow and ships",
    }


BAD = [
    ({"target_id": "Q1", "samples": []}, "relation_id", "is missing"),
    ({"relation_id": "P1", "target_id": 7, "samples": []}, "target_id", "7 is no text"),
    ({"relation_id": "P1", "target_id": "Q1"}, "samples", "is missing"),
    ({"relation_id": "P1", "target_id": "Q1", "samples": "a"}, "samples", "'a' is no list"),
    (entry("P1", "Q1") | {"samples": [{"txt": "a"}]}, "samples.0.text", "is missing"),
    (entry("P1", "Q1", 1), "samples.0.text", "1 is no text"),
    (entry("P1", "Q1", "a", "\ud83d"), "samples.1.text", "'\\ud83d' holds half of a surrogate"),
    ([], "(whole record)", "[] is no JSON object"),
]


@pytest.mark.parametrize(("bad", "field", "reason"), BAD)
def test_an_entry_of_another_schema_is_named(file, bad, field, reason):
    path = file([SNIPPETS[0], bad])
    with pytest.raises(DataError) as caught:
        read_references(path, RECORDS)
    assert str(caught.value).startswith(f"{path}, entry 1, field '{field}': {reason}")


def test_a_file_about_other_records_is_refused(file):
    with pytest.raises(DataError, match="no text is about an object of the records"):
        read_references(file(SNIPPETS), [record(("Rome", None), ("Oslo", None)), {"src": "x"}, 1])
    with pytest.raises(DataError, match="holds no list"):
        read_references(file({}), RECORDS)


def test_published_weights_beside_the_texts_are_used(file, tmp_path):
    path = file(SNIPPETS)
    fact = Fact("{} is in", "Ilo", "Rome", relation="P1")
    fitted = load_references(path, RECORDS)
    assert read_weights(path) is None and "snow" in fitted.vectors.vocabulary_
    np.save(tmp_path / "idf.npy", np.array([1.0, 2.0]))
    (tmp_path / "tfidf_vocab.json").write_text(json.dumps({"ruins": 0, "stones": 1}))
    published = load_references(path, RECORDS)
    (found,) = consistencies([fact], [["stones by the sea"]], *published)
    # The reference has ruins twice at weight 1 and stones once at weight 2; the text stones only.
    assert found == pytest.approx(2 / 8**0.5)
    (other,) = consistencies([fact], [["stones by the sea"]], *fitted)
    assert 0 < other < 1 and other != pytest.approx(found)


def test_weights_that_do_not_fit_their_words_are_refused(file, tmp_path):
    path = file(SNIPPETS)
    np.save(tmp_path / "idf.npy", np.array([1.0, 2.0, 3.0]))
    for words in ({"ruins": 0}, ["ruins"], {"ruins": "a", "b": 1, "c": 2}):
        (tmp_path / "tfidf_vocab.json").write_text(json.dumps(words))
        with pytest.raises(DataError, match="idf.npy and tfidf_vocab.json do not fit"):
            read_weights(path)
    np.save(tmp_path / "idf.npy", np.array([{}], dtype=object), allow_pickle=True)
    for damage in ((tmp_path / "idf.npy").read_bytes(), b"", b"PK"):
        (tmp_path / "idf.npy").write_bytes(damage)
        with pytest.raises(DataError, match="do not fit"):
            read_weights(path)
    (tmp_path / "tfidf_vocab.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="do not fit"):
        read_weights(path)


def test_public_means_the_texts_with_their_weights(monkeypatch):
    fetched = []

    def fetch(name, **_):
        fetched.append(name)
        return Path(name)

    monkeypatch.setattr("ece.data.references.fetch", fetch)
    assert references_file("public").name == "attribute_snippets.json"
    assert sorted(fetched) == ["attribute_snippets.json", "idf.npy", "tfidf_vocab.json"]
    assert set(fetched) <= set(downloads.FILES)
    assert references_file(None) is None and references_file("x.json").name == "x.json"
