"""A start learned from earlier values: ridge regression on sums, kept with the state."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from conftest import build, same, weights
from ece.editor import compute_values, edit_batch
from ece.learned_start import PENALTY, features, grown, predicted
from ece.sequence import edit_sequence
from ece.state import learn_from, new_state
from ece.storage import Folder, load_state, run_sequence, save_state
from ece.strategy import Strategy


@pytest.fixture
def own(config):
    return replace(config, shared="learned", own_steps=3, lr_unit="state", lr=0.5)


def test_the_start_is_ridge_regression_on_all_values_so_far():
    draw = torch.Generator().manual_seed(0)
    phi, delta, hidden = (torch.randn(*s, generator=draw).double()
                          for s in ((12, 5), (12, 3), (12, 3)))  # fmt: skip
    known = None
    for part in (slice(0, 4), slice(4, 5), slice(5, 12)):
        known = grown(known, phi[part], delta[part], hidden[part])
    lengths = hidden.norm(dim=1, keepdim=True)
    plain = Ridge(PENALTY, fit_intercept=False).fit(phi.numpy(), (delta / lengths).numpy())
    wanted = plain.predict(phi.numpy()) * lengths.numpy()
    np.testing.assert_allclose(predicted(known, phi, hidden).numpy(), wanted, rtol=1e-9)


def test_nothing_learned_is_a_start_from_zero(model, tokenizer, facts, own):
    state = new_state(model, tokenizer, own)
    first = compute_values(model, tokenizer, facts, state, own)
    zero = compute_values(model, tokenizer, facts, state, replace(own, shared="zero"))
    torch.testing.assert_close(first.delta, zero.delta, rtol=0, atol=0)


def test_features_are_those_of_the_target_alone(model, tokenizer, facts):
    phi = features(model, tokenizer, facts)
    assert phi.shape == (len(facts), model.config.hidden_size)
    torch.testing.assert_close(phi.norm(dim=1), torch.ones(len(facts)).double())
    same_target = features(model, tokenizer, [replace(facts[0], subject="Nobody")])
    torch.testing.assert_close(phi[:1], same_target)
    assert not torch.allclose(phi[0], phi[1])


def test_features_have_nothing_in_common(model, tokenizer, facts):
    """The rows of a pretrained model share a direction: a start along it reached every fact."""
    phi, head = features(model, tokenizer, facts), model.get_output_embeddings()
    with torch.no_grad():
        head.weight += 10 * torch.ones(head.weight.shape[1])
    torch.testing.assert_close(features(model, tokenizer, facts), phi, rtol=0, atol=1e-4)


def test_values_seen_before_begin_nearer_to_the_target(model, tokenizer, facts, own):
    state = new_state(model, tokenizer, own)
    found = compute_values(model, tokenizer, facts, state, own)
    for _ in range(20):  # as if many facts like these had been seen
        state = learn_from(state, found)
    again = compute_values(model, tokenizer, facts, state, own)
    assert again.losses[0].mean() < found.losses[0].mean()
    assert not torch.equal(again.losses[0], again.nll)


class Killed(Exception):
    pass


@pytest.mark.parametrize("source", ["original", "current"])
def test_a_run_that_was_killed_goes_on_with_what_it_had_learned(
    family, tokenizer, facts, stats, own, tmp_path, source
):
    fixed, strategy = (tokenizer, facts, stats, own, 2), Strategy(values_from=source)
    plain = build(family)
    whole, _ = edit_sequence(plain, *fixed, strategy=strategy)

    def kill(state, report, part):
        if state.done == 2:
            raise Killed

    with pytest.raises(Killed), Folder(tmp_path / "run") as folder:
        run_sequence(build(family), *fixed, folder, strategy, on_batch=kill)
    with Folder(tmp_path / "run") as folder:
        model = build(family)
        state, _ = run_sequence(model, *fixed, folder, strategy)
    assert same(model, weights(plain))
    for layer, known in whole.learned.items():
        assert torch.equal(known.gram, state.learned[layer].gram)
        assert torch.equal(known.cross, state.learned[layer].cross)


def test_a_saved_state_holds_what_was_learned(
    family, model, tokenizer, facts, stats, own, tmp_path
):
    state = new_state(model, tokenizer, own)
    state, _ = edit_batch(model, tokenizer, facts, stats, state, own)
    save_state(model, state, tmp_path / "state")
    again = load_state(build(family), tmp_path / "state")
    (layer,) = state.learned
    assert torch.equal(again.learned[layer].gram, state.learned[layer].gram)
    assert torch.equal(again.learned[layer].cross, state.learned[layer].cross)


def test_runs_share_values_that_do_not_depend_on_what_differs(
    family, tokenizer, facts, stats, own, tmp_path
):
    """A cache gives the same weights; another lambda finds the values there, another rate not."""
    (tmp_path / "cache").mkdir()

    def run(name, cache, **changes):
        model = build(family)
        with Folder(tmp_path / name) as folder:
            setting = replace(own, **changes)
            run_sequence(model, tokenizer, facts, stats, setting, 3, folder, cache=cache)
        return weights(model), len(list((tmp_path / "cache").iterdir()))

    plain, none = run("a", None, lam=5.0)
    first, two = run("b", tmp_path / "cache")
    second, still = run("c", tmp_path / "cache", lam=5.0)
    _, four = run("d", tmp_path / "cache", lr=0.4)
    assert (none, two, still, four) == (0, 2, 2, 4)
    assert all(torch.equal(value, second[name]) for name, value in plain.items())
    assert not all(torch.equal(value, second[name]) for name, value in first.items())


def test_passes_in_bfloat16_leave_states_keys_and_weights_as_they_are(
    model, tokenizer, facts, config
):
    config, before = replace(config, clusters=None, steps=3, own_steps=1), weights(model)
    state = new_state(model, tokenizer, config)
    full = compute_values(model, tokenizer, facts, state, config)
    half = compute_values(model, tokenizer, facts, state, replace(config, passes="bfloat16"))
    torch.testing.assert_close(half.hidden, full.hidden, rtol=1e-5, atol=1e-6)
    assert same(model, before)
    assert half.delta.dtype == torch.float32
    assert not torch.equal(half.delta, full.delta)
    torch.testing.assert_close(half.losses[0], full.losses[0], rtol=0.02, atol=0.02)
    assert (half.losses[-1] < half.losses[0]).all()
