"""The published loop, as plainly as it can be written: what the fast paths must equal.

Written from the description of MEMIT and from the equations, without the engine. One fact at a
time; every step runs the whole model over all tokens of the fact's rows, LM head included; the
keys and states of every layer come from whole forward passes; the solve is over all neurons, and
nothing is cached. The benchmark measures against it.
"""

import time
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ece.config import Config
from ece.descent import step_sizes
from ece.facts import Fact, locate, pad
from ece.hooks import capture
from ece.model import sites
from ece.objective import whole


def state(model: nn.Module, tokenizer, fact: Fact, layer: int) -> Float[Tensor, " model"]:
    """Read the state after block `layer` at the bare prompt's subject-last token."""
    ids, at = locate(tokenizer, fact.prompt, fact.subject)
    row = torch.tensor([ids], device=model.get_input_embeddings().weight.device)
    return model(row, output_hidden_states=True).hidden_states[layer + 1][0, at].float()


def descend(
    model: nn.Module, tokenizer, fact: Fact, templates: tuple[str, ...], config: Config
) -> tuple[Float[Tensor, " model"], list[float]]:
    """Find the value of one fact; returns it with the NLL before each step and after the last.

    Adam runs from zero. A value longer than the clamp allows is shortened to it.
    """
    layer, part = config.layers[-1], whole(model, tokenizer, fact, 0, templates, config.layers[-1])
    norm = state(model, tokenizer, fact, layer).norm()
    value, curve = torch.zeros(model.config.hidden_size, device=norm.device), []
    part = replace(part, usual=part.essence(part.log_probs(value[None])))
    rate = float(step_sizes(norm[None], len(value), config))
    adam = torch.optim.Adam([value.requires_grad_()], lr=rate)
    for step in range(config.steps + 1):
        nll, kl = part.losses(value[None])
        curve.append(float(nll.detach()))
        if step == config.steps or (config.stop is not None and curve[-1] < config.stop):
            break
        adam.zero_grad()
        decay = config.weight_decay * value.norm() / norm**2
        (nll[0] + config.kl_factor * kl[0] + decay).backward()
        adam.step()
        with torch.no_grad():
            value.mul_((config.clamp * norm / value.norm()).clamp(max=1))
    return value.detach(), curve


def key(
    model: nn.Module, tokenizer, fact: Fact, templates: tuple[str, ...], layer: int
) -> Float[Tensor, " ff"]:
    """Read the fact's key: half the bare prompt's, half the mean over the prefixed ones."""
    placed = [locate(tokenizer, t.replace("{}", fact.prompt), fact.subject) for t in templates]
    ids, mask = pad([ids for ids, _ in placed])
    device = model.get_input_embeddings().weight.device
    with capture(sites(model, (layer,))) as found:
        model(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False)
    keys = found[layer][torch.arange(len(placed)), torch.tensor([at for _, at in placed])]
    return keys[0] if len(keys) == 1 else keys[0] / 2 + keys[1:].mean(0) / 2


@torch.no_grad()
def write(
    model: nn.Module, tokenizer, facts, templates, z, moments, config: Config
) -> dict[str, float]:
    """Write each layer's share in turn, with the keys of the model as it is then; -> seconds."""
    seconds, last = {"keys": 0.0, "solve": 0.0}, config.layers[-1]
    for i, layer in enumerate(config.layers):
        began = time.perf_counter()
        K = torch.stack([key(model, tokenizer, f, templates, layer) for f in facts])
        H = torch.stack([state(model, tokenizer, f, last) for f in facts])
        K, R = K.double(), (z - H).double() / (len(config.layers) - i)
        middle = time.perf_counter()
        system = config.lam * moments[layer].to(K) + K.T @ K
        system.diagonal().add_(config.ridge * config.lam * moments[layer].diagonal().mean())
        update = torch.linalg.solve(system, K.T @ R).T
        weight = sites(model, (layer,))[0].weight
        weight.add_(update.to(weight))
        seconds["keys"] += middle - began
        seconds["solve"] += time.perf_counter() - middle
    return seconds


def memit(
    model: nn.Module, tokenizer, facts: list[Fact], templates, moments, config: Config
) -> tuple[list[int], dict[str, float]]:
    """Run MEMIT as published: values one by one, then each layer in turn; -> steps, seconds."""
    began, last = time.perf_counter(), config.layers[-1]
    z, steps = [], []
    for fact in facts:
        value, curve = descend(model, tokenizer, fact, templates, config)
        with torch.no_grad():
            z.append(state(model, tokenizer, fact, last) + value)
        steps.append(len(curve) - 1)
    values = time.perf_counter() - began
    seconds = write(model, tokenizer, facts, templates, torch.stack(z), moments, config)
    return steps, {"values": values, **seconds}
