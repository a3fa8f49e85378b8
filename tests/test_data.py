"""The loaders: fields go where the schema says, order follows the seed, what is bad is named."""

import copy
import hashlib
import inspect
import json
from functools import partial

import pytest

from ece import atlas
from ece.data import facts_from_counterfact, facts_from_zsre, load_facts, read_lines
from ece.data.loading import CONVERT
from ece.errors import DataError
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

QAEDIT = {
    "id": 1079,
    "prompt": "when did russia join the world economic forum?",
    "target": "1997",
    "subject": "russia",
    "rephrase": "What is the year of Russia's admission to the World Economic Forum?",
    "locality": [
        {"loc": "which is bigger kansas city mo or ks", "loc_ans": "Kansas City, Missouri"},
        {"loc": "when did the new model qashqai come out", "loc_ans": "2014"},
    ],
}
WIKIBIGEDIT = {
    "prompt": "What specific type or category does Kireli belong to?",
    "target_new": "mahalle",
    "subject": "Kireli",
    "rephrase_prompt": "To which specific type or category does Kireli belong?",
    "locality_prompt": "What type of settlement is Kiereli in Belarus considered as?",
    "locality_ground_truth": "village",
}

GONE = object()


def changed(record, value, *keys):
    """A copy of `record` with `value` at the path; GONE takes the key out."""
    record = copy.deepcopy(record)
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    if value is GONE:
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


@pytest.mark.parametrize(
    ("dataset", "record", "fact_id", "prompt", "asked"),
    [
        ("qaedit", QAEDIT, 1079, "when did {} join the world economic forum?",
         ["1997", "1997", "Kansas City, Missouri"]),
        ("wikibigedit", WIKIBIGEDIT, 0, "What specific type or category does {} belong to?",
         ["mahalle", "mahalle", "village"]),
    ],
)  # fmt: skip
def test_other_sets_of_questions_are_read_like_zsre(dataset, record, fact_id, prompt, asked):
    (fact,) = load_facts(dataset, records=[record])
    assert (fact.id, fact.prompt) == (fact_id, prompt)
    assert [q.wanted for q in questions(fact)] == asked
    with pytest.raises(DataError, match="has no public file"):
        load_facts(dataset, path="public")


HALF = "Ann\ud83d"  # half of a surrogate pair
REWRITE = "requested_rewrite"
BAD = [  # data set, record, value, where it is put, field named (if not there)
    ("counterfact", COUNTERFACT, "no slot", (REWRITE, "prompt"), None),
    ("counterfact", COUNTERFACT, "{} or {}", (REWRITE, "prompt"), None),
    ("counterfact", COUNTERFACT, " ", (REWRITE, "subject"), None),
    ("counterfact", COUNTERFACT, HALF, (REWRITE, "subject"), None),
    ("counterfact", COUNTERFACT, 3, (REWRITE, "relation_id"), None),
    ("counterfact", COUNTERFACT, 5, (REWRITE, "target_new", "str"), None),
    ("counterfact", COUNTERFACT, "English", (REWRITE, "target_new"), None),
    ("counterfact", COUNTERFACT, "French", (REWRITE, "target_new", "str"), None),
    ("counterfact", COUNTERFACT, ["a"], (REWRITE,), None),
    ("counterfact", COUNTERFACT, "text", ("neighborhood_prompts",), None),
    ("counterfact", COUNTERFACT, None, ("generation_prompts",), None),
    ("counterfact", COUNTERFACT, ["Bob", ""], ("neighborhood_prompts",), "neighborhood_prompts.1"),
    ("counterfact", COUNTERFACT, [["Bob"]], ("paraphrase_prompts",), "paraphrase_prompts.0"),
    ("counterfact", COUNTERFACT, ["Bob", HALF], ("generation_prompts",), "generation_prompts.1"),
    ("counterfact", COUNTERFACT, "seven", ("case_id",), None),
    ("counterfact", COUNTERFACT, True, ("case_id",), None),
    ("zsre", ZSRE, "Who created it?", ("src",), None),
    ("zsre", ZSRE, "Is Call the Doctor like Call the Doctor?", ("src",), None),
    ("zsre", ZSRE, [], ("answers",), "answers.0"),
    ("zsre", ZSRE, "Sleater", ("answers",), None),
    ("zsre", ZSRE, [None], ("answers",), "answers.0"),
    ("zsre", ZSRE, GONE, ("loc_ans",), None),
    ("qaedit", QAEDIT, "Kyiv", ("subject",), "prompt"),
    ("qaedit", QAEDIT, [{"loc": "why"}], ("locality",), "locality.0.loc_ans"),
    ("wikibigedit", WIKIBIGEDIT, 3, ("locality_prompt",), None),
]


