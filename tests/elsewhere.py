"""A device that is not there: tensors that claim to lie on it, and compute on the CPU.

Within `elsewhere()` an operation on tensors of two devices fails as it does on a GPU; only a
number (a tensor without axes) may come along from the CPU. So a program that creates a tensor on
the wrong device is found out on a machine that has no second one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from ece.model import blocks, structure

AWAY = torch.device("meta")
"""The name that such tensors give. Torch has no memory of its own for it, so nothing else does."""
CPU = torch.device("cpu")


class Away(torch.Tensor):
    """A tensor that claims to be elsewhere, around the one that holds its numbers."""

    @staticmethod
    def __new__(cls, real: torch.Tensor):
        more = dict(dtype=real.dtype, device=AWAY, strides=real.stride())
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.size(), storage_offset=real.storage_offset(), **more
        )
        made.held = real
        return made

    def tolist(self) -> list:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, call, types, given=(), named=None):
        return perform(call, given, named or {})


def perform(call, given, named):
    """Run an operation where its tensors are; `RuntimeError` if that is two devices."""
    (parts, tree), aten = tree_flatten((given, named)), torch.ops.aten
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    away = [part for part in tensors if isinstance(part, Away)]
    targets = [part for part in parts if isinstance(part, torch.device)]
    if call is aten.to.other:
        targets = [given[1].device]
    moves = call is aten.copy_.default or call.overloadpacket in (aten.to, aten._to_copy)
    if away and not moves and any(t.ndim and not isinstance(t, Away) for t in tensors):
        raise RuntimeError(f"{call}: tensors on two devices")
    # One walk through the arguments, not three: this runs tens of thousands of times a test.
    held = (part.held if isinstance(part, Away) else part for part in parts)
    here = [CPU if isinstance(part, torch.device) else part for part in held]
    given_cpu, named_cpu = tree_unflatten(here, tree)
    found = call(*given_cpu, **named_cpu)
    if call._schema.is_mutable and isinstance(given[0], torch.Tensor):
        return given[0]
    if not (targets[0] == AWAY if targets else bool(away)):
        return found
    return tree_map_only(torch.Tensor, Away, found)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, call, types, given=(), named=None):
        return perform(call, given, named or {})


class _Makers(TorchFunctionMode):
    """Functions that make a tensor from no other one."""

    def __torch_function__(self, call, types, given=(), named=None):
        named = named or {}
        device = named.get("device")
        if device is not None and torch.device(device) == AWAY:
            if not any(isinstance(part, torch.Tensor) for part in tree_flatten(given)[0]):
                return Away(call(*given, **{**named, "device": "cpu"}))
        return call(*given, **named)


@contextmanager
def elsewhere() -> Iterator[None]:
    with _Makers(), _Operations():
        yield


def moved(model: nn.Module) -> nn.Module:
    """Put a model there, in place."""
    made = {}
    for module in model.modules():
        for name, part in module._parameters.items():
            if part is not None:
                one = made.setdefault(id(part), nn.Parameter(Away(part.data), requires_grad=False))
                module._parameters[name] = one
        for name, part in module._buffers.items():
            if part is not None:
                module._buffers[name] = Away(part)
    return model


def spread(model: nn.Module, above: int) -> nn.Module:
    """Put the upper part of a model there: the blocks from `above` on, the norm and the head.

    What enters a module is brought to where that is, as accelerate does for device_map="auto".
    """

    def bringing(module):
        forward = module.forward

        def run(*given, **named):
            where = next(chain(module.parameters(), module.buffers())).device
            brought = tree_map_only(torch.Tensor, lambda part: part.to(where), (given, named))
            return forward(*brought[0], **brought[1])

        return run

    every = list(blocks(model))
    base = model.get_submodule(structure(model).base)
    head, tied = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is tied.weight:
        head.weight = nn.Parameter(head.weight.data.clone(), requires_grad=False)
    for module in (*every[above:], getattr(base, structure(model).norm), head):
        moved(module)
    rest = [module for module in base.children() if not isinstance(module, nn.ModuleList)]
    for module in (*every, *rest, head):
        if not any(True for _ in chain(module.parameters(), module.buffers())):
            continue
        module.forward = bringing(module)
    return model
