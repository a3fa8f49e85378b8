"""Facts of the real world: enough of them, well formed, the same for the same seed."""

from collections import Counter

import pytest

from ece import Fact
from ece.checks import validate
from ece.data import python_docs, world
from ece.data.counterfact import facts_from_counterfact
from ece.errors import DataError


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return world.records()


@pytest.fixture(scope="module")
def facts(records) -> list[Fact]:
    return facts_from_counterfact(records)


def test_there_are_enough_facts_of_enough_relations(facts):
    count = Counter(fact.relation for fact in facts)
    assert len(count) >= 10 and len(facts) >= 2000
    assert min(count.values()) >= 50


def test_well_known_facts_are_right():
    known = world.tables()
    assert known["capital"]["France"] == "Paris" and known["capital_of"]["Tokyo"] == "Japan"
    assert known["continent"]["Kenya"] == "Africa" and known["city_state"]["Chicago"] == "Illinois"
    assert known["city_country"]["London"] == "United Kingdom"


def test_records_are_whole(facts):
    for fact in facts:
        assert fact.target != fact.true and fact.prompt.count("{}") == 1
        assert len(fact.paraphrases) == 2 and fact.text not in fact.paraphrases
        assert all(fact.subject in text for text in (*fact.paraphrases, *fact.generation))
        wanted = 0 if fact.relation in world.ALONE else world.NEIGHBOURS
        assert len(set(fact.neighbours)) == wanted and fact.text not in fact.neighbours


def test_neighbours_have_the_true_answer(records):
    known = world.tables()
    for record in records[:300]:
        rewrite = record["requested_rewrite"]
        relation = world.KIN.get(rewrite["relation_id"], rewrite["relation_id"])
        if relation == rewrite["relation_id"] and relation not in world.ALONE:
            head, tail = rewrite["prompt"].split("{}")
            for text in record["neighborhood_prompts"]:
                subject = text[len(head) : len(text) - len(tail)]
                assert known[relation][subject] == rewrite["target_true"]["str"]


def test_a_seed_gives_the_same_facts_and_another_other_ones(records):
    assert world.records() == records
    assert world.records(seed=1)[:50] != records[:50]
    assert world.facts(n=30, seed=3) == world.facts(n=30, seed=3)


def test_questions_have_the_schema_of_zsre():
    facts = world.facts("zsre", n=200)
    assert all(fact.neighbours and fact.true and fact.target for fact in facts)


def test_the_text_that_comes_with_python_is_prose_and_states_no_fact(facts):
    texts = list(python_docs())
    assert texts == list(python_docs()) and sum(len(text.split()) for text in texts) > 30_000
    paragraphs = [paragraph for text in texts for paragraph in text.split("\n")]
    assert all(paragraph[-1] in ".:" and ">>>" not in paragraph for paragraph in paragraphs)
    whole = "\n".join(texts)
    assert not [fact for fact in facts if fact.text in whole]


def test_another_schema_is_refused():
    with pytest.raises(DataError, match="counterfact, zsre"):
        world.records("squad")


def test_some_answers_have_several_tokens_and_facts_can_be_edited(facts, model, tokenizer):
    """In one batch: no two facts about one subject and relation."""
    validate(facts[:20], tokenizer, model, ("{}",))
    assert any(" " in fact.target for fact in facts)
