"""Ids, positions, padding, prefixes: what the tokenizer decides; and which facts are refused."""

import string
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from conftest import FAMILIES, build
from ece.checks import validate, warn_of_sinks
from ece.editor import compute_values
from ece.errors import ConfigError, EditError, FactError, ModelError
from ece.facts import (
    Fact,
    contexts,
    decode,
    encode,
    encode_all,
    locate,
    locate_all,
    pad,
    target_ids,
)
from ece.objective import subject_rows
from ece.state import new_state

LETTERS = st.characters(exclude_categories=["C", "Z", "M"])  # visible, one by one
NAMES = st.text(LETTERS, min_size=1, max_size=12)


def test_bos_is_there_exactly_when_the_tokenizer_adds_it(family, tokenizer):
    ids = encode(tokenizer, "Mira lives in")
    assert (ids[0] == tokenizer.bos_token_id) == (family == "llama")
    assert ids.count(tokenizer.bos_token_id) == (family == "llama")
    assert decode(tokenizer, ids) == "Mira lives in"


def test_an_eos_that_a_tokenizer_adds_is_left_out():
    class Closing:
        """Ends every text with a special token, as T5's does."""

        def __call__(self, texts, **_):
            sizes = [len(text) for text in texts]
            return {
                "input_ids": [[9] * size + [2] for size in sizes],
                "special_tokens_mask": [[0] * size + [1] for size in sizes],
                "offset_mapping": [[(i, i + 1) for i in range(s)] + [(0, 0)] for s in sizes],
            }

    assert encode_all(Closing(), ["ab"]) == [([9, 9], [(0, 1), (1, 2)])]


def test_a_target_is_a_continuation(tokenizer):
    ids = target_ids(tokenizer, "New Harbour")
    assert decode(tokenizer, ids) == " New Harbour" and tokenizer.bos_token_id not in ids
    assert encode(tokenizer, "Mira lives in New Harbour") == (
        encode(tokenizer, "Mira lives in") + ids
    )
    assert target_ids(tokenizer, " New Harbour") == ids


@given(st.sampled_from(FAMILIES), NAMES, st.text(LETTERS, max_size=9), st.text(max_size=9))
def test_the_position_ends_the_subject(tokenizers, family, subject, before, after):
    template = f"{before} {{}} {after}".replace("{}", "\0").replace("{", "(").replace("\0", "{}")
    text = template.replace("{}", subject)
    ids, last = locate(tokenizers[family], template, subject)
    end = template.index("{}") + len(subject)
    assert ids == encode(tokenizers[family], text)
    assert decode(tokenizers[family], ids[: last + 1]).startswith(text[:end])
    assert not decode(tokenizers[family], ids[:last]).startswith(text[:end])


def test_positions_of_many_are_those_of_each(tokenizer):
    pairs = [("{} lives in", "Ilo"), ("It is cold, says {}", "Zoë Ådal"), ("({})", "東京")]
    assert locate_all(tokenizer, pairs) == [locate(tokenizer, *pair) for pair in pairs]


def test_a_second_mention_does_not_move_the_position(tokenizer):
    ids, last = locate(tokenizer, "Ilo is not {}, Ilo is", "Ilo")
    assert decode(tokenizer, ids[: last + 1]) == "Ilo is not Ilo"


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=7), min_size=1, max_size=6),
       st.sampled_from(["left", "right"]))  # fmt: skip
def test_padding_leaves_the_rows_as_they_were(rows, side):
    ids, mask = pad(rows, side)
    assert [ids[i][mask[i]].tolist() for i in range(len(rows))] == rows
    assert mask[:, 0 if side == "right" else -1].all() and ids.shape[1] == max(map(len, rows))
    assert not ids[~mask].any()


def test_padding_side_does_not_matter_to_the_model(model, tokenizer, facts):
    rows = subject_rows(tokenizer, facts, ("{}",))
    found = {}
    for side in ("left", "right"):
        ids, mask = pad(rows, side)
        places = (mask.long().cumsum(1) - 1).clamp_min(0)
        out = model(ids, attention_mask=mask.long(), position_ids=places).logits
        found[side] = torch.stack([out[i][mask[i]][-1] for i in range(len(rows))])
    torch.testing.assert_close(found["left"], found["right"], rtol=1e-4, atol=1e-5)


