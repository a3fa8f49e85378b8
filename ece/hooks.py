"""The two ways to touch a running model: read a site's input, add to a site's output.

Hooks are set when the `with` block starts and removed when it ends, error or not.
"""

from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ece.errors import ModelError, shown
from ece.facts import pad
from ece.model import Site, between, sites


@contextmanager
def capture(sites: list[Site]):
    """Collect the keys of one forward pass (Eq 3): a dict layer -> `[row, token, ff]`.

        with capture(sites(model, (0, 1))) as keys:
            model(input_ids)
        keys[0]                                  # inputs of layer 0's down-projection

    Raises `ModelError` if the block ends normally and a site was never run.
    """
    found, sizes = {}, {}

    def note(layer, _, arguments):
        sizes[layer] = arguments[0].shape[:2]

    def read(site, _, arguments):  # some families run their MLP on rows laid end to end
        found[site.layer] = site.keys(arguments[0].detach()).reshape(*sizes[site.layer], -1)

    with ExitStack() as hooks:
        for site in sites:
            for module, hook in ((site.block, partial(note, site.layer)),
                                 (site.module, partial(read, site))):  # fmt: skip
                hooks.enter_context(module.register_forward_pre_hook(hook))
        yield found
        if len(found) != len(sites):
            missed = shown(tuple(sorted({site.layer for site in sites} - set(found))))
            raise ModelError(f"the forward never reached the down-projections of layers {missed}; "
                             "run the whole model inside the block")  # fmt: skip


@contextmanager
def add_at(site: Site, positions: Int[Tensor, " row"], delta: Float[Tensor, "row model"]):
    """Add `delta[i]` to the site's output at token `positions[i]` of row `i`, within the block.

    `gain` tells what the residual stream gets of it. Raises `ModelError` if the block ends
    normally and the site was never run.
    """
    runs = []

    def write(module, arguments, output):
        runs.append(1)
        rows = output.reshape(len(positions), -1, output.shape[-1])
        here = torch.arange(rows.shape[1], device=positions.device) == positions[:, None]
        return (rows + here[..., None].to(rows.device) * delta[:, None].to(rows)).view_as(output)

    with site.module.register_forward_hook(write):
        yield
        if not runs:
            raise ModelError(f"the forward never reached the down-projection of layer {site.layer}"
                             "; run the whole model inside the block")  # fmt: skip


@torch.no_grad()
def states_at(
    model: nn.Module, rows: list[list[int]], layer: int
) -> Float[Tensor, "row token model"]:
    """Run rows of ids, padded on the right, up to block `layer`; states at padding are void."""
    ids = pad(rows)[0].to(model.get_input_embeddings().weight.device)
    with between(model, 0, layer) as base:
        # Causal attention keeps right padding out of every real token: no mask is needed.
        return base(ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state


@torch.no_grad()
def gain(model: nn.Module, layer: int) -> float | None:
    """Measure what the residual stream gets of what is added at `layer`'s down-projection.

    A multiple of it (1 in most families); None where a norm in between makes it depend on the rest.
    """
    site, draw = sites(model, (layer,))[0], torch.Generator().manual_seed(0)
    like = model.get_input_embeddings().weight
    state, more = torch.randn(2, 1, site.shape[0], generator=draw).to(like)
    more = torch.cat([torch.zeros_like(more), 256 * more])  # long: the rest is small beside it
    at = torch.zeros(2, dtype=torch.long, device=like.device)
    with between(model, layer, layer, True) as base, add_at(site, at, more):
        out = base(inputs_embeds=state.expand(2, 1, -1), use_cache=False).last_hidden_state
    moved, more = (out[1, 0] - out[0, 0]).double(), more[1].double().to(out.device)
    found = float(moved @ more / (more @ more))
    if (moved - found * more).norm() >= 0.01 * moved.norm():
        return None
    return 1.0 if abs(found - 1) < 1e-3 else found


def in_projection_units(site: Site, factor: float | None, keys: Tensor, states: Tensor) -> Tensor:
    """Express states after a block in units of its down-projection, in which values count.

    `factor` is its `gain`. Behind a norm (None) it is the down-projection's own output instead.
    """
    return site.output(keys).float() if factor is None else states.float() / factor
