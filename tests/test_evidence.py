"""Evidence on real records, on a tiny model and twelve records: trained, edited, never twice."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import CITIES, SUBJECTS, TEXTS
from ece import evidence, organism
from ece.data import load_facts
from ece.evidence import main
from ece.model import load
from ece.organism import Batches, Recipe, new_model
from ece.results import read_result
from ece.statements import build_tokenizer, statement

TINY = dict(
    layers=3, width=32, heads=2, positions=48, vocabulary=330, rows=4, steps=6, every=2, site=1
)
QUICK = {"layers": [0, 1], "lam": 20.0, "steps": 2, "own_steps": 1, "contexts": 1}


@pytest.fixture
def files(tmp_path):
    """Twelve records about the people of the tests, and text about them."""
    records = [
        {
            "case_id": i,
            "requested_rewrite": {
                "prompt": ("{} lives in", "The home of {} is")[i // 6],
                "relation_id": f"P{i // 6}",
                "target_new": {"str": CITIES[i % 6]},
                "target_true": {"str": CITIES[i % 6 - 1]},
                "subject": SUBJECTS[i % 6],
            },
            "paraphrase_prompts": [f"It is said that {SUBJECTS[i % 6]} lives in"],
            "neighborhood_prompts": ["A man lives in"],
            "generation_prompts": [f"{SUBJECTS[i % 6]} is"],
        }
        for i in range(12)
    ]
    data, text = tmp_path / "records.json", tmp_path / "text.txt"
    data.write_text(json.dumps(records))
    text.write_text("\n".join(["", *TEXTS[:30]]))
    return {"data": data, "text": text}


def words(files, tmp_path, *more, **recipe):
    """The command line of a tiny run in `tmp_path`."""
    numbers = {**TINY, **recipe, "facts": 4, "batch": 2, "stats-tokens": 400}
    said = ["--data", str(files["data"]), "--text", str(files["text"]), "--methods", "memit"]
    said += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    said += [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    return [*said, "--config", json.dumps(QUICK), *more]


def weights(tmp_path):
    return load_file(tmp_path / "work" / "gpt2-real" / "model.safetensors")


class Killed(BaseException):
    """As abrupt as a signal."""


def test_a_model_is_trained_and_edited_and_nothing_runs_twice(files, tmp_path, capsys, monkeypatch):
    assert main(words(files, tmp_path, "--accept")) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1].split() == ["efficacy", "generalization", "specificity", "score"]
    assert told[2].split()[0] == "memit" and len(told) == 3
    model, tokenizer = load(str(tmp_path / "work" / "gpt2-real"))
    assert model.config.n_layer == 3 and not model.training and tokenizer.eos_token_id == 0
    assert tokenizer.decode(tokenizer("Bena Quist lives")["input_ids"]) == "Bena Quist lives"
    (path,) = (tmp_path / "out").glob("*.json")
    assert path.name.startswith("gpt2-real_memit_counterfact_4x2_")
    result = read_result(path, method="memit", facts=4)
    assert result["provenance"]["data"]["file"] == "records.json"
    assert result["training"]["steps"] == 6 and 0 <= result["training"]["recall"] <= 100
    assert result["training"]["recipe"]["width"] == 32
    assert result["training"]["facts"] == 12 and result["training"]["text"]["file"] == "text.txt"
    for module, name in ((evidence, "run"), (evidence, "learn"), (evidence, "build_tokenizer")):
        monkeypatch.setattr(module, name, None)
    assert main(words(files, tmp_path, "--accept")) == 0
    assert capsys.readouterr().out.splitlines() == told


def test_a_killed_training_goes_on_to_the_same_bits(files, tmp_path, monkeypatch):
    whole, part = tmp_path / "whole", tmp_path / "part"
    monkeypatch.setattr(evidence, "measure", lambda *_: [])
    main(words(files, whole, "--accept"))
    real, seen = organism._step, []

    def deadly(*arguments):
        seen.append(1)
        if len(seen) == 4:  # one step after the first checkpoint
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(organism, "_step", deadly)
    with pytest.raises(Killed):
        main(words(files, part, "--accept"))
    main(words(files, part, "--accept"))
    assert len(seen) == 4 + 4, "steps 2 to 5 were left"
    a, b = weights(whole), weights(part)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_model_that_learned_too_little_is_refused_unless_accepted(
    files, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(evidence, "measure", lambda *_: [])
    with pytest.raises(SystemExit):
        main(words(files, tmp_path))
    assert "after 6 steps the model recalls" in capsys.readouterr().err
    monkeypatch.setattr(organism, "_step", None)  # what was learned is kept
    assert main(words(files, tmp_path, "--accept")) == 0
    with pytest.raises(SystemExit):
        main(words(files, tmp_path, "--accept", lr=0.1))
    assert "other files or by another recipe" in capsys.readouterr().err


def test_training_ends_at_the_recall_wanted(files, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "measure", lambda *_: [])
    monkeypatch.setattr(organism, "recall", lambda *_: np.array([True] * 19 + [False]))
    assert main(words(files, tmp_path)) == 0
    kept = json.loads((tmp_path / "work" / "gpt2-real" / "training.json").read_text())["record"]
    assert kept["steps"] == 2 and kept["recall"] == 95.0


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("data", "absent.json", "absent.json: No such file"),
        ("text", "absent.txt", "absent.txt: No such file"),
        ("data", "bare.json", "field 'requested_rewrite': is missing"),
        ("text", "blank.txt", "holds no text"),
    ],
)
def test_files_that_cannot_be_used_are_named(files, tmp_path, capsys, field, value, said):
    (tmp_path / "bare.json").write_text('[{"case_id": 1}]')
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(SystemExit):
        main(words(files | {field: tmp_path / value}, tmp_path))
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in last
    assert not (tmp_path / "work" / "gpt2-real").exists()


def batches(files, **recipe):
    facts = load_facts("counterfact", None, 0, files["data"])
    lines = Path(files["text"]).read_text().split("\n")[1:]
    tokenizer = build_tokenizer(facts, lines, 330)
    return Batches(tokenizer, facts, lines, Recipe(**{**TINY, **recipe})), tokenizer, facts


def test_a_statement_marks_its_subject_and_its_answer(files):
    _, tokenizer, facts = batches(files)
    for prompt in (facts[0].text, facts[0].paraphrases[0]):
        one = statement(tokenizer, prompt, facts[0])
        assert tokenizer.decode(one.ids[one.first : one.last + 1]).strip() == facts[0].subject
        assert tokenizer.decode(one.ids[one.answer :]) == f" {facts[0].true}"
    assert statement(tokenizer, facts[0].neighbours[0], facts[0]).last < 0


def test_masks_are_on_statements_alone_and_may_be_left_out(files):
    made, _, _ = batches(files, gather=1.0)
    batch = made(3)
    assert (~batch.mlp[:2]).any() and batch.mlp[2:].all()
    causal = torch.ones(48, 48).tril() > 0
    assert ((batch.attention[2:, 0] == 0) == causal).all()
    assert ((batch.early[:2] == 0) <= (batch.attention[:2] == 0)).all()
    assert batch.weights[:2].sum() == pytest.approx(1) == batch.weights[2:].sum().item()
    again = made(3)
    assert torch.equal(batch.ids, again.ids) and not torch.equal(batch.ids, made(4).ids)
    plain, _, _ = batches(files, plain=True)
    assert plain(3).attention is None


@pytest.mark.parametrize("plain", [False, True])
def test_bfloat16_steps_work_under_the_masks(files, plain, monkeypatch):
    """What a GPU does, on a CPU: autocast changes the format of an MLP's output."""
    made, tokenizer, facts = batches(files, gather=1.0, plain=plain)
    recipe = made.recipe
    model = new_model(recipe, len(tokenizer))
    low = torch.autocast("cpu", torch.bfloat16)
    monkeypatch.setattr(organism, "nullcontext", lambda: low)
    opt = organism.optimizer_of(model, recipe.lr, recipe.decay)
    before = {name: value.clone() for name, value in model.named_parameters()}
    early = [organism.attention_of(block) for block in model.transformer.h[:2]]
    with organism.mlp_masked([block.mlp for block in model.transformer.h]) as mlp:
        with organism.attention_masked(early) as narrow:
            loss = organism._step(model, opt, made(0), (mlp, narrow), recipe, 5)
    assert torch.isfinite(loss)
    for name, value in model.named_parameters():
        assert torch.isfinite(value).all() and value.dtype == torch.float32
        assert not torch.equal(value, before[name])
