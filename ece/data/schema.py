"""Fields of records that come from outside: read by path, checked, without blanks around texts."""

import hashlib
import json
from pathlib import Path

from ece.errors import DataError


class Bad(Exception):
    """Field, reason and mend of a record; who reads the file adds its name and the number."""


def value(record, *keys: str):
    """What is at a path of keys; `Bad` names the first key that is missing."""
    found = record
    for depth, key in enumerate(keys):
        if not isinstance(found, dict) or key not in found:
            mend = "check that the file has the schema of the dataset named"
            raise Bad(".".join(keys[: depth + 1]), "is missing", mend)
        found = found[key]
    return found


def text(record, *keys: str) -> str:
    """The text at a path of keys."""
    found = value(record, *keys)
    if not isinstance(found, str) or not found.strip():
        raise Bad(".".join(keys), f"{found!r} is no text", "give a text that is not empty")
    return found.strip()


def texts(record, key: str, least: int = 0) -> tuple[str, ...]:
    """The list of texts at `key`, of which there must be `least`."""
    found = value(record, key)
    if not isinstance(found, list) or len(found) < least:
        raise Bad(key, f"{found!r} is no list of {least} or more texts", "give a list of texts")
    for item in found:
        if not isinstance(item, str) or not item.strip():
            raise Bad(key, f"holds {item!r}, which is no text", "take it out of the list")
    return tuple(item.strip() for item in found)


def read_records(path: str | Path) -> list:
    """The records of a JSON file; `DataError` if it is not there or holds no list."""
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a JSON file of records") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); name a JSON file of records") from error
    if not isinstance(records, list) or not records:
        raise DataError(f"{path}: holds no list of records; give a JSON file [{{...}}, ...]")
    return records


def checksum(path: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits; `DataError` if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a file that is there") from error


def check_sha256(path: str | Path, wanted: str | None) -> str:
    """The file's SHA-256, equal to `wanted` if one is given, else `DataError`."""
    found = checksum(path)
    if wanted is not None and found != wanted.lower():
        raise DataError(
            f"{path}: its SHA-256 is {found}, wanted is {wanted.lower()}; get the file again, or "
            "give the checksum of the file that you mean"
        )
    return found
