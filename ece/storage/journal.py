"""Runs on disk: a folder of safetensors files, and one manifest that makes them count.

Each batch is one small file with the columns it wrote, so a folder is also an edit set that
applies to the base model. Every file is written aside, synced and renamed; a batch counts
once the manifest names it with its checksum, so a kill at any point loses at most a batch.
"""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from ece.clustering import Groups
from ece.config import Config
from ece.descent import Values
from ece.errors import StateError
from ece.facts import Fact
from ece.model import fingerprint, sites
from ece.report import Report
from ece.state import Batch, EditState, check_weights, columns, pushed, restore
from ece.storage.files import read_json, read_tensors, write, write_json

MANIFEST, SETTINGS = "state.json", "run.json"


def save_state(model: nn.Module, state: EditState, folder: str | Path) -> None:
    """Write the whole state of an edited model; `load_state` brings both back.

    Columns are read from the model by walking back over the batches on copies.
    """
    check_weights(model, state)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    now = _weights(model, state)
    entries, first = [], state.done - len(state.batches)
    for number, batch in reversed(list(enumerate(state.batches, first))):
        after = {layer: now[layer][:, mask].clone() for layer, mask in batch.masks.items()}
        entries.append(_write_batch(folder, number, batch, after, None))
        for layer, mask in batch.masks.items():
            now[layer][:, mask] = batch.before[layer]
    base = _write_base(folder, now, state.folded) if first else None
    _write_manifest(folder, state, entries[::-1], base)


def _write_base(folder: Path, weights: dict[int, Tensor], folded: dict[int, Tensor]) -> dict:
    """What the batches no longer kept have left: whole weights, and their part of the history."""
    tensors = {f"weight.{n}": w.contiguous() for n, w in weights.items()}
    tensors |= {f"folded.{n}": h.cpu().contiguous() for n, h in folded.items()}
    checksum = write(folder / "base.safetensors", serialise(tensors))
    return {"file": "base.safetensors", "checksum": checksum}


def _weights(model: nn.Module, state: EditState) -> dict[int, Tensor]:
    """CPU copies of the edit layers' whole weights."""
    widths = {site.layer: site.weight.shape[1] for site in sites(model, state.layers)}
    return columns(model, {n: torch.ones(ff, dtype=torch.bool) for n, ff in widths.items()})


def save_batch(model: nn.Module, state: EditState, report: Report, folder: str | Path) -> None:
    """Add the state's last batch to the folder that holds the ones before it."""
    folder, number = Path(folder), state.done - 1
    entries = read_json(folder / MANIFEST)["batches"] if number else []
    batch = state.batches[-1]
    entry = _write_batch(folder, number, batch, columns(model, batch.masks), report)
    _write_manifest(folder, state, entries[:number] + [entry])


def _write_batch(
    folder: Path, number: int, batch: Batch, after: dict[int, Tensor], report: Report | None
) -> dict:
    parts = {"mask": batch.masks, "after": after, "keys": batch.keys}
    tensors = {
        f"{name}.{layer}": tensor.cpu().contiguous()
        for name, part in parts.items()
        for layer, tensor in part.items()
    }
    name = f"batch-{number:05d}.safetensors"
    told = None if report is None else report.to_dict()
    checksum = write(folder / name, serialise(tensors))
    return {"file": name, "checksum": checksum, "facts": list(batch.facts), "report": told}


def _write_manifest(
    folder: Path, state: EditState, entries: list[dict], base: dict | None = None
) -> None:
    fields = ("fingerprint", "weights", "layers", "contexts", "done")
    record = {name: getattr(state, name) for name in fields}
    record |= {"kept": len(state.batches), "base": base}
    write_json(folder / MANIFEST, json.loads(json.dumps({**record, "batches": entries})))


def load_state(model: nn.Module, folder: str | Path) -> EditState:
    """Apply a saved run to the unedited `model`; its weights become those saved, bit for bit.

    Everything is read and checked before the first weight changes.
    """
    return _load(model, Path(folder))[0]


