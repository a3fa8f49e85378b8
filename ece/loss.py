"""The loss of a value: facts turned into rows once, then measured at many values.

NLL of the target over the contexts, and the KL divergence of what follows
"{subject} is a" from what followed it before the edit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import kl_div

from ece.config import Config
from ece.facts import Fact, by_length, locate_all, target_ids
from ece.hooks import capture
from ece.keys import mix
from ece.model import sites
from ece.upper import Upper, lift
from ece.walk import Part, Walk, advance, pass_heads, run, start

ESSENCE = "{} is a"


@dataclass(frozen=True)
class Chunk:
    """Facts measured together; each has its contexts' rows and then its essence row."""

    facts: Int[Tensor, " edit"]
    """Which facts of the problem these are."""
    upper: Upper
    """Their rows, fact by fact."""
    where: Int[Tensor, "edit context place"]
    """Tokens (counted from the subject's last) that predict the target's tokens."""
    targets: Int[Tensor, "edit place"]
    """The target's ids; short targets are filled up, with share 0."""
    share: Float[Tensor, "edit place"]
    """One over the target's length on its tokens, so that NLL is per token."""
    end: Int[Tensor, " edit"]
    """The last token of the essence row."""
    usual: Float[Tensor, "edit vocab"] | None = None
    """Log-probabilities there before the edit."""

    def take(self, keep: Int[Tensor, " kept"]) -> "Chunk":
        """The same for some of the facts (places in the chunk)."""
        each = self.where.shape[1] + 1
        rows = (keep[:, None] * each + torch.arange(each, device=keep.device)).flatten()
        fields = ("facts", "where", "targets", "share", "end", "usual")
        kept = {name: getattr(self, name)[keep] for name in fields}
        return replace(self, upper=self.upper.take(rows), **kept)


@dataclass(frozen=True)
class Problem:
    """All facts of a call, ready for descent at `layer`."""

    layer: int
    """The layer where values enter."""
    chunks: list[Chunk]
    """The facts in groups of like length, each within the memory budget."""
    hidden: Float[Tensor, "edit model"]
    """$h$: state after `layer` at the bare prompt's subject-last token, float32."""
    keys: Float[Tensor, "edit ff"]
    """Keys at `layer`, mixed as configured."""
    nll: Float[Tensor, " edit"]
    """NLL of the targets before any change (nats per token, mean over contexts)."""
    holds: Bool[Tensor, " edit"]
    """Whether the bare prompt already goes on with the target."""

    def take(self, facts: Int[Tensor, " kept"]) -> "Problem":
        """The problem of some facts, in the order given."""
        place = torch.full((len(self.hidden),), -1, device=facts.device)
        place[facts] = torch.arange(len(facts), device=facts.device)
        chunks = []
        for chunk in self.chunks:
            keep = (place[chunk.facts] >= 0).nonzero()[:, 0]
            if len(keep):
                part = chunk.take(keep)
                chunks.append(replace(part, facts=place[part.facts]))
        fields = ("hidden", "keys", "nll", "holds")
        return replace(self, chunks=chunks, **{name: getattr(self, name)[facts] for name in fields})


def prepare(
    model: nn.Module,
    tokenizer,
    facts: list[Fact],
    templates: tuple[str, ...],
    config: Config,
    layer: int,
) -> Problem:
    """Run everything below and before the values once; see `ece.upper`."""
    flat, each = _rows(tokenizer, facts, templates), len(templates) + 1
    groups = [flat[i : i + each] for i in range(0, len(flat), each)]
    sizes = [each * max(len(ids) - at for ids, at in group) for group in groups]
    members = by_length(sizes, config.max_tokens)
    chunks = [[each * i + j for i in group for j in range(each)] for group in members]
    ids, last = map(list, zip(*flat, strict=True))
    kinds = list(range(each)) * len(facts)
    walk = advance(start(model, ids, kinds, last, chunks), layer)
    first, made = [], []
    for group, (part, keys, upper, begin) in zip(members, _lifted(walk, last), strict=True):
        targets = [target_ids(tokenizer, facts[i].target) for i in group]
        chunk = _chunk(group, upper, part.last - begin, targets)
        hidden = upper.hidden[::each, 0].float()
        with torch.no_grad():
            picked, usual = log_probs(chunk, torch.zeros_like(hidden))
        made.append(replace(chunk, usual=usual))
        key = mix(keys.unflatten(0, (-1, each))[:, :-1], config.keys)
        first.append((hidden, key, nll_of(chunk, picked), wins(chunk, picked)[:, 0]))
    back = torch.cat([chunk.facts for chunk in made]).argsort()
    columns = zip(*first, strict=True)
    return Problem(layer, made, *(torch.cat(parts)[back] for parts in columns))


