"""The engine is the literal objective, faster: equal in values, gradients, keys and edits."""

import string
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import build, same, weights
from ece import engine, objective
from ece.descent import descend
from ece.editor import edit_batch
from ece.engine.grouping import ENOUGH, by_length
from ece.engine.loss import merged
from ece.engine.prefix import advance, common, embed, pass_heads, rewritten, through
from ece.facts import Fact
from ece.model import sites
from ece.state import new_state, undo

CLOSE = dict(rtol=1e-5, atol=1e-5)
LAYER = 1
PREFIXES = ("{}", "The trade of all. {}", "He said. {}", "The trade of none. {}")
LONG = "the old harbour master of New Harbour"

CASES = {
    "one fact": [("{} lives in", "Ilo", "Rome")],
    "one fact, long target": [("It is cold, says {}", "Ruan of Dell", LONG)],
    "subject alone": [("{}", "Ilo", "Rome"), ("{}", "Bena Quist", "Oslo")],
    "targets of unlike length": [
        ("{} lives in", "Mira Velan", LONG),
        ("{} lives in", "Ilo", "a"),
        ("{} lives in", "Tor Asken", "New Harbour"),
    ],
    "prompts of unlike length": [
        ("{} is", "Ilo", "cold"),
        (
            "The trade of {}, all agree, and it is cold in New Harbour and in Port Kell, is",
            "Tor",
            "x",
        ),
        ("It is cold in Lyon and in New Harbour, and so it is in Port Kell, says {}", "Ossia", "y"),
    ],
    "subjects of many tokens": [
        ("{} lives in", "Zoë Ådal of 東京 and New Harbour", "Rome"),
        ("Is {} cold?", "a", "no"),
    ],
}


def batch(case: str) -> list[Fact]:
    return [Fact(*texts, id=i) for i, texts in enumerate(CASES[case])]


def measured(problem, values):
    """Per fact the NLL, the divergence, and the gradient of both, at the values."""
    leaf = values.clone().requires_grad_()
    nll, kl = torch.zeros(len(values)), torch.zeros(len(values))
    for part in problem.parts:
        found = part.losses(leaf[part.facts])
        nll, kl = (old.index_put((part.facts,), new)
                   for old, new in zip((nll, kl), found, strict=True))  # fmt: skip
    # Unlike weights, so that no fact's gradient can stand in for another's.
    weight = torch.arange(1.0, len(values) + 1)
    (gradient,) = torch.autograd.grad((weight * (nll + 3 * kl)).sum(), leaf)
    return nll.detach(), kl.detach(), gradient


def both(model, tokenizer, facts, templates, config, layer=LAYER):
    """The problem, literal and fast."""
    arguments = model, tokenizer, facts, templates, config, layer
    return objective.prepare(*arguments), engine.prepare(*arguments)


def values_for(problem, seed=0, size=0.3):
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(problem.hidden.shape, generator=draw)
    return size * values * problem.hidden.norm(dim=1, keepdim=True) / values.norm(dim=1)[:, None]


BARE = ("one fact", "targets of unlike length")


