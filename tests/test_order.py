"""The order of a run's facts: clusters together, or spread over all batches."""

from collections import Counter
from dataclasses import replace
from itertools import groupby

import pytest
import torch
from small_runs import FAST, write_files

from conftest import build
from ece.errors import ConfigError
from ece.experiments.order import labels, schedule
from ece.experiments.runner import run
from ece.experiments.spec import Settings, run_id

GROUPS = torch.tensor([1, 0, 1, 2, 0, 1, 1, 0, 2, 1, 2, 1])
NAMES = [f"{group}{place}" for place, group in enumerate(GROUPS.tolist())]


@pytest.mark.parametrize("order", ["drawn", "together", "spread"])
def test_no_fact_is_lost_and_a_group_keeps_its_order(order):
    found = [NAMES[i] for i in schedule(GROUPS, order)]
    assert sorted(found) == sorted(NAMES)
    for group in "012":
        own = [int(name[1:]) for name in found if name[0] == group]
        assert own == sorted(own)


def test_together_means_one_run_of_each_group():
    found = GROUPS[schedule(GROUPS, "together")].tolist()
    assert [group for group, _ in groupby(found)] == [0, 1, 2]


def test_spread_gives_every_batch_its_share_of_each_group():
    found = [NAMES[i] for i in schedule(GROUPS, "spread")]
    for first in range(0, 12, 4):  # sizes 3, 6 and 3 over three batches
        own = Counter(name[0] for name in found[first : first + 4])
        assert own == {"0": 1, "1": 2, "2": 1}


def test_facts_with_the_same_neurons_are_of_one_group(model, tokenizer, facts, config):
    chosen = replace(config, scorer="residual", p=0.5)
    twice = [*facts, *(replace(fact, target=facts[0].target) for fact in facts)]
    found = labels(model, tokenizer, twice, chosen, len(facts))
    assert torch.equal(found[: len(facts)], found[len(facts) :])
    assert len(found.unique()) > 1


def test_a_run_edits_in_the_order_asked_for(tokenizers, tmp_path):
    settings = Settings(facts=6, batch=2, config=FAST, **write_files(tmp_path))
    records = {
        order: run(replace(settings, order=order), (build("gpt2"), tokenizers["gpt2"]))
        for order in ("drawn", "together", "spread")
    }
    ids = {order: record["provenance"]["facts"] for order, record in records.items()}
    assert sorted(ids["drawn"]) == sorted(ids["together"]) == sorted(ids["spread"])
    assert ids["drawn"] != ids["together"] != ids["spread"]
    assert len({run_id(r["provenance"]["identity"]) for r in records.values()}) == 3
    assert records["drawn"]["pre"] == pytest.approx(records["spread"]["pre"], abs=1e-3)
    drawn = records["drawn"]["provenance"]["identity"]
    assert "order" not in drawn, "runs stored before there was a choice keep their names"


def test_a_method_without_edit_layers_has_no_order():
    with pytest.raises(ConfigError, match="'order' is 'spread'; serac has no layers"):
        Settings(method="serac", order="spread")
