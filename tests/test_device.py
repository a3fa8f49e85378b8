"""Nothing is created on the wrong device: a model on another one is edited as on the CPU."""

import os
from contextlib import nullcontext
from dataclasses import replace
from itertools import product

import pytest
import torch
from elsewhere import elsewhere, moved, spread
from shards import CONFIG as LONGER
from shards import FACTS
from small_runs import QUICK

from conftest import FAMILIES, TEXTS, build
from ece.baselines import BASELINES, STRATEGIES, Task
from ece.baselines.ece_plus import EcePlus
from ece.baselines.sequence import _write, edit_one
from ece.covariance import second_moment
from ece.editor import edit_batch
from ece.evaluation.generation import answer
from ece.evaluation.metrics import evaluate
from ece.fingerprint import fingerprint
from ece.model import sites
from ece.sequence import edit_sequence
from ece.state import undo
from ece.storage import (
    edits_since,
    load_moments,
    load_state,
    moments,
    save_state,
    snapshot,
    toggle,
)
from ece.strategy import Strategy

CONFIG = replace(LONGER, steps=3, own_steps=1)  # each operation takes its time elsewhere
OTHER = os.environ.get("ECE_TEST_DEVICE")
"""A device of this machine's, as torch names it; without it one that is not there."""
START = {"anchor": {"shared": "anchor"}, "mean": {"shared": "mean"},
         "alone": {"clusters": None, "stop": 0.5}}  # fmt: skip
ROME = {"rome": {"layers": (1,)}, "blue": {"layers": (0, 1)}}


def there(model):
    """Put a model on the other device."""
    return model.to(OTHER) if OTHER else moved(model)


def place():
    """The block in which the other device is there."""
    return nullcontext() if OTHER else elsewhere()


def edited(model, tokenizer, config, strategy=None, each: int = 3):
    """Edit two batches; returns the change of the last edit layer, and the state."""
    layer, stats = config.layers[-1], second_moment(model, tokenizer, TEXTS[:20], config.layers)
    before = sites(model, (layer,))[0].weight.clone()
    few = FACTS[:2] if strategy and strategy.batch else FACTS  # a batch each takes its time
    state, reports = edit_sequence(model, tokenizer, few, stats, config, each, strategy)
    assert all(report.loss_after for report in reports)
    return (sites(model, (layer,))[0].weight - before).cpu(), state


def close(found, wanted) -> None:
    assert wanted.norm() > 0.01
    assert (found - wanted).norm() <= 1e-3 * wanted.norm()


@pytest.mark.skipif(OTHER is not None, reason="of the device that is not there")
def test_two_devices_do_not_mix():
    with elsewhere():
        away = moved(torch.nn.Linear(2, 2)).weight
        assert torch.arange(3, device=away.device).tolist() == [0, 1, 2]
        assert (away + torch.tensor(1.0)).device == away.device  # a number may come along
        assert away.cpu().device.type == "cpu" and float(away.sum()) == float(away.cpu().sum())
        for wrong in (lambda: away + torch.ones(2), lambda: away @ torch.ones(2, 2),
                      lambda: torch.cat([away, torch.ones(2, 2)])):  # fmt: skip
            with pytest.raises(RuntimeError, match="two devices"):
                wrong()


@pytest.mark.parametrize(
    "family, start", [*product(FAMILIES, ["learned"]), *product(["llama"], START)]
)
def test_a_model_elsewhere_is_edited_alike(family, start, tokenizers):
    config, tokenizer = replace(CONFIG, **START.get(start, {})), tokenizers[family]
    with place():
        found, _ = edited(there(build(family)), tokenizer, config)
    close(found, edited(build(family), tokenizer, config)[0])


@pytest.mark.skipif(OTHER is not None, reason="of the device that is not there")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_spread_over_two_devices_is_edited_alike(family, tokenizers):
    """The edit layers lie on both, values enter on the second."""
    with elsewhere():
        found, _ = edited(spread(build(family), 1), tokenizers[family], CONFIG)
    close(found, edited(build(family), tokenizers[family], CONFIG)[0])


EVERY = STRATEGIES | {"kept prompts": EcePlus(prompts=1.0)}


@pytest.mark.parametrize("method", {repr(s): name for name, s in EVERY.items()}.values())
def test_each_strategy_works_elsewhere(method, tokenizers):
    tokenizer, strategy, config = tokenizers["llama"], EVERY[method], CONFIG
    if type(strategy) is not Strategy:  # all but the paper's write to all neurons
        config = replace(config, scorer="all", p=1.0, clusters=None, **ROME.get(method, {}))
    with place():
        found, state = edited(model := there(build("llama")), tokenizer, config, strategy)
        with strategy.view(model, strategy.remember(model, config)) as seen:
            assert evaluate(seen, tokenizer, FACTS[:2]).summary()
        undo(model, state)
    close(found, edited(build("llama"), tokenizer, config, strategy)[0])


@pytest.mark.parametrize("method", BASELINES)
def test_each_baseline_works_elsewhere(method, tokenizers):
    baseline, tokenizer = BASELINES[method], tokenizers["gpt2"]
    with place():
        model = there(build("gpt2"))
        task = Task(model, tokenizer, baseline.configure(method, **QUICK[method]), {})
        if baseline.train is not None:
            learning = baseline.learning(task)
            task = replace(task, trained=baseline.train(learning, FACTS, None, None))
        mark, before = fingerprint(model), {n: p.clone() for n, p in model.named_parameters()}
        edit_one(baseline, task, FACTS[:3])
        seen = model if baseline.view is None else baseline.view(task, FACTS[:3])
        assert evaluate(seen, tokenizer, FACTS[:3]).summary()
        _write(model, before)
        assert fingerprint(model) == mark


def test_files_and_answers_elsewhere(tokenizers, tmp_path):
    tokenizer = tokenizers["gptj"]
    with place():
        model = there(build("gptj"))
        mark, before = fingerprint(model), snapshot(model, CONFIG.layers)
        stats, _ = moments(model, tokenizer, TEXTS[:20], CONFIG.layers, tmp_path / "moments")
        stats = load_moments(tmp_path / "moments", model)
        state, _ = edit_sequence(model, tokenizer, FACTS[:4], stats, CONFIG, 2)
        save_state(model, state, tmp_path / "state")
        edits, after = edits_since(before, model, FACTS[:4]), fingerprint(model)
        assert len(answer(model, tokenizer, [FACTS[0].text], 4)) == 1
        undo(model, state, 2)
        assert fingerprint(model) == mark
        assert toggle(model, edits) == "edited" and fingerprint(model) == after
        assert toggle(model, edits) == "unedited"
        state = load_state(model, tmp_path / "state")
        assert fingerprint(model) == after
        state, _ = edit_batch(model, tokenizer, FACTS[4:], stats, state, CONFIG)
        assert undo(model, state).done == 2 and fingerprint(model) == after
