"""How the editor goes about a batch: as ECE does. A rival overrides the steps it does otherwise."""

from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ece.config import Config
from ece.errors import ConfigError, checked
from ece.facts import Fact
from ece.scoring import batch_set, scores
from ece.solver import Knowledge, Update, solve


@checked
class Strategy:
    """ECE itself: neurons by score, the sub-matrix solve, residuals spread evenly.

    Rivals are subclasses (`ece.baselines`); the editor calls these methods and knows no names.
    """

    history: bool = True
    """Whether keys of earlier batches count as knowledge to keep."""
    values_from: Literal["original", "current", "again"] = "original"
    """Weights that values come from: "original" (before the sequence), "current", or "again":
    current for facts whose subject an earlier batch edited, original for the others."""

    batch: ClassVar[int | None] = None
    """Facts written at once, where the method itself decides that."""
    chooses: ClassVar[bool] = True
    """Whether a choice of neurons is part of the method."""

    def check(self, config: Config) -> None:
        """Raise `ConfigError` for settings that this strategy cannot follow."""
        if not self.chooses and config.scorer != "all":
            raise ConfigError(f"setting 'scorer' is '{config.scorer}'; {type(self).__name__} "
                              "writes to all neurons, so set it to 'all'")  # fmt: skip

    def unused(self, config: Config) -> tuple[str, ...]:
        """Name settings that have no effect beside the others."""
        own, every = config.shared == "learned", config.scorer == "all"
        names = {"own_steps": True, "shared": not own, "p": every} if not config.clusters else {}
        return tuple(name for name, idle in names.items() if idle)

    def entries(self, config: Config) -> tuple[int, ...]:
        """Layers where values enter: the last edit layer."""
        return config.layers[-1:]

    def choose(
        self, K: Float[Tensor, "edit ff"], W: Float[Tensor, "model ff"], config: Config
    ) -> Bool[Tensor, " ff"]:
        """Choose the batch's neurons at one layer (Eq 5-8)."""
        share = 1.0 if config.scorer == "all" else config.p
        return batch_set(scores(config.scorer, K, W), share)

    def spread(self, residual: Float[Tensor, "edit model"], left: int) -> Tensor:
        """Give one of the `left` layers still to be written its share of the residual."""
        return residual / left

    def beside(
        self, model: nn.Module, tokenizer, facts: list[Fact], layer: int
    ) -> Float[Tensor, "other ff"] | None:
        """Read keys of the batch that count as old ones; None: none."""
        return None

    def prepare(self, moment: Float[Tensor, "ff ff"], config: Config) -> Tensor | None:
        """Compute once per layer and sequence what every batch uses again."""
        return None

    def solve(self, R: Tensor, K: Tensor, known: Knowledge, config: Config) -> Update:
        """Solve for one layer's update (Eq 14)."""
        return solve(R, K, known, config.lam, config.ridge)

    def finish(
        self, delta: Float[Tensor, "model ff"], W: Float[Tensor, "model ff"]
    ) -> Float[Tensor, "model ff"]:
        """Change an update before it is written."""
        return delta

    def remember(self, model: nn.Module, config: Config) -> dict[int, Tensor]:
        """Copy what `view` needs of the unedited model."""
        return {}

    def view(self, model: nn.Module, remembered: dict) -> AbstractContextManager[nn.Module]:
        """Give the model as it is to be used after the edits so far."""
        return nullcontext(model)
