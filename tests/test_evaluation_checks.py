"""Checks before a run: every prompt that the model cannot read is named by fact and field."""

from dataclasses import replace

import pytest

from ece.errors import DataError, FactError
from ece.evaluation import check_lengths
from ece.evaluation.checks import check_texts
from ece.evaluation.metrics import evaluate
from ece.facts import Fact, encode, target_ids

GOOD = Fact(
    "{} lives in",
    "Ilo",
    "New Harbour",
    "Paris",
    id=7,
    paraphrases=("Ilo is in",),
    neighbours=("Tor Asken lives in", "Ossia lives in"),
    generation=("Ilo was",),
)


def test_good_facts_pass_and_nothing_runs(model, tokenizer, facts, monkeypatch):
    monkeypatch.setattr(model, "forward", None)
    check_lengths(model, tokenizer, [GOOD, *facts])


@pytest.mark.parametrize("field", ["paraphrases", "neighbours", "generation"])
def test_a_long_prompt_is_named_by_fact_and_field(model, tokenizer, field):
    room = model.config.max_position_embeddings
    prompts = (*getattr(GOOD, field), "Ilo is in " * room)
    with pytest.raises(FactError, match=f"fact 7, field '{field}': 'Ilo is in .*; shorten") as e:
        check_lengths(model, tokenizer, [replace(GOOD, id=1), replace(GOOD, **{field: prompts})])
    assert (e.value.fact, e.value.field) == (7, field)


def test_a_long_edit_prompt_or_true_answer_is_named(model, tokenizer):
    room = model.config.max_position_embeddings
    for change in ({"prompt": "{} is in " + "old " * room}, {"true": "old " * room}):
        with pytest.raises(FactError, match="fact 7, field 'prompt'"):
            check_lengths(model, tokenizer, [replace(GOOD, **change)])


def test_the_limit_is_the_one_that_evaluate_meets(model, tokenizer):
    """The longest prompt that passes is scored; with one token more both refuse it."""
    room, answer = model.config.max_position_embeddings, len(target_ids(tokenizer, GOOD.target))
    word = " it"
    fits = "Ilo" + word * (room - answer + 1 - len(encode(tokenizer, "Ilo")))
    while len(encode(tokenizer, fits)) > room - answer + 1:
        fits = fits.removesuffix(word)
    for extra in range(4):
        fact = replace(GOOD, true="Rome", paraphrases=(fits + word * extra,))
        size = len(encode(tokenizer, fact.paraphrases[0])) + answer - 1
        if size <= room:
            check_lengths(model, tokenizer, [fact])
            evaluate(model, tokenizer, [fact])
        else:
            with pytest.raises(FactError, match="field 'paraphrases'"):
                check_lengths(model, tokenizer, [fact])
            with pytest.raises(DataError, match=f"has {size} tokens"):
                evaluate(model, tokenizer, [fact])
    assert size > room


@pytest.mark.parametrize("field", ["target", "true", "paraphrases", "neighbours", "generation"])
def test_half_a_surrogate_pair_is_named(model, tokenizer, field):
    half = "Ilo \ud83d" if field in ("target", "true") else ("Ilo", "Ilo \ud83d")
    with pytest.raises(FactError, match=f"fact 7, field '{field}': .* holds half of a surrogate"):
        check_lengths(model, tokenizer, [replace(GOOD, **{field: half})])


def test_a_prompt_without_tokens_is_named(model, tokenizer):
    if not encode(tokenizer, ""):
        with pytest.raises(FactError, match="field 'neighbours': '' has no tokens; give visible"):
            check_lengths(model, tokenizer, [replace(GOOD, neighbours=("",))])


def test_one_string_in_place_of_texts_is_refused():
    check_texts("prompts", ["a", "b"])
    check_texts("prompts", ())
    for wrong in ("a text", [["a"]], ["a", None]):
        with pytest.raises(DataError, match="prompts are .*; give a list of texts"):
            check_texts("prompts", wrong)
