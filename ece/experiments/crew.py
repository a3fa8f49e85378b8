"""Runs a command by several processes, as `torchrun` starts them: joins them, loads, shares."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import distributed

from ece import load
from ece.engine.parallel import Processes, Together
from ece.storage import Folder
from ece.storage.folder import Shared

Sharding = Literal["tp", "fsdp"]


@contextmanager
def joined(sharding: Sharding | None) -> Iterator[Processes | None]:
    """Join the processes that `torchrun` started; None for a process alone.

    They share the model's weights by `sharding`; without it, the facts.
    """
    if not distributed.is_torchelastic_launched():
        yield None
        return
    if first := not distributed.is_initialized():
        distributed.init_process_group()
    try:
        yield Processes() if sharding else Together()
    finally:
        if first:
            distributed.destroy_process_group()


def load_for(settings: Any, crew: Processes | None) -> tuple:
    """Load the model and tokenizer that settings name, whole or this process's part of it."""
    device, dtype = settings.device, getattr(torch, settings.dtype)
    if settings.sharding is not None:
        return load(settings.model, device, dtype, settings.sharding)
    if crew is not None and device not in (None, "auto"):
        module = torch.get_device_module(device)
        module.set_device(own := crew.rank % module.device_count())  # where it receives, too
        device += f":{own}"
    return load(settings.model, device, dtype)


def open_folder(work: Any, crew: Processes | None) -> AbstractContextManager[Folder | None]:
    """Open the folder of a run, where there is one: that of one process, or of all."""
    if work is None:
        return nullcontext()
    return Folder(work) if crew is None else Shared(work, crew)


def is_first(crew: Processes | None) -> bool:
    """Tell whether this process is the one that writes files and prints."""
    return crew is None or crew.rank == 0
