"""The slow, obvious twins of the editor's fast paths.

One fact at a time, the whole model, every position, a new forward for everything; written
from the equations, sharing no code with `ece` beyond ids and hooks.
"""

import torch
from torch.nn.functional import kl_div

from ece.facts import encode, locate, target_ids
from ece.hooks import add_at, capture
from ece.model import sites


def forward(model, ids, site, at, value):
    """Logits of one row with `value` added at token `at` of the site's output."""
    with add_at(site, torch.tensor([at]), value[None]):
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def nll(model, tokenizer, fact, templates, site, value):
    """Mean over templates of the target's NLL per token."""
    target, losses = target_ids(tokenizer, fact.target), []
    for template in templates:
        ids, at = locate(tokenizer, template.replace("{}", fact.prompt), fact.subject)
        log_p = forward(model, ids + target, site, at, value)
        places = range(len(ids) - 1, len(ids) - 1 + len(target))
        losses.append(-sum(log_p[i, t] for i, t in zip(places, target, strict=True)) / len(target))
    return sum(losses) / len(losses)


def loss(model, tokenizer, fact, templates, site, value, hidden, config):
    """The whole target loss, and its NLL part."""
    ids, at = locate(tokenizer, "{} is a", fact.subject)
    usual = forward(model, ids, site, at, torch.zeros_like(value))[-1].detach()
    essence = forward(model, ids, site, at, value)[-1]
    told = nll(model, tokenizer, fact, templates, site, value)
    kl = kl_div(usual, essence, log_target=True, reduction="sum")
    decay = config.weight_decay * value.norm() / hidden.norm() ** 2
    return told + config.kl_factor * kl + decay, told.detach()


def state(model, tokenizer, fact, layer):
    """The stream after block `layer` at the bare prompt's subject-last token."""
    ids, at = locate(tokenizer, fact.prompt, fact.subject)
    out = model(torch.tensor([ids]), output_hidden_states=True)
    return out.hidden_states[layer + 1][0, at]


def clamp(value, hidden, config):
    longest = config.clamp * hidden.norm()
    return value * (longest / value.norm()) if value.norm() > longest else value


def descend(model, tokenizer, facts, templates, config, layer, steps, start):
    """A value shared by `facts` (mostly one), from `start`, on their mean loss."""
    site = sites(model, (layer,))[0]
    hidden = [state(model, tokenizer, fact, layer) for fact in facts]
    norm = sum(h.norm() for h in hidden) / len(hidden)
    longest = config.clamp * norm
    value = start * (longest / start.norm()).clamp(max=1) if start.norm() > 0 else start
    value = value.clone().requires_grad_()
    adam, record = torch.optim.Adam([value], lr=config.lr), []
    for step in range(steps + 1):
        parts = [
            loss(model, tokenizer, fact, templates, site, value, h, config)
            for fact, h in zip(facts, hidden, strict=True)
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


def key(model, tokenizer, fact, templates, layer, how):
    """Half the bare key, half the mean of the prefixed ones."""
    keys = []
    for template in templates:
        ids, at = locate(tokenizer, template.replace("{}", fact.prompt), fact.subject)
        with capture(sites(model, (layer,))) as found:
            model(torch.tensor([ids]))
        keys.append(found[layer][0, at])
    if how == "bare" or len(keys) == 1:
        return keys[0]
    return keys[0] / 2 + torch.stack(keys[1:]).mean(0) / 2


def memit(model, tokenizer, facts, templates, moments, config):
    """MEMIT, from its paper: values one by one, then each layer's share in turn."""
    last = config.layers[-1]
    z = []
    for fact in facts:
        zero = torch.zeros(model.config.hidden_size)
        value, _ = descend(model, tokenizer, [fact], templates, config, last, config.steps, zero)
        z.append(state(model, tokenizer, fact, last) + value)
    for i, layer in enumerate(config.layers):
        K = torch.stack([key(model, tokenizer, f, templates, layer, config.keys) for f in facts])
        H = torch.stack([state(model, tokenizer, f, last) for f in facts])
        K, R = K.double(), (torch.stack(z) - H).double() / (len(config.layers) - i)
        system = config.lam * moments[layer] + K.T @ K
        update = torch.linalg.solve(system, K.T @ R).T
        sites(model, (layer,))[0].weight.add_(update.float())


def probability(model, tokenizer, fact):
    """Probability per token of the target after the bare prompt, from a plain forward."""
    ids, target = encode(tokenizer, fact.text), target_ids(tokenizer, fact.target)
    log_p = model(torch.tensor([ids + target])).logits[0].log_softmax(-1)
    picked = [log_p[len(ids) - 1 + j, t] for j, t in enumerate(target)]
    return float(torch.stack(picked).mean().exp())
