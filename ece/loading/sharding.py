"""Models whose weights lie in parts on several processes, which `torchrun` started.

    torchrun --nproc-per-node 2 ...      # and in the program:
    model, tokenizer = ece.load("meta-llama/Llama-3.1-8B", sharding="tp")

"tp": each process computes with its part of every matrix (transformers' tensor parallelism).
"fsdp": each process stores its part of every block and gathers a block when it runs (torch's
FSDP2). All processes then run the same program on the same facts, and have the same results.
"""

import os
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PretrainedConfig
from transformers.distributed import DistributedConfig

from ece.errors import ModelError
from ece.model import blocks, sites
from ece.parts import in_parts

WAYS = ("tp", "fsdp")


def join(sharding: str, device: str | None) -> None:
    """Join the processes that `torchrun` started, unless they are; `ModelError` without any."""
    if sharding not in WAYS:
        raise ModelError(f"setting 'sharding' is {sharding!r}; choose one of {', '.join(WAYS)}")
    if device is not None:
        raise ModelError(f"settings 'sharding' and 'device' ({device!r}) are both given; each "
                         "process has a device of its own, leave 'device' out")  # fmt: skip
    if not distributed.is_initialized():
        if not distributed.is_torchelastic_launched():
            raise ModelError(f"setting 'sharding' is {sharding!r}, and this process is alone; "
                             "start it by torchrun --nproc-per-node 2 ...")  # fmt: skip
        distributed.init_process_group()


def own_device() -> torch.device:
    """Find this process's own device: an accelerator where there is one, else the CPU."""
    found = torch.accelerator.current_accelerator()
    if found is None:
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", distributed.get_rank()))
    own = torch.device(found.type, number % torch.accelerator.device_count())
    torch.accelerator.set_device_index(own.index)
    return own


def arguments(config: PretrainedConfig, sharding: str) -> dict[str, Any]:
    """Give what `from_pretrained` takes to load a model in parts; `ModelError` without a plan."""
    if sharding != "tp":
        return {}
    count, shape = distributed.get_world_size(), config.get_text_config()
    if not getattr(shape, "base_model_tp_plan", None):
        raise ModelError(f"model type '{config.model_type}' has no plan for sharding='tp'; take "
                         "sharding='fsdp'")  # fmt: skip
    for name in ("num_key_value_heads", "num_attention_heads", "intermediate_size"):
        size = getattr(shape, name, None)
        if size is not None and size % count:
            raise ModelError(f"{count} processes cannot share the model's {size} ({name}) by "
                             "sharding='tp'; start as many as divide it, or take "
                             "sharding='fsdp'")  # fmt: skip
    own_device()
    return {"distributed_config": DistributedConfig(tp_size=count)}


def spread(model: nn.Module, sharding: str) -> nn.Module:
    """Share out the blocks of a loaded model with "fsdp"; with "tp" they were loaded so."""
    if sharding != "fsdp":
        return model
    device = own_device()
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    # Block by block, each by itself: the engine runs some of them without the rest, and no device
    # ever holds the whole model.
    for block in blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    return model.to(device)


def save_model(model: nn.Module, folder: str) -> None:
    """Save a model, in parts or not, as transformers reads it; every process calls this."""
    own = getattr(model.config, "distributed_config", None)  # loaded in parts by transformers
    if own is not None or not in_parts(sites(model, (0,))[0].module.weight):
        model.save_pretrained(folder)
        return
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found = get_model_state_dict(model, options=options)  # whole for the first process
    if distributed.get_rank() == 0:
        model.save_pretrained(folder, state_dict=found)
    distributed.barrier()
