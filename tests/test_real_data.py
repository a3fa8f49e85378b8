"""Real records, where the environment variable ECE_REAL_DATA names a folder with counterfact.json,
zsre.json, qaedit.json, wikibigedit.json: they load or are named, and a few are edited end to end.
"""

import copy
import json
import os
import re
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import ece
from conftest import build
from ece.checks import validate
from ece.data import load_facts, read_records
from ece.data.loading import CONVERT
from ece.data.tasks import TASKS, load_items
from ece.errors import DataError
from ece.evaluation import check_lengths
from ece.evaluation.metrics import KINDS, evaluate, questions
from ece.facts import decode, locate_all
from ece.loading import CHECKPOINTS

FOLDER = os.environ.get("ECE_REAL_DATA")
VOCABULARY, ROOM = 2048, 1024  # of the atlas tokenizers; tokens that GPT-2 reads
MOST = 400  # records of a data set
FEW = 0.01  # share of the records that may be unusable
FAST = ece.Config(layers=(0, 1), lr=0.1, lam=20.0, steps=3, own_steps=1, clusters=2, contexts=1)


@pytest.fixture(scope="module", params=CONVERT)
def dataset(request):
    return request.param


@pytest.fixture(scope="module")
def records(dataset):
    """The first records of the data set; skips if there are none."""
    if not FOLDER:
        pytest.skip("ECE_REAL_DATA names no folder with real records")
    path = Path(FOLDER) / f"{dataset}.json"
    if not path.is_file():
        pytest.skip(f"the folder that ECE_REAL_DATA names has no {path.name}")
    return read_records(path)[:MOST]


@pytest.fixture(scope="module")
def facts(dataset, records):
    """All facts of these records."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # refused records are counted by a test
        return load_facts(dataset, records=records, skip_bad=True)


def atlas_tokenizer(family):
    """A byte-level BPE like GPT-2's; that of the Llama family adds a BOS."""
    return AutoTokenizer.from_pretrained(CHECKPOINTS / f"atlas-{family}")


def refused(convert, records):
    """The messages of all records that cannot be used."""
    messages = []
    for number, record in enumerate(records):
        try:
            convert([record], "the file")
        except DataError as error:
            messages.append(f"{number}: {error}")
    return messages


def test_records_load_or_are_named(dataset, records):
    messages = refused(CONVERT[dataset], records)
    for message in messages:
        assert re.match(r"\d+: the file, record 0, field '[\w.]+': .+; .+", message)
    assert len(messages) <= FEW * len(records), messages
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        converted = CONVERT[dataset](records, "the file", skip_bad=True)
    assert len(converted) == len(records) - len(messages)
    assert len(warned) == (1 if messages else 0)


SPOILED = {
    "counterfact": [
        (("requested_rewrite", "prompt"), "{} is to {} as", "requested_rewrite.prompt"),
        (("requested_rewrite", "target_new"), {"id": "Q1"}, "requested_rewrite.target_new.str"),
        (("requested_rewrite", "subject"), " ", "requested_rewrite.subject"),
    ],
    "zsre": [
        (("src",), "Who is it?", "src"),
        (("answers",), [], "answers.0"),
        (("loc_ans",), "", "loc_ans"),
    ],
    "qaedit": [
        (("prompt",), "Who is it?", "prompt"),
        (("locality",), [], "locality.0"),
        (("target",), 5, "target"),
    ],
    "wikibigedit": [
        (("prompt",), "Who is it?", "prompt"),
        (("locality_ground_truth",), None, "locality_ground_truth"),
        (("subject",), [], "subject"),
    ],
}


def test_spoiled_ones_among_them_are_named_and_left_out(dataset, records, tmp_path):
    records = copy.deepcopy(records[:60])
    assert not refused(CONVERT[dataset], records)
    for number, (keys, value, field) in zip((7, 20, 41), SPOILED[dataset], strict=True):
        at = records[number]
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        one = refused(CONVERT[dataset], [records[number]])
        assert len(one) == 1 and f"field '{field}'" in one[0]
    spoiled = tmp_path / "spoiled.json"
    spoiled.write_text(json.dumps(records))
    with pytest.raises(DataError, match="spoiled.json, record 7, field"):
        load_facts(dataset, path=spoiled)
    with pytest.warns(
        UserWarning, match="3 of 60 records left out; the first: .*record 7"
    ) as found:
        assert len(load_facts(dataset, path=spoiled, skip_bad=True)) <= 57
    assert len(found) == 1


def test_facts_are_complete_and_each_prompt_shows_its_subject_once(dataset, facts):
    assert len({(fact.subject, fact.prompt) for fact in facts}) == len(facts) >= 300
    for fact in facts:
        assert {question.kind for question in questions(fact)} == set(KINDS)
        assert fact.text.count(fact.subject) >= 1 and fact.prompt.count("{}") == 1
    if dataset == "zsre":
        assert all(fact.neighbours[0].endswith("?") for fact in facts)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_facts_validate_in_batches_and_positions_are_the_subjects(family, facts):
    tokenizer, model = atlas_tokenizer(family), build(family, 0, VOCABULARY, ROOM)
    check_lengths(model, tokenizer, facts)
    for first in range(0, len(facts), 100):
        validate(facts[first : first + 100], tokenizer, model)
    found = locate_all(tokenizer, [(fact.prompt, fact.subject) for fact in facts])
    for fact, (ids, position) in zip(facts, found, strict=True):
        before = fact.prompt[: fact.prompt.index("{}")] + fact.subject
        read, without = (decode(tokenizer, ids[:end]) for end in (position + 1, position))
        assert read.startswith(before) and not without.startswith(before)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_few_are_edited_end_to_end(family, dataset, facts):
    model, tokenizer = build(family, 0, VOCABULARY, ROOM), atlas_tokenizer(family)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    texts = [fact.text for fact in facts[:100]]
    stats = ece.second_moment(model, tokenizer, texts, FAST.layers)
    ece.edit_sequence(model, tokenizer, facts[:6], stats, FAST, batch=3)
    changed = [n for n, w in model.state_dict().items() if not torch.equal(w, before[n])]
    assert len(changed) == len(FAST.layers)
    assert all(torch.isfinite(w).all() for w in model.state_dict().values())
    for compat in {False, dataset == "zsre"}:
        summary = evaluate(model, tokenizer, facts[:6], compat=compat).summary("accuracy")
        assert all(0 <= summary[kind] <= 100 for kind in KINDS)


@pytest.mark.parametrize("task", TASKS)
def test_items_of_real_tasks_have_every_label(task):
    path = Path(FOLDER or "?") / "glue" / f"{task}.json"
    if not path.is_file():
        pytest.skip("ECE_REAL_DATA names no folder with records of the tasks")
    items = load_items(task, path=path)
    assert {item.label for item in items} == set(range(len(TASKS[task].choices)))
