"""Writes files whole or not at all, and turns the system's errors into errors with a remedy."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident

from safetensors import SafetensorError

from ece.errors import ConfigError, StateError


@contextmanager
def explained(path: Path, done: str, remedy: str) -> Iterator[None]:
    """Turn an error of the operating system about `path` into a `StateError` with a remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StateError(f"{path} cannot be {done}: {reason}; {remedy}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file to write; after the block it takes the place of `path` in one step.

    Processes and threads have temporary files of their own. `StateError` where the disk is full
    or the folder cannot be written to; what was at `path` is then still there.
    """
    if path.exists() and not path.is_file():
        raise StateError(f"{path} is no file; name a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{get_ident()}.tmp")
    with explained(path, "written", "free some space, or name a folder that you may write to"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # a writer of safetensors files makes them private
            _sync(temporary, os.O_RDWR)
            os.replace(temporary, path)
            if os.name == "posix":  # elsewhere a folder cannot be opened
                _sync(path.parent, os.O_RDONLY)
        finally:
            with suppress(OSError):
                temporary.unlink()


def _sync(path: Path, flags: int) -> None:
    """Wait until the disk has what was written."""
    file = os.open(path, flags)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`; a file that is there is replaced in one step."""
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(data)


def remove(paths: Iterable[Path]) -> None:
    """Delete files, whether they are there or not."""
    for path in paths:
        with explained(path, "removed", "check the permissions of its folder"):
            path.unlink(missing_ok=True)


def check_writable(folder: str | Path) -> None:
    """Make a folder and write into it, to find now what would fail at the end of a run."""
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}; name a folder that can be "
                          "written") from error  # fmt: skip


def check_file(path: str | Path) -> None:
    """Refuse what is there and no file, and a file in a folder that cannot be written."""
    if Path(path).exists() and not Path(path).is_file():
        raise ConfigError(f"{path} is no file; name a file")
    check_writable(Path(path).parent)
