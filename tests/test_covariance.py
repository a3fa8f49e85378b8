"""Second moments: streamed as if at once, of this model, and the same after a file."""

from dataclasses import replace

import pytest
import torch

from conftest import TEXTS, build
from ece.covariance import SecondMoment, check, load, packed, save, second_moment
from ece.errors import StatsError
from ece.facts import encode, ends_of_names
from ece.hooks import capture
from ece.model import fingerprint, sites


def test_streaming_is_the_same_as_at_once():
    keys = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    running = SecondMoment()
    for block in keys.split(7):
        running.update(block)
    exact = keys.double().T @ keys.double() / 50
    torch.testing.assert_close(running.mean, exact, rtol=1e-6, atol=1e-8)
    assert running.mean.dtype == torch.double and torch.equal(running.mean, running.mean.T)


def test_packing_keeps_every_token_in_order(tokenizer):
    texts = TEXTS[:9]
    stream = [i for text in texts for i in encode(tokenizer, text)]
    groups = [rows for rows, _ in packed(tokenizer, texts, 16, 3)]
    assert [i for group in groups for row in group for i in row] == stream
    assert all(len(row) == 16 for group in groups[:-1] for row in group)
    assert all(len({len(row) for row in group}) == 1 for group in groups)


def test_one_truncated_pass_equals_whole_forwards(model, tokenizer):
    found = second_moment(model, tokenizer, TEXTS[:6], (0, 2), max_tokens=256)
    rows = [row for group, _ in packed(tokenizer, TEXTS[:6], 128, 2) for row in group]
    total = {0: 0, 2: 0}
    for row in rows:
        with capture(sites(model, (0, 2))) as keys:
            model(torch.tensor([row]))
        for layer in total:
            total[layer] = total[layer] + keys[layer][0].double().T @ keys[layer][0].double()
    assert found.tokens == sum(map(len, rows))
    for layer in total:
        torch.testing.assert_close(
            found.moments[layer], total[layer] / found.tokens, rtol=1e-4, atol=1e-6
        )


def test_a_file_brings_back_the_same_bits(stats, model, family, tmp_path):
    save(stats, tmp_path / "c0.safetensors")
    back = load(tmp_path / "c0.safetensors", model)
    assert back.tokens == stats.tokens and list(back.moments) == list(stats.moments)
    assert all(torch.equal(back.moments[n], stats.moments[n]) for n in stats.moments)
    with pytest.raises(StatsError, match="another model"):
        load(tmp_path / "c0.safetensors", build(family, 1))


def test_a_damaged_file_is_refused(stats, tmp_path):
    path = tmp_path / "c0.safetensors"
    save(stats, path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StatsError, match="damaged"):
        load(path)


def test_missing_layers_and_bad_numbers_are_named(stats, model):
    own = fingerprint(model)
    check(stats, own, (0, 2))
    with pytest.raises(StatsError, match="layer 3"):
        check(stats, own, (0, 3))
    bad = replace(stats, moments={**stats.moments, 1: stats.moments[1] * float("nan")})
    with pytest.raises(StatsError, match="layer 1"):
        check(bad, own, (0, 1))
    with pytest.raises(StatsError, match="no keys"):
        _ = SecondMoment().mean


def test_a_killed_pass_goes_on_to_the_same_bits(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("ece.covariance.SAVE_EVERY", 2)
    whole = second_moment(model, tokenizer, TEXTS[:40], (0, 1), max_tokens=100)
    path, seen = tmp_path / "sums", []

    def kill(tokens):
        seen.append(tokens)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        second_moment(model, tokenizer, TEXTS[:40], (0, 1), 100, path, kill)
    seen.clear()
    resumed = second_moment(model, tokenizer, TEXTS[:40], (0, 1), 100, path, seen.append)
    assert seen[0] == 500 and resumed.tokens == whole.tokens
    for layer in (0, 1):
        assert torch.equal(resumed.moments[layer], whole.moments[layer])


def test_sums_of_another_model_are_refused(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("ece.covariance.SAVE_EVERY", 1)
    second_moment(model, tokenizer, TEXTS[:5], (0,), 100, tmp_path / "sums")
    next(model.parameters()).add_(1.0)
    with pytest.raises(StatsError, match="another model"):
        second_moment(model, tokenizer, TEXTS[:5], (0,), 100, tmp_path / "sums")


def test_ends_of_names_have_moments_of_their_own(model, tokenizer):
    text = "We saw Mira Velan and old Ruan of Dell in New Harbour."
    flags = ends_of_names(tokenizer, text)
    told = [tokenizer.decode([token]) for token, end in flags if end]
    assert len(told) == 4 and told[0].endswith("e") and told[-1].endswith("r")  # We, ..., Harbour
    stats = second_moment(model, tokenizer, [text], (1,))
    with capture(sites(model, (1,))) as keys:
        model(torch.tensor([[token for token, _ in flags]]))
    at = torch.tensor([end for _, end in flags])
    own = keys[1][0, at].double()
    torch.testing.assert_close(stats.ends[1], own.T @ own / 4, atol=1e-6, rtol=1e-4)
    mixed = stats.moment(1, 0.25)
    torch.testing.assert_close(mixed, 0.75 * stats.moments[1] + 0.25 * stats.ends[1])
    assert stats.moment(1) is stats.moments[1]
    without = second_moment(model, tokenizer, [text], (1,), names=False)
    assert torch.equal(without.moments[1], stats.moments[1])
    with pytest.raises(StatsError, match="no moments over the ends of names for layer 1"):
        without.moment(1, 0.5)
