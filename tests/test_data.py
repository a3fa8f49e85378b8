"""The loaders: fields go where the schema says, order follows the seed, what is bad is named."""

import copy
import json

import pytest

from ece import atlas
from ece.data.loading import DataError, facts_from_counterfact, facts_from_zsre, load_facts
from ece.evaluation.metrics import questions

COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Anna",
    },
    "paraphrase_prompts": ["Anna, a native", "Anna spoke the language"],
    "neighborhood_prompts": ["The mother tongue of Bob is"],
    "generation_prompts": ["Anna was born in"],
}
ZSRE = {
    "subject": "Call the Doctor",
    "src": "What artist created Call the Doctor?",
    "rephrase": "Which artist created Call the Doctor?",
    "alt": "The X-Files",
    "answers": ["Sleater-Kinney", "Sleater Kinney"],
    "loc": "nq question: who sang nice day for a white wedding",
    "loc_ans": "Billy Idol",
}


def changed(record, value, *keys):
    """A copy of `record` with `value` at the path; None takes the key out."""
    record = copy.deepcopy(record)
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return record


def people(count):
    """CounterFact records about `count` different subjects."""
    return [
        changed(changed(COUNTERFACT, i, "case_id"), f"Anna {i}", "requested_rewrite", "subject")
        for i in range(count)
    ]


def saved(folder, records):
    path = folder / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_counterfact_fields_and_directions():
    (fact,) = facts_from_counterfact([COUNTERFACT])
    assert fact.text == "The mother tongue of Anna is"
    assert (fact.id, fact.relation, fact.generation) == (7, "P103", ("Anna was born in",))
    asked = [(q.kind, q.prompt, q.wanted, q.other) for q in questions(fact)]
    assert asked == [
        ("efficacy", "The mother tongue of Anna is", "English", "French"),
        ("generalization", "Anna, a native", "English", "French"),
        ("generalization", "Anna spoke the language", "English", "French"),
        ("specificity", "The mother tongue of Bob is", "French", "English"),
    ]


def test_zsre_target_is_the_first_answer_and_the_neighbour_has_its_own():
    (fact,) = facts_from_zsre([ZSRE])
    assert fact.text == ZSRE["src"] and fact.prompt == "What artist created {}?"
    asked = [(q.kind, q.prompt, q.wanted) for q in questions(fact)]
    assert asked == [
        ("efficacy", ZSRE["src"], "Sleater-Kinney"),
        ("generalization", ZSRE["rephrase"], "Sleater-Kinney"),
        ("specificity", ZSRE["loc"] + "?", "Billy Idol"),
    ]


def test_a_whole_word_wins_over_a_part_of_another():
    record = changed(changed(ZSRE, "Art", "subject"), "Which Artist founded Art in 1998?", "src")
    (fact,) = facts_from_zsre([record])
    assert fact.prompt == "Which Artist founded {} in 1998?"


BAD = [
    (facts_from_counterfact, COUNTERFACT, "no slot", ("requested_rewrite", "prompt")),
    (facts_from_counterfact, COUNTERFACT, "{} or {}", ("requested_rewrite", "prompt")),
    (facts_from_counterfact, COUNTERFACT, " ", ("requested_rewrite", "subject")),
    (facts_from_counterfact, COUNTERFACT, None, ("requested_rewrite", "relation_id")),
    (facts_from_counterfact, COUNTERFACT, 5, ("requested_rewrite", "target_new", "str")),
    (facts_from_counterfact, COUNTERFACT, "French", ("requested_rewrite", "target_new", "str")),
    (facts_from_counterfact, COUNTERFACT, "text", ("neighborhood_prompts",)),
    (facts_from_counterfact, COUNTERFACT, ["Bob", ""], ("neighborhood_prompts",)),
    (facts_from_counterfact, COUNTERFACT, "seven", ("case_id",)),
    (facts_from_zsre, ZSRE, "Who created it?", ("src",)),
    (facts_from_zsre, ZSRE, "Is Call the Doctor like Call the Doctor?", ("src",)),
    (facts_from_zsre, ZSRE, [], ("answers",)),
    (facts_from_zsre, ZSRE, None, ("loc_ans",)),
]


@pytest.mark.parametrize(("convert", "record", "value", "keys"), BAD)
def test_a_bad_record_is_named_by_file_number_and_field(convert, record, value, keys):
    records = [record, changed(record, value, *keys)]
    with pytest.raises(DataError) as caught:
        convert(records, "some.json")
    message = str(caught.value)
    assert message.startswith(f"some.json, record 1, field '{'.'.join(keys)}': ")
    assert "; " in message
    with pytest.warns(UserWarning, match="1 of 2 records left out.*record 1"):
        assert len(convert(records, "some.json", skip_bad=True)) == 1


def test_the_seed_gives_the_order_and_nothing_else(tmp_path):
    path = saved(tmp_path, people(30))
    first, again, other = (load_facts("counterfact", 30, seed, path) for seed in (0, 0, 1))
    assert first == again and first != other
    assert sorted(first, key=lambda f: f.id) == sorted(other, key=lambda f: f.id)
    assert load_facts("counterfact", 8, 0, path) == first[:8]


def test_no_two_facts_share_subject_and_relation(tmp_path):
    records = people(10)
    twins = [changed(r, "German", "requested_rewrite", "target_new", "str") for r in records]
    cousins = [
        changed(
            changed(r, "P19", "requested_rewrite", "relation_id"),
            "{} was born in",
            "requested_rewrite",
            "prompt",
        )
        for r in records
    ]
    path = saved(tmp_path, records + twins + cousins)
    facts = load_facts("counterfact", None, 3, path)
    pairs = [(fact.subject, fact.relation) for fact in facts]
    assert len(pairs) == len(set(pairs)) == 20
    assert len({fact.subject for fact in facts[:10]}) == 10, "a subject came before its turn"


@pytest.mark.parametrize("n", [0, -1, 11])
def test_too_many_or_too_few_facts_are_refused_with_the_number_there_is(tmp_path, n):
    with pytest.raises(DataError, match=f"{n} facts were asked.*ask for 1 to 10"):
        load_facts("counterfact", n, 0, saved(tmp_path, people(10)))


def test_unknown_datasets_and_files_are_named(tmp_path):
    with pytest.raises(DataError, match="'wikifact'; known: counterfact, zsre"):
        load_facts("wikifact")
    with pytest.raises(DataError, match="absent.json: No such file"):
        load_facts("zsre", path=tmp_path / "absent.json")
    (tmp_path / "text.json").write_text("not json")
    with pytest.raises(DataError, match="text.json: is not JSON"):
        load_facts("zsre", path=tmp_path / "text.json")
    with pytest.raises(DataError, match="holds no list of records"):
        load_facts("zsre", path=saved(tmp_path, {"a": 1}))


@pytest.mark.parametrize("dataset", ["counterfact", "zsre"])
def test_the_embedded_world_loads_whole(dataset):
    facts = load_facts(dataset)
    assert 0 < len(facts) <= len(atlas.records(dataset))
    for fact in facts[:200]:
        assert {q.kind for q in questions(fact)} == {"efficacy", "generalization", "specificity"}
