"""Small cells of every method on the embedded models, against their stored digits.

A rebuild of the code must not move a digit of any method; a change that has to is stored anew by

    python tests/test_digits.py [part of a cell's name ...]

and says so in its commit. By default a few cells of each family run; with ECE_ALL_DIGITS set, all.
"""

import copy
import json
import os
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch

from ece import Fact, atlas, blend, edit_sequence, load, presets, second_moment
from ece.baselines import BASELINES, STRATEGIES, Task
from ece.baselines.ece_plus import ends_of_names
from ece.baselines.sequence import sequence
from ece.data.loading import MEASURE
from ece.evaluation.metrics import evaluate
from ece.experiments.runner import run
from ece.experiments.spec import Settings
from ece.facts import encode

STORED = Path(__file__).with_name("digits.json")
CELLS = json.loads(STORED.read_text(encoding="utf-8")) if STORED.is_file() else {}
FACTS, BATCH, SEED, TOKENS = 12, 6, 2, 5000
MODELS = ("atlas-gpt2", "atlas-gptj", "atlas-llama")
RUNNER = {"mend": {"steps": 6}, "serac": {"steps": 6}, "serac-seen": {"steps": 6}, "retrieval": {}}
RATES = ("efficacy", "generalization", "specificity")
CLUSTERED = {"clusters": 2}
"""Six facts have no more than six clusters: here phase 1 is really shared."""

DEFAULT = (
    "atlas-gpt2/ece-rs/counterfact/clustered",
    "atlas-gpt2/memit/counterfact",
    "atlas-gpt2/rome/counterfact",
    "atlas-gptj/ece-as/counterfact",
    "atlas-gptj/alphaedit/counterfact",
    "atlas-gptj/ece-plus/counterfact",
    "atlas-gptj/ft-l/counterfact",
    "atlas-llama/ece-wi/counterfact",
    "atlas-llama/blue/counterfact",
    "atlas-llama/memit-history/zsre",
)


def names() -> list[str]:
    """Every method on every model; ZsRE and shared phases for some."""
    plain = [f"{m}/{method}/counterfact" for m in MODELS for method in presets.METHODS]
    more = [f"{m}/{method}/zsre" for m in MODELS for method in
            ("ece-rs", "memit", "memit-history", "serac")]  # fmt: skip
    return plain + more + [f"{m}/ece-rs/counterfact/clustered" for m in MODELS]


@cache
def loaded(model: str):
    return load(model)


def texts(tokenizer):
    """Documents of the atlas until they hold the tokens wanted."""
    left = TOKENS
    for text in filter(str.strip, atlas.corpus(1 + TOKENS // 20)):
        if left <= 0:
            return
        left -= len(encode(tokenizer, text))
        yield text


@cache
def moments(model: str, selected: bool):
    """Second moments of all layers that a preset of the model edits."""
    network, tokenizer = loaded(model)
    layers = {n for method in STRATEGIES for n in presets.configure(model, method).layers}
    chosen = ends_of_names if selected else None
    return second_moment(network, tokenizer, texts(tokenizer), tuple(sorted(layers)), select=chosen)


def cell(name: str) -> dict:
    """Run a cell: rates in percent after all edits, steps per fact, length of each change."""
    model, method, dataset, *clustered = name.split("/")
    network, tokenizer = loaded(model)
    before = network
    network, facts = copy.deepcopy(network), atlas.facts(dataset, FACTS, SEED)
    found = {}
    if method in STRATEGIES:
        view, found["steps"] = edited(network, tokenizer, facts, model, method, bool(clustered))
        with view as used:
            rates = evaluate(used, tokenizer, facts).summary(MEASURE[dataset])
    elif method in RUNNER:
        rates = by_runner(network, tokenizer, model, method, dataset)
    else:
        task = Task(network, tokenizer, presets.numbers(model, method), {})
        sequence(BASELINES[method], task, facts, BATCH)
        rates = evaluate(network, tokenizer, facts).summary(MEASURE[dataset])
    found["after"] = {rate: round(rates[rate], 4) for rate in RATES}
    own = dict(before.named_parameters())
    moved = {n: (p.double() - own[n].double()).norm() for n, p in network.named_parameters()}
    return {**found, "change": {n: float(f"{d:.8g}") for n, d in moved.items() if d}}


def edited(network, tokenizer, facts: list[Fact], model: str, method: str, clustered: bool):
    """Edit; returns the view on the model that the method is used by, and steps per fact."""
    config = presets.configure(model, method, seed=SEED, **(CLUSTERED if clustered else {}))
    strategy, stats = presets.strategy(model, method), moments(model, False)
    if share := getattr(strategy, "names", 0):
        stats = blend(stats, moments(model, True), share)
    remembered = strategy.remember(network, config)
    _, reports = edit_sequence(network, tokenizer, facts, stats, config, BATCH, strategy)
    steps = sum(sum(report.steps) for report in reports) / len(facts)
    return strategy.view(network, remembered), round(steps, 4)


def by_runner(network, tokenizer, model: str, method: str, dataset: str) -> dict:
    """Rates of a method that learns first or has a memory, by the whole runner."""
    settings = Settings(model=model, method=method, dataset=dataset, facts=FACTS, batch=BATCH,
                        seed=SEED, stats_tokens=TOKENS, config=RUNNER[method])  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return run(settings, loaded=(network, tokenizer), cache=folder)["after"]


def test_every_method_has_a_cell_in_every_family():
    assert set(CELLS) == set(names()) and set(DEFAULT) <= set(names())


@pytest.mark.parametrize("name", sorted(CELLS) if os.environ.get("ECE_ALL_DIGITS") else DEFAULT)
def test_a_cell_has_its_digits(untyped, name):
    found, stored = cell(name), CELLS[name]
    assert found["change"].keys() == stored["change"].keys()
    for weight, norm in stored["change"].items():
        assert found["change"][weight] == pytest.approx(norm, rel=1e-4), weight
    assert found["after"] == pytest.approx(stored["after"], abs=1e-3)
    assert found.get("steps") == stored.get("steps")


def main(wanted: list[str]) -> None:
    """Store the digits of the present code, of all cells or those whose names hold a part."""
    torch.set_num_threads(1)
    cells = {name: CELLS[name] for name in names() if name in CELLS}
    for name in names():
        if not wanted or any(part in name for part in wanted):
            cells[name] = cell(name)
            print(name, cells[name]["after"], flush=True)
            lines = (f"{json.dumps(n)}: {json.dumps(cells[n])}" for n in names() if n in cells)
            STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