def _load(model: nn.Module, folder: Path) -> tuple[EditState, list[Report]]:
    head = read_json(folder / MANIFEST)
    if fingerprint(model) != head["fingerprint"]:
        raise StateError(f"{folder.name} was made on another model; load that one, unedited")
    entries, base = head["batches"], _base(folder, head["base"])
    for entry in entries:  # all must be whole before the first weight changes
        read_tensors(folder / entry["file"], entry["checksum"])
    layers, contexts = tuple(head["layers"]), tuple(head["contexts"])
    state = EditState(head["fingerprint"], head["weights"], layers, contexts, base["folded"])
    state = replace(state, done=head["done"] - len(entries))
    whole = {n: torch.ones(w.shape[1], dtype=torch.bool) for n, w in base["weight"].items()}
    restore(model, whole, base["weight"])
    reports = []
    for entry in entries:
        tensors = read_tensors(folder / entry["file"], entry["checksum"])
        masks, after, keys = (_layers(tensors, name) for name in ("mask", "after", "keys"))
        batch = Batch(tuple(entry["facts"]), masks, columns(model, masks), keys)
        restore(model, masks, after)
        state = pushed(state, batch, head["kept"])
        if entry["report"] is not None:
            reports.append(Report.from_dict(entry["report"], masks))
    check_weights(model, state)
    return state, reports


def _base(folder: Path, entry: dict | None) -> dict[str, dict[int, Tensor]]:
    """The parts of `_write_base`, empty where there was none."""
    tensors = read_tensors(folder / entry["file"], entry["checksum"]) if entry else {}
    return {name: _layers(tensors, name) for name in ("weight", "folded")}


def _layers(tensors: dict[str, Tensor], name: str) -> dict[int, Tensor]:
    """The tensors "name.layer" by layer, in order of layers."""
    found = [key for key in tensors if key.split(".")[0] == name]
    return {int(key.split(".")[1]): tensors[key] for key in sorted(found, key=_number)}


def _number(key: str) -> int:
    return int(key.split(".")[1])


def open_run(
    model: nn.Module,
    tokenizer,
    facts: list[Fact],
    config: Config,
    batch: int,
    folder: str | Path | None,
) -> tuple[EditState, list[Report]] | None:
    """Continue the run in `folder`, or make the folder ready for one (None: start).

    `StateError` if the folder holds a run of other facts, settings or another model.
    """
    if folder is None:
        return None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    told = [asdict(fact) for fact in facts]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    settings = json.loads(
        json.dumps(
            {"config": asdict(config), "batch": batch, "facts": digest, "model": fingerprint(model)}
        )
    )
    if not (folder / SETTINGS).exists():
        write_json(folder / SETTINGS, settings)
    kept = read_json(folder / SETTINGS)
    changed = [name for name in settings if kept.get(name) != settings[name]]
    if changed:
        raise StateError(f"{folder.name} holds a run with another {changed[0]}; use a new folder")
    return _load(model, folder) if (folder / MANIFEST).exists() else None


def save_values(values: Values, folder: str | Path, number: int) -> None:
    """Keep the values of batch `number`, computed ahead."""
    name = f"values-{number:05d}"
    tensors: dict[str, Tensor] = {}
    head = _flatten(values, "", tensors)
    checksum = write(Path(folder) / f"{name}.safetensors", serialise(tensors))
    write_json(Path(folder) / f"{name}.json", {"values": head, "checksum": checksum})


def load_values(folder: str | Path, number: int) -> Values | None:
    """The values of batch `number`, or None if they were not yet computed."""
    name = f"values-{number:05d}"
    if not (Path(folder) / f"{name}.json").exists():
        return None
    head = read_json(Path(folder) / f"{name}.json")
    return _build(
        head["values"], read_tensors(Path(folder) / f"{name}.safetensors", head["checksum"]), ""
    )


FIELDS = ("hidden", "delta", "losses", "nll", "steps", "holds")


def _flatten(values: Values, prefix: str, tensors: dict[str, Tensor]) -> dict:
    """Put the tensors of nested values into one flat dict; returns what is not a tensor."""
    for name in FIELDS:
        # A shared phase may hold the very tensors of the own one, which a file cannot.
        tensors[prefix + name] = getattr(values, name).cpu().contiguous().clone()
    head: dict = {"layer": values.layer, "seconds": values.seconds}
    if values.groups is not None:
        head["cost"] = values.groups.cost
        tensors[prefix + "labels"] = values.groups.labels
        tensors[prefix + "medoids"] = values.groups.medoids
    for name in ("shared", "first"):
        inner = getattr(values, name)
        if inner is not None:
            head[name] = _flatten(inner, f"{prefix}{name}.", tensors)
    return head


def _build(head: dict, tensors: dict[str, Tensor], prefix: str) -> Values:
    """The inverse of `_flatten`."""
    groups = None
    if "cost" in head:
        groups = Groups(tensors[prefix + "labels"], tensors[prefix + "medoids"], head["cost"])
    inner = {
        name: _build(head[name], tensors, f"{prefix}{name}.")
        for name in ("shared", "first")
        if name in head
    }
    fields = {name: tensors[prefix + name] for name in FIELDS}
    return Values(head["layer"], **fields, groups=groups, seconds=head["seconds"], **inner)