def test_contexts_repeat_and_leave_the_global_generator_alone(model, tokenizer, config):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = contexts(model, tokenizer, config)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one == contexts(model, tokenizer, config) and one[0] == "{}"
    assert len(one) == config.contexts + 1
    assert all(template.count("{}") == 1 and template.endswith("{}") for template in one)
    assert one != contexts(model, tokenizer, replace(config, seed=1))
    assert contexts(model, tokenizer, replace(config, contexts=0)) == ("{}",)


def test_the_largest_seed_will_do(model, tokenizer, config):
    contexts(model, tokenizer, replace(config, seed=2**63 - 1, contexts=1))


@pytest.mark.parametrize("length", [16, 500])
def test_prefixes_longer_than_the_model_reads_are_refused(family, tokenizer, config, length):
    model, long = build(family, room=16), replace(config, contexts=5, context_tokens=length)
    with pytest.raises(ConfigError, match="'context_tokens'.*16 tokens"):
        contexts(model, tokenizer, long)
    assert len(contexts(model, tokenizer, replace(long, context_tokens=11))) == 6


def test_logits_that_are_not_finite_are_named(model, tokenizer, config):
    model.get_output_embeddings().weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="logits are not finite"):
        contexts(model, tokenizer, config)


# Facts.

TYPES = {
    "prompt": 3,
    "subject": None,
    "target": b"Rome",
    "true": ["Rome"],
    "relation": 17,
    "id": 4.5,
    "paraphrases": ["a list"],
    "neighbours": "one text",
    "generation": (1,),
}


@pytest.mark.parametrize("field", TYPES)
def test_a_wrong_type_is_refused_by_the_name_of_its_field(field):
    with pytest.raises(ConfigError, match=f"'{field}'"):
        Fact(**{**dict(prompt="{} lives in", subject="Ilo", target="Rome"), field: TYPES[field]})


