"""The two ways to touch a running model: read a site's input, add to a site's output.

Hooks are set when the `with` block starts and removed when it ends, error or not.
"""

from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ece.errors import ModelError
from ece.facts import pad
from ece.model import Site, between


@contextmanager
def capture(sites: list[Site]):
    """Collect the keys of one forward pass: a dict layer -> `[row, token, ff]`.

        with capture(sites(model, (0, 1))) as keys:
            model(input_ids)
        keys[0]                                  # inputs of layer 0's down-projection

    Raises `ModelError` if the block ends normally and a site was never run.
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
            raise ModelError(f"the forward never reached the down-projections of layers {missed}; "
                             "run the whole model inside the block")  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def add_at(site: Site, positions: Int[Tensor, " row"], delta: Float[Tensor, "row model"]):
    """Add `delta[i]` to the site's output at token `positions[i]` of row `i`, within the block.

    In the families served this equals adding it to the residual stream (`ece.load` checks that).
    Raises `ModelError` if the block ends normally and the site was never run.
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
            raise ModelError(f"the forward never reached the down-projection of layer {site.layer}"
                             "; run the whole model inside the block")  # fmt: skip
    finally:
        handle.remove()


@torch.no_grad()
def states_at(
    model: nn.Module, rows: list[list[int]], layer: int
) -> Float[Tensor, "row token model"]:
    """Run rows of ids, padded on the right, up to block `layer`; states at padding are void."""
    ids = pad(rows)[0].to(model.get_input_embeddings().weight.device)
    with between(model, 0, layer) as base:
        # Causal attention keeps right padding out of every real token: no mask is needed.
        return base(ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
