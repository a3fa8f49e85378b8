"""Facts made ready for descent: everything below and before their values is run once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ece.config import Config
from ece.engine.grouping import ENOUGH, by_length
from ece.engine.loss import Chunk, head_of, likeliest, log_probs, merged, nll_of
from ece.engine.prefix import advance, common, embed, pass_heads, through
from ece.engine.suffix import Upper, lift, stacked
from ece.facts import Fact, locate_all, target_ids
from ece.hooks import in_projection_units
from ece.model import sites
from ece.objective import ESSENCE, Objective, mix


@dataclass(frozen=True)
class _Rows:
    """What the facts' values are measured on, fact by fact: contexts with target, then essence."""

    ids: list[list[int]]
    """The rows' tokens."""
    last: list[int]
    """Where each row's subject ends."""
    each: int
    """Rows of one fact."""

    def after(self, row: int) -> int:
        """Tokens that a step runs: from the subject's last on."""
        return len(self.ids[row]) - self.last[row]


@dataclass(frozen=True)
class _Lifted:
    """Rows that ran together up to the layer where values enter."""

    rows: Int[Tensor, " row"]
    """Which rows these are."""
    upper: Upper
    """The run of these rows above the layer."""
    keys: Float[Tensor, "row ff"]
    """Keys at the layer, at the subjects' last tokens."""


def prepare(
    model: nn.Module,
    tokenizer,
    facts: list[Fact],
    templates: tuple[str, ...],
    config: Config,
    layer: int,
) -> Objective:
    """Prepare the loss (Eq 11-12): run what is below and before the values once.

    Below the values rows run with others of their own length; above, where every step runs
    them, fact by fact with others of as long an end.
    """
    rows = _rows(tokenizer, facts, templates)
    lifted, each = list(_lifted(model, rows, layer, config.max_tokens)), rows.each
    spans = [range(i, i + each - 1) for i in range(0, len(rows.ids), each)]  # essence apart
    ends = [len(span) * max(map(rows.after, span)) for span in spans]
    first, made, head = [], [], head_of(model)
    for members in map(sorted, by_length(ends, config.max_tokens)):
        upper, keys = _regrouped(lifted, rows, [row for i in members for row in spans[i]])
        targets = [target_ids(tokenizer, facts[i].target) for i in members]
        last = torch.tensor([[rows.after(row) - 1 for row in spans[i]] for i in members])
        essence = _regrouped(lifted, rows, [spans[i].stop for i in members])[0]
        end = torch.tensor([rows.after(spans[i].stop) - 1 for i in members])
        chunk = _chunk(members, (upper, essence), head, (last, end), targets)
        bare = keys[:: each - 1], upper.hidden[:: each - 1, 0]
        hidden = in_projection_units(sites(model, (layer,))[0], upper.gain, *bare)
        with torch.no_grad():
            picked, usual = log_probs(chunk, torch.zeros_like(hidden))
        made.append(replace(chunk, usual=usual))
        key = mix(keys.unflatten(0, (-1, each - 1)))
        first.append((hidden, key, nll_of(chunk, picked), likeliest(chunk, picked)[:, 0]))
    back = torch.cat([chunk.facts for chunk in made]).argsort()
    columns = zip(*first, strict=True)
    merge = partial(merged, most=min(ENOUGH, config.max_tokens))
    return Objective(layer, made, *(torch.cat(parts)[back] for parts in columns), merge=merge)


@torch.no_grad()
def _lifted(model: nn.Module, rows: _Rows, layer: int, max_tokens: int) -> Iterator[_Lifted]:
    """Run the rows past block `layer`, in parts of like length."""
    kinds = [i % rows.each for i in range(len(rows.ids))]
    heads = [len(head) for head in common(rows.ids, kinds, rows.last)]
    own = [at - heads[kind] for at, kind in zip(rows.last, kinds, strict=True)]
    sizes = [(before, rows.after(i)) for i, before in enumerate(own)]
    parts = by_length(sizes, max_tokens)
    passed = through(advance(embed(model, rows.ids, kinds, rows.last, parts), layer))
    above = pass_heads(passed.entry)[1]
    for part, keys in zip(passed.entry.parts, passed.parts, strict=True):
        begin = torch.tensor(own, device=part.rows.device)[part.rows]
        here = keys.to(begin.device)[torch.arange(len(begin), device=begin.device), begin]
        yield _Lifted(part.rows, lift(passed, part, above, begin), here)


def _regrouped(
    lifted: list[_Lifted], rows: _Rows, wanted: list[int]
) -> tuple[Upper, Float[Tensor, "row ff"]]:
    """Upper run and keys of the rows `wanted`, which are in order."""
    width, some = max(map(rows.after, wanted)), torch.tensor(wanted)
    held = [(part, torch.isin(part.rows, some.to(part.rows)).nonzero()[:, 0]) for part in lifted]
    found = [_Lifted(part.rows[at], part.upper.take(at, width), part.keys[at])
             for part, at in held if len(at)]  # fmt: skip
    order = torch.cat([part.rows for part in found]).argsort()
    upper = stacked([part.upper for part in found]).take(order)
    return upper, torch.cat([part.keys for part in found])[order]


def _rows(tokenizer, facts: list[Fact], templates: tuple[str, ...]) -> _Rows:
    """Encode each fact's contexts with its target, then its essence."""
    pairs = [
        (template, fact.subject)
        for fact in facts
        for template in (*(t.replace("{}", fact.prompt) for t in templates), ESSENCE)
    ]
    rows, each = locate_all(tokenizer, pairs), len(templates) + 1
    for i, fact in enumerate(facts):
        given = target_ids(tokenizer, fact.target)[:-1]
        for j in range(i * each, (i + 1) * each - 1):
            rows[j] = rows[j][0] + given, rows[j][1]
    return _Rows(*map(list, zip(*rows, strict=True)), each)


def _chunk(
    members: list[int], uppers: tuple[Upper, Upper], head: Callable, ends: tuple[Tensor, Tensor],
    targets: list[list[int]],
) -> Chunk:  # fmt: skip
    """Make the chunk of facts `members`, without its usual log-probabilities.

    `ends` are the last tokens of the contexts' rows `[fact, row]` and of the essences', counted
    from their subject's last.
    """
    width, sizes = max(map(len, targets)), torch.tensor([len(t) for t in targets])
    filled = torch.tensor([t + t[-1:] * (width - len(t)) for t in targets])
    place = torch.minimum(torch.arange(width), sizes[:, None] - 1)
    share = (torch.arange(width) < sizes[:, None]) / sizes[:, None]
    # A context row ends with all target tokens but the last: its end predicts the last one.
    where = (ends[0] - sizes[:, None] + 1)[..., None] + place[:, None]
    parts = (torch.tensor(members), where, filled, share, ends[1])
    at, *rest = (part.to(uppers[0].hidden.device) for part in parts)
    return Chunk(at, *uppers, head, *rest)
