"""The rivals: each solves what its paper says, by its own formula and by the direct solve."""

import math
import re
from dataclasses import fields, replace
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ece
from conftest import build, same, weights
from ece.baselines import STRATEGIES
from ece.baselines.alphaedit import AlphaEdit, null_basis
from ece.baselines.blue import Blue
from ece.baselines.ece_plus import EcePlus
from ece.baselines.least_squares import LeastSquares, old_factor, solve_factored
from ece.baselines.memit import Memit
from ece.baselines.prune import Prune, restrain
from ece.baselines.rect import Rect
from ece.baselines.rome import Rome
from ece.bench import reference
from ece.config import Config
from ece.errors import ConfigError, EditError, SolveError
from ece.model import sites
from ece.scoring import batch_set, scores
from ece.sequence import edit_sequence
from ece.solver import Knowledge, solve
from ece.state import new_state
from ece.strategy import Strategy

ROOT = Path(__file__).parent.parent
FULL = torch.ones(12, dtype=torch.bool)
ALL = dict(scorer="all", p=1.0, clusters=None)
SETTING = Config(layers=(0,), lr=0.1, lam=3.0, scorer="all")
one_family = pytest.mark.parametrize("family", ["llama"])


def draws(seed: int, *shapes) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draw).double() for shape in shapes]


def problem(seed: int, edit: int = 4, old: int = 40):
    """R, K, the moment of `old` keys, the keys of an earlier batch, a sum of still earlier ones."""
    R, K, keys, recent, past = draws(seed, (5, edit), (edit, 12), (old, 12), (3, 12), (7, 12))
    return R, K, keys.T @ keys / old, recent, past.T @ past


# What each may be set to.


@pytest.mark.parametrize("kind", [Memit, Rome, AlphaEdit, Blue, Rect, Prune])
def test_a_method_without_a_choice_refuses_a_scorer(kind):
    kind().check(replace(SETTING, scorer="all"))
    with pytest.raises(ConfigError, match=f"'scorer' is 'residual'; {kind.__name__} writes to all"):
        kind().check(replace(SETTING, scorer="residual"))


@pytest.mark.parametrize("kind", [Strategy, EcePlus])
def test_ece_takes_any_scorer(kind):
    for scorer in ("all", "activation", "weight", "residual"):
        kind().check(replace(SETTING, scorer=scorer))


BAD = [
    (Strategy, "history", "yes"),
    (Strategy, "history", 1),
    (Strategy, "values_from", "nowhere"),
    (AlphaEdit, "null", 0.0),
    (AlphaEdit, "null", float("nan")),
    (AlphaEdit, "history", False),
    (Rome, "history", True),
    (Rome, "values_from", "original"),
    (Blue, "history", False),
    (Rect, "keep", 0.0),
    (Rect, "keep", 1.5),
    (Prune, "base", 1.0),
    (Prune, "base", "e"),
    (EcePlus, "names", -0.1),
    (EcePlus, "names", 1.1),
]


@pytest.mark.parametrize("kind, field, value", BAD)
def test_numbers_of_a_method_are_checked_by_name(kind, field, value):
    with pytest.raises(ConfigError, match=f"'{field}'"):
        kind(**{field: value})


def test_combinations_without_sense_cannot_be_written():
    """AlphaEdit's `null` with a mask was accepted, and the report then was wrong."""
    for kind in (Memit, Rome, Blue, Rect, Prune, Strategy):
        with pytest.raises(ConfigError, match="'null'"):
            kind(null=0.1)
    assert {field.name for field in fields(AlphaEdit)} == {"history", "values_from", "null"}


def test_a_score_of_ones_own_needs_no_change_of_the_package(model, tokenizer, facts, stats, config):
    page = (ROOT / "book" / "own-model.md").read_text(encoding="utf-8")
    code = dedent(re.search(r"```python\n( +class Centred.*?)```", page, re.DOTALL)[1])
    names = dict(ece=ece, model=model, tokenizer=tokenizer, facts=facts, stats=stats)
    exec(code, found := names | {"config": replace(config, p=0.5)})
    assert found["state"].done and found["reports"][0].neurons
    assert found["state"].strategy == found["Centred"]()


