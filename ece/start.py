r"""A start of the descent learned from the values found so far: ridge regression, as sums.

A value of a fact has much to do with its target and with its state. Eq 12's $U_i$ is here
$B\,\phi_i$ with features $\phi_i$ of both, and $B$ is fitted to the values of earlier facts. It
is this book's own: the paper shares a start within a cluster (`Config.shared`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from ece.errors import ModelError
from ece.facts import Fact, target_ids

TARGET = 3.0  # weight of the target's feature beside the state's, which tells less
PENALTY = 10.0  # of the ridge, against features about as long as TARGET
LENGTH = 0.7  # of the prediction that is used: a start too long cannot be shortened in few steps


@dataclass(frozen=True)
class Learned:
    r"""What the values found so far tell about the next: sums, which do not grow with them."""

    gram: Float[Tensor, "feature feature"]
    r"""The sum of $\phi\phi^T$, float64."""
    cross: Float[Tensor, "feature model"]
    r"""The sum of $\phi\,(U+\delta)^T / \lVert h\rVert$, float64."""


def features(
    model: nn.Module, tokenizer, facts: list[Fact], hidden: Float[Tensor, "edit model"]
) -> Float[Tensor, "edit feature"]:
    """Describe facts by the mean output embedding of their targets, their states, and a 1.

    Float64, `feature` = twice the width + 1. `ModelError` if the model has no output embeddings.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError("this model has no output embeddings; choose another 'shared' than "
                         "'learned'")  # fmt: skip
    rows = []
    for fact in facts:
        ids = torch.tensor(target_ids(tokenizer, fact.target), device=head.weight.device)
        rows.append(head.weight[ids].double().mean(0))
    target = TARGET * normalize(torch.stack(rows).to(hidden.device))
    state = normalize(hidden.double())
    return torch.cat([target, state, torch.ones_like(state[:, :1])], 1)


def start(
    learned: Learned | None, phi: Float[Tensor, "edit feature"], hidden: Float[Tensor, "edit model"]
) -> Float[Tensor, "edit model"]:
    r"""Predict values, $U = B\phi\,\lVert h\rVert$ shortened; zero while nothing was learned."""
    if learned is None:
        return torch.zeros_like(hidden)
    gram = learned.gram.to(phi.device).clone()
    gram.diagonal().add_(PENALTY)
    B = torch.cholesky_solve(learned.cross.to(phi.device), torch.linalg.cholesky(gram))
    return (LENGTH * phi @ B * hidden.double().norm(dim=1, keepdim=True)).to(hidden)


def grown(
    learned: Learned | None, phi: Float[Tensor, "edit feature"],
    delta: Float[Tensor, "edit model"], hidden: Float[Tensor, "edit model"],
) -> Learned:  # fmt: skip
    """Add the values of a batch to the sums."""
    goal = delta.double() / hidden.double().norm(dim=1, keepdim=True)
    gram, cross = phi.T @ phi, phi.T @ goal
    if learned is None:
        return Learned(gram, cross)
    return Learned(learned.gram.to(gram) + gram, learned.cross.to(cross) + cross)
