"""Second moments: streamed as if at once, packed without padding, and gone on with."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import TEXTS, build
from ece.baselines.ece_plus import ends_of_names
from ece.checks import check_stats
from ece.covariance import Stats, Sums, blend, packed, second_moment
from ece.errors import EditError, ModelError, StatsError
from ece.facts import encode
from ece.fingerprint import fingerprint
from ece.hooks import capture
from ece.model import sites


class Letters:
    """A tokenizer whose tokens are letters."""

    def __call__(self, texts, **_):
        return {
            "input_ids": [[ord(letter) for letter in text] for text in texts],
            "special_tokens_mask": [[0] * len(text) for text in texts],
            "offset_mapping": [[(i, i + 1) for i in range(len(text))] for text in texts],
        }


def vowels(tokenizer, text: str) -> list[bool]:
    return [letter in "aeiou" for letter in text]


@given(st.lists(st.text("abcde", max_size=9), max_size=9), st.integers(1, 7), st.integers(1, 4))
def test_packing_loses_no_token_and_pads_none(texts, length, count):
    groups = list(packed(Letters(), texts, length, count, vowels))
    flat = [(i, c) for rows, marks in groups for r, m in zip(rows, marks, strict=True)
            for i, c in zip(r, m, strict=True)]  # fmt: skip
    stream = "".join(texts)
    assert flat == [(ord(letter), letter in "aeiou") for letter in stream]
    sizes = [[len(row) for row in rows] for rows, _ in groups]
    assert all(len(set(group)) == 1 and len(group) <= count for group in sizes)
    rows = [size for group in sizes for size in group]
    assert all(size == length for size in rows[:-1]) and all(0 < size <= length for size in rows)


@pytest.mark.parametrize("stop", [1, 4])
def test_a_pass_that_goes_on_ends_with_the_same_bits(model, tokenizer, stop):
    """After any forward: with the sums of then, the rest of the texts gives the same moments."""
    seen = []

    def note(sums):
        # The pass goes on adding to its own sums.
        copied = {layer: total.clone() for layer, total in sums.sums.items()}
        seen.append(Sums(copied, sums.tokens, sums.forwards))

    texts = TEXTS[:20]
    whole = second_moment(model, tokenizer, texts, (0, 1), 100, on_forward=note)
    assert [one.forwards for one in seen] == list(range(1, len(seen) + 1)) and len(seen) > 5
    assert seen[-1].tokens == whole.tokens
    again = second_moment(model, tokenizer, texts, (0, 1), 100, start=seen[stop - 1])
    assert again.tokens == whole.tokens and again.digest == whole.digest


def test_one_truncated_pass_equals_whole_forwards(model, tokenizer):
    found = second_moment(model, tokenizer, TEXTS[:6], (0, 2), max_tokens=256)
    rows = [row for group, _ in packed(tokenizer, TEXTS[:6], 128, 2) for row in group]
    stream = [i for text in TEXTS[:6] for i in encode(tokenizer, text)]
    assert sum(rows, []) == stream and found.tokens == len(stream)
    total = {0: 0, 2: 0}
    for row in rows:
        with capture(sites(model, (0, 2))) as keys:
            model(torch.tensor([row]))
        for layer in total:
            total[layer] = total[layer] + keys[layer][0].double().T @ keys[layer][0].double()
    for layer in total:
        moment = found.moments[layer]
        torch.testing.assert_close(moment, total[layer] / found.tokens, rtol=1e-4, atol=1e-6)
        assert moment.dtype == torch.double and torch.equal(moment, moment.T)


def test_they_belong_to_the_model_and_have_a_digest(stats, model, tokenizer):
    again = second_moment(model, tokenizer, TEXTS[:60], (0, 1, 2))
    other = second_moment(model, tokenizer, TEXTS[:59], (0, 1, 2))
    assert again.fingerprint == stats.fingerprint == fingerprint(model)
    assert again.digest == stats.digest != other.digest
    swapped = replace(stats, moments={0: stats.moments[1], 1: stats.moments[0]})
    plain = replace(stats, moments={0: stats.moments[0], 1: stats.moments[1]})
    assert swapped.digest != plain.digest


def test_the_memory_budget_changes_rows_not_tokens(model, tokenizer, stats):
    small = second_moment(model, tokenizer, TEXTS[:60], (1,), max_tokens=500)
    assert small.tokens == stats.tokens
    torch.testing.assert_close(small.moments[1], stats.moments[1], rtol=1e-4, atol=1e-6)


def test_texts_are_a_list_of_texts(model, tokenizer, untyped):
    for wrong in ("Mira lives in Rome", b"Mira", {"Mira": "lives"}, None):
        with pytest.raises(StatsError, match=f"texts is a {type(wrong).__name__}; give a list"):
            second_moment(model, tokenizer, wrong, (0,))
    with pytest.raises(StatsError, match="texts hold 1; give a list"):
        second_moment(model, tokenizer, ["Mira", 1], (0,))
    for wrong in ((0.5,), (True,), [0]):
        with pytest.raises(StatsError, match="give a tuple of layers"):
            second_moment(model, tokenizer, TEXTS[:1], wrong)
    with pytest.raises(StatsError, match="no token"):
        second_moment(model, tokenizer, [], (0,))
    with pytest.raises(ModelError, match="no layer 9"):
        second_moment(model, tokenizer, TEXTS[:1], (9,))
    with pytest.raises(EditError, match="'?layers"):
        second_moment(model, tokenizer, TEXTS[:1], ())
    with pytest.raises(EditError, match="max_tokens"):
        second_moment(model, tokenizer, TEXTS[:1], (0,), max_tokens=0)
    stream = second_moment(model, tokenizer, (text for text in TEXTS[:3]), (0,))
    assert stream.digest == second_moment(model, tokenizer, TEXTS[:3], (0,)).digest


def test_moments_that_are_not_finite_are_named(model, tokenizer):
    model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(EditError, match="layer 0 are not finite"):
        second_moment(model, tokenizer, TEXTS[:2], (0, 1))


def test_missing_layers_and_other_models_are_named(stats, model, family):
    own = fingerprint(model)
    check_stats(stats, own, (0, 2))
    with pytest.raises(StatsError, match="layer 3, only for 0, 1, 2"):
        check_stats(stats, own, (0, 3))
    with pytest.raises(StatsError, match="not of the model as"):
        check_stats(stats, fingerprint(build(family, 1)), (0,))


# Restricted to some tokens.


def test_all_tokens_count_unless_selected(model, tokenizer, stats):
    """Ends of names cost a second matrix: nobody who does not ask for them has it."""
    assert set(vars(stats)) - {"digest"} == {"moments", "tokens", "fingerprint", "probe"}
    every = second_moment(
        model,
        tokenizer,
        TEXTS[:60],
        (0, 1, 2),
        select=lambda t, text: [True] * len(encode(t, text)),
    )
    assert every.digest == stats.digest


def test_ends_of_names_have_moments_of_their_own(model, tokenizer):
    text = "We saw Mira Velan and old Ruan of Dell in New Harbour."
    ids, flags = encode(tokenizer, text), ends_of_names(tokenizer, text)
    ends = [tokenizer.decode([token]) for token, end in zip(ids, flags, strict=True) if end]
    assert len(ends) == 4 and ends[0].endswith("e") and ends[-1].endswith("r")  # We, ..., Harbour
    found = second_moment(model, tokenizer, [text], (1,), select=ends_of_names)
    with capture(sites(model, (1,))) as keys:
        model(torch.tensor([ids]))
    own = keys[1][0, torch.tensor(flags)].double()
    assert found.tokens == 4
    torch.testing.assert_close(found.moments[1], own.T @ own / 4, atol=1e-6, rtol=1e-4)
    with pytest.raises(StatsError, match="no token was counted"):
        second_moment(model, tokenizer, ["no name"], (1,), select=ends_of_names)


def test_a_blend_is_a_weighted_mean_of_one_model_s_moments():
    one, two = (Stats({0: torch.full((2, 2), value).double()}, 5, "x") for value in (1.0, 3.0))
    assert torch.equal(blend(one, two, 0.25).moments[0], torch.full((2, 2), 1.5).double())
    assert blend(one, two, 0.0).digest == one.digest and blend(one, two, 1.0).digest == two.digest
    assert blend(one, two, 0.25).digest not in (one.digest, two.digest)
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(EditError, match="share"):
            blend(one, two, share)
    for other in (replace(two, fingerprint="y"), replace(two, moments={1: two.moments[0]})):
        with pytest.raises(StatsError, match="two models or of other layers"):
            blend(one, other, 0.5)