def test_the_names_of_methods_are_strategies():
    assert len(STRATEGIES) == 11
    assert {name for name, one in STRATEGIES.items() if one.batch} == {"rome"}
    assert {name for name, one in STRATEGIES.items() if one.chooses} == {
        "ece-as", "ece-wi", "ece-rs", "ece-plus"}  # fmt: skip
    assert {name for name, one in STRATEGIES.items() if not one.history} == {
        "rome", "memit", "rect", "prune"}  # fmt: skip


# ECE itself.


def test_ece_chooses_by_its_score_and_solves_on_the_choice():
    (K, W, R), (_, _, C0, recent, past) = draws(0, (4, 12), (5, 12), (5, 4)), problem(1)
    setting = replace(SETTING, scorer="residual", p=0.6)
    mask = Strategy().choose(K, W, setting)
    assert torch.equal(mask, batch_set(scores("residual", K, W), 0.6)) and not mask.all()
    assert Strategy().choose(K, W, replace(setting, scorer="all", p=0.6)).all()
    known = Knowledge(C0, mask, past, recent)
    found = Strategy().solve(R, K, known, replace(setting, ridge=0.1))
    assert torch.equal(found.delta, solve(R, K, known, 3.0, 0.1).delta)


def test_spreading_writes_the_whole_residual_in_the_end():
    (residual,) = draws(0, (3, 4))
    written = torch.zeros(3, 4).double()
    for left in (3, 2, 1):
        written = written + Strategy().spread(residual - written, left)
    torch.testing.assert_close(written, residual)
    assert torch.equal(Blue().spread(residual, 2), residual)
    layers = replace(SETTING, layers=(1, 2, 5))
    assert Strategy().entries(layers) == (5,) and Blue().entries(layers) == (1, 5)
    assert Blue().entries(replace(SETTING, layers=(3,))) == (3,)


# Least squares over all neurons: one factorisation.


@given(st.integers(0, 10**6), st.integers(1, 20), st.floats(0.1, 1e4), st.sampled_from([0.0, 1e-3]))
def test_memit_s_one_factor_equals_the_direct_solve(seed, edit, lam, ridge):
    R, K, C0, _, _ = problem(seed, edit)
    setting = replace(SETTING, lam=lam, ridge=ridge)
    direct = solve(R, K, Knowledge(C0, FULL), lam, ridge).delta
    factor = Memit().prepare(C0, setting)
    found, jitter = Memit().solve(R, K, Knowledge(C0, FULL, prepared=factor), setting)
    assert jitter == 0 and (found - direct).norm() <= 1e-10 * direct.norm()


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.1, 1e4), st.sampled_from([0.0, 1e-3]))
def test_rome_s_one_factor_equals_the_direct_solve(seed, edit, lam, ridge):
    """And writes the residual exactly, with the least change to old outputs."""
    R, K, C0, _, _ = problem(seed, edit)
    setting = replace(SETTING, lam=lam, ridge=ridge)
    A = lam * C0 + ridge * lam * C0.diagonal().mean() * torch.eye(12).double()
    gain = torch.linalg.solve(A, K.T)
    direct = R @ torch.linalg.solve(K @ gain, gain.T)
    found, jitter = Rome().solve(
        R, K, Knowledge(C0, FULL, prepared=Rome().prepare(C0, setting)), setting
    )
    assert jitter == 0 and (found - direct).norm() <= 1e-10 * direct.norm()
    torch.testing.assert_close(found @ K.T, R)


def test_no_other_exact_write_changes_old_outputs_less_than_rome():
    R, K, C0, _, _ = problem(3, 2)
    found = Rome().solve(R, K, Knowledge(C0, FULL, prepared=old_factor(C0, SETTING)), SETTING).delta
    cost = ((found @ C0) * found).sum()
    outside = torch.eye(12).double() - torch.linalg.pinv(K) @ K  # writes nothing at the keys
    for seed in range(5):
        (step,) = draws(seed, (5, 12))
        other = found + 0.1 * step @ outside
        torch.testing.assert_close(other @ K.T, R)
        assert ((other @ C0) * other).sum() > cost