@pytest.mark.parametrize(("dataset", "record", "value", "keys", "field"), BAD)
def test_a_bad_record_is_named_by_file_number_and_field(dataset, record, value, keys, field):
    convert, records = CONVERT[dataset], [record, changed(record, value, *keys)]
    with pytest.raises(DataError) as caught:
        convert(records, "some.json")
    message = str(caught.value)
    assert message.startswith(f"some.json, record 1, field '{field or '.'.join(keys)}': ")
    assert "; " in message
    with pytest.warns(UserWarning, match="1 of 2 records left out.*record 1"):
        assert len(convert(records, "some.json", skip_bad=True)) == 1


@pytest.mark.parametrize("dataset", CONVERT)
@pytest.mark.parametrize("record", ["text", 5, None, ["a", "b"]])
def test_what_is_no_record_is_named(dataset, record):
    with pytest.raises(DataError, match=r"record 0, field '\(whole record\)': .* is no JSON obj"):
        CONVERT[dataset]([record])


@pytest.mark.parametrize("records", [COUNTERFACT, "text", iter([COUNTERFACT]), 5])
def test_what_is_no_list_of_records_is_refused(records):
    for load in (facts_from_counterfact, facts_from_zsre, partial(load_facts, "counterfact")):
        with pytest.raises(DataError, match="records: .* given; give a list of records"):
            load(records=records)


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
def test_too_many_or_too_few_facts_are_refused_with_the_number_there_is(n):
    with pytest.raises(DataError, match=f"{n} facts were requested.*choose 1 to 10"):
        load_facts("counterfact", n, records=people(10))


@pytest.mark.parametrize("wrong", [{"n": 4.5}, {"n": "3"}, {"n": True}, {"seed": 1.5}])
def test_numbers_of_a_wrong_type_are_refused(wrong):
    unchecked = inspect.unwrap(load_facts)  # as users have it: only tests check the annotations
    with pytest.raises(DataError, match=f"{next(iter(wrong))} is .*; give a whole number"):
        unchecked("counterfact", records=people(10), **wrong)


def test_unknown_datasets_and_files_are_named(tmp_path):
    with pytest.raises(DataError, match="'wikifact'; known: counterfact, zsre, qaedit, wikibig"):
        load_facts("wikifact", records=[ZSRE])
    with pytest.raises(DataError, match="absent.json: No such file"):
        load_facts("zsre", path=tmp_path / "absent.json")
    with pytest.raises(DataError, match="holds no list of records"):
        load_facts("zsre", path=saved(tmp_path, {"a": 1}))
    for both in ({}, {"path": tmp_path, "records": [ZSRE]}):
        with pytest.raises(DataError, match="either 'path' or 'records'.*ece.atlas.facts"):
            load_facts("zsre", **both)


DAMAGED = {
    "text": b"not json",
    "nested": b"[" * 100_000,
    "long number": b"[" + b"9" * 5000 + b"]",
    "latin": '["caf\u00e9"]'.encode("latin-1"),
    "binary": b"\x80\x00\xff" * 50,
    "zeros": bytes(100),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_file_that_is_no_json_is_named(tmp_path, kind):
    path = tmp_path / "damaged.json"
    path.write_bytes(DAMAGED[kind])
    with pytest.raises(DataError, match="damaged.json: is (not JSON|no text|a binary).*; name a"):
        load_facts("zsre", path=path)


def test_plain_text_is_read_by_lines_and_binary_files_are_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one\n\n  \ntwo \n")
    assert read_lines(path) == ["one", "two "]
    for damage in (DAMAGED["latin"], DAMAGED["binary"], DAMAGED["zeros"], b" \n"):
        path.write_bytes(damage)
        with pytest.raises(DataError, match="text.txt: .*; (name a file of plain text|give one)"):
            read_lines(path)
    with pytest.raises(DataError, match="Is a directory"):
        read_lines(tmp_path)


ORDERS = {
    ("counterfact", 0): "d81d443bb715a1cc",
    ("counterfact", 1): "c7c02970cebed0b7",
    ("zsre", 0): "06719b62d7014a2e",
    ("zsre", 1): "8d9ef1ac0fa50919",
}


FIELDS = ("prompt", "subject", "target", "true", "relation", "id", "paraphrases", "neighbours",
          "generation")  # fmt: skip


@pytest.fixture(scope="module", params=["counterfact", "zsre"])
def embedded(request):
    return request.param, atlas.records(request.param)


def test_the_embedded_facts_and_their_order_stay(embedded):
    """Stored results name facts by data set, number and seed: these must mean the same for ever."""
    dataset, records = embedded
    for seed in (0, 1):
        facts = load_facts(dataset, seed=seed, records=records)
        named = [tuple(getattr(fact, name) for name in FIELDS) for fact in facts]
        assert hashlib.sha256(repr(named).encode()).hexdigest()[:16] == ORDERS[dataset, seed]
    assert atlas.facts(dataset, 7, seed) == facts[:7]
    assert 0 < len(facts) <= len(records)
    for fact in facts[:200]:
        assert {q.kind for q in questions(fact)} == {"efficacy", "generalization", "specificity"}
