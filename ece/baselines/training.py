"""Trains what a baseline learns ahead: by Adam, seeded, going on to the same bits when killed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ece.baselines.base import Weights
from ece.storage import check_identity, load, save

SAVE_EVERY = 50
"""Steps between two states from which a killed training goes on."""
LONGEST = 1.0
"""Norm to which gradients are cut."""


def fit(
    weights: Weights, loss: Callable[[Weights, torch.Generator], Tensor], steps: int, lr: float,
    made_of: dict[str, Any], seed: int = 0, save_to: str | Path | None = None,
    progress: Callable | None = None,
) -> Weights:  # fmt: skip
    """Minimise `loss(weights, generator)` over `steps` steps of Adam; returns new weights.

    The loss draws its sample from the generator alone, which is seeded by `seed` and the step: a
    training that was killed and is started again ends with the same bits. The learning rate falls
    to 0 as a cosine. made_of: names model, data and settings; `StateError` if the file `save_to`
    is of others. progress: called as `progress("train", done, steps)`.
    """
    live = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
    adam = torch.optim.Adam(live.values(), lr=lr)
    path, done = save_to and Path(save_to), 0
    if path is not None and path.exists():
        done = _resume(live, adam, made_of, path)
    for step in range(done, steps):
        adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        draw = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
        adam.zero_grad()
        loss(live, draw).backward()
        torch.nn.utils.clip_grad_norm_(live.values(), LONGEST)
        adam.step()
        if path is not None and ((step + 1) % SAVE_EVERY == 0 or step + 1 == steps):
            state = {"weights": live, "adam": adam.state_dict()}
            save(path, "training", {"made_of": made_of, "done": step + 1, **state})
        if progress is not None:
            progress("train", step + 1, steps)
    return {name: value.detach() for name, value in live.items()}


def _resume(live: Weights, adam: torch.optim.Adam, made_of: dict[str, Any], path: Path) -> int:
    """Load the state of an interrupted training; returns the number of steps done."""
    saved = load(path, "training")
    check_identity(path, saved["made_of"], made_of)
    for name, value in live.items():
        value.data.copy_(saved["weights"][name])
    adam.load_state_dict(saved["adam"])
    return saved["done"]