def test_memit_with_a_history_is_the_full_solve():
    R, K, C0, recent, past = problem(4)
    known = Knowledge(C0, FULL, past, recent)
    strategy = Memit(history=True)
    assert strategy.prepare(C0, SETTING) is None
    assert torch.equal(strategy.solve(R, K, known, SETTING).delta, solve(R, K, known, 3.0).delta)


@pytest.mark.parametrize("kind", [Rect, Prune, LeastSquares])
def test_methods_made_from_memit_solve_as_it_does(kind):
    R, K, C0, _, _ = problem(5)
    known = Knowledge(C0, FULL, prepared=kind().prepare(C0, SETTING))
    assert torch.equal(kind().solve(R, K, known, SETTING).delta,
                       Memit().solve(R, K, known, SETTING).delta)  # fmt: skip


def test_the_jitter_of_either_factor_is_reported():
    """Of lambda C0, and of the small system of the new keys; 0 was reported whatever was used."""
    R, K, C0, _, _ = problem(6)
    singular = C0.clone()
    singular[:, 0] = singular[0] = 0
    with pytest.warns(UserWarning, match="nearly singular"):
        outer = old_factor(singular, SETTING)
    assert float(outer[-1, 0]) > 0
    assert solve_factored(R, K, outer, 1.0).jitter == float(outer[-1, 0])
    twice = torch.cat([K[:1], K[:1]])  # one key, written twice: ROME's inner system is singular
    inner = solve_factored(R[:, :2], twice, old_factor(C0, SETTING), 0.0)
    assert inner.jitter > 0 and torch.isfinite(inner.delta).all()
    assert solve_factored(R[:, :2], twice, old_factor(C0, SETTING), 1.0).jitter == 0


@one_family
def test_the_report_has_the_jitter(model, tokenizer, facts, stats, config):
    dull = {n: C.clone() for n, C in stats.moments.items()}
    for C in dull.values():
        C[:, :3] = C[:3] = 0
    own, config = replace(stats, moments=dull), replace(config, layers=(1,), **ALL, ridge=0.0)
    with pytest.warns(UserWarning, match="nearly singular"):
        _, reports = edit_sequence(model, tokenizer, facts[:2], own, config, 2, Rome())
    assert all(report.jitter[1] > 0 for report in reports)


# AlphaEdit.


def old_keys(seed: int, rank: int = 5) -> torch.Tensor:
    left, right = draws(seed, (40, rank), (rank, 12))
    return left @ right


def test_the_null_space_is_where_old_keys_are_not():
    keys = old_keys(0)
    basis = null_basis(keys.T @ keys / 40, 1e-9)
    assert basis.shape == (12, 7)
    torch.testing.assert_close(basis.T @ basis, torch.eye(7).double())
    assert (keys @ basis).abs().max() < 1e-6
    with pytest.raises(SolveError, match="the least is 1, so raise the setting 'null'"):
        null_basis(torch.eye(3).double(), 0.5)
    with pytest.raises(EditError, match="finite"):
        null_basis(torch.full((3, 3), float("nan")), 0.5)


@given(st.integers(0, 10**6), st.integers(1, 9))
def test_an_update_within_leaves_old_outputs_and_equals_the_published_form(seed, edit):
    old, (R, K, earlier, past) = (
        old_keys(seed),
        draws(seed + 1, (6, edit), (edit, 12), (4, 12), (3, 12)),
    )
    setting, strategy = replace(SETTING, lam=0.5), AlphaEdit(null=1e-9)
    C0 = old.T @ old / 40
    basis = strategy.prepare(C0, setting)
    H = earlier.T @ earlier + past.T @ past
    known = Knowledge(C0, FULL, past.T @ past, earlier, basis)
    delta, jitter = strategy.solve(R, K, known, setting)
    assert jitter == 0 and (old @ delta.T).abs().max() < 1e-6 < (K @ delta.T).abs().max()
    P, identity = basis @ basis.T, torch.eye(12).double()
    published = torch.linalg.solve(P @ (K.T @ K + H) + 0.5 * identity, P @ K.T @ R.T).T
    torch.testing.assert_close(delta, published)
    summed = replace(known, folded=H, recent=None)
    torch.testing.assert_close(delta, strategy.solve(R, K, summed, setting).delta)


