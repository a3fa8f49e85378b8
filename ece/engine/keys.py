"""Read keys and states at the subjects' last tokens, layer by layer, in one pass."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ece.engine.grouping import by_length
from ece.engine.prefix import Passed, Walk, advance, common, embed, rewritten, through
from ece.facts import Fact
from ece.hooks import in_projection_units
from ece.model import sites
from ece.objective import subject_rows


@dataclass(frozen=True)
class Reader:
    """Rows on their way through the model; read in increasing order of layers."""

    walk: Walk
    edits: int
    passed: Passed | None = None
    """The walk behind the layer read last, with what it takes to correct it once written."""

    def read(
        self, layer: int, at: int
    ) -> tuple[Float[Tensor, "edit context ff"], Float[Tensor, "edit model"], "Reader"]:
        """Keys of all contexts at `layer`, the bare prompts' states after block `at`, the next.

        States are `measured`. Only the bare rows go on to `at`.
        """
        passed = through(advance(self.walk, layer))
        walk = passed.walk
        order = torch.cat([part.rows for part in walk.parts]).argsort()
        ends = [keys[torch.arange(len(part.last), device=keys.device), part.last.to(keys.device)]
                for part, keys in zip(walk.parts, passed.parts, strict=True)]  # fmt: skip
        keys = torch.cat(ends)[order.to(ends[0].device)]
        each = len(keys) // self.edits
        bare = advance(walk.only(torch.arange(0, len(keys), each)), at + 1)
        states = torch.cat([part.at_last() for part in bare.parts])
        back = torch.cat([part.rows for part in bare.parts]).argsort()
        keys, site = keys.unflatten(0, (self.edits, each)), sites(walk.model, (layer,))[0]
        found = in_projection_units(site, passed.gain, keys[:, 0], states[back])
        return keys, found, replace(self, walk=walk, passed=passed)

    def after(self, change: Float[Tensor, "model ff"]) -> "Reader":
        """Go on once `change` was added to the layer just read."""
        return replace(self, walk=rewritten(self.passed, change), passed=None)


def reader(
    model: nn.Module, tokenizer, facts: list[Fact], templates: tuple[str, ...], max_tokens: int
) -> Reader:
    """Start all rows before block 0, those of one template sharing what they begin with."""
    rows = subject_rows(tokenizer, facts, templates)
    kinds = list(range(len(templates))) * len(facts)
    room = [len(row) - 1 for row in rows]
    heads = common(rows, kinds, room)
    sizes = [len(row) - len(heads[kind]) for row, kind in zip(rows, kinds, strict=True)]
    return Reader(embed(model, rows, kinds, room, by_length(sizes, max_tokens)), len(facts))
