"""Files that are whole or not there, and that know their own damage."""

import hashlib
import json
import os
from pathlib import Path

from safetensors.torch import load as parse
from torch import Tensor

from ece.errors import StateError


def write(path: Path, data: bytes) -> str:
    """Put `data` at `path` in one step; returns its SHA-256."""
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    return hashlib.sha256(data).hexdigest()


def write_json(path: Path, record: dict) -> None:
    """Write a record with a checksum of itself."""
    text = json.dumps(record, sort_keys=True)
    total = hashlib.sha256(text.encode()).hexdigest()
    write(path, json.dumps({"record": record, "checksum": total}, sort_keys=True).encode())


def read_json(path: Path) -> dict:
    """Read `write_json`'s file; `StateError` if it is damaged."""
    try:
        whole = json.loads(path.read_text())
        text = json.dumps(whole["record"], sort_keys=True)
        good = hashlib.sha256(text.encode()).hexdigest() == whole["checksum"]
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise StateError(f"{path.name} is damaged; restore it from a copy or start the run anew")
    return whole["record"]


def read_tensors(path: Path, checksum: str) -> dict[str, Tensor]:
    """Read a safetensors file; `StateError` if missing or not what was written."""
    if not path.exists():
        raise StateError(f"{path.name} is missing; restore it from a copy or start the run anew")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != checksum:
        raise StateError(f"{path.name} is damaged; restore it from a copy or start the run anew")
    return parse(data)
