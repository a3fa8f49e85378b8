r"""A start of the descent learned from the values found so far: ridge regression, as sums.

A value has much to do with its fact's target. Eq 12's $U_i$ is here $B\,\phi_i$ with the target's
mean output embedding as the feature $\phi_i$, and $B$ is fitted to the values of earlier facts.
It is this book's own: the paper shares a start within a cluster (`Config.shared`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from ece.errors import ModelError
from ece.facts import Fact, target_ids
from ece.parts import gathered

PENALTY = 1 / 3  # of the ridge, against features of length 1


@dataclass(frozen=True)
class Learned:
    r"""What the values found so far tell about the next: sums, which do not grow with them."""

    gram: Float[Tensor, "feature feature"]
    r"""The sum of $\phi\phi^T$, float64."""
    cross: Float[Tensor, "feature model"]
    r"""The sum of $\phi\,(U+\delta)^T / \lVert h\rVert$, float64."""


def features(model: nn.Module, tokenizer, facts: list[Fact]) -> Float[Tensor, "edit model"]:
    """Average the output embeddings of each target's tokens, and scale to length 1; float64.

    The state and a constant as further features made edits worse (measured): what they predict
    is common to all facts, and so reaches their neighbours. `ModelError` if the model has no output
    embeddings.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError("this model has no output embeddings; choose another 'shared' than "
                         "'learned'")  # fmt: skip
    rows, table = [], gathered(head.weight)
    for fact in facts:
        ids = torch.tensor(target_ids(tokenizer, fact.target), device=table.device)
        rows.append(table[ids].double().mean(0))
    return normalize(torch.stack(rows))


def predicted(
    learned: Learned | None, phi: Float[Tensor, "edit feature"], hidden: Float[Tensor, "edit model"]
) -> Float[Tensor, "edit model"]:
    r"""Predict Eq 12's $U_i$: $U = B\phi\,\lVert h\rVert$; zero while nothing was learned."""
    if learned is None:
        return torch.zeros_like(hidden)
    gram = learned.gram.to(phi.device).clone()
    gram.diagonal().add_(PENALTY)
    B = torch.cholesky_solve(learned.cross.to(phi.device), torch.linalg.cholesky(gram))
    return (phi @ B * hidden.double().norm(dim=1, keepdim=True)).to(hidden)


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
