"""What an editing session has done so far, as a value; and the way back."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ece.config import Config
from ece.covariance import elsewhere
from ece.descent import Values
from ece.errors import ConfigError, ModelError, StateError, check_mode, check_type, shown
from ece.facts import contexts, probe
from ece.fingerprint import fingerprint
from ece.hooks import gain
from ece.learned_start import Learned, grown
from ece.model import blocks, sites
from ece.parts import in_parts
from ece.strategy import Strategy


@dataclass(frozen=True)
class Batch:
    """One batch's traces: enough to undo it exactly."""

    facts: tuple[tuple[str, str, str], ...]
    """The facts' prompts, subjects and targets."""
    masks: dict[int, Tensor]
    """Per edited layer, the neurons whose columns changed, bool `[ff]`."""
    before: dict[int, Tensor]
    """Per edited layer, those columns as they were, `[model, chosen]`."""
    keys: dict[int, Tensor]
    """Per edited layer, the keys that later batches keep, `[row, ff]`, where there is a history."""


@dataclass(frozen=True)
class EditState:
    """Everything that later batches need to know of earlier ones (the history of Eq 14)."""

    fingerprint: str
    """The unedited model."""
    weights: str
    """Digest of the edited layers' weights as they should be now."""
    layers: tuple[int, ...]
    """The edit layers."""
    contexts: tuple[str, ...]
    """Templates of the run; the first is "{}"."""
    strategy: Strategy
    """How this sequence is edited; ECE or a rival."""
    probe: tuple[int, ...]
    """How the tokenizer encodes a fixed text."""
    undoable: int = 5
    """Batches that can be undone, >= 1; what older ones leave behind does not grow."""
    moments: str = ""
    """Digest of the second moments in use; empty before the first batch."""
    folded: dict[int, Tensor] = field(default_factory=dict)
    """Per layer, the sum of $k k^T$ over the edits no longer in `batches`, `[ff, ff]` float64."""
    batches: tuple[Batch, ...] = ()
    """The last batches, oldest first: the undo stack, and the history's low-rank part."""
    done: int = 0
    """Batches done in all."""
    learned: dict[int, Learned] = field(default_factory=dict)
    """Per layer where values enter, what those found so far tell about the next, if `Config.shared`
    is "learned"; an undo leaves it."""
    prepared: dict[int, Tensor] = field(default_factory=dict)
    """Per layer, what the strategy computed once; not saved, computed again when needed."""
    prepared_for: tuple[Strategy, Config] | None = None
    """The strategy and the settings it was computed for."""

    def recent(self, layer: int) -> Float[Tensor, "row ff"] | None:
        """Keys of the edits in `batches`, in order; None where none are held."""
        keys = [batch.keys[layer] for batch in self.batches if layer in batch.keys]
        return torch.cat(keys) if keys else None


def new_state(
    model: nn.Module, tokenizer, config: Config, strategy: Strategy | None = None, undo: int = 5
) -> EditState:
    """Start a sequence: contexts drawn, no history; its last `undo` batches can be undone."""
    strategy = strategy or Strategy()
    check_begin(model, config, strategy)
    if type(undo) is not int or undo < 1:
        raise ConfigError(f"'undo' is {undo!r}; it should be a whole number of batches >= 1")
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise ModelError(f"the tokenizer has {len(tokenizer)} tokens, the model fewer; "
                         "load both from one place")  # fmt: skip
    marks = fingerprint(model), fingerprint(model, config.layers)
    texts = contexts(model, tokenizer, config)
    return EditState(*marks, config.layers, texts, strategy, probe(tokenizer), undo)


def check_begin(model: nn.Module, config: Config, strategy: Strategy) -> None:
    """Check a setting, and that residuals have a meaning at its layers."""
    check_setting(model, config, strategy)
    if not can_spread(model, config, strategy):
        raise ConfigError(f"setting 'layers' is {shown(config.layers)}; a norm follows the MLPs, "
                          "so no residual can be spread over them; give one")  # fmt: skip


