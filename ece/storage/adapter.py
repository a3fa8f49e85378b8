"""Writes edits as a LoRA adapter, which the library peft and the servers that read it can load."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ece.errors import ConfigError, StateError
from ece.model import sites
from ece.storage.edits import EditSet, changed, standing
from ece.storage.files import replacing, write


def save_adapter(
    folder: str | Path, model: nn.Module, edits: EditSet, rank: int | None = None
) -> float:
    """Write `adapter_config.json` and `adapter_model.safetensors`; returns the relative error.

    A batch's update has the rank of its facts at most, so `rank` is their number by default; the
    rounding of the weights' format is not of low rank, and is what is lost then. The error is
    that of the update, in the Frobenius norm, over all layers. `model` may be edited or not.
    """
    if not edits.neurons:
        raise StateError("these edits changed nothing; there is no adapter to write")
    rank = max(1, len(edits.facts)) if rank is None else rank
    if type(rank) is not int or rank < 1:
        raise ConfigError(f"'rank' is {rank!r}; it should be a whole number >= 1")
    paths = {id(module): path for path, module in model.named_modules()}
    sign, other = (1 if standing(model, edits) == "unedited" else -1), changed(model, edits)
    tensors, names, lost, total = {}, [], 0.0, 0.0
    for site in sites(model, tuple(edits.bits)):
        update = sign * _difference(site.weight, other[site.layer], edits.columns[site.layer])
        B, A = _factors(update, rank)
        names.append(paths[id(site.module)])
        tensors[f"base_model.model.{names[-1]}.lora_A.weight"] = A
        tensors[f"base_model.model.{names[-1]}.lora_B.weight"] = B
        lost += float((B.double() @ A.double() - update).square().sum())
        total += float(update.square().sum())
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "bias": "none",
        "base_model_name_or_path": model.name_or_path, "target_modules": names,
        "r": rank, "lora_alpha": rank, "lora_dropout": 0.0,
        "fan_in_fan_out": not isinstance(sites(model, (0,))[0].module, nn.Linear),
    }  # fmt: skip
    with replacing(Path(folder) / "adapter_model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write(Path(folder) / "adapter_config.json", json.dumps(settings, indent=2).encode())
    return (lost / total) ** 0.5


def _difference(weight: Tensor, other: Tensor, columns: Tensor) -> Tensor:
    """Compute what some columns of a weight lack to the others, `[model, ff]` float64, on CPU."""
    found = torch.zeros(weight.shape, dtype=torch.float64)
    found[:, columns] = (other.double() - weight[:, columns.to(weight.device)].double()).cpu()
    return found


def _factors(update: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Split an update into `[model, rank] @ [rank, ff]`, its best of that rank, in float32."""
    some = update.any(0)
    U, S, V = torch.linalg.svd(update[:, some], full_matrices=False)
    keep = min(rank, len(S))
    B, A = torch.zeros(len(update), rank), torch.zeros(rank, update.shape[1])
    B[:, :keep] = (U[:, :keep] * S[:keep].sqrt()).float()
    A[:keep, some] = (S[:keep].sqrt()[:, None] * V[:keep]).float()
    return B, A
