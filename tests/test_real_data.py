"""Real records of CounterFact and ZsRE, where the environment variable ECE_REAL_DATA names a folder
with counterfact.json and zsre.json: they load or are named, and a few are edited end to end.
"""

import copy
import hashlib
import json
import os
import re
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from conftest import build
from ece.data.loading import DataError, facts_from_counterfact, facts_from_zsre, load_facts
from ece.data.schema import read_records
from ece.evaluation.metrics import KINDS, questions
from ece.experiments.runner import run
from ece.experiments.spec import Settings
from ece.facts import decode, locate_all, validate
from ece.model import CHECKPOINTS

FOLDER = os.environ.get("ECE_REAL_DATA")
CONVERT = {"counterfact": facts_from_counterfact, "zsre": facts_from_zsre}
VOCABULARY, ROOM = 2048, 1024  # of the atlas tokenizers; tokens that GPT-2 reads
FEW = 0.01  # share of the records that may be unusable
FAST = {"layers": (0, 1), "lam": 20.0, "steps": 3, "own_steps": 1, "clusters": 2, "contexts": 1}


@pytest.fixture(params=CONVERT)
def dataset(request):
    return request.param


@pytest.fixture
def path(dataset):
    """The file of the data set; skips if there is none."""
    if not FOLDER:
        pytest.skip("ECE_REAL_DATA names no folder with real records")
    path = Path(FOLDER) / f"{dataset}.json"
    if not path.is_file():
        pytest.skip(f"the folder that ECE_REAL_DATA names has no {path.name}")
    return path


@pytest.fixture
def facts(dataset, path):
    """All facts of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # refused records are counted by a test
        return load_facts(dataset, path=path, skip_bad=True)


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


def test_records_load_or_are_named(dataset, path):
    records = read_records(path)
    messages = refused(CONVERT[dataset], records)
    for message in messages:
        assert re.match(r"\d+: the file, record 0, field '[\w.]+': .+; .+", message)
    assert len(messages) <= FEW * len(records), messages
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        converted = CONVERT[dataset](records, "the file", skip_bad=True)
    assert len(converted) == len(records) - len(messages)
    assert len(told) == (1 if messages else 0)


SPOILED = {
    "counterfact": [
        (("requested_rewrite", "prompt"), "{} is to {} as", "requested_rewrite.prompt"),
        (("requested_rewrite", "target_new"), {"id": "Q1"}, "requested_rewrite.target_new.str"),
        (("requested_rewrite", "subject"), " ", "requested_rewrite.subject"),
    ],
    "zsre": [
        (("src",), "Who is it?", "src"),
        (("answers",), [], "answers"),
        (("loc_ans",), "", "loc_ans"),
    ],
}


def test_spoiled_ones_among_them_are_named_and_left_out(dataset, path, tmp_path):
    records = copy.deepcopy(read_records(path)[:60])
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
    with pytest.warns(UserWarning, match="3 of 60 records left out; the first: .*record 7") as told:
        assert len(load_facts(dataset, path=spoiled, skip_bad=True)) <= 57
    assert len(told) == 1


def test_facts_are_complete_and_each_prompt_shows_its_subject_once(dataset, facts):
    assert len({(fact.subject, fact.prompt) for fact in facts}) == len(facts) >= 500
    for fact in facts:
        assert {question.kind for question in questions(fact)} == set(KINDS)
        assert fact.text.count(fact.subject) >= 1 and fact.prompt.count("{}") == 1
    if dataset == "zsre":
        assert all(fact.neighbours[0].endswith("?") for fact in facts)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_facts_validate_in_batches_and_positions_are_the_subjects(family, facts):
    tokenizer, model = atlas_tokenizer(family), build(family, 0, VOCABULARY, ROOM)
    for first in range(0, min(len(facts), 2000), 100):
        validate(facts[first : first + 100], tokenizer, model)
    found = locate_all(tokenizer, [(fact.prompt, fact.subject) for fact in facts])
    for fact, (ids, position) in zip(facts, found, strict=True):
        before = fact.prompt[: fact.prompt.index("{}")] + fact.subject
        read, without = (decode(tokenizer, ids[:end]) for end in (position + 1, position))
        assert read.startswith(before) and not without.startswith(before)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_few_are_edited_end_to_end(family, dataset, path, facts, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(fact.text for fact in facts[:200]))
    model = build(family, 0, VOCABULARY, ROOM)
    settings = Settings(
        dataset=dataset, data=str(path), skip_bad=True, facts=6, batch=3,
        stats_text=str(text), compat=dataset == "zsre", config=FAST,
    )  # fmt: skip
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    result = run(settings, (model, atlas_tokenizer(family)))
    changed = [n for n, w in model.state_dict().items() if not torch.equal(w, before[n])]
    assert len(changed) == len(FAST["layers"])
    assert all(torch.isfinite(w).all() for w in model.state_dict().values())
    for when in ("pre", "at_write", "after"):
        assert all(0 <= result[when][kind] <= 100 for kind in KINDS)
    total = hashlib.sha256(path.read_bytes()).hexdigest()
    assert result["provenance"]["data"] == {"file": path.name, "sha256": total}
    assert len(result["batches"]) == 2