def test_alphaedit_reports_its_jitter():
    """Rounding swallows the weight of the identity, and one key is of rank one."""
    R, K = draws(2, (6, 1), (1, 12))
    setting = replace(SETTING, lam=1e-13)
    basis = torch.eye(12).double()
    known = Knowledge(torch.zeros(12, 12).double(), FULL, prepared=basis)
    found = AlphaEdit().solve(R, 1e3 * K, known, setting)
    assert found.jitter > 0 and torch.isfinite(found.delta).all()


# RECT.


def test_only_the_relatively_largest_entries_stay():
    weight = torch.tensor([[1.0, 10.0], [0.0, -2.0]])
    delta = torch.tensor([[0.5, 1.0], [0.1, 0.8]]).double()
    assert torch.equal(Rect(keep=1.0).finish(delta, weight), delta)
    left = Rect(keep=0.5).finish(delta, weight)  # relative sizes 0.5, 0.1, infinite, 0.4
    assert torch.equal(left, torch.tensor([[0.5, 0.0], [0.1, 0.0]]).double())


@given(st.integers(0, 10**6), st.floats(0.01, 1))
def test_the_share_that_stays_is_the_one_set(seed, keep):
    delta, weight = draws(seed, (5, 12), (5, 12))
    left = Rect(keep=keep).finish(delta, weight.float())
    assert int((left != 0).sum()) == max(1, round(keep * 60))
    assert torch.equal(left[left != 0], delta[left != 0])
    relative = (delta / weight.float()).abs()
    assert relative[left != 0].min() >= relative[left == 0].max() if (left == 0).any() else True


# PRUNE.


@given(st.integers(0, 10**6), st.floats(1.01, 5), st.floats(0.1, 50))
def test_large_singular_values_are_pulled_in_and_others_stay(seed, base, size):
    update, weight = draws(seed, (5, 12), (5, 12))
    update, top = size * update, torch.linalg.matrix_norm(weight, ord=2)
    old = torch.linalg.svdvals(update)
    left, _, right = torch.linalg.svd(update, full_matrices=False)
    new = (left.T @ restrain(update, weight, base) @ right.T).diagonal()
    low = old <= top
    torch.testing.assert_close(new[low], old[low])
    pulled = top + (old[~low] / top).log() / math.log(base)
    torch.testing.assert_close(new[~low], torch.minimum(old[~low], pulled))
    assert (new <= old * (1 + 1e-9)).all() and (new[~low] >= top * (1 - 1e-9)).all()


def test_a_small_update_is_left_alone(family, tokenizer, facts, stats, config):
    model, strategy, config = build(family), Prune(), replace(config, **ALL)
    remembered = strategy.remember(model, config)
    edit_sequence(model, tokenizer, facts[:2], stats, config, 2, strategy)
    edited = weights(model)
    with strategy.view(model, remembered) as viewed:
        assert viewed is model
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, edited[name], rtol=1e-5, atol=1e-6)
    assert same(model, edited)


def test_a_view_restrains_and_gives_back_every_bit(model, config):
    """Whatever happens inside, and whichever way round the weights lie."""
    strategy, places = Prune(base=1.5), sites(model, (0, 1))
    remembered = strategy.remember(model, replace(config, layers=(0, 1)))
    for site in places:
        site.weight.add_(5 * torch.randn(site.weight.shape))
    edited = weights(model)
    with pytest.raises(KeyError), strategy.view(model, remembered):
        for site in places:
            first = remembered[site.layer]
            update = edited_weight(model, site, edited).double() - first.double()
            held = (first.double() + restrain(update, first, 1.5)).float()
            torch.testing.assert_close(site.weight, held)
            assert (site.weight - first).norm() < 0.9 * update.norm()
        raise KeyError
    assert same(model, edited)


def edited_weight(model, site, state) -> torch.Tensor:
    name = next(name for name, p in model.named_parameters() if p is site.module.weight)
    return state[name] if state[name].shape == site.weight.shape else state[name].T


def test_other_methods_are_viewed_as_they_are(model, config):
    for strategy in STRATEGIES.values():
        if isinstance(strategy, Prune):
            continue
        assert strategy.remember(model, config) == {}
        before = weights(model)
        with strategy.view(model, {}) as viewed:
            assert viewed is model and same(model, before)


# Whole runs.