@torch.no_grad()
def _lifted(walk: Walk, last: list[int]) -> Iterator[tuple[Part, Tensor, Upper, Tensor]]:
    """Per part: itself, the keys at the subjects' last tokens, its upper run, where that begins."""
    layer = walk.layer
    heads, past = pass_heads(walk, layer)
    over = replace(walk, layer=layer + 1, heads=heads)
    above = pass_heads(over)[1]
    at = torch.tensor(last, device=heads.length.device)
    for part in walk.parts:
        begin = at[part.rows] - heads.length[part.head]
        with capture(sites(walk.model, (layer,))) as found:
            states = run(walk, part, past, layer)
        keys = found[layer][torch.arange(len(begin), device=begin.device), begin]
        yield part, keys, lift(over, replace(part, states=states), above, begin), begin


def _rows(tokenizer, facts: list[Fact], templates: tuple[str, ...]) -> list[tuple[list[int], int]]:
    """`(ids, subject's last token)` of each fact's contexts with the target, then its essence."""
    pairs = [
        (template, fact.subject)
        for fact in facts
        for template in (*(t.replace("{}", fact.prompt) for t in templates), ESSENCE)
    ]
    rows, each = locate_all(tokenizer, pairs), len(templates) + 1
    for i, fact in enumerate(facts):
        told = target_ids(tokenizer, fact.target)[:-1]
        for j in range(i * each, (i + 1) * each - 1):
            rows[j] = rows[j][0] + told, rows[j][1]
    return rows


def _chunk(members: list[int], upper: Upper, ends: Tensor, targets: list[list[int]]) -> Chunk:
    """The chunk of facts `members`, without its usual log-probabilities.

    `ends[row]` is a row's last token, counted from its subject's last.
    """
    width, sizes = max(map(len, targets)), torch.tensor([len(t) for t in targets])
    filled = torch.tensor([t + t[-1:] * (width - len(t)) for t in targets])
    place = torch.minimum(torch.arange(width), sizes[:, None] - 1)
    share = (torch.arange(width) < sizes[:, None]) / sizes[:, None]
    last = ends.cpu().unflatten(0, (len(members), -1))
    # A context row ends with all target tokens but the last: its end predicts the last one.
    where = (last[:, :-1] - sizes[:, None] + 1)[..., None] + place[:, None]
    parts = (torch.tensor(members), where, filled, share, last[:, -1])
    at, *rest = (part.to(ends.device) for part in parts)
    return Chunk(at, upper, *rest)


def log_probs(
    chunk: Chunk, total: Float[Tensor, "edit model"]
) -> tuple[Float[Tensor, "edit context place vocab"], Float[Tensor, "edit vocab"]]:
    """Log-probabilities at the target's places and at the essence's end, with values added.

    The LM head runs at these places only.
    """
    edits, contexts, places = chunk.where.shape
    delta = total[:, None].expand(-1, contexts + 1, -1).flatten(0, 1)
    states = chunk.upper.run(delta).unflatten(0, (edits, contexts + 1))
    head = chunk.upper.model.get_output_embeddings()
    index = chunk.where[..., None].expand(-1, -1, -1, states.shape[-1])
    told = states[:, :-1].gather(2, index)
    essence = states[torch.arange(edits, device=states.device), -1, chunk.end]
    return head(told).float().log_softmax(-1), head(essence).float().log_softmax(-1)


def nll_of(
    chunk: Chunk, log_p: Float[Tensor, "edit context place vocab"]
) -> Float[Tensor, " edit"]:
    """Mean over contexts of the targets' NLL per token."""
    index = chunk.targets[:, None, :, None].expand(*log_p.shape[:3], 1)
    picked = log_p.gather(3, index)[..., 0]
    return -(picked * chunk.share[:, None]).sum(2).mean(1)


def kl_of(chunk: Chunk, log_p: Float[Tensor, "edit vocab"]) -> Float[Tensor, " edit"]:
    """KL divergence of the edited from the usual distribution after the essence prompt."""
    return kl_div(chunk.usual, log_p, reduction="none", log_target=True).sum(1)


def wins(
    chunk: Chunk, log_p: Float[Tensor, "edit context place vocab"]
) -> Bool[Tensor, "edit context"]:
    """Whether every target token is the likeliest, per context."""
    right = log_p.argmax(-1) == chunk.targets[:, None]
    return (right | (chunk.share == 0)[:, None]).all(2)