def check_setting(model: nn.Module, config: Config, strategy: Strategy) -> None:
    """Refuse layers that are not there or the last one, and settings the strategy cannot follow."""
    check_type("config", config, Config)
    check_type("strategy", strategy, Strategy)
    check_mode(model)
    if config.layers[-1] > (last := len(blocks(model)) - 2):
        raise ConfigError(f"setting 'layers' ends at {config.layers[-1]}; from the last block, "
                          f"{last + 1}, a value reaches no token: end at {last}")  # fmt: skip
    places = sites(model, config.layers)
    if config.passes != "model" and in_parts(places[0].module.weight):
        raise ConfigError(f"setting 'passes' is {config.passes!r}, and the model lies in parts on "
                          "several processes; load it in that format, with dtype")  # fmt: skip
    strategy.check(config)


def can_spread(model: nn.Module, config: Config, strategy: Strategy) -> bool:
    """Tell whether a residual has a meaning at each edit layer: not where norms follow the MLPs."""
    entries = strategy.entries(config)
    if len(entries) > 1 or entries == config.layers:  # each layer written has a value of its own
        return True
    gains = [gain(model, layer) for layer in config.layers]
    return None not in gains and max(gains) - min(gains) <= 0.01 * abs(max(gains))


def check_weights(model: nn.Module, state: EditState) -> None:
    """Raise `StateError` if the model is not as the state left it."""
    if fingerprint(model, state.layers) != state.weights:
        raise StateError("the model's weights are not those this state left; undo with the state "
                         "that made them, or load the model again")  # fmt: skip


def learn_from(state: EditState, values: Values) -> EditState:
    """Learn from values just found, for those of later batches (`ece.learned_start`)."""
    known = dict(state.learned)
    for part in filter(None, (values.first, values)):
        if part.features is not None:
            more = (part.features, part.delta, part.hidden)
            known[part.layer] = grown(known.get(part.layer), *more)
    return replace(state, learned=known)


def with_batch(state: EditState, batch: Batch, weights: str, own: tuple[int, ...]) -> EditState:
    """Add one batch; only the last `undoable` stay as they are.

    The keys of a batch that leaves are folded into one `[ff, ff]` sum for each layer in `own`, so
    that memory and time per batch do not grow with the number of edits.
    """
    batches, folded = state.batches + (batch,), dealt(state.folded, own)
    gone = max(0, len(batches) - state.undoable)
    for old in batches[:gone]:
        for layer, keys in old.keys.items():
            term = keys.double().T @ keys.double() if layer in own else elsewhere(keys)
            folded[layer] = folded[layer] + term if layer in own and layer in folded else term
    left = dict(batches=batches[gone:], done=state.done + 1)
    return replace(state, weights=weights, folded=folded, **left)


def dealt(folded: dict[int, Tensor], own: tuple[int, ...]) -> dict[int, Tensor]:
    """Keep the history of layers `own`; that of the others is with other processes."""
    return {layer: total if layer in own else elsewhere(total) for layer, total in folded.items()}


def undo(model: nn.Module, state: EditState, batches: int = 1) -> EditState:
    """Take back the last `batches` batches, bit for bit, or none; returns the earlier state.

    The history is the earlier one too, up to float64 rounding once batches were folded.
    Raises `StateError` beyond the batches that the state holds.
    """
    check_type("state", state, EditState)
    if type(batches) is not int or not 0 <= batches <= len(state.batches):
        raise StateError(f"cannot undo {batches} batches: of {state.done} done the state holds the "
                         f"last {len(state.batches)}; raise 'undo' of new_state")  # fmt: skip
    check_weights(model, state)
    left = state.batches[: len(state.batches) - batches]
    now = {site.layer: site.weight.clone() for site in sites(model, state.layers)}
    try:
        for batch in reversed(state.batches[len(left) :]):
            restore(model, batch.masks, batch.before)
    except BaseException:
        restore(model, {}, now)
        raise
    weights = fingerprint(model, state.layers)
    return replace(state, weights=weights, batches=left, done=state.done - batches)


def restore(model: nn.Module, masks: dict[int, Tensor], columns: dict[int, Tensor]) -> None:
    """Write columns back into the edit layers' weights; whole weights where there is no mask."""
    for site in sites(model, tuple(columns)):
        site.write(columns[site.layer], masks.get(site.layer))
