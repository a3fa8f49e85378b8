"""Training by Adam, seeded, resumable to the same bits: what a baseline learns ahead."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from ece.baselines.base import Weights
from ece.errors import StateError
from ece.storage.files import read_json, read_tensors, write, write_json

SAVE_EVERY = 50
"""Steps between two states from which a killed run goes on."""
LONGEST = 1.0
"""Norm to which gradients are cut."""


def fit(
    weights: Weights,
    loss: Callable[[Weights, torch.Generator], Tensor],
    steps: int,
    lr: float,
    mark: str,
    seed: int = 0,
    save_to: str | Path | None = None,
    progress: Callable | None = None,
) -> Weights:
    """Minimise `loss(weights, generator)` over `steps` steps of Adam; returns new weights.

    The loss draws its sample from the generator alone, which is seeded by `seed` and the step:
    a run that is killed and started again ends with the same bits. The learning rate falls
    to 0 as a cosine. `mark` names model, data and settings; `StateError` if the files
    `save_to` are of another mark. progress: called as `progress("train", done, steps)`.
    """
    live = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
    adam = torch.optim.Adam(live.values(), lr=lr)
    for step in range(resume(live, adam, mark, save_to).get("done", 0), steps):
        adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        adam.zero_grad()
        loss(live, draw).backward()
        torch.nn.utils.clip_grad_norm_(live.values(), LONGEST)
        adam.step()
        if save_to is not None and ((step + 1) % SAVE_EVERY == 0 or step + 1 == steps):
            keep(live, adam, step + 1, mark, Path(save_to))
        if progress is not None:
            progress("train", step + 1, steps)
    return {name: value.detach() for name, value in live.items()}


def keep(live: Weights, adam, done: int, mark: str, path: Path, **told) -> None:
    """Weights and Adam's moments in one file that is whole or not there; `told` beside them."""
    tensors = {f"value.{name}": value.detach() for name, value in live.items()}
    for name, value in live.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = adam.state[value][moment]
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    file = path.with_name(f"{path.name}-{done:06d}.safetensors")
    checksum = write(file, serialise(held))
    head = {"done": done, "mark": mark, "file": file.name, "checksum": checksum}
    write_json(path, head | told)
    for old in path.parent.glob(f"{path.name}-*.safetensors"):
        if old != file:
            old.unlink()


def resume(live: Weights, adam, mark: str, path: str | Path | None) -> dict:
    """Load what `keep` wrote, if anything; its record (`done`, and what was told), else {}.

    `StateError` if the files are damaged or of another mark.
    """
    if path is None or not Path(path).exists():
        return {}
    head = read_json(Path(path))
    if head["mark"] != mark:
        raise StateError(f"{path} was trained for another model, data or settings; remove it")
    tensors = read_tensors(Path(path).with_name(head["file"]), head["checksum"])
    for name, value in live.items():
        value.data.copy_(tensors[f"value.{name}"])
        moments = {m: tensors[f"{m}.{name}"].to(value.device) for m in ("exp_avg", "exp_avg_sq")}
        counts = value.device if adam.defaults.get("fused") else None  # where Adam wants its count
        step = torch.tensor(float(head["done"]), device=counts)
        adam.state[value] = {"step": step, **moments}
    return head