@pytest.mark.parametrize(
    "case, templates", [*((case, PREFIXES) for case in CASES), *((case, ("{}",)) for case in BARE)]
)
def test_values_and_gradients_are_equal(model, tokenizer, config, case, templates):
    literal, fast = both(model, tokenizer, batch(case), templates, config)
    for name in ("hidden", "keys", "nll"):
        torch.testing.assert_close(getattr(fast, name), getattr(literal, name), **CLOSE)
    assert torch.equal(fast.holds, literal.holds)
    values = values_for(literal)
    for one, other in zip(measured(fast, values), measured(literal, values), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("layer", [0, 2])
def test_at_the_first_and_the_highest_layer_too(model, tokenizer, facts, config, layer):
    literal, fast = both(model, tokenizer, facts, PREFIXES, config, layer)
    torch.testing.assert_close(fast.keys, literal.keys, **CLOSE)
    values = values_for(literal)
    for one, other in zip(measured(fast, values), measured(literal, values), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("tokens", [1, 200])
def test_the_memory_budget_changes_nothing(model, tokenizer, facts, config, tokens):
    literal, fast = both(model, tokenizer, facts, PREFIXES, replace(config, max_tokens=tokens))
    whole = engine.prepare(model, tokenizer, facts, PREFIXES, config, LAYER)
    assert len(fast.parts) > len(whole.parts)
    assert all(torch.equal(a, b) for a, b in zip(fast.holds, literal.holds, strict=True))
    values = values_for(literal)
    for one, other in zip(measured(fast, values), measured(literal, values), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_some_facts_are_measured_as_in_the_whole(model, tokenizer, facts, config):
    """Anchors, or facts that are not done yet: in any order, joined or not."""
    literal, fast = both(model, tokenizer, facts, PREFIXES, replace(config, max_tokens=300))
    values = values_for(literal)
    nll, kl, _ = measured(literal, values)
    some = torch.tensor([4, 1, 3])
    for problem in (fast, literal):
        part = problem.take(some)
        torch.testing.assert_close(part.hidden, literal.hidden[some], **CLOSE)
        torch.testing.assert_close(part.nll, literal.nll[some], **CLOSE)
        joined = replace(part, parts=part.merge(part.parts))
        for one in (part, joined):
            found = measured(one, values[some])
            torch.testing.assert_close(found[0], nll[some], **CLOSE)
            torch.testing.assert_close(found[1], kl[some], **CLOSE)


def test_merged_chunks_measure_as_they_did_apart(model, tokenizer, config):
    """Chunks of unlike width, and of targets of unlike length, become one."""
    several = [Fact(*texts, id=i) for i, texts in enumerate(sum(CASES.values(), [])[3:9])]
    narrow = replace(config, max_tokens=1)
    apart = engine.prepare(model, tokenizer, several, PREFIXES, narrow, LAYER)
    values = values_for(apart)
    assert len(apart.parts) == 6 and len(merged(apart.parts, 1)) == 6
    together = replace(apart, parts=merged(apart.parts, 10**6))
    assert len(together.parts) == 1 and 1 < len(merged(apart.parts, 300)) < 6
    for one, other in zip(measured(together, values), measured(apart, values), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_a_descent_is_the_same_on_both(model, tokenizer, facts, config):
    stop = replace(config, stop=4.0)
    literal, fast = (descend(p, stop, 6) for p in both(model, tokenizer, facts, PREFIXES, stop))
    assert torch.equal(fast.steps, literal.steps)
    torch.testing.assert_close(fast.losses, literal.losses, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fast.delta, literal.delta, rtol=2e-3, atol=2e-4)


# Reading keys and states.


@pytest.mark.parametrize("at", ["the same layer", "one above"])
def test_keys_and_states_are_equal_also_behind_a_rewritten_layer(model, tokenizer, facts, at):
    literal, fast = (
        part.reader(model, tokenizer, facts, PREFIXES, 300) for part in (objective, engine)
    )
    draw = torch.Generator().manual_seed(1)
    for layer in (0, 1, 2):
        goal = layer if at == "the same layer" else 2
        keys, states, literal = literal.read(layer, goal)
        own, found, fast = fast.read(layer, goal)
        assert keys.shape == (6, 4, keys.shape[2]) and states.shape == (6, 32)
        torch.testing.assert_close(own, keys, **CLOSE)
        torch.testing.assert_close(found, states, **CLOSE)
        weight = sites(model, (layer,))[0].weight
        change = torch.randn(weight.shape, generator=draw) / 20
        weight += change
        literal, fast = literal.after(change), fast.after(change)


def test_a_layer_may_be_left_as_it_was(model, tokenizer, facts):
    literal, fast = (
        part.reader(model, tokenizer, facts, PREFIXES, 300) for part in (objective, engine)
    )
    for layer in (0, 2):
        keys, states, literal = literal.read(layer, 2)
        own, found, fast = fast.read(layer, 2)
        torch.testing.assert_close(own, keys, **CLOSE)
        torch.testing.assert_close(found, states, **CLOSE)


def test_keys_do_not_depend_on_the_company(model, tokenizer, facts):
    together = engine.reader(model, tokenizer, facts, PREFIXES, 10**6).read(1, 2)
    for budget in (1, 30):
        tight = engine.reader(model, tokenizer, facts, PREFIXES, budget).read(1, 2)
        torch.testing.assert_close(tight[0], together[0], **CLOSE)
        torch.testing.assert_close(tight[1], together[1], **CLOSE)
    for i, fact in enumerate(facts):
        alone = engine.reader(model, tokenizer, [fact], PREFIXES, 10**6).read(1, 2)
        torch.testing.assert_close(alone[0][0], together[0][i], **CLOSE)


def test_one_key_stands_for_all_contexts():
    keys = torch.tensor([[[2.0], [4.0], [8.0]]])
    assert objective.mix(keys).tolist() == [[4.0]]  # half of 2, half of the mean of 4 and 8
    assert objective.mix(keys[:, :1]).tolist() == [[2.0]]


# Whole edits.


def test_a_whole_edit_is_equal(model, tokenizer, facts, stats, config):
    layers = (0, 1, 2)
    setting = replace(config, layers=layers)
    state, before, ends = new_state(model, tokenizer, setting), weights(model), []
    for part in (engine, objective):
        after, report = edit_batch(model, tokenizer, facts, stats, state, setting, engine=part)
        ends.append(([site.weight.clone() for site in sites(model, layers)], report))
        undo(model, after)
        assert same(model, before)
    (fast, one), (literal, other) = ends
    assert one.labels == other.labels and one.anchors == other.anchors
    assert all(torch.equal(one.masks[n], other.masks[n]) for n in layers)
    for a, b, site in zip(fast, literal, sites(model, layers), strict=True):
        assert (a - b).norm() < 1e-3 * (b - site.weight).norm()


# Rows that share their beginnings go through the blocks as they would alone.

HEADS = ([1, 2, 3, 4, 5], [], [7, 8])


@pytest.fixture
def rows():
    draw = torch.Generator().manual_seed(0)
    return [
        HEADS[kind] + torch.randint(10, 300, (3 + i,), generator=draw).tolist()
        for i in range(4)
        for kind in range(3)
    ]


@pytest.fixture
def walk(model, rows):
    room = [len(row) - 2 for row in rows]
    return embed(model, rows, [0, 1, 2] * 4, room, [list(range(6)), list(range(6, 12))])


def stream(model, row: list[int], layer: int) -> torch.Tensor:
    """What enters block `layer` at every token, from a plain forward of one row."""
    return model(torch.tensor([row]), output_hidden_states=True).hidden_states[layer][0]


@pytest.mark.parametrize("stops", [(1,), (3,), (1, 2), (2, 3)])
def test_a_walk_equals_whole_forwards(walk, model, rows, stops):
    for layer in stops:
        walk = advance(walk, layer)
    for part in walk.parts:
        for i, row in enumerate(part.rows.tolist()):
            plain = stream(model, rows[row], stops[-1])
            at = part.positions[i, : part.last[i] + 1]
            torch.testing.assert_close(part.states[i, : len(at)], plain[at], rtol=1e-4, atol=1e-5)


def test_what_rows_share_is_run_once(walk, rows):
    assert walk.heads.length.tolist() == [5, 0, 2]
    assert sum(int(part.last.sum()) + len(part.last) for part in walk.parts) == sum(
        len(row) - len(HEADS[i % 3]) for i, row in enumerate(rows)
    )


def test_a_walk_goes_on_with_changed_weights(walk, model, rows):
    """Before an edited layer nothing changes; from it on the new weights count."""
    walk = advance(walk, 1)
    sites(model, (1,))[0].weight.mul_(1.5)
    for part in advance(walk, 3).parts:
        for row, state in zip(part.rows.tolist(), part.at_last(), strict=True):
            plain = stream(model, rows[row], 3)[-1]
            torch.testing.assert_close(state, plain, rtol=1e-4, atol=1e-5)


def test_a_walk_behind_a_rewritten_layer_is_corrected(walk, model, rows):
    """What was run with the old weights, and a matrix product, equals a run with the new ones."""
    passed = through(advance(walk, 1))
    weight = sites(model, (1,))[0].weight
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) / 10
    for part in passed.walk.parts:
        plain = stream(model, rows[int(part.rows[0])], 2)[-1]
        torch.testing.assert_close(part.at_last()[0], plain, rtol=1e-4, atol=1e-5)
    weight.add_(change)
    corrected = rewritten(passed, change)
    for walked, layer in ((corrected, 2), (advance(corrected, 3), 3)):
        for part in walked.parts:
            for row, state in zip(part.rows.tolist(), part.at_last(), strict=True):
                plain = stream(model, rows[row], layer)[-1]
                torch.testing.assert_close(state, plain, rtol=1e-4, atol=1e-4)
    assert not torch.equal(passed.walk.parts[0].states, corrected.parts[0].states)


def test_some_rows_of_a_walk(walk, model, rows):
    some = advance(walk.only(torch.tensor([1, 9])), 2)
    assert [part.rows.tolist() for part in some.parts] == [[1], [9]]
    for part in some.parts:
        plain = stream(model, rows[int(part.rows)], 2)[-1]
        torch.testing.assert_close(part.at_last()[0], plain, rtol=1e-4, atol=1e-5)


def test_rows_without_anything_in_common(model):
    walk = embed(model, [[5, 6], [7, 8, 9]], [0, 0], [1, 2], [[0, 1]])
    assert walk.heads.length.tolist() == [0] and pass_heads(walk, 1)[1] == []
    assert torch.allclose(
        advance(walk, 2).parts[0].at_last()[1], stream(model, [7, 8, 9], 2)[-1], atol=1e-5
    )


ROWS = st.lists(st.text(string.ascii_lowercase[:3], min_size=1, max_size=6), min_size=1, max_size=6)


@given(ROWS, st.data())
def test_common_beginnings_are_the_longest_that_leave_room(texts, data):
    rows = [[ord(letter) for letter in text] for text in texts]
    kinds = [0] + [data.draw(st.integers(0, 1)) for _ in rows[1:]]
    kinds = [min(kind, max(kinds[: i + 1])) for i, kind in enumerate(kinds)]
    room = [data.draw(st.integers(0, len(row) - 1)) for row in rows]
    heads = common(rows, kinds, room)
    for kind, head in enumerate(heads):
        own = [i for i, k in enumerate(kinds) if k == kind]
        assert all(rows[i][: len(head)] == head and len(head) <= room[i] for i in own)
        longer = rows[own[0]][: len(head) + 1]
        assert any(rows[i][: len(longer)] != longer or len(longer) > room[i] for i in own) or (
            longer == head
        )


# Rows grouped by length.

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 200))
def test_every_row_is_in_one_group_within_the_budget(lengths, budget):
    groups = by_length(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= budget for g in groups)
    order = [lengths[i] for group in groups for i in group]
    assert order == sorted(order)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=30),
       st.integers(1, 100))  # fmt: skip
def test_parts_of_a_row_are_padded_by_themselves(lengths, budget):
    for group in by_length(lengths, budget):
        padded = sum(max(lengths[i][part] for i in group) for part in (0, 1))
        assert len(group) == 1 or len(group) * padded <= budget


def test_a_large_group_ends_where_lengths_grow():
    lengths = [4] * 300 + [9] * 5
    assert 4 * 300 > ENOUGH
    assert [len(group) for group in by_length(lengths, 10_000)] == [300, 5]
    assert [len(group) for group in by_length(lengths[200:], 10_000)] == [105]  # too few to part


def test_a_fresh_model_is_as_it_was(family, tokenizer, facts, config):
    """Neither side changes the model it measures."""
    model = build(family)
    before = weights(model)
    for problem in both(model, tokenizer, facts, PREFIXES, config):
        measured(problem, values_for(problem))
    assert same(model, before) and not any(p.requires_grad for p in model.parameters())
