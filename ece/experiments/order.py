"""Puts the facts of a run in order: ECE's clusters as a schedule of its batches."""

from collections import Counter
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ece.clustering import jaccard, k_medoids
from ece.config import Config
from ece.engine import reader
from ece.facts import Fact
from ece.model import sites
from ece.scoring import fact_sets, scores

Order = Literal["drawn", "together", "spread"]


@torch.no_grad()
def labels(
    model: nn.Module, tokenizer, facts: list[Fact], config: Config, clusters: int
) -> Int[Tensor, " fact"]:
    """Group facts by the neurons that they use at the last edit layer (Eq 8-10).

    config: names the layers, the scorer and p that choose a fact's neurons.
    """
    layer = config.layers[-1]
    rows = reader(model, tokenizer, facts, ("{}",), config.max_tokens)
    keys, W = rows.read(layer, layer)[0][:, 0], sites(model, (layer,))[0].weight
    sets = fact_sets(scores(config.scorer, keys, W), config.p)
    return k_medoids(jaccard(sets), min(clusters, len(facts)), config.seed).labels


def schedule(groups: Int[Tensor, " fact"], order: Order) -> list[int]:
    """List the facts' places with each group together, or spread evenly over the whole sequence.

    Within a group facts keep their order.
    """
    own, seen, places = groups.tolist(), Counter(), []
    if order == "drawn":
        return [*range(len(own))]
    sizes = Counter(own)
    for group in own:
        places.append(group if order == "together" else (seen[group] + 0.5) / sizes[group])
        seen[group] += 1
    return sorted(range(len(own)), key=places.__getitem__)
