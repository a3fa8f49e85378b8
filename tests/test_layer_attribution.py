"""Layers by attribution: each layer's share of the score, and the layers it chooses."""

import pytest
import torch

from ece.errors import ConfigError
from ece.evaluation.layer_attribution import chosen_layers, layer_shares
from ece.facts import locate
from ece.hooks import capture
from ece.model import blocks, sites
from ece.scoring import scores


@pytest.mark.parametrize("scorer", ["activation", "weight", "residual"])
def test_it_is_the_mean_share_of_each_layers_score(model, tokenizer, facts, scorer):
    found, last = layer_shares(model, tokenizer, facts, scorer), len(blocks(model)) - 1
    shares = []
    for fact in facts:
        ids, at = locate(tokenizer, fact.prompt, fact.subject)
        with capture(sites(model)) as keys:
            model(torch.tensor([ids]))
        totals = [
            scores(scorer, keys[n][:, at], sites(model, (n,))[0].weight).sum() for n in range(last)
        ]
        shares.append(torch.stack(totals) / sum(totals))
    torch.testing.assert_close(found, torch.stack(shares).mean(0), atol=1e-6, rtol=1e-5)
    assert found.sum() == pytest.approx(1)


def test_the_layers_with_most_mass_are_chosen_in_order(model, tokenizer, facts):
    share = layer_shares(model, tokenizer, facts, "residual")
    two = chosen_layers(model, tokenizer, facts, "residual", 2)
    assert set(two) == set(share.topk(2).indices.tolist()) and list(two) == sorted(two)
    with pytest.raises(ConfigError, match="'adaptive' is 4; this model has 3 layers"):
        chosen_layers(model, tokenizer, facts, "residual", 4)