BAD = {
    "prompt without slot": (dict(prompt="He lives in"), "not in the prompt"),
    "two slots": (dict(prompt="{} and {} live in"), "2 times"),
    "mentioned again": (dict(prompt="{} lives, says Ilo, in"), "again"),
    "empty subject": (dict(subject=" "), "'subject'"),
    "loose subject": (dict(subject="Ilo "), "white space"),
    "empty target": (dict(target=""), "'target'"),
    "empty prompt": (dict(prompt=""), "'prompt'"),
    "half a surrogate pair": (dict(subject="Il\ud800"), "surrogate"),
    "too long": (dict(prompt="{} lives" + " in" * 180), "tokens"),
    "long target": (dict(target="Rome " * 90), "tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_facts_are_named_with_field_and_reason(model, tokenizer, case):
    change, message = BAD[case]
    good = Fact("{} lives in", "Ilo", "Rome", id=7)
    validate([good], tokenizer, model)
    with pytest.raises(FactError, match=message) as caught:
        validate([replace(good, **change)], tokenizer, model)
    assert caught.value.fact == 7 and "fact 7" in str(caught.value)


def test_a_context_counts_for_the_length(model, tokenizer):
    fact = Fact("{} lives in", "Ilo", "Rome")
    validate([fact], tokenizer, model, ("{}", "It is. {}"))
    with pytest.raises(FactError, match="model reads 128"):
        validate([fact], tokenizer, model, ("{}", "It is so cold. " * 40 + "{}"))


def lengthened(model, tokenizer, text: str):
    """Make the states of a one-token text far longer than all others."""
    (token,) = encode(tokenizer, text)[-1:]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] *= 1000
    return model


def test_a_subject_at_an_attention_sink_is_named(family, model, tokenizer, config, recwarn):
    """Only where it is the first token: neither behind a BOS nor behind words."""
    fact = Fact("{} lives in", "Q", "Rome")
    facts = [replace(fact, subject="Ilo"), fact]
    state = new_state(lengthened(model, tokenizer, "Q"), tokenizer, config)
    bos = family == "llama"  # its tokenizer puts one before every text
    warned = nullcontext() if bos else pytest.warns(match="subject of 'Q lives in' is the first")
    with warned:
        compute_values(model, tokenizer, facts, state, config)
    behind = [replace(one, prompt="Note: {} lives in") for one in facts]
    warn_of_sinks(model, tokenizer, behind, 1)
    assert not recwarn.list


def test_a_first_token_as_long_as_others_is_no_sink(model, tokenizer, recwarn):
    warn_of_sinks(model, tokenizer, [Fact("{} lives in", "Q", "Rome"), Fact("{}", "Q", "Rome")], 1)
    assert not recwarn.list


def test_the_longest_fact_that_fits_is_taken(model, tokenizer):
    """One token more is refused: the bound is the model's, not a rough one."""
    fact = Fact("{}", "Ilo", "Rome")
    used = len(encode(tokenizer, "Ilo")) + len(target_ids(tokenizer, "Rome"))
    long = [replace(fact, prompt="{}" + "~" * (128 - used + more)) for more in (0, 1)]
    sizes = [
        len(encode(tokenizer, one.text)) + used - len(encode(tokenizer, "Ilo")) for one in long
    ]
    assert sizes == [128, 129]
    validate(long[:1], tokenizer, model)
    with pytest.raises(FactError, match="129 tokens"):
        validate(long[1:], tokenizer, model)


@pytest.mark.parametrize("wrong", [{}, {"a": 1}, (), "facts", None, [1], [None]])
def test_facts_come_as_a_list_of_facts(model, tokenizer, untyped, wrong):
    with pytest.raises(FactError, match="list of ece.Fact"):
        validate(wrong, tokenizer, model)


def test_generators_and_empty_lists_are_refused(model, tokenizer, untyped, facts):
    with pytest.raises(FactError, match="generator given"):
        validate((fact for fact in facts), tokenizer, model)
    with pytest.raises(FactError, match="empty"):
        validate([], tokenizer, model)


def test_duplicates_and_contradictions_are_refused(model, tokenizer):
    one = Fact("{} lives in", "Ilo", "Rome", relation="P1", id=1)
    for other, word in (
        (one, "repeats"),  # the very same object
        (replace(one, id=2), "repeats"),
        (replace(one, id=2, target="Oslo"), "contradicts"),
        (replace(one, id=2, target=" Rome "), "repeats"),
        (replace(one, id=2, prompt="The home of {} is"), "repeats"),
        (replace(one, id=2, relation="P2", target="Oslo"), "contradicts"),
        # One text, split differently.
        (Fact("Ilo {} in", "lives", "Oslo", id=2), "contradicts"),
        (Fact("Ilo {} in", "lives", "Rome", id=2), "repeats"),
    ):
        with pytest.raises(FactError, match=rf"{word} facts\[0\]") as caught:
            validate([one, other], tokenizer, model)
        assert caught.value.field == "subject"
    validate([one, replace(one, id=2, prompt="{} works as", relation="P2")], tokenizer, model)


@given(st.lists(st.sampled_from(string.ascii_uppercase), min_size=1, max_size=6))
def test_a_batch_is_refused_exactly_when_a_subject_comes_again(tokenizers, subjects):
    batch = [Fact("{} lives in", name, "Rome", id=i) for i, name in enumerate(subjects)]
    model = build("gpt2")
    if len(set(subjects)) == len(subjects):
        validate(batch, tokenizers["gpt2"], model)
    else:
        with pytest.raises(EditError, match="repeats"):
            validate(batch, tokenizers["gpt2"], model)


def test_a_target_that_tokenizes_to_nothing_is_refused(model, tokenizers):
    def deaf(text, **options):
        if not options.get("add_special_tokens", True):
            return {"input_ids": [[] for _ in text]}
        return tokenizers["gpt2"](text, **options)

    with pytest.raises(FactError, match="it has no tokens"):
        validate([Fact("{} lives in", "Ilo", "\u200b")], deaf, model)


def test_a_space_that_a_tokenizer_puts_before_every_text_is_no_part_of_a_target():
    words = {"<unk>": 0, "\u2581": 1, "\u2581a": 2, "\u2581is": 3, "\u2581Paris": 4}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    whole = tokenizer("a is Paris", add_special_tokens=False)["input_ids"]
    assert target_ids(tokenizer, "Paris") == whole[-1:] == [4]


def test_an_empty_target_has_no_tokens(tokenizer):
    assert target_ids(tokenizer, " ") == []


def test_a_prompt_that_brings_the_targets_space_is_refused(model, tokenizer):
    with pytest.raises(FactError, match="white space"):
        validate([Fact("The capital of {} is ", "Rome", "Paris")], tokenizer, model)
