"""What a run measures beside its facts: drift, free answers, probes, and how they get on record."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import FAST, without_seconds, write_files

from conftest import TEXTS, build
from ece.errors import ConfigError, DataError
from ece.evaluation.answers import exact, normal, token_f1
from ece.evaluation.drift import Drift, openings, perplexity
from ece.evaluation.generation import answer
from ece.evaluation.probes import CHECKED, DENIED, probe
from ece.evaluation.teacher_forcing import score_answers
from ece.experiments.results import collect, long_form, read, write_record
from ece.experiments.runner import run
from ece.experiments.side_effects import cases
from ece.experiments.spec import Settings, run_id
from ece.facts import decode, encode

ROWS = [[5, 9, 33, 7, 12], [8, 2, 77], [3, 4, 5, 6, 7, 8, 9]]


def logs(model, row):
    with torch.no_grad():
        return model(torch.tensor([row])).logits[0].double().log_softmax(-1)


def test_divergence_is_that_of_one_row_at_a_time(family, model):
    other = build(family, seed=1)
    for last in (False, True):
        drift = Drift.of(model, ROWS, last)
        assert drift.divergence(model) == pytest.approx(0, abs=1e-6)
        for found, row in zip(drift.divergence(other), ROWS, strict=True):
            p, q = logs(model, row), logs(other, row)
            each = (p.exp() * (p - q)).sum(-1)
            assert found == pytest.approx(float(each[-1] if last else each.mean()), rel=1e-4)
            assert found > 0


def test_perplexity_is_over_all_tokens_that_have_one_before(model):
    nll = [-logs(model, row)[i, row[i + 1]] for row in ROWS for i in range(len(row) - 1)]
    assert perplexity(model, ROWS) == pytest.approx(float(torch.stack(nll).mean().exp()), rel=1e-4)


def test_openings_skip_short_texts_and_say_when_there_is_none(tokenizer):
    whole = [text for text in TEXTS if len(encode(tokenizer, text)) >= 4]
    found = openings(tokenizer, TEXTS, len(whole), least=4, most=6)
    assert found == [encode(tokenizer, text)[:6] for text in whole]
    assert openings(tokenizer, TEXTS, 2, least=4, most=6) == found[:2]
    with pytest.raises(DataError, match="no text has 400 tokens"):
        openings(tokenizer, TEXTS, 1, least=400)


def test_a_free_answer_is_greedy_and_stops_at_a_line_break(model, tokenizer):
    prompts = ["The capital of France is", "Anna lives in", "It"]
    for prompt, found in zip(prompts, answer(model, tokenizer, prompts, 6), strict=True):
        ids = encode(tokenizer, prompt)
        new = []
        while len(new) < 6 and tokenizer.eos_token_id not in new:
            new.append(int(logs(model, [*ids, *new])[-1].argmax()))
        text = decode(tokenizer, [i for i in new if i != tokenizer.eos_token_id])
        assert found == text.strip().split("\n")[0].strip()


def test_answers_are_compared_as_squad_does():
    assert normal(" The  Eiffel-Tower, an icon. ") == "eiffeltower icon"
    assert exact("the Rome.", "Rome") == 1 and exact("Rome, Italy", "Rome") == 0
    assert token_f1("Rome, Italy", "Rome") == pytest.approx(2 / 3)
    assert token_f1("", "Rome") == 0 and token_f1("", "") == 1


def test_probes_compare_answers_to_the_frames(model, tokenizer, facts):
    known = [replace(fact, true="Berlin") for fact in facts]
    found = probe(model, tokenizer, [*known, replace(facts[0], true="")])
    assert np.isnan(found.denied[-1]) and np.isnan(found.checked[-1])
    for i, fact in enumerate(known):
        pairs = [(DENIED.format(prompt=fact.text), w) for w in (fact.target, fact.true)]
        new, old = score_answers(model, tokenizer, pairs).nll
        assert found.denied[i] == (new < old)
        odds = []
        for word in (fact.target, fact.true):
            text = CHECKED.format(prompt=fact.text, answer=word)
            yes, no = score_answers(model, tokenizer, [(text, "True"), (text, "False")]).nll
            odds.append(no - yes)
        assert found.checked[i] == (odds[0] > odds[1])


@pytest.fixture
def settings(tmp_path):
    also = ("drift", "answers", "probes", "abilities")
    return Settings(facts=4, batch=2, config=FAST, points=(2, 4), also=also, also_facts=3, items=2,
                    cases=2, **write_files(tmp_path), stats_tokens=60)  # fmt: skip


def test_a_run_measures_side_effects_before_at_points_and_after(tokenizers, settings, tmp_path):
    record = run(settings, (build("gpt2"), tokenizers["gpt2"]))
    names = {"perplexity", "kl_text", "answers_exact", "denied", "checked", "abilities_f1"}
    for rates in (record["pre"], record["after"], *record["points"]):
        assert names <= set(rates)
    assert record["pre"]["kl_text"] == 0 < record["after"]["kl_text"]
    last = record["points"][-1]
    assert {k: record["after"][k] for k in names} == {k: last[k] for k in names}
    assert record["points"][0]["first_score"] == record["points"][0]["score"]
    assert [case["id"] for case in record["texts"]] == record["provenance"]["facts"][:2]
    assert all(case["before"].startswith(case["prompt"]) for case in record["texts"])
    write_record(record, tmp_path / "cells" / "one.json")
    collect(tmp_path / "cells", tmp_path / "results")
    found = read(tmp_path / "results")
    cells = found.cells().set_index(["when", "metric"])
    assert cells.loc[("after", "answers_exact"), "n"].item() == 3
    assert cells.loc[("after", "efficacy"), "n"].item() == 4
    assert found.runs.texts.item() == record["texts"]
    assert len(long_form(record)[1]) == len(cells)


def test_a_killed_run_goes_on_to_the_same_side_effects(tokenizers, settings, tmp_path):
    def deadly(stage, done, total):
        if stage == "edit" and done == 1:
            raise KeyboardInterrupt

    def again(*more):
        return run(settings, (build("gpt2"), tokenizers["gpt2"]), *more)

    with pytest.raises(KeyboardInterrupt):
        again(deadly, tmp_path / "work")
    assert without_seconds(again(None, tmp_path / "work")) == without_seconds(again())


def test_a_memory_answers_freely_and_its_drift_names_its_text(tokenizers, settings):
    chosen = replace(settings, method="retrieval", config={})
    record = run(chosen, (build("llama"), tokenizers["llama"]))
    assert {"answers_exact", "kl_text", "checked"} <= set(record["after"])
    sources = record["provenance"]["identity"]["sources"]
    assert sources["stats_text"] is not None, "drift was measured on it"
    plain = replace(chosen, also=(), cases=0).identity()
    assert plain["sources"]["stats_text"] is None and plain["stats_tokens"] is None


def test_they_change_no_other_number(tokenizers, settings):
    plain = replace(settings, also=(), cases=0)
    one, other = (run(s, (build("gpt2"), tokenizers["gpt2"])) for s in (settings, plain))
    for when in ("pre", "after"):
        assert other[when] == {name: one[when][name] for name in other[when]}
    assert run_id(settings.identity()) != run_id(plain.identity())
    assert not {"also", "items", "tasks", "cases"} & set(plain.identity())


def test_texts_of_cases_end_with_the_shorter_list(facts):
    assert len(cases(facts, ["a b"], ["a c"])) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"also": ("abilities",), "stats_text": "x"}, "'tasks' is None; gpt2 does not know"),
     ({"also": ("drift",)}, "drift needs 'stats_text'"),
     ({"tasks": "hub"}, "'tasks' is 'hub'; it needs the setting 'also'")],
)  # fmt: skip
def test_what_is_missing_is_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Settings(model="gpt2", data="x.json", config={"layers": (0,)}, **wrong)
