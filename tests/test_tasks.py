"""General abilities: items of records, choices by likelihood and by text, rates."""

import sys
import types

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from ece.data.tasks import TASKS, load_items
from ece.errors import DataError
from ece.evaluation.abilities import Item, Verdicts, named_first, rates, verdicts
from ece.facts import encode, target_ids

SENTENCE = {"sentence": "a {tall} building", "label": 1}
PAIR = {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 1}
CHOICE = {"question": "2 {0}?", "choices": ["{1}", "b", "c", "d"], "answer": 2}
RECORDS = {"sst2": SENTENCE, "mrpc": PAIR, "mmlu": CHOICE, "cola": SENTENCE, "rte": PAIR,
           "nli": PAIR | {"label": "not_entailment"}}  # fmt: skip
WRONG = [
    ("sst2", {"sentence": "x", "label": 2}, "field 'label': 2 is no label; give 0 to 1"),
    ("sst2", {"sentence": "x", "label": True}, "True is no label"),
    ("rte", {"sentence1": "x", "label": 0}, "field 'sentence2': is missing"),
    ("mmlu", CHOICE | {"choices": ["a"]}, "field 'choices': 1 are given; give 4"),
    ("nli", PAIR | {"label": "maybe"}, "field 'label': 'maybe' is no label"),
]


@pytest.mark.parametrize("task", TASKS)
def test_an_item_asks_what_its_record_says(task):
    (item,) = load_items(task, records=[RECORDS[task]])
    words = [w for k, w in RECORDS[task].items() if isinstance(w, str) and k != "label"]
    assert all(word in item.prompt for word in words)
    assert not item.prompt.endswith(" "), "the answer brings its own space"
    assert item.answer == {"sst2": "positive", "mrpc": "Yes", "mmlu": "C", "cola": "Yes",
                           "rte": "False", "nli": "False"}[task]  # fmt: skip


def test_braces_in_a_record_are_text():
    (item,) = load_items("sst2", records=[SENTENCE])
    assert "a {tall} building" in item.prompt


def test_items_need_a_source():
    with pytest.raises(DataError, match="need a source"):
        load_items("sst2")


def test_the_published_slips_are_made_only_on_demand():
    plain, slip = (load_items("rte", records=[PAIR], compat=c)[0] for c in (False, True))
    assert (plain.answer, slip.answer) == ("False", "True"), "1 is no entailment"
    assert load_items("cola", records=[SENTENCE], compat=True)[0].prompt.endswith("Answer: ")


@pytest.mark.parametrize(("task", "record", "message"), WRONG)
def test_a_bad_record_is_named(task, record, message):
    with pytest.raises(DataError, match=message.replace("'", "'")):
        load_items(task, records=[record])


def test_an_unknown_task_and_too_many_items_are_refused():
    with pytest.raises(DataError, match="unknown task 'boolq'; known: sst2"):
        load_items("boolq", records=[SENTENCE])
    with pytest.raises(DataError, match="2 items of sst2 were requested .* choose 1 to 1"):
        load_items("sst2", 2, records=[SENTENCE])


def test_the_hub_gives_the_records_of_the_task(monkeypatch):
    called, fake = [], types.ModuleType("datasets")
    fake.load_dataset = lambda *given, split: called.append((*given, split)) or [PAIR, PAIR]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert len(load_items("rte", path="hub")) == 2
    assert called == [("nyu-mll/glue", "rte", "validation")]
    fake.load_dataset = lambda *given, split: 1 / 0
    with pytest.raises(DataError, match="cannot be read from the hub"):
        load_items("rte", path="hub")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="the package 'datasets', which is not installed"):
        load_items("rte", path="hub")


def nll(model, tokenizer, prompt, choice):
    """The slow way: the whole model, one choice, NLL per token."""
    ids, answer = encode(tokenizer, prompt), target_ids(tokenizer, choice)
    with torch.no_grad():
        logs = model(torch.tensor([[*ids, *answer]])).logits[0].float().log_softmax(-1)
    return -np.mean([float(logs[len(ids) - 1 + k, token]) for k, token in enumerate(answer)])


def test_the_likeliest_choice_per_token_is_taken(model, tokenizer):
    items = [Item("t", "The capital of France is", ("Paris", "a large city", "no"), 0),
             Item("t", "Anna lives in", ("Rome", "Berlin"), 1)]  # fmt: skip
    wanted = [np.argmin([nll(model, tokenizer, i.prompt, c) for c in i.choices]) for i in items]
    found = verdicts(model, tokenizer, items)
    assert found.likelihood.tolist() == wanted
    assert set(found.written.tolist()) <= {-1, 0, 1, 2}
    assert verdicts(model, tokenizer, items, write=False).written is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("Yes, no", 1), (" no.", 0), ("Nobody yesterday", -1), ("", -1), ("\nYES", 1)],
)
def test_the_first_choice_that_a_text_names_counts(text, number):
    assert named_first(text, ("No", "Yes")) == number


def test_rates_are_those_of_scikit_learn():
    items = [Item("t", "?", ("a", "b"), label) for label in (0, 0, 1, 1, 1)]
    found = rates(items, Verdicts(np.array([0, 1, 1, 1, 0]), np.array([-1, 0, 1, 1, -1])))
    assert found["accuracy"] == pytest.approx(60) and found["written_accuracy"] == 60
    by_hand = 100 * (2 / 5 * 0.5 + 3 / 5 * 2 / 3)
    assert found["f1"] == pytest.approx(by_hand)
    written = f1_score([0, 0, 1, 1, 1], [-1, 0, 1, 1, -1], average="weighted", zero_division=0)
    assert found["written_f1"] == pytest.approx(100 * written)
