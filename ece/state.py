"""What an editing session has done so far, as a value; and the way back."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ece.config import Config
from ece.errors import ConfigError, StateError
from ece.facts import contexts
from ece.model import blocks, fingerprint, sites


@dataclass(frozen=True)
class Batch:
    """One batch's traces: enough to undo it exactly and to replay it."""

    facts: tuple[int, ...]
    """The facts' ids."""
    masks: dict[int, Tensor]
    """Per edited layer, the neurons whose columns changed, bool `[ff]`."""
    before: dict[int, Tensor]
    """Per edited layer, those columns as they were, `[model, chosen]`."""
    keys: dict[int, Tensor]
    """Per edited layer, the batch's keys `[edit, ff]` where a history is kept."""


@dataclass(frozen=True)
class EditState:
    """Everything that later batches need to know of earlier ones."""

    fingerprint: str
    """The unedited model."""
    weights: str
    """Digest of the edited layers' weights as they should be now."""
    layers: tuple[int, ...]
    """The edit layers."""
    contexts: tuple[str, ...]
    """Templates of the run; the first is "{}"."""
    folded: dict[int, Tensor]
    """Per layer, the sum of $k k^T$ over the edits no longer in `batches`, `[ff, ff]` float64."""
    batches: tuple[Batch, ...] = ()
    """The last batches, oldest first: the undo stack, and the history's low-rank part."""
    done: int = 0
    """Batches done in all."""
    bases: dict[int, Tensor] = field(default_factory=dict)
    """With `config.null`: per layer, the null space of the old keys, `[ff, null]`."""

    def recent(self, layer: int) -> Float[Tensor, "edit ff"] | None:
        """Keys of the edits in `batches`, in order; None where none are kept."""
        keys = [batch.keys[layer] for batch in self.batches if layer in batch.keys]
        return torch.cat(keys) if keys else None

    def history(self, layer: int) -> Float[Tensor, "ff ff"] | None:
        """The sum of $k k^T$ over all edits so far, or None; the solve adds it up by itself."""
        keys, folded = self.recent(layer), self.folded.get(layer)
        if keys is None:
            return folded
        recent = keys.double().T @ keys.double()
        return recent if folded is None else folded + recent


def new_state(model: nn.Module, tokenizer, config: Config) -> EditState:
    """The state before the first batch: contexts drawn, no history."""
    check_layers(model, config)
    return EditState(
        fingerprint(model),
        fingerprint(model, config.layers),
        config.layers,
        contexts(model, tokenizer, config),
        {},
    )


def check_layers(model: nn.Module, config: Config) -> None:
    """`ModelError` for a layer not there, `ConfigError` where no block is left above."""
    sites(model, config.layers)
    if config.layers[-1] >= len(blocks(model)) - 1:
        raise ConfigError(
            f"config field 'layers' ends at {config.layers[-1]}, the model's last block; a value "
            f"there cannot reach later tokens, end at {len(blocks(model)) - 2} or below"
        )


def check_weights(model: nn.Module, state: EditState) -> None:
    """`StateError` if the model is not as the state left it."""
    if fingerprint(model, state.layers) != state.weights:
        raise StateError(
            "the model's weights are not those this state left; undo with the state that "
            "made them, or load the model again and start from new_state"
        )


def pushed(state: EditState, batch: Batch, keep: int) -> EditState:
    """The state with one batch more; of the batches only the last `keep` stay.

    The keys of a batch that leaves are folded into one `[ff, ff]` sum, so that memory and
    time per batch do not grow with the number of edits. The state given is not changed.
    """
    batches, folded = state.batches + (batch,), dict(state.folded)
    for old in batches[: max(0, len(batches) - keep)]:
        for layer, keys in old.keys.items():
            term = keys.double().T @ keys.double()
            folded[layer] = folded[layer] + term if layer in folded else term
    kept = batches[max(0, len(batches) - keep) :]
    return replace(state, folded=folded, batches=kept, done=state.done + 1)


def undo(model: nn.Module, state: EditState, batches: int = 1) -> EditState:
    """Take back the last `batches` batches, bit for bit; returns the earlier state.

    The history is the earlier one too, up to float64 rounding once batches were folded.
    `StateError` beyond the batches that `config.undo` kept.
    """
    if not 0 <= batches <= len(state.batches):
        raise StateError(
            f"cannot undo {batches} batches: of the {state.done} done the state keeps the last "
            f"{len(state.batches)}; raise the config field 'undo' to keep more"
        )
    check_weights(model, state)
    kept = state.batches[: len(state.batches) - batches]
    for batch in reversed(state.batches[len(kept) :]):
        restore(model, batch.masks, batch.before)
    weights = fingerprint(model, state.layers)
    return replace(state, weights=weights, batches=kept, done=state.done - batches)


def restore(model: nn.Module, masks: dict[int, Tensor], columns: dict[int, Tensor]) -> None:
    """Write columns back into the edit layers' weights."""
    for site in sites(model, tuple(columns)):
        weight = site.weight
        weight[:, masks[site.layer].to(weight.device)] = columns[site.layer].to(weight)


def columns(model: nn.Module, masks: dict[int, Tensor]) -> dict[int, Tensor]:
    """Copies, on the CPU, of the masked columns of the edit layers' weights."""
    return {
        site.layer: site.weight[:, masks[site.layer].to(site.weight.device)].cpu().clone()
        for site in sites(model, tuple(masks))
    }


def check_finite(name: str, tensor: Tensor) -> None:
    """`StateError` naming what is not finite."""
    if not torch.isfinite(tensor).all():
        raise StateError(f"{name} are not finite; look at the model's weights and the config")
