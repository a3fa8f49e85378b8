"""Ids, positions, padding, prefixes: what the tokenizer decides."""

from dataclasses import replace

import pytest
import torch

from ece.engine.keys import keys_and_states, subject_rows
from ece.errors import FactError
from ece.facts import (
    Fact,
    by_length,
    contexts,
    decode,
    encode,
    locate,
    pad,
    subject_last,
    target_ids,
    validate,
)


def test_bos_is_there_exactly_when_the_tokenizer_adds_it(family, tokenizer):
    ids = encode(tokenizer, "Mira lives in")
    assert (ids[0] == tokenizer.bos_token_id) == (family == "llama")
    assert ids.count(tokenizer.bos_token_id) == (family == "llama")
    assert decode(tokenizer, ids) == "Mira lives in"


def test_a_target_is_a_continuation(tokenizer):
    ids = target_ids(tokenizer, "New Harbour")
    assert decode(tokenizer, ids) == " New Harbour" and tokenizer.bos_token_id not in ids
    assert encode(tokenizer, "Mira lives in New Harbour") == (
        encode(tokenizer, "Mira lives in") + ids
    )
    assert target_ids(tokenizer, " New Harbour") == ids


@pytest.mark.parametrize("subject", ["Mira Velan", "Ilo", "Zoë Ådal", "東京", "a", "O'Hara"])
@pytest.mark.parametrize("template", ["{} lives in", "Ilona says {}", "The job of {}, all", "({})"])
def test_the_position_ends_the_subject(tokenizer, template, subject):
    ids, last = locate(tokenizer, template, subject)
    assert last == subject_last(tokenizer, template, subject)
    end = template.index("{}") + len(subject)
    text = template.replace("{}", subject)
    assert decode(tokenizer, ids[: last + 1]).startswith(text[:end])
    assert not decode(tokenizer, ids[:last]).startswith(text[:end])


def test_a_second_mention_does_not_move_the_position(tokenizer):
    ids, last = locate(tokenizer, "Ilo is not {}, Ilo is", "Ilo")
    assert decode(tokenizer, ids[: last + 1]) == "Ilo is not Ilo"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_keeps_the_rows(side):
    rows = [[5, 6, 7], [8], [9, 1]]
    ids, mask = pad(rows, side)
    assert [ids[i][mask[i]].tolist() for i in range(3)] == rows
    assert mask[:, 0].all() if side == "right" else mask[:, -1].all()


def test_padding_side_does_not_matter_to_the_model(model, tokenizer, facts):
    rows = subject_rows(tokenizer, facts, ("{}",))
    found = {}
    for side in ("left", "right"):
        ids, mask = pad(rows, side)
        places = (mask.long().cumsum(1) - 1).clamp_min(0)
        out = model(ids, attention_mask=mask.long(), position_ids=places).logits
        found[side] = torch.stack([out[i][mask[i]][-1] for i in range(len(rows))])
    torch.testing.assert_close(found["left"], found["right"], rtol=1e-4, atol=1e-5)


def test_keys_do_not_depend_on_the_company(model, tokenizer, facts):
    rows = subject_rows(tokenizer, facts, ("{}", "He said that. {}"))
    together, _ = keys_and_states(model, rows, len(facts), 1, 2, 10**6)
    for budget in (1, 30):
        alone, _ = keys_and_states(model, rows, len(facts), 1, 2, budget)
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-6)


def test_chunks_hold_every_row_within_the_budget():
    lengths = [5, 3, 9, 3, 12, 1]
    chunks = by_length(lengths, 12)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(6))
    assert all(len(c) == 1 or len(c) * max(lengths[i] for i in c) <= 12 for c in chunks)


def test_contexts_repeat_and_leave_the_global_generator_alone(model, tokenizer, config):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = contexts(model, tokenizer, config)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one == contexts(model, tokenizer, config) and one[0] == "{}"
    assert len(one) == config.contexts + 1
    assert all(template.count("{}") == 1 and template.endswith("{}") for template in one)
    assert one != contexts(model, tokenizer, replace(config, seed=1))


BAD = {
    "prompt without slot": (dict(prompt="He lives in"), "not in the prompt"),
    "two slots": (dict(prompt="{} and {} live in"), "2 times"),
    "mentioned again": (dict(prompt="{} lives, says Ilo, in"), "again"),
    "empty subject": (dict(subject=" "), "'subject'"),
    "loose subject": (dict(subject="Ilo "), "white space"),
    "empty target": (dict(target=""), "'target'"),
    "too long": (dict(prompt="{} " + "lives in " * 90), "tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_facts_are_named_with_field_and_reason(model, tokenizer, case):
    change, message = BAD[case]
    good = Fact("{} lives in", "Ilo", "Rome", id=7)
    validate([good], tokenizer, model)
    with pytest.raises(FactError, match=message) as caught:
        validate([replace(good, **change)], tokenizer, model)
    assert caught.value.fact == 7 and "fact 7" in str(caught.value)


def test_duplicates_and_contradictions_are_refused(model, tokenizer):
    one = Fact("{} lives in", "Ilo", "Rome", relation="P1", id=1)
    for other, word in (
        (replace(one, id=2), "repeats"),
        (replace(one, id=2, target="Oslo"), "contradicts"),
        (replace(one, id=2, prompt="The home of {} is"), "repeats"),
        (replace(one, id=2, relation="P2", target="Oslo"), "contradicts"),
    ):
        with pytest.raises(FactError, match=word):
            validate([one, other], tokenizer, model)
    validate([one, replace(one, id=2, prompt="{} works as", relation="P2")], tokenizer, model)


def test_a_target_that_tokenizes_to_nothing_is_refused(model, tokenizers):
    def deaf(text, **options):
        return (
            {"input_ids": []}
            if not options.get("add_special_tokens", True)
            else (tokenizers["gpt2"](text, **options))
        )

    with pytest.raises(FactError, match="nothing"):
        validate([Fact("{} lives in", "Ilo", "\u200b")], deaf, model)


def test_a_large_chunk_ends_where_lengths_grow():
    lengths = [4] * 300 + [9] * 5
    assert [len(chunk) for chunk in by_length(lengths, 10_000)] == [300, 5]
    assert [len(chunk) for chunk in by_length(lengths[200:], 10_000)] == [105]  # too few to part
