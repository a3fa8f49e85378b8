"""Edits as files: what a sequence of edits changed in a model, to be applied and taken back.

    before = snapshot(model, config.layers)
    ...                                              # edit
    save_edits("edits.safetensors", edits_since(before, model, facts))

    toggle(model, load_edits("edits.safetensors"))   # in another process, on the unedited model

The file holds, of the columns that changed, the exclusive or of their bits before and after. So
applying and taking back are one operation, exact in every number format, and the model's
fingerprint says which of the two it was.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor, nn

from ece.errors import StateError
from ece.facts import Fact
from ece.fingerprint import BITS, fingerprint
from ece.model import sites
from ece.state import restore
from ece.storage.archive import load, save


@dataclass(frozen=True)
class Snapshot:
    """The edit layers' weights before a sequence of edits."""

    mark: str
    """The model's fingerprint then (`mark`)."""
    weights: dict[int, Tensor]
    """Per edit layer `[model, ff]`, on the CPU."""


@dataclass(frozen=True)
class EditSet:
    """What a sequence of edits changed."""

    unedited: str
    """The fingerprint of the model before, which may itself have been edited (`mark`)."""
    edited: str
    """The fingerprint after."""
    columns: dict[int, Int[Tensor, " chosen"]]
    """Per edit layer, the neurons whose columns changed."""
    bits: dict[int, Int[Tensor, "model chosen"]]
    """Per edit layer, the exclusive or of these columns' bits before and after."""
    facts: tuple[Fact, ...]
    """What was edited, in order."""
    about: dict[str, Any] = field(default_factory=dict)
    """Whatever else is to be known: method, settings, rates. Text, numbers, lists and dicts."""

    @property
    def neurons(self) -> int:
        """Columns changed, over all layers."""
        return sum(map(len, self.columns.values()))

    @property
    def bytes(self) -> int:
        """Bytes of the change itself."""
        return sum(part.nbytes for part in (*self.columns.values(), *self.bits.values()))


def mark(model: nn.Module, layers: tuple[int, ...]) -> str:
    """Fingerprint of a model: every bit of `layers`' weights, and a sample of all others."""
    return f"{fingerprint(model)}-{fingerprint(model, layers)}"


def snapshot(model: nn.Module, layers: tuple[int, ...]) -> Snapshot:
    """Copy the weights that edits are about to change, to the CPU."""
    weights = {site.layer: site.weight.to("cpu", copy=True) for site in sites(model, layers)}
    return Snapshot(mark(model, layers), weights)


def edits_since(
    before: Snapshot, model: nn.Module, facts: list[Fact], about: dict[str, Any] | None = None
) -> EditSet:
    """Find what changed since the snapshot; `facts` are those that were edited."""
    columns, bits = {}, {}
    for site in sites(model, tuple(before.weights)):
        change = _bits(site.weight.cpu()) ^ _bits(before.weights[site.layer])
        columns[site.layer] = change.any(0).nonzero()[:, 0]
        bits[site.layer] = change[:, columns[site.layer]].contiguous()
    now = mark(model, tuple(before.weights))
    return EditSet(before.mark, now, columns, bits, tuple(facts), about or {})


def save_edits(path: str | Path, edits: EditSet) -> None:
    """Write edits to one file; a file that is there is replaced in one step."""
    save(path, "edits", edits)


def load_edits(path: str | Path) -> EditSet:
    """Read edits; `StateError` if the file is missing, damaged or of something else."""
    return load(path, "edits", (EditSet, Fact))


def standing(model: nn.Module, edits: EditSet) -> Literal["unedited", "edited"]:
    """Tell on which side of the edits a model stands; `StateError` if on neither."""
    now = mark(model, tuple(edits.bits))
    if now not in (edits.unedited, edits.edited):
        raise StateError("these edits were made on another model, or on this one in another state; "
                         "load that; sets go on in the order in which they were made")  # fmt: skip
    return "edited" if now == edits.edited else "unedited"


def toggle(model: nn.Module, edits: EditSet) -> Literal["unedited", "edited"]:
    """Apply edits to the unedited model, or take them back from the edited one, bit for bit.

    Returns what the model is then. `StateError`, and no weight changed, for any other model.
    """
    was, now = standing(model, edits), ""
    restore(model, edits.columns, changed(model, edits))
    try:
        now = standing(model, edits)
    finally:
        if now in ("", was):  # the file contradicts itself: as if nothing had been
            restore(model, edits.columns, changed(model, edits))
    return now


def changed(model: nn.Module, edits: EditSet) -> dict[int, Tensor]:
    """Compute the changed columns as they are on the other side, `[model, chosen]` per layer."""
    found = {}
    for site in sites(model, tuple(edits.bits)):
        here, more = edits.columns[site.layer], edits.bits[site.layer]
        weight = site.weight
        now = weight[:, here.to(weight.device)].contiguous()
        found[site.layer] = (_bits(now) ^ more.to(now.device)).view(now.dtype)
    return found


def _bits(weight: Tensor) -> Tensor:
    """View the same memory as whole numbers."""
    weight = weight.contiguous()
    return weight.view(BITS[weight.element_size()])
