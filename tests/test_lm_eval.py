"""Scores of choices equal those of lm-evaluation-harness, item by item, where it is installed.

It is no dependency: `pip install --no-deps lm-eval`, then run this file. With `ECE_REAL_DATA`, a
folder with glue/<task>.json, the items are those of the six tasks and the model is SmolLM2-135M.
"""

import os
from pathlib import Path

import numpy as np
import pytest

import ece
from ece import atlas
from ece.atlas.tasks import TASKS as EMBEDDED
from ece.data.tasks import TASKS, load_items
from ece.evaluation.abilities import verdicts
from ece.evaluation.teacher_forcing import score_answers
from ece.facts import target_ids

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402


@pytest.fixture
def given():
    if folder := os.environ.get("ECE_REAL_DATA"):
        items = [load_items(task, 50, 0, Path(folder) / "glue" / f"{task}.json") for task in TASKS]
        return *ece.load("smollm2-135m"), sum(items, [])
    world = atlas.build()
    return *ece.load("atlas-gpt2"), [i for t in EMBEDDED for i in atlas.task_items(world, t, 4)]


def test_likelihoods_and_choices_are_those_of_the_harness(given):
    model, tokenizer, items = given
    pairs = [(item.prompt, choice) for item in items for choice in item.choices]
    ours = score_answers(model, tokenizer, pairs).nll
    ours = -ours * [len(target_ids(tokenizer, answer)) for _, answer in pairs]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    wanted = [
        Instance("loglikelihood", {}, (prompt, " " + answer), i)
        for i, (prompt, answer) in enumerate(pairs)
    ]
    theirs = np.array([found for found, _ in harness.loglikelihood(wanted, disable_tqdm=True)])
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    ends = np.cumsum([len(item.choices) for item in items])[:-1]
    tokens = np.array([len(target_ids(tokenizer, answer)) for _, answer in pairs])
    chosen = [part.argmax() for part in np.split(theirs / tokens, ends)]
    assert (verdicts(model, tokenizer, items, write=False).likelihood == chosen).all()
