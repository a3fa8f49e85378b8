"""The settings of the method: one frozen record, checked when it is made."""

from typing import Annotated, Literal

from pydantic import Field

from ece.errors import ConfigError, checked, shown

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, lt=1e12)]
NotNegative = Annotated[float, Field(ge=0, lt=1e12)]
Count = Annotated[int, Field(ge=1, le=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


@checked
class Config:
    """All settings of an edit; `Config(layers=(4, 5, 6), lam=2000.0)` is complete.

    A `ConfigError` names the first setting whose type or range is wrong.
    """

    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Edit layers, increasing, counted from 0; the value enters at the last of them."""
    lam: Positive
    r"""$\lambda$ of Eq 4: weight of the old knowledge's mean $k k^T$, in tokens."""
    lr: Annotated[float, Field(gt=0, le=1e4)] = 0.7
    r"""Learning rate of Adam on the value vector: about the length of its first step, as a
    multiple of $\lVert h\rVert$, unless `lr_unit` says otherwise."""
    lr_unit: Literal["state", "stream"] = "state"
    r"""What `lr` is measured in: the "state", $\lVert h\rVert / \sqrt d$ of each fact, or as
    published the residual "stream", where it is the same number for every state."""
    ridge: NotNegative = 0.0
    r"""Share of the mean diagonal of $\lambda C_0$ added to the diagonal of the system."""
    scorer: Literal["all", "activation", "weight", "residual"] = "residual"
    """Neuron scores: "all" (no choice), "activation" Eq 5, "weight" Eq 6, "residual" Eq 7."""
    p: Share = 0.8
    """$p$ of Eq 8: share of the total score that the chosen neurons carry. With 1 the update
    changes all of them, and facts are clustered by their sets at the default."""
    clusters: Count | None = 10
    """$K$ of Eq 9; None: every fact descends alone, for all of `steps`."""
    shared: Literal["anchor", "mean", "zero", "learned"] = "anchor"
    """Where $U$ comes from: phase 1 descends on the "anchor" or on the "mean" loss of the cluster;
    without phase 1 it is "zero", or "learned" from earlier values (`ece.learned_start`)."""
    steps: Count = 25
    """$T_g$: gradient steps that a fact sees in all."""
    own_steps: Count = 5
    """$T_i$: steps of phase 2, at most `steps`; phase 1 takes `steps - own_steps`."""
    clamp: Positive = 0.75
    r"""Largest length of $U+\delta$, as a multiple of $\lVert h\rVert$."""
    weight_decay: NotNegative = 0.5
    r"""Weight of $\lVert U+\delta\rVert / \lVert h\rVert^2$ in the loss."""
    kl_factor: NotNegative = 0.0625
    """Weight in the loss of KL(edited || unedited) after the prompt "{subject} is a", as in ROME's
    published code."""
    stop: NotNegative | None = None
    """A fact leaves the descent once its NLL (nats per token) is below; None: never."""
    contexts: Annotated[int, Field(ge=0, le=1000)] = 5
    """Random prefixes under which a prompt is also seen, beside the bare prompt."""
    context_tokens: Annotated[int, Field(ge=1, le=1000)] = 10
    """Length of a prefix in tokens."""
    passes: Literal["model", "bfloat16"] = "model"
    """Number format of the passes that find values: the model's own, or "bfloat16", a copy of the
    model; values, keys and the update stay as they are."""
    seed: Seed = 0
    """Seed of the prefixes and of the clustering."""
    max_tokens: Count = 16384
    """Memory budget: tokens (rows times padded length) that one forward pass holds."""

    def __post_init__(self):
        """Check what concerns several settings at once."""
        if list(self.layers) != sorted(set(self.layers)):
            raise ConfigError(f"setting 'layers' is {shown(self.layers)}; it should be in "
                              "increasing order, each once")  # fmt: skip
        if self.own_steps > self.steps:
            raise ConfigError(f"setting 'own_steps' is {self.own_steps}; it should be at most "
                              f"steps = {self.steps}")  # fmt: skip
