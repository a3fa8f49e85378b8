"""One file format for everything that is saved: tensors, a description of them, and a checksum.

The file is a safetensors file, so reading it runs no code. Its metadata hold the kind of content,
the content as JSON with the tensors' names in their places, and a SHA-256 of all of it.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from errno import EISDIR
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ece.errors import StateError
from ece.storage.files import explained, replacing

REMEDY = "restore it from a copy, or name another place"


def save(path: str | Path, kind: str, content: Any) -> None:
    """Write a nest of dicts, lists, tuples, dataclasses, tensors, flat arrays, numbers and text.

    A file that is there is replaced in one step.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(content, "content", tensors))
    metadata = {"kind": kind, "content": text, "checksum": _checksum(kind, text, tensors)}
    with replacing(Path(path)) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load(path: str | Path, kind: str, classes: Iterable[type] = ()) -> Any:
    """Read back what `save` wrote; tensors come to the CPU.

    classes: the dataclasses that the content may hold. `StateError` if the file is missing,
    damaged or of another kind.
    """
    path = Path(path)
    with explained(path, "read", REMEDY):
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    found, text = metadata.get("kind", ""), metadata.get("content", "")
    if metadata.get("checksum") != _checksum(found, text, tensors):
        raise StateError(f"{path} is damaged, or was not written by this package; {REMEDY}")
    if found != kind:
        raise StateError(f"{path} holds {found}, not {kind}; name the right file")
    try:
        return _decode(json.loads(text), tensors, {cls.__name__: cls for cls in classes})
    except (KeyError, TypeError) as error:  # a class that is not expected, or has changed
        raise StateError(f"{path} was saved with another {error.args[0]}; use that") from error


def checksum(content: Any) -> str:
    """SHA-256 of anything that `save` takes."""
    tensors: dict[str, Tensor] = {}
    return _checksum("", json.dumps(_encode(content, "content", tensors), sort_keys=True), tensors)


def check_identity(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise `StateError` naming the first part in which something saved is not what is wanted."""
    for name in found | wanted:
        if name not in found or name not in wanted or found[name] != wanted[name]:
            raise StateError(f"{path} is of another run ('{name}' differs); name another place, "
                             "or remove it")  # fmt: skip


def _checksum(kind: str, text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the whole content."""
    digest = hashlib.sha256(json.dumps([kind, text]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Put the tensors of `value` into `tensors`; returns the rest as JSON."""
    if isinstance(value, Tensor):
        held = value.detach().cpu().contiguous()
        places = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
        # One tensor in two places: a safetensors file takes no storage twice.
        tensors[name] = held.clone() if held.untyped_storage().data_ptr() in places else held
        return {"$": "tensor", "name": name}
    if isinstance(value, np.ndarray):
        items = _encode(value.tolist(), name, tensors)
        return {"$": "array", "dtype": str(value.dtype), "items": items}
    if is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"$": type(value).__name__, **_encode(parts, name, tensors)}
    if isinstance(value, dict):
        parts = {key: _encode(item, f"{name}.{key}", tensors) for key, item in value.items()}
        plain = all(isinstance(key, str) and key != "$" for key in parts)
        return parts if plain else {"$": "dict", "items": [list(pair) for pair in parts.items()]}
    if isinstance(value, tuple):
        return {"$": "tuple", "items": _encode(list(value), name, tensors)}
    if isinstance(value, list):
        return [_encode(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    return value


def _decode(value: Any, tensors: dict[str, Tensor], classes: dict[str, type]) -> Any:
    """Invert `_encode`."""
    if isinstance(value, list):
        return [_decode(item, tensors, classes) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("$") == "tensor":
        return tensors[value["name"]]
    parts = {key: _decode(item, tensors, classes) for key, item in value.items() if key != "$"}
    match value.get("$"):
        case None:
            return parts
        case "dict":
            return {key: item for key, item in parts["items"]}
        case "tuple":
            return tuple(parts["items"])
        case "array":
            found = np.empty(len(parts["items"]), parts["dtype"])
            found[:] = parts["items"]
            return found
        case name:
            return classes[name](**parts)
