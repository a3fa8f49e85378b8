"""Mask what a small model sees in training, so that it stores facts where large models do.

In a masked row, the tokens after a subject (within its sentence) get no MLP output and see
of the subject its last token alone, in the early blocks not even that; and a subject's tokens
see nothing but each other. So the subject's attributes must be gathered at its last token, in
the early blocks, from the name alone; what follows only reads them, later. Nothing is masked
at test time.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

HIDDEN = torch.finfo(torch.float32).min
"""The additive mask's value for "may not look"."""


class RowMasks:
    """Holds the masks of a batch, filled piece by piece and handed out as tensors."""

    def __init__(self, rows: int, length: int):
        causal = np.tril(np.ones((length, length), dtype=bool))
        self.visible = np.repeat(causal[None], rows, axis=0)
        self.early = self.visible.copy()
        self.mlp = np.ones((rows, length), dtype=bool)

    def gather_at_last(self, row: int, first: int, last: int, end: int) -> None:
        """Make the subject's last token the only way to it, for the tokens after it up to `end`.

        These get no MLP; in the early blocks they see nothing of the subject at all.
        """
        self.visible[row, last + 1 : end, first:last] = False
        self.early[row, last + 1 : end, first : last + 1] = False
        self.mlp[row, last + 1 : end] = False

    def isolate(self, row: int, first: int, last: int) -> None:
        """Let the tokens first..last see nothing before themselves."""
        for seen in (self.visible, self.early):
            seen[row, first : last + 1, :first] = False

    def attention(self, early: bool = False) -> Float[Tensor, "row 1 token token"]:
        """Make the 4-D additive attention mask that all three families take."""
        seen: Bool[Tensor, "row token token"]
        seen = torch.from_numpy(self.early if early else self.visible)
        return torch.zeros(seen.shape).masked_fill_(~seen, HIDDEN)[:, None]


@contextmanager
def mlp_masked(mlps: list[nn.Module]) -> Iterator[list]:
    """Run every MLP only at the tokens of the mask put into the yielded list, in the block.

    Elsewhere its output is zero, and is not computed.
    """
    holder: list[Bool[Tensor, "row token"] | None] = [None]
    forwards = [mlp.forward for mlp in mlps]
    try:
        for mlp, forward in zip(mlps, forwards, strict=True):
            mlp.forward = _only_at(forward, holder)
        yield holder
    finally:
        for mlp in mlps:
            del mlp.forward


def _only_at(forward: Callable, holder: list) -> Callable:
    def run(hidden: Float[Tensor, "row token model"]) -> Float[Tensor, "row token model"]:
        if holder[0] is None:
            return forward(hidden)
        some = forward(hidden[holder[0]])
        output = torch.zeros_like(hidden, dtype=some.dtype)  # which autocast may have changed
        output[holder[0]] = some
        return output

    return run


@contextmanager
def attention_masked(early: list[nn.Module]) -> Iterator[list]:
    """Let the modules in `early` use the attention mask put into the yielded list, in the block."""
    holder: list[Tensor | None] = [None]

    def narrow(_module: nn.Module, arguments: tuple, named: dict) -> tuple[tuple, dict]:
        return arguments, named if holder[0] is None else named | {"attention_mask": holder[0]}

    with ExitStack() as hooks:
        for module in early:
            hooks.enter_context(module.register_forward_pre_hook(narrow, with_kwargs=True))
        yield holder
