"""Read files and records that come from outside, and say what is wrong with them."""

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ece.errors import DataError
from ece.facts import is_broken


@dataclass(eq=False)
class BadRecord(Exception):
    """Says which field of a record cannot be used, why, and what to do about it."""

    field: str
    """Its path of keys, e.g. "requested_rewrite.subject"."""
    reason: str
    remedy: str

    def at(self, place: str) -> str:
        """Give the message for the record at `place` (file and number)."""
        return f"{place}, field '{self.field}': {self.reason}; {self.remedy}"


def value(record, *keys: str | int):
    """Look up the value at a path of keys and list indices."""
    found = record
    for depth, key in enumerate(keys):
        kind, name = (list, "list") if isinstance(key, int) else (dict, "JSON object")
        if not isinstance(found, kind):
            here = ".".join(map(str, keys[:depth])) or "(whole record)"
            raise BadRecord(here, f"{found!r:.80} is no {name}", f"give a {name}")
        if key not in (range(len(found)) if kind is list else found):
            remedy = "check that the file has the schema of the data set named"
            raise BadRecord(".".join(map(str, keys[: depth + 1])), "is missing", remedy)
        found = found[key]
    return found


def text(record, *keys: str | int, empty: bool = False) -> str:
    """Look up the text at a path of keys, without surrounding blanks; `empty`: it may be blank."""
    found, field = value(record, *keys), ".".join(map(str, keys))
    if not isinstance(found, str) or not (empty or found.strip()):
        raise BadRecord(field, f"{found!r:.80} is no text", "give a text that is not empty")
    if is_broken(found):
        raise BadRecord(field, f"{found!r:.80} holds half of a surrogate pair",
                        "give valid Unicode")  # fmt: skip
    return found.strip()


def texts(record, *keys: str) -> tuple[str, ...]:
    """Look up the list of texts at a path of keys."""
    return tuple(text(record, *keys, i) for i in range(len(items(record, *keys))))


def items(record, *keys: str) -> list:
    """Look up the list at a path of keys."""
    found = value(record, *keys)
    if not isinstance(found, list):
        raise BadRecord(".".join(keys), f"{found!r:.80} is no list", "give a list")
    return found


def number(record, key: str, default: int) -> int:
    """Look up a whole number that may be missing."""
    found = record.get(key, default)
    if not isinstance(found, int) or isinstance(found, bool):
        raise BadRecord(key, f"{found!r:.80} is no whole number",
                        "number the records or leave it out")  # fmt: skip
    return found


def convert(make: Callable, records, source: str, skip_bad: bool) -> list:
    """Call make(record, place) for every record; a bad one is an error, or left out with a warning.

    Raises `DataError` that names the source, the record's place, the field, reason and remedy.
    """
    if not isinstance(records, (list, tuple)):
        raise DataError(f"{source}: {type(records).__name__} given; give a list of records")
    made, errors = [], []
    for place, record in enumerate(records):
        try:
            made.append(make(record, place))
        except BadRecord as bad:
            errors.append(bad.at(f"{source}, record {place}"))
            if not skip_bad:
                raise DataError(errors[0]) from None
    if errors:
        count = f"{len(errors)} of {len(records)} records left out"
        warnings.warn(f"{count}; the first: {errors[0]}", stacklevel=4)
    return made


def read_records(path: str | Path) -> list:
    """Read a JSON file that holds a list of records."""
    found = read_text(path, "a JSON file of records")
    try:
        records = json.loads(found)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}); name a JSON file of records") from error
    if not isinstance(records, list) or not records:
        raise DataError(f"{path}: holds no list of records; give a JSON file [{{...}}, ...]")
    return records


def read_lines(path: str | Path) -> list[str]:
    """Read a file of plain text, one document per line, without its blank lines."""
    lines = list(filter(str.strip, read_text(path, "a file of plain text").splitlines()))
    if not lines:
        raise DataError(f"{path}: holds no text; give one document per line")
    return lines


def read_text(path: str | Path, wanted: str) -> str:
    """Read a text file in UTF-8; `wanted` says in the error what kind of file was meant."""
    try:
        found = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name {wanted}") from error
    except ValueError as error:
        raise DataError(f"{path}: is no text in UTF-8 ({error}); name {wanted}") from error
    if "\0" in found:
        raise DataError(f"{path}: is a binary file; name {wanted}")
    return found


def digest(content) -> str:
    """Compute the SHA-256 of what is in memory: records or texts."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def checksum(path: str | Path, expected: str | None = None) -> str:
    """Compute the SHA-256 of a file, and compare it with the one expected, if any."""
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a file that is there") from error
    if expected is not None and found != (expected := expected.strip().lower()):
        raise DataError(f"{path}: its SHA-256 is {found}, expected is {expected}; delete it to get "
                        "it again, or give the checksum of the file that you mean")  # fmt: skip
    return found
