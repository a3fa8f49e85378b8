"""MEND's two halves: the gradient of an edit in rank-one factors, and the network on them.

The gradient of a loss with respect to a projection's weight is a sum over tokens of
$\\delta u^T$, with $u$ the projection's input and $\\delta$ the gradient at its output. The
network sees and returns these two vectors and never a whole matrix (Mitchell et al. 2022).
"""

from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ece.baselines.base import Weights
from ece.baselines.likelihood import Rows, log_probs, nll
from ece.errors import ModelError
from ece.model import Site

FLOOR = 0.01  # of a part's RMS deviation: no direction that hardly varies is blown up beyond it


class Factors(NamedTuple):
    """One term of a weight's gradient per token: $\\nabla_W = \\sum_t \\delta_t u_t^T$."""

    u: Float[Tensor, "token ff"]
    delta: Float[Tensor, "token model"]


@contextmanager
def _probed(places: list[Site]):
    """Collect inputs and probes of `places` within, as a dict layer -> (input, probe).

    A probe is a zero that is added to the output: a loss's gradient there is $\\delta$,
    although no parameter of the model takes gradients.
    """
    found = {}

    def probe(layer):
        def add(module, arguments, output):
            zero = torch.zeros_like(output).requires_grad_()
            found[layer] = arguments[0].detach(), zero
            return output + zero

        return add

    with ExitStack() as hooks:
        for site in places:
            hooks.callback(site.module.register_forward_hook(probe(site.layer)).remove)
        yield found


def factors(model: nn.Module, places: list[Site], inputs: Rows) -> dict[int, Factors]:
    """Take the gradient of `nll` at the model's weights, in factors per layer, float32.

    Tokens that the loss does not reach ($\\delta = 0$) are left out; they add nothing to the
    gradient. `ModelError` if a gradient is not finite.
    """
    with torch.enable_grad(), _probed(places) as found:
        loss = nll(log_probs(model, inputs, {}), inputs)
        gradients = torch.autograd.grad(loss, [found[site.layer][1] for site in places])
    made = {}
    for site, gradient in zip(places, gradients, strict=True):
        if not torch.isfinite(gradient).all():
            text = f"the gradient at layer {site.layer} is not finite; check the model's weights"
            raise ModelError(text)
        reached = inputs.mask.to(gradient.device) & (gradient != 0).any(-1)
        u = found[site.layer][0][reached]
        made[site.layer] = Factors(u.float(), gradient[reached].float())
    return made


def join(parts: list[Factors]) -> Factors:
    """Put factors of several losses together as those of their sum."""
    return Factors(*(torch.cat(column) for column in zip(*parts, strict=True)))


def new_net(places: list[Site], rank: int, rate: float, seed: int, device) -> Weights:
    """Make a network that returns its input, and learning rates `rate`; float32 on `device`.

    `{shape}.in1` ... are shared by all layers of one shape; `{layer}.scale1` ... are a
    layer's own.
    """
    draw, net = torch.Generator().manual_seed(seed), {}
    for site in places:
        size, key = sum(site.weight.shape), _shape(site)
        for part in ("1", "2"):
            if f"{key}.in{part}" not in net:
                start = torch.randn(rank, size, generator=draw) * (2 / (rank + size)) ** 0.5
                net[f"{key}.in{part}"] = start
                net[f"{key}.out{part}"] = torch.zeros(size, rank)
            net[f"{site.layer}.scale{part}"] = torch.ones(size)
            net[f"{site.layer}.offset{part}"] = torch.zeros(size)
        net.setdefault(f"{key}.bias", torch.zeros(size))
        net[f"{site.layer}.rate"] = torch.tensor(float(rate)).log()
    return {name: value.to(device) for name, value in net.items()}


def _shape(site: Site) -> str:
    """Name what layers of one shape share."""
    return "x".join(map(str, site.weight.shape))


def normalisers(found: Mapping[int, Factors]) -> Weights:
    """Measure mean and deviation of every entry of `u` and `delta` over tokens, per layer."""
    made = {}
    for layer, pair in found.items():
        for name, part in zip(("u", "delta"), pair, strict=True):
            deviation = part.std(0, correction=0)
            least = FLOOR * deviation.square().mean().sqrt()
            made[f"{layer}.{name}.mean"] = part.mean(0)
            made[f"{layer}.{name}.deviation"] = torch.where(least > 0, deviation.clamp(least), 1.0)
    return made


def normalised(net: Weights, layer: int, pair: Factors) -> Factors:
    """Shift and scale every entry of both vectors to mean 0 and deviation 1 over training."""
    made = []
    for name, part in zip(("u", "delta"), pair, strict=True):
        mean, deviation = (net[f"{layer}.{name}.{what}"] for what in ("mean", "deviation"))
        made.append((part.to(mean.device) - mean) / deviation)
    return Factors(*made)


def transform(net: Weights, site: Site, pair: Factors) -> Factors:
    """Run MEND's editor: two low-rank residual layers on normalised factors.

    The second layer has no rectifier, so that entries may shrink and change sign too. Both
    are the identity where training starts.
    """
    own = {name: net[f"{site.layer}.{name}"] for name in ("scale1", "offset1", "scale2", "offset2")}
    shared = {n: net[f"{_shape(site)}.{n}"] for n in ("in1", "out1", "bias", "in2", "out2")}
    z = torch.cat(normalised(net, site.layer, pair), 1)
    inner = z @ shared["in1"].T @ shared["out1"].T + shared["bias"]
    # At 0, where training starts, clamp passes gradients on and relu does not.
    h = z + (own["scale1"] * inner + own["offset1"]).clamp(min=0)
    g = h + own["scale2"] * (h @ shared["in2"].T @ shared["out2"].T) + own["offset2"]
    return Factors(*g.split([pair.u.shape[1], pair.delta.shape[1]], 1))


def edited(
    net: Weights, places: list[Site], found: Mapping[int, Factors], names: Mapping[int, str]
) -> Weights:
    r"""Compute the sites' new weights: $W - \alpha \sum_t \tilde\delta_t \tilde u_t^T$.

    names: parameter name per layer. Values have the parameter's orientation, dtype and device
    and are differentiable with respect to `net`.
    """
    made = {}
    for site in places:
        u, delta = transform(net, site, found[site.layer])
        W = site.weight
        update = (net[f"{site.layer}.rate"].exp() * delta.T @ u).to(W.device)
        value = (W.float() - update).to(W.dtype)
        made[names[site.layer]] = value if W.is_contiguous() else value.T
    return made
