"""Rows that share their beginnings go through the blocks as they would alone."""

import pytest
import torch

from ece.engine.prefix import advance, common, pass_heads, rewritten, start, through
from ece.model import sites

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
    return start(model, rows, [0, 1, 2] * 4, room, [list(range(6)), list(range(6, 12))])


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
    walk = start(model, [[5, 6], [7, 8, 9]], [0, 0], [1, 2], [[0, 1]])
    assert walk.heads.length.tolist() == [0] and pass_heads(walk, 1)[1] == []
    assert torch.allclose(
        advance(walk, 2).parts[0].at_last()[1], stream(model, [7, 8, 9], 2)[-1], atol=1e-5
    )


def test_common_beginnings_leave_room():
    rows = [[1, 2, 3, 4], [1, 2, 3, 5], [9, 9]]
    assert common(rows, [0, 0, 1], [2, 3, 1]) == [[1, 2], [9]]
