"""Lets one process at a time use a folder or a file."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ece.errors import StateError
from ece.storage.files import explained, remove


@contextmanager
def locked(path: str | Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of `path` (a folder, or a file that may not exist yet) within the block.

    Another process that holds it is waited for, or else a `StateError`. The operating system
    drops the lock of a process that ends, however it ends; the empty lock file stays.
    """
    path, whole = Path(path), Path(path).is_dir()
    lock = FileLock(path / ".lock" if whole else path.with_name(f".{path.name}.lock"))
    with explained(path, "locked", "name a place that you may write to"):
        Path(lock.lock_file).touch()  # filelock would try for ever where nobody may write
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            raise StateError(f"{path} is in use by another run; wait until that has ended, or "
                             "name another place") from None  # fmt: skip
    left = re.compile(rf"\.{'.+' if whole else re.escape(path.name)}\.\d+\.\d+\.tmp")
    try:  # what a killed process has left comes first
        remove(p for p in (path if whole else path.parent).iterdir() if left.fullmatch(p.name))
        yield
    finally:
        lock.release()
