"""The numbers of the method: one frozen record, presets per model, overrides per method."""

from dataclasses import dataclass, fields

from ece.errors import ConfigError

CHOICES = {
    "scorer": ("all", "activation", "weight", "residual"),
    "shared": ("anchor", "mean", "zero"),
    "keys": ("mixed", "bare"),
    "spread": ("even", "boundary"),
    "values_from": ("original", "current", "again"),
}
AT_LEAST_ONE = ("steps", "own_steps", "context_tokens", "undo", "max_tokens")
NOT_NEGATIVE = ("ridge", "weight_decay", "kl_factor", "contexts", "seed")
POSITIVE = ("lr", "clamp", "lam")


@dataclass(frozen=True)
class Config:
    """All settings of an edit; `Config(layers=(0, 1), lr=0.5, lam=300.0)` is complete.

    Values are checked on construction and a `ConfigError` names the field.
    """

    layers: tuple[int, ...]
    """Edit layers, increasing, counted from 0; the value enters at the last of them."""
    lr: float
    """Learning rate of Adam on the value vector, > 0 (units of the residual stream)."""
    lam: float
    r"""$\lambda$ of Eq 4, > 0: weight, in tokens, of the old knowledge's mean $k k^T$."""
    ridge: float = 0.0
    r"""Share of the mean diagonal of $\lambda C_0$ added to the diagonal of the system, >= 0."""
    names: float = 0.0
    r"""Share of $C_0$ that is taken over the last tokens of names alone, in [0, 1]: the old keys
    that edits lie among (`ece.covariance.Stats.moment`); the paper has 0."""
    scorer: str = "residual"
    """Neuron scores: "all" (no choice), "activation" Eq 5, "weight" Eq 6, "residual" Eq 7."""
    p: float = 0.8
    """$p$ of Eq 8, in (0, 1]: share of the total score that the chosen neurons carry."""
    clusters: int | None = 10
    """$K$ of Eq 9, >= 1; None makes every fact its own anchor: plain descent of `steps`."""
    shared: str = "anchor"
    """What phase 1 descends on: the "anchor", the "mean" loss of the cluster, or "zero"
    ($U = 0$, phase 1 left out)."""
    steps: int = 25
    """$T_g$: gradient steps a fact sees in all, >= 1."""
    own_steps: int = 5
    """$T_i$: steps of phase 2, 1..steps; phase 1 takes `steps - own_steps`."""
    clamp: float = 0.75
    r"""Longest allowed $\lVert U+\delta\rVert$ as a multiple of $\lVert h\rVert$, > 0."""
    weight_decay: float = 0.5
    r"""Weight of $\lVert U+\delta\rVert / \lVert h\rVert^2$ in the loss, >= 0."""
    kl_factor: float = 0.0625
    """Weight of the KL divergence on "{subject} is a" in the loss, >= 0."""
    history: bool = True
    """Whether keys of earlier batches count as knowledge to keep (a sum of $k k^T$)."""
    null: float | None = None
    """AlphaEdit: updates stay within the directions in which `C_0` has eigenvalues below this
    (units of a squared key, > 0), and `lam` weighs the identity in place of $C_0$; None: off."""
    exact: bool = False
    """ROME and EMMET: the batch's keys give exactly their values, whatever that costs the rest."""
    single: bool = False
    """Facts of a batch are written one after the other, as ROME does; a batch is then only the
    span between two measurements."""
    restrain: float | None = None
    """PRUNE: base of the logarithm, > 1, that the sequence's whole update is restrained by when
    the model is used (1.2 in its paper); None: off."""
    keep: float = 1.0
    """RECT: share of an update's entries, those largest relative to their weight, in (0, 1]."""
    stop: float | None = None
    """A fact leaves the descent once its NLL (nats per token) is below; None: never."""
    stop_sure: bool = False
    """A fact also leaves once its target is the likeliest text under every context."""
    keys: str = "mixed"
    """"mixed": half the bare prompt's key, half the mean over contexts; or "bare"."""
    spread: str = "even"
    """"even": the residual divided over the layers left; "boundary": first and last layer
    only, each with a value of its own."""
    values_from: str = "original"
    """Weights the values come from: "original" (before the sequence), "current", or "again":
    current for facts whose subject an earlier batch has edited, original for the others."""
    contexts: int = 5
    """Random prefixes a prompt is also seen under, >= 0, beside the bare prompt."""
    context_tokens: int = 10
    """Length of a prefix in tokens, >= 1."""
    seed: int = 0
    """Seed of the prefixes and of the clustering, >= 0."""
    undo: int = 5
    """Batches that can be undone, >= 1; what older ones leave behind does not grow."""
    max_tokens: int = 16384
    """Memory budget, >= 1: tokens (rows times padded length) that one forward holds."""

    def __post_init__(self):
        """Raise `ConfigError` naming the first field out of range."""
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            _fail("layers", self.layers, "one or more layer numbers >= 0 in increasing order")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                _fail(name, getattr(self, name), "one of " + ", ".join(known))
        for names, bound, text in _ranges():
            for name in names:
                if not bound(getattr(self, name)):
                    _fail(name, getattr(self, name), text)
        for name in ("p", "keep"):
            if not 0 < getattr(self, name) <= 1:
                _fail(name, getattr(self, name), "a number in (0, 1]")
        if not 0 <= self.names <= 1:
            _fail("names", self.names, "a number in [0, 1]")
        if self.null is not None and not self.null > 0:
            _fail("null", self.null, "a number > 0, or None")
        if self.restrain is not None and not self.restrain > 1:
            _fail("restrain", self.restrain, "a number > 1, or None")
        if self.clusters is not None and self.clusters < 1:
            _fail("clusters", self.clusters, "a whole number >= 1, or None")
        if self.own_steps > self.steps:
            _fail("own_steps", self.own_steps, f"at most steps = {self.steps}")


