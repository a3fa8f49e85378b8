"""Hooks read and add what they say, and are gone afterwards, whatever happened."""

import pytest
import torch

from ece.errors import ModelError
from ece.hooks import add_at, capture, states_at
from ece.model import between, blocks, sites

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])


def hooked(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_captured_keys_explain_the_outputs(model):
    places = sites(model, (0, 2))
    outputs = {}
    handles = [
        site.module.register_forward_hook(lambda m, a, o, at=site.layer: outputs.update({at: o}))
        for site in places
    ]
    with capture(places) as keys:
        model(IDS)
    for handle in handles:
        handle.remove()
    for site in places:
        bias = getattr(site.module, "bias", None)
        made = keys[site.layer] @ site.weight.T + (0 if bias is None else bias)
        torch.testing.assert_close(made, outputs[site.layer], rtol=1e-4, atol=1e-5)


def test_adding_at_the_projection_is_adding_at_the_block(model):
    at, delta = torch.tensor([1, 3]), torch.randn(2, 32)
    plain = model(IDS).logits
    with add_at(sites(model, (1,))[0], at, delta):
        found = model(IDS).logits
    spread = torch.nn.functional.one_hot(at, 5)[..., None] * delta[:, None]

    def shift(module, arguments, output):
        if isinstance(output, tuple):
            return (output[0] + spread, *output[1:])
        return output + spread

    handle = blocks(model)[1].register_forward_hook(shift)
    expected = model(IDS).logits
    handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found[0, 0], plain[0, 0]) and not torch.allclose(found[0, 1], plain[0, 1])


def test_hooks_are_gone_after_an_error(model):
    before = hooked(model)
    with pytest.raises(KeyError), capture(sites(model)):
        assert hooked(model) == before + 8  # blocks and down-projections
        raise KeyError
    with pytest.raises(KeyError), add_at(sites(model)[0], torch.tensor([0]), torch.zeros(1, 32)):
        assert hooked(model) == before + 1
        raise KeyError
    assert hooked(model) == before


def test_a_site_that_never_ran_is_an_error(model):
    with pytest.raises(ModelError, match="3"), capture(sites(model)), between(model, 0, 2):
        model(IDS)
    with pytest.raises(ModelError, match="layer 0"):
        with add_at(sites(model)[0], torch.tensor([0]), torch.zeros(1, 32)):
            pass
    assert hooked(model) == 0


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_states_are_those_of_a_whole_run(model, layer):
    """Rows of unlike length run together; right padding never reaches a real token."""
    rows = [[5, 6, 7, 8], [9, 8]]
    found = states_at(model, rows, layer)
    outputs = []
    handle = blocks(model)[layer].register_forward_hook(lambda m, a, o: outputs.append(o))
    for row, states in zip(rows, found, strict=True):
        model(torch.tensor([row]))
        out = outputs.pop()
        plain = (out[0] if isinstance(out, tuple) else out)[0]
        torch.testing.assert_close(states[: len(row)], plain, rtol=1e-4, atol=1e-5)
    handle.remove()
