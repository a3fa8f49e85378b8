"""Find where a model keeps its facts: swap one state and see whose answer comes out.

The interchange form of causal tracing (Meng et al. 2022): two facts of one relation, one
prompt each; the state of the second prompt at some token and layer is put into the first.
If the answer becomes the second fact's, that state carried the fact.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ece.errors import ConfigError, ModelError
from ece.facts import Fact, encode, locate, pad, target_ids
from ece.hooks import add_at, gain, states_at
from ece.model import sites

SITES = ("subject", "last")
"""The two tokens that can be swapped: the subject's last and the prompt's last."""


@torch.no_grad()
def swap(
    model, tokenizer, pairs: Sequence[tuple[Fact, Fact]], at: str = "subject"
) -> Float[Tensor, " layer"]:
    """Measure the share of pairs whose answer becomes the second fact's, per layer swapped.

    pairs: facts whose `true` objects differ and are what the model answers before.
    at: "subject" or "last", the token whose state after the block is exchanged.
    """
    device = model.get_input_embeddings().weight.device
    here, there = zip(*pairs, strict=True)
    rows_a, rows_b = ([encode(tokenizer, f.text) for f in facts] for facts in (here, there))
    ids, mask = (t.to(device) for t in pad(rows_a))
    at_a, at_b = (_positions(tokenizer, facts, at, device) for facts in (here, there))
    ends = torch.tensor([len(row) - 1 for row in rows_a], device=device)
    each = torch.arange(len(pairs), device=device)
    answers = [target_ids(tokenizer, fact.true)[0] for fact in there]
    wanted = torch.tensor(answers, device=device)
    shares = []
    for site in sites(model):
        if (factor := gain(model, site.layer)) is None:
            raise ModelError("a norm follows this model's MLPs, so that no state can be set there; "
                             "trace a model of another family")  # fmt: skip
        # Adding the difference to the MLP's output replaces the block's output there.
        new = states_at(model, rows_b, site.layer)[each, at_b]
        delta = new - states_at(model, rows_a, site.layer)[each, at_a]
        with add_at(site, at_a, delta / factor):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        shares.append((logits[each, ends].argmax(-1) == wanted).float().mean())
    return torch.stack(shares).cpu()


def _positions(tokenizer, facts: Sequence[Fact], at: str, device) -> Tensor:
    if at not in SITES:
        raise ConfigError(f"at is {at!r}; it takes one of {', '.join(SITES)}")
    if at == "subject":
        places = [locate(tokenizer, fact.prompt, fact.subject)[1] for fact in facts]
    else:
        places = [len(encode(tokenizer, fact.text)) - 1 for fact in facts]
    return torch.tensor(places, device=device)
