"""The published way, as plainly as it can be said: the twin that the fast paths must equal.

Written from the description of MEMIT and from the equations, sharing nothing with the engine but
ids and hooks. One fact at a time; every step runs the whole model over every token of the fact's
rows, LM head included; every layer's keys and states come from whole forwards again; the solve
is over all neurons. The benchmark measures against it.
"""

import time
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import kl_div

from ece.config import Config
from ece.facts import Fact, locate, pad, target_ids
from ece.hooks import add_at, capture
from ece.model import Site, sites


@dataclass(frozen=True)
class Rows:
    """One fact under every context with its target, and "{subject} is a" as the last row."""

    ids: Int[Tensor, "row token"]
    mask: Tensor
    at: Int[Tensor, " row"]
    """The subject's last token."""
    first: list[int]
    """Per context, the token that predicts the target's first."""
    target: list[int]


def rows_of(model: nn.Module, tokenizer, fact: Fact, templates: tuple[str, ...]) -> Rows:
    """The fact's rows on the model's device."""
    device = model.get_input_embeddings().weight.device
    target = target_ids(tokenizer, fact.target)
    placed = [locate(tokenizer, t.replace("{}", fact.prompt), fact.subject) for t in templates]
    essence, end = locate(tokenizer, "{} is a", fact.subject)
    rows = [ids + target for ids, _ in placed] + [essence]
    ids, mask = (part.to(device) for part in pad(rows))
    at = torch.tensor([at for _, at in placed] + [end], device=device)
    return Rows(ids, mask.long(), at, [len(ids) - 1 for ids, _ in placed], target)


def log_probs(
    model: nn.Module, rows: Rows, site: Site, value: Float[Tensor, " model"]
) -> Float[Tensor, "row token vocab"]:
    """Log-probabilities everywhere, with `value` added at the subject's last token."""
    with add_at(site, rows.at, value.expand(len(rows.at), -1)):
        logits = model(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits
    return logits.float().log_softmax(-1)


def nll_of(rows: Rows, log_p: Tensor) -> Tensor:
    """Mean over contexts of the target's NLL per token."""
    losses = [
        -sum(log_p[i, first + j, t] for j, t in enumerate(rows.target)) / len(rows.target)
        for i, first in enumerate(rows.first)
    ]
    return sum(losses) / len(losses)


def loss(
    model: nn.Module,
    rows: Rows,
    site: Site,
    value: Tensor,
    norm: Tensor,
    usual: Tensor,
    config: Config,
) -> tuple[Tensor, Tensor]:
    """The whole target loss, and its NLL part; `usual` is what followed the essence row."""
    log_p = log_probs(model, rows, site, value)
    told = nll_of(rows, log_p)
    kl = kl_div(usual, essence(rows, log_p), log_target=True, reduction="sum")
    decay = config.weight_decay * value.norm() / norm**2
    return told + config.kl_factor * kl + decay, told.detach()


def essence(rows: Rows, log_p: Tensor) -> Tensor:
    """Log-probabilities after "{subject} is a"."""
    return log_p[-1, int(rows.mask[-1].sum()) - 1]


def state(model: nn.Module, tokenizer, fact: Fact, layer: int) -> Float[Tensor, " model"]:
    """The stream after block `layer` at the bare prompt's subject-last token."""
    ids, at = locate(tokenizer, fact.prompt, fact.subject)
    row = torch.tensor([ids], device=model.get_input_embeddings().weight.device)
    return model(row, output_hidden_states=True).hidden_states[layer + 1][0, at].float()


def descend(
    model: nn.Module,
    tokenizer,
    facts: list[Fact],
    templates: tuple[str, ...],
    config: Config,
    layer: int,
    steps: int,
    start: Float[Tensor, " model"],
) -> tuple[Float[Tensor, " model"], list[float]]:
    """A value shared by `facts` (mostly one), from `start`, on their mean loss; NLL per step."""
    site = sites(model, (layer,))[0]
    norms = [state(model, tokenizer, fact, layer).norm() for fact in facts]
    longest = config.clamp * sum(norms) / len(norms)
    rows = [rows_of(model, tokenizer, fact, templates) for fact in facts]
    zero = torch.zeros_like(start)
    usual = [essence(r, log_probs(model, r, site, zero)).detach() for r in rows]
    value = start * (longest / start.norm()).clamp(max=1) if start.norm() > 0 else start
    value = value.clone().requires_grad_()
    adam, record = torch.optim.Adam([value], lr=config.lr), []
    for step in range(steps + 1):
        parts = [
            loss(model, r, site, value, norm, known, config)
            for r, norm, known in zip(rows, norms, usual, strict=True)
        ]
        record.append(sum(float(told) for _, told in parts) / len(parts))
        if step == steps or (config.stop is not None and record[-1] < config.stop):
            break
        adam.zero_grad()
        (sum(whole for whole, _ in parts) / len(parts)).backward()
        adam.step()
        with torch.no_grad():
            if value.norm() > longest:
                value.mul_(longest / value.norm())
    return value.detach(), record


def key(
    model: nn.Module, tokenizer, fact: Fact, templates: tuple[str, ...], layer: int, how: str
) -> Float[Tensor, " ff"]:
    """Half the bare key, half the mean of the prefixed ones."""
    placed = [locate(tokenizer, t.replace("{}", fact.prompt), fact.subject) for t in templates]
    ids, mask = pad([ids for ids, _ in placed])
    device = model.get_input_embeddings().weight.device
    with capture(sites(model, (layer,))) as found:
        model(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False)
    keys = found[layer][torch.arange(len(placed)), torch.tensor([at for _, at in placed])]
    if how == "bare" or len(keys) == 1:
        return keys[0]
    return keys[0] / 2 + keys[1:].mean(0) / 2


@torch.no_grad()
def write(model: nn.Module, tokenizer, facts, templates, z, moments, config: Config) -> dict:
    """Each layer's share in turn, with the keys of the model as it is then; -> seconds."""
    seconds, last = {"keys": 0.0, "solve": 0.0}, config.layers[-1]
    for i, layer in enumerate(config.layers):
        began = time.perf_counter()
        K = torch.stack([key(model, tokenizer, f, templates, layer, config.keys) for f in facts])
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
    """MEMIT, from its paper: values one by one, then each layer in turn; -> steps, seconds."""
    began, last = time.perf_counter(), config.layers[-1]
    z, steps = [], []
    for fact in facts:
        zero = torch.zeros(model.config.hidden_size, device=moments[last].device)
        value, record = descend(
            model, tokenizer, [fact], templates, config, last, config.steps, zero
        )
        with torch.no_grad():
            z.append(state(model, tokenizer, fact, last) + value)
        steps.append(len(record) - 1)
    values = time.perf_counter() - began
    written = write(model, tokenizer, facts, templates, torch.stack(z), moments, config)
    return steps, {"values": values, **written}
