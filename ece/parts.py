"""Weights that lie in parts on several processes; nothing else knows torch's type for them."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor


def in_parts(weight: Tensor) -> bool:
    """Tell whether each process holds only its part of a weight (or a copy under torch's care)."""
    return isinstance(weight, DTensor)


def gathered(weight: Tensor) -> Tensor:
    """Gather a weight from all processes, which must all call this; one that is whole stays."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


@torch.no_grad()
def put(weight: Tensor, value: Tensor) -> None:
    """Write a whole value into a weight; each process, given the same one, takes its own part."""
    if isinstance(weight, DTensor):
        where = weight.device_mesh, weight.placements
        value = distribute_tensor(value.to(weight), *where, src_data_rank=None)
    weight.data.copy_(value)


def joined(inputs: Tensor, weight: Tensor, size: int) -> Tensor:
    """Join the inputs `[..., part]` of a module whose weight is split by them, to `[..., size]`."""
    if isinstance(inputs, DTensor) or inputs.shape[-1] == size:
        return gathered(inputs)
    parts = DTensor.from_local(inputs, weight.device_mesh, [Shard(inputs.ndim - 1)])
    return parts.full_tensor()
