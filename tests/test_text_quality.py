"""Fluency and consistency, as the paper defines them."""

from dataclasses import replace

import numpy as np
import pytest

from ece import atlas
from ece.errors import DataError
from ece.evaluation.text_quality import consistencies, entropy, fluencies, fluency, write_texts


def test_entropy_by_hand():
    assert entropy("a b a b a".split(), 2) == 1.0  # ab, ba, ab, ba
    assert entropy("a b c d e".split(), 2) == 2.0
    assert entropy(["a"], 2) == 0.0 == entropy("x x x x".split(), 2)


def test_fluency_weighs_bigrams_and_trigrams():
    # bigrams ab, bc, cd, de: 2 bits; trigrams abc, bcd, cde: log2 3 bits
    assert fluency("a b c d e") == pytest.approx(100 * (2 / 3 * 2 + 4 / 3 * np.log2(3)) / 2)
    assert fluency("no no no no") == 0.0 < fluency("yes, no, yes")


def test_texts_of_facts_and_their_fluency(model, tokenizer, facts):
    some = [replace(facts[0], generation=("Mira", "Tor is")), facts[1]]
    texts = write_texts(model, tokenizer, some, 20)
    assert [len(own) for own in texts] == [2, 0] and texts[0][1].startswith("Tor is")
    found = fluencies(texts)
    assert found[0] == np.mean([fluency(t) for t in texts[0]]) and np.isnan(found[1])


def test_consistency_is_the_cosine_to_the_reference(facts):
    known = [replace(facts[0], relation="r", target="Rome"), replace(facts[1], relation="q")]
    about = {("r", "Rome"): "old ruins and warm stones", ("r", "Oslo"): "snow and ships"}
    same, _ = consistencies(known, [["old ruins and", "warm stones"], ["x"]], about)
    assert same == pytest.approx(1.0)
    other, missing = consistencies(known, [["ships"], ["x"]], about)
    assert other == 0.0 and np.isnan(missing)
    assert np.isnan(consistencies(known, [[], []], about)).all()
    assert np.isnan(consistencies(known, [["a"], ["b"]], {})).all()


def test_the_world_has_a_reference_for_every_new_object():
    references = atlas.references()
    for record in atlas.records()[::50]:
        rewrite = record["requested_rewrite"]
        text = references[rewrite["relation_id"], rewrite["target_new"]["str"]]
        assert rewrite["target_new"]["str"] in text


def test_one_text_in_place_of_several_is_refused(facts):
    for measure in (fluencies, lambda texts: consistencies(facts[:1], texts, {})):
        with pytest.raises(DataError, match="texts of a fact are 'old ruins'; give a list"):
            measure(["old ruins"])
