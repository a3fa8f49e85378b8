"""BLUE (2025): MEMIT with history on the first and the last edit layer, each with own values."""

from typing import Literal

from torch import Tensor

from ece.config import Config
from ece.errors import checked
from ece.strategy import Strategy


@checked
class Blue(Strategy):
    """Values enter at two layers, and each layer writes all of its own residual."""

    history: Literal[True] = True
    """BLUE keeps the keys of earlier batches."""

    chooses = False

    def entries(self, config: Config) -> tuple[int, ...]:
        """Layers where values enter: the first and the last edit layer."""
        return tuple(dict.fromkeys((config.layers[0], config.layers[-1])))

    def spread(self, residual: Tensor, left: int) -> Tensor:
        """Give the layer all of its residual."""
        return residual
