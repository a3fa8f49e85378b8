"""What `ece plan` computes is near what a run takes, and needs no more than a configuration."""

import json
from dataclasses import replace

import pytest
from transformers import CONFIG_MAPPING, Gemma3Config

from conftest import SUBJECTS, TEXTS, build
from ece import load
from ece.bench import plan
from ece.bench.profiling import counted
from ece.covariance import second_moment
from ece.editor import compute_values, edit_batch
from ece.errors import ConfigError, DataError, ModelError
from ece.experiments.cli import main
from ece.facts import Fact, encode, locate, target_ids
from ece.sequence import edit_sequence
from ece.state import new_state


@pytest.fixture
def alike(config) -> tuple[list[Fact], object]:
    """Facts whose rows have about one length, and a schedule without an early end."""
    facts = [Fact("{} lives in", name, "Port Kell", id=i) for i, name in enumerate(SUBJECTS)]
    return facts, replace(config, clusters=None, scorer="all")


def options(facts, config, tokenizer, templates, **more) -> plan.Options:
    """Describe the facts to the plan, by averages."""
    texts = [t.replace("{}", fact.text) for fact in facts for t in templates]
    tokens = sum(len(encode(tokenizer, text)) for text in texts) / len(texts)
    tails = [
        len(encode(tokenizer, fact.text)) - locate(tokenizer, fact.prompt, fact.subject)[1]
        for fact in facts
    ]
    suffix = sum(tails) / len(tails) + len(target_ids(tokenizer, facts[0].target))
    return plan.Options(
        layers=config.layers, facts=len(facts), steps=float(config.steps),
        rows=len(templates) + 1, tokens=round(tokens), suffix=round(suffix), **more,
    )  # fmt: skip


def test_flops_are_near_those_counted(model, tokenizer, stats, alike):
    facts, config = alike
    state = new_state(model, tokenizer, config)
    given = options(facts, config, tokenizer, state.contexts)
    parts = {part.name: part.flops for part in
             plan.stages(plan.shape(model.config), config.layers, given)}  # fmt: skip
    values = []
    spent = counted(lambda: values.append(compute_values(model, tokenizer, facts, state, config)))
    assert 0.8 < (parts["below the values"] + parts["descent"]) / spent < 1.2
    spent = counted(lambda: edit_batch(model, tokenizer, facts, stats, state, config, values[0]))
    assert 0.8 < (parts["keys"] + parts["solve"]) / spent < 1.5


def test_flops_of_second_moments_are_near_those_counted(model, tokenizer):
    found = []
    spent = counted(lambda: found.append(second_moment(model, tokenizer, TEXTS[:60], (0, 1))))
    given = plan.Options(stats_tokens=found[0].tokens)
    first = next(plan.stages(plan.shape(model.config), (0, 1), given))
    assert 0.75 < first.flops / spent < 1.2


def test_memory_that_stays_is_that_of_the_tensors(model, tokenizer, stats, facts, config):
    shape, given = plan.shape(model.config), plan.Options(dtype="float32")
    found = plan.memory(shape, config.layers, given)
    assert found["weights"] == sum(part.nbytes for part in model.parameters())
    held = sum(stats.moments[layer].nbytes for layer in config.layers)
    assert found["second moments"] == held
    state = new_state(model, tokenizer, config, undo=1)
    state, _ = edit_sequence(model, tokenizer, facts, stats, config, 2, state=state)
    assert found["history"] == sum(part.nbytes for part in state.folded.values())


@pytest.mark.parametrize("name", ["atlas-gpt2", "atlas-gptj", "atlas-llama"])
def test_a_plan_needs_no_weights(name, tmp_path, capsys):
    model, _ = load(name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(model.config.to_dict()))
    assert main(["plan", str(path), "--json", "--layers", "1,2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["shape"]["weights"] == sum(part.numel() for part in model.parameters())
    assert main(["plan", name, "--layers", "1,2", "--gpus", "1,8", "--memory", "0.01"]) == 0
    table = capsys.readouterr().out
    assert "not measured" in table and "1 x 0.01 GB" in table


def test_a_family_that_reads_images_is_tried_on_a_small_copy():
    """Both parts of it: at its own sizes the one that reads images would take minutes."""
    config = Gemma3Config(text_config=dict(num_hidden_layers=6))
    found, sentence = plan.tried(config)
    assert found is None and "was served" in sentence
    assert config.text_config.num_hidden_layers == 6 and config.vision_config.hidden_size == 768
    unified = CONFIG_MAPPING["gemma4_unified"]()  # it looks up the tokens that stand for images
    assert "was served" in plan.tried(unified)[1]


def test_more_devices_hold_less_each_and_fewer_neurons_solve_faster():
    model = plan.plan(plan.Options("atlas-llama"))
    held = list(model["fullest"].values())
    assert held == sorted(held, reverse=True) and held[0] > held[-1]
    some = plan.plan(plan.Options("atlas-llama", neurons=0.2))
    assert some["stages"][-1]["seconds"] < model["stages"][-1]["seconds"]


def test_what_is_no_configuration_is_named(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(DataError, match="config.json"):
        plan.plan(plan.Options(str(path)))
    for text in ("[]", "{}", '{"model_type": "nothing"}', "{"):
        path.write_text(text)
        with pytest.raises(ModelError, match="config.json"):
            plan.plan(plan.Options(str(path)))
    path.write_text(json.dumps(build("llama").config.to_dict()))
    with pytest.raises(ConfigError, match="layers"):
        plan.plan(plan.Options(str(path), layers=(3,)))
    path.write_text('{"model_type": "t5", "d_model": 64, "num_layers": 4}')
    with pytest.raises(ModelError, match="'t5' cannot be built as a decoder"):
        plan.plan(plan.Options(str(path)))
