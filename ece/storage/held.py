"""Second moments that lie with several processes: each holds those of its own layers, and solves.

    stats = held(stats, crew)           # every process calls it, then edits as before

The process that holds a layer's second moments keeps the layer's history, too, factorises there
and gives all others the update.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ece.covariance import Stats, elsewhere
from ece.engine.parallel import Processes
from ece.solver import Update


@dataclass(frozen=True)
class Held(Stats):
    """One process's part of the second moments; in the place of the others' is nan."""

    crew: Processes | None = None
    digest: str = ""
    """The hash of all of them."""

    def owner(self, layer: int) -> int:
        """Find the process that holds a layer's moments: they are dealt out in turn."""
        return [*self.moments].index(layer) % self.crew.count

    @property
    def own(self) -> tuple[int, ...]:
        """Layers whose moments are here."""
        return tuple(layer for layer in self.moments if self.owner(layer) == self.crew.rank)

    def solved(self, layer: int, solve: Callable[[], Update]) -> Update:
        """Let the layer's owner solve, and all have its update."""
        return Update(*self.crew.result_of(self.owner(layer), solve))

    def whole(self, sums: dict[int, Tensor]) -> dict[int, Tensor]:
        """Bring sums per layer to the first process; the others get nothing."""
        found = {}
        for layer in self.moments:
            none = torch.empty(0)
            total, _ = self.crew.result_of(
                self.owner(layer),
                lambda: (sums.get(layer, none), None),  # noqa: B023
            )
            if self.crew.rank == 0 and len(total):
                found[layer] = total
        return found


def held(stats: Stats, crew: Processes) -> Held:
    """Keep this process's part of second moments that all processes have."""
    layers = [*stats.moments]
    moments = {
        layer: C if layer in layers[crew.rank :: crew.count] else elsewhere(C)
        for layer, C in stats.moments.items()
    }
    return Held(moments, stats.tokens, stats.fingerprint, stats.probe, crew, stats.digest)