def test_with_everything_chosen_it_is_memit(model, family, tokenizer, facts, stats, config):
    """The editor with all neurons against the published loop, written without the engine."""
    setting = replace(config, **ALL, layers=(1, 2), steps=3, lam=200.0, ridge=0.0, contexts=1)
    setting, twin = replace(setting, own_steps=1), build(family)
    contexts = new_state(model, tokenizer, setting, Memit()).contexts
    edit_sequence(model, tokenizer, facts[:2], stats, setting, 2, Memit())
    reference.memit(twin, tokenizer, facts[:2], contexts, stats.moments, setting)
    original = build(family)
    three = [sites(m, setting.layers) for m in (model, twin, original)]
    for edited, plain, before in zip(*three, strict=True):
        moved = (plain.weight - before.weight).norm()
        assert moved > 1e-3 * before.weight.norm()
        assert (edited.weight - plain.weight).norm() < 1e-2 * moved


@one_family
def test_ece_without_its_parts_is_memit(tokenizer, facts, stats, config):
    setting, ends = replace(config, **ALL), []
    for strategy in (Strategy(history=False), Memit(), Strategy(history=True), Memit(history=True)):
        model = build("llama")
        edit_sequence(model, tokenizer, facts[:4], stats, setting, 2, strategy)
        ends.append([site.weight.clone() for site in sites(model, (0, 1))])
    old = [site.weight for site in sites(build("llama"), (0, 1))]
    for one, other in ((0, 1), (2, 3)):
        for a, b, before in zip(ends[one], ends[other], old, strict=True):
            assert (a - b).norm() <= 1e-4 * (a - before).norm()
    assert not torch.allclose(ends[0][0], ends[2][0], atol=1e-6)


@one_family
def test_rome_writes_one_fact_at_a_time_from_the_present_weights(
    model, tokenizer, facts, stats, config
):
    setting = replace(config, layers=(1,), **ALL)
    state, reports = edit_sequence(model, tokenizer, facts[:3], stats, setting, 100, Rome())
    assert [report.facts for report in reports] == [[0], [1], [2]] and state.done == 3
    assert not state.batches[0].keys, "no history"


@one_family
def test_blue_writes_to_the_first_and_the_last_layer_only(model, tokenizer, facts, stats, config):
    setting = replace(config, layers=(0, 1, 2), **ALL)
    before = sites(model, (1,))[0].weight.clone()
    _, (report,) = edit_sequence(model, tokenizer, facts[:3], stats, setting, 3, Blue())
    assert report.layers == [0, 2] and report.norms[0] > 0 and report.norms[2] > 0
    assert torch.equal(sites(model, (1,))[0].weight, before)


@one_family
def test_rect_drops_entries_of_the_update(tokenizer, facts, stats, config):
    changes = []
    for strategy in (Memit(), Rect(keep=0.4)):
        model = build("llama")
        before = sites(model, (1,))[0].weight.clone()
        setting = replace(config, layers=(1,), **ALL)
        _, (report,) = edit_sequence(model, tokenizer, facts[:3], stats, setting, 3, strategy)
        changes.append(sites(model, (1,))[0].weight - before)
        assert report.norms[1] == pytest.approx(float(changes[-1].double().norm()), rel=1e-6)
    whole, most = changes
    stays = most != 0
    assert abs(float(stays.float().mean()) - 0.4) < 0.02
    torch.testing.assert_close(most[stays], whole[stays], rtol=1e-3, atol=1e-6)


def test_old_outputs_do_not_move_under_alphaedit(family, tokenizer, facts, stats, config):
    """Where the text's keys lie, the edited layer gives what it gave."""
    setting, model = replace(config, layers=(1,), **ALL), build(family)
    values, vectors = torch.linalg.eigh(stats.moments[1])
    bound = float(values[len(values) // 2])
    _, (report,) = edit_sequence(
        model, tokenizer, facts[:3], stats, setting, 3, AlphaEdit(null=bound)
    )
    site, old = sites(model, (1,))[0], sites(build(family), (1,))[0]
    change = (site.weight - old.weight).double()
    main = vectors[:, values >= bound]
    assert (change @ main).norm() < 1e-4 * change.norm() and report.norms[1] > 0
