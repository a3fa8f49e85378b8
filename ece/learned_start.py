r"""A start of the descent learned from the values found so far: ridge regression, as sums.

A value has much to do with its fact's target. Eq 12's $U_i$ is here $B\,\phi_i$, where $\phi_i$ is
the target's output embeddings less the mean of all, and $B$ is fitted to earlier facts' values.
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
    """Average the output embeddings of each target's tokens, less the vocabulary's mean; float64.

    They are scaled to length 1. The mean, the state or a constant as features made edits worse
    (measured): what these predict is common to all facts, and so reaches their neighbours.
    `ModelError` if the model has no output embeddings.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError("no output embeddings in this model; take another 'shared' than 'learned'")
    table = gathered(head.weight)
    targets = [torch.tensor(target_ids(tokenizer, fact.target)) for fact in facts]
    rows = torch.stack([table[ids.to(table.device)].double().mean(0) for ids in targets])
    return normalize(rows - table.mean(0, dtype=torch.float64))


def predicted(
    learned: Learned | None, phi: Float[Tensor, "edit feature"], hidden: Float[Tensor, "edit model"]
) -> Float[Tensor, "edit model"]:
    r"""Predict Eq 12's $U_i$: $U = B\phi\,\lVert h\rVert$; zero while nothing was learned."""
    if learned is None:
        return torch.zeros_like(hidden)
    gram = learned.gram.to(phi) + PENALTY * torch.eye(len(learned.gram)).to(phi)
    B = torch.cholesky_solve(learned.cross.to(phi.device), torch.linalg.cholesky(gram))
    return (phi @ B * hidden.double().norm(dim=1, keepdim=True)).to(hidden)


def grown(
    learned: Learned | None, phi: Float[Tensor, "edit feature"],
    delta: Float[Tensor, "edit model"], hidden: Float[Tensor, "edit model"],
) -> Learned:  # fmt: skip
    """Add the values of a batch to the sums."""
    goal = delta.double() / hidden.double().norm(dim=1, keepdim=True)
    gram, cross = phi.T @ phi, phi.T @ goal
    known = (learned.gram.to(gram), learned.cross.to(cross)) if learned else (0, 0)
    return Learned(known[0] + gram, known[1] + cross)