def _ranges():
    yield AT_LEAST_ONE, lambda v: v >= 1, "a whole number >= 1"
    yield NOT_NEGATIVE, lambda v: v >= 0, "a number >= 0"
    yield POSITIVE, lambda v: v > 0, "a number > 0"


def _fail(field: str, value: object, allowed: str):
    raise ConfigError(f"config field '{field}' is {value!r}; it takes {allowed}")


_ATLAS = dict(lr=10.0, weight_decay=50.0, ridge=1e-3)  # states are some 200 to 350 long
PRESETS: dict[str, dict] = {
    "atlas-gpt2": dict(_ATLAS | dict(lr=15.0), layers=(0, 1, 2), lam=150.0, p=0.99),
    "atlas-gptj": dict(_ATLAS, layers=(1, 2), lam=60.0, p=0.99),
    "atlas-llama": dict(_ATLAS, layers=(1, 2), lam=60.0, p=0.95),
    "gpt2-xl": dict(layers=(13, 14, 15, 16, 17), lr=0.5, lam=20000.0, steps=20, own_steps=4),
    "gpt-j-6b": dict(layers=(3, 4, 5, 6, 7, 8), lr=0.5, lam=15000.0, max_tokens=8192),
    "llama-3-8b": dict(layers=(4, 5, 6, 7, 8), lr=0.1, lam=15000.0, max_tokens=8192),
    "gpt2-real": dict(layers=(3, 4, 5), lr=0.5, lam=5000.0),  # untuned: never run at full size
}
"""Numbers per model, nothing else; the hub rows are the paper's appendix C, and "gpt2-real" is
the model that `ece.evidence` trains. The largest two hold 8,192 tokens at once, to leave room on
an 80 GB card; that was reckoned, not run."""

_MEMIT = dict(scorer="all", p=1.0, clusters=None, stop=0.05, history=False)
METHODS: dict[str, dict] = {
    "ece-as": dict(scorer="activation"),
    "ece-wi": dict(scorer="weight"),
    "ece-rs": dict(scorer="residual"),
    "ece-plus": dict(
        scorer="all", p=1.0, shared="zero", own_steps=15, stop=0.02, names=0.5, values_from="again"
    ),  # fmt: skip
    "rome": dict(_MEMIT, exact=True, single=True, values_from="current"),
    "memit": dict(_MEMIT),
    "memit-history": dict(_MEMIT, history=True),
    "alphaedit": dict(_MEMIT, history=True, null=0.02, lam=10.0),
    "blue": dict(_MEMIT, history=True, spread="boundary"),
    "rect": dict(_MEMIT, keep=0.4),
    "prune": dict(_MEMIT, restrain=1.2),
}
"""A method is a handful of settings of one editor. `ece-plus` is the book's own, not the paper's;
MEMIT stops a fact's descent at an NLL of 0.05, as its published code does, and so do ROME and
the peers made from MEMIT: AlphaEdit, BLUE's two layers, RECT, PRUNE."""

_ECE = ("ece-as", "ece-wi", "ece-rs")
_ATLAS_NAMES = ("atlas-gpt2", "atlas-gptj", "atlas-llama")
OWN: dict[str, dict[str, dict]] = {
    # found by a search that no baseline had, after ECE had been behind ROME (chapters 10, 16)
    **{name: {"atlas-llama": dict(own_steps=15, stop=0.02)} for name in _ECE},
    "ece-plus": {
        "atlas-gpt2": dict(lam=105.0),
        "atlas-gptj": dict(lam=42.0),
        "atlas-llama": dict(lam=42.0),
    },
    "alphaedit": {name: dict(null=0.1, lam=3.0) for name in _ATLAS_NAMES}
    | {"atlas-gptj": dict(null=0.3, lam=0.3)},
    "rect": {name: dict(keep=0.8) for name in _ATLAS_NAMES},
    "prune": {name: dict(restrain=1.05) for name in _ATLAS_NAMES}
    | {"atlas-gptj": dict(restrain=1.001)},
    "rome": {
        **{name: dict(layers=(2,)) for name in _ATLAS_NAMES},
        "gpt2-xl": dict(layers=(17,), clamp=4.0),
        "gpt-j-6b": dict(layers=(5,), steps=20, clamp=4.0),
        "llama-3-8b": dict(layers=(5,), lr=0.5, clamp=4.0),
        "gpt2-real": dict(layers=(5,), clamp=4.0),
    },
}
"""Numbers of one method on one model; those of the hub models are the published ones,
those of "gpt2-real" untuned."""


def configure(model_name: str, method: str, **overrides) -> Config:
    """The configuration of `method` on `model_name`; keyword `overrides` win.

    A hub name counts by its last part ("EleutherAI/gpt-j-6b" is "gpt-j-6b").
    `ConfigError` lists the known names when one is unknown.
    """
    name = model_name.rstrip("/").split("/")[-1].lower()
    for what, key, table in (("model", name, PRESETS), ("method", method, METHODS)):
        if key not in table:
            raise ConfigError(f"unknown {what} '{key}'; known: {', '.join(table)}")
    own = OWN.get(method, {}).get(name, {})
    unknown = set(overrides) - {field.name for field in fields(Config)}
    if unknown:
        known = ", ".join(field.name for field in fields(Config))
        raise ConfigError(f"unknown setting {sorted(unknown)}; known: {known}")
    return Config(**{**PRESETS[name], **METHODS[method], **own, **overrides})
