"""The two touches on a running model: read a site's input, add to a site's output.

Hooks go in when the `with` block starts and come out when it ends, error or not.
"""

from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ece.errors import ModelError
from ece.model import Site


@contextmanager
def capture(sites: list[Site]):
    """Collect the keys that pass during one forward: a dict layer -> `[row, token, ff]`.

        with capture(sites(model, (0, 1))) as keys:
            model(input_ids)
        keys[0]                                  # inputs of layer 0's down-projection

    `ModelError` if the block ends normally and a site was never run.
    """
    found, handles = {}, []

    def reader(layer):
        def read(module, arguments):
            found[layer] = arguments[0].detach()

        return read

    try:
        for site in sites:
            handles.append(site.module.register_forward_pre_hook(reader(site.layer)))
        yield found
        if len(found) != len(sites):
            missed = sorted({site.layer for site in sites} - set(found))
            raise ModelError(f"the forward never reached the down-projections of layers {missed}")
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def add_at(site: Site, positions: Int[Tensor, " row"], delta: Float[Tensor, "row model"]):
    """Add `delta[i]` to the site's output at token `positions[i]` of row `i`, within the block.

    In GPT-2, GPT-J and Llama this equals adding it to the block's output.
    `ModelError` if the block ends normally and the site was never run.
    """
    runs = []

    def write(module, arguments, output):
        runs.append(1)
        here = torch.arange(output.shape[1], device=output.device) == positions[:, None]
        return output + here[..., None] * delta[:, None].to(output.dtype)

    handle = site.module.register_forward_hook(write)
    try:
        yield
        if not runs:
            raise ModelError(f"the forward never reached the down-projection of layer {site.layer}")
    finally:
        handle.remove()
