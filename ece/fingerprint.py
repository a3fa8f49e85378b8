"""Hashes of weights, by which one model is known from another and an edit from none."""

from math import gcd

import torch
from torch import Tensor, nn

from ece.model import sites
from ece.parts import gathered

SAMPLE = 65536  # values that a fingerprint reads of a weight that is not edited
SLICE = 1 << 22  # values hashed at a time, to bound the memory it takes
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(model: nn.Module, layers: tuple[int, ...] | None = None) -> str:
    """Hash names, shapes and values: all values of `layers`' sites, or a sample of every weight.

    16 hexadecimal digits. A sample's places are an irrational step apart, which no width repeats.
    """
    named = [(str(site.layer), site.module.weight) for site in sites(model, layers or ())]
    if layers is None:
        named = list(model.named_parameters())
    total = 0
    for name, tensor in named:
        tensor = gathered(tensor.detach())
        head = f"{model.config.model_type} {name} {tuple(tensor.shape)} {tensor.dtype}".encode()
        if layers is None and tensor.numel() > SAMPLE:
            step = int(tensor.numel() * 0.6180339887498949)
            while gcd(step, tensor.numel()) > 1:  # else some columns would never be read
                step += 1
            places = torch.arange(SAMPLE, device=tensor.device) * step % tensor.numel()
            tensor = tensor.reshape(-1)[places]
        for part in (torch.tensor(list(head), dtype=torch.uint8), tensor):
            total = (total * 0x100000001B3 + digest(part)) % 2**64
    return f"{total:016x}"


def digest(tensor: Tensor) -> int:
    """Hash every bit of a tensor, by place, to 64 bits; computed where the tensor lies."""
    if not tensor.numel():
        return 0
    rows = torch.atleast_2d(tensor.detach().contiguous().view(BITS[tensor.element_size()]))
    rows = rows.reshape(len(rows), -1)
    if rows.dtype == torch.int64:  # else two flipped signs would cancel: 2^63 + 2^63 is 0
        rows = rows ^ (rows >> 32)
    column, row = (_odd(size, rows.device) for size in (rows.shape[1], len(rows)))
    parts = zip(*(t.split(max(1, SLICE // rows.shape[1])) for t in (rows, row)), strict=True)
    return sum(int(((part * column).sum(1) * some).sum()) for part, some in parts) % 2**64


def _odd(count: int, device: torch.device) -> Tensor:
    """`count` odd numbers of 64 bits that look random (splitmix64; products wrap around)."""
    mixed = torch.arange(1, count + 1, device=device) * -7046029254386353131
    mixed = (mixed ^ (mixed >> 30)) * -4658895280553007687
    mixed = (mixed ^ (mixed >> 27)) * -7723592293110705685
    return (mixed ^ (mixed >> 31)) | 1
