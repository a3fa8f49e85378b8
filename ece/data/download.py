"""Public files of the data sets, fetched once into a cache and checked at every use.

    python -m ece.data.download multi_counterfact.json

The files are those of ROME's and MEMIT's authors. Nobody has published checksums of them that we
know of, and none was computed here, where there is no network; so `PublicFile.sha256` is None and
a download is *trusted on first use*: its size and SHA-256 are written beside it, and a later use
that finds others is an error. Give `sha256` if you know what the file must be.
"""

import argparse
import os
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ece.data.schema import check_sha256, checksum
from ece.errors import DataError, StateError
from ece.storage.files import read_json, write_json

MEMIT = "https://memit.baulab.info/data/dsets/"
ROME = "https://rome.baulab.info/data/dsets/"
CHUNK = 1 << 20  # bytes read at a time
PATIENCE = 60  # seconds without a byte after which a download is given up


@dataclass(frozen=True)
class PublicFile:
    """A file that anybody can get."""

    home: str
    """Address of its folder, with a slash at the end."""
    mend: str
    """What to do where it cannot be had."""
    sha256: str | None = None
    """Known checksum; None until someone who downloaded the file states it."""


RECORDS = "or give a file of records that you have: --data FILE"
TEXTS = "or give a file of reference texts that you have: --references FILE"
FILES = {
    "multi_counterfact.json": PublicFile(MEMIT, RECORDS),
    "counterfact.json": PublicFile(ROME, RECORDS),
    "zsre_mend_eval.json": PublicFile(MEMIT, RECORDS),
    "attribute_snippets.json": PublicFile(MEMIT, TEXTS),
    "idf.npy": PublicFile(MEMIT, TEXTS),
    "tfidf_vocab.json": PublicFile(MEMIT, TEXTS),
}
"""The files by name. By far the largest are the snippets, about 900 MB."""


def cache() -> Path:
    """The folder of downloads: the environment variable ECE_CACHE, else ~/.cache/ece."""
    return Path(os.environ.get("ECE_CACHE") or Path.home() / ".cache" / "ece")


def fetch(
    name: str,
    folder: str | Path | None = None,
    progress: Callable | None = None,
    sha256: str | None = None,
    home: str | None = None,
) -> Path:
    """Path of the public file `name` in `folder`, downloaded if it is not there.

    folder: without it `cache()`. progress: called as (name, bytes done, bytes in all; 0: unknown).
    sha256: what the file must have. home: address of another folder that has the file (a mirror).
    `DataError` names file, address, reason and mend: no network, a download that broke off or is
    not of its kind (nothing is left then), or a file that is no longer what was downloaded.
    """
    if name not in FILES:
        raise DataError(f"unknown public file '{name}'; known: {', '.join(FILES)}")
    path = Path(folder or cache()) / name
    wanted = sha256 or FILES[name].sha256
    if not path.exists():
        _download(path, (home or FILES[name].home) + name, progress, wanted)
    _check(path, wanted)
    return path


def note(path: Path) -> Path:
    """The file beside `path` that holds its size and checksum at first use."""
    return path.with_name(path.name + ".first-use.json")


def _check(path: Path, wanted: str | None) -> None:
    """The file is what it was at its first use, which is now if nothing was noted."""
    found = {"size": path.stat().st_size, "sha256": check_sha256(path, wanted)}
    if not note(path).exists():
        return write_json(note(path), found)
    try:
        held = read_json(note(path))
    except StateError as error:
        raise DataError(f"{note(path)} is damaged; delete it, to trust {path} anew") from error
    if held != found:
        raise DataError(
            f"{path} is not what it was at its first use (SHA-256 {held['sha256']}, "
            f"{held['size']} bytes; now {found['sha256']}, {found['size']} bytes); delete it and "
            f"{note(path).name}, and it is fetched again"
        )


def _download(path: Path, address: str, progress: Callable | None, wanted: str | None) -> None:
    """Put the file at `path` once it is whole; before that it has another name."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(part, "wb")
    except OSError as error:
        text = f"{path.parent}: {error.strerror}; set ECE_CACHE to a folder that can be written"
        raise DataError(text) from error
    try:
        with file:
            _receive(address, file, partial(progress or _silent, path.name))
        _check_kind(part, path.suffix)
        if wanted is not None and checksum(part) != wanted.lower():
            raise ValueError(f"what came has the SHA-256 {checksum(part)}, wanted is {wanted}")
        note(path).unlink(missing_ok=True)  # of an earlier download that was deleted
        part.replace(path)
    except (OSError, HTTPException, ValueError) as error:
        mend = f"try again where it can be reached, {FILES[path.name].mend}"
        raise DataError(f"{path.name} cannot be had from {address}: {error}; {mend}") from error
    finally:
        part.unlink(missing_ok=True)


def _receive(address: str, file, progress: Callable) -> None:
    with urllib.request.urlopen(address, timeout=PATIENCE) as response:
        total, done = int(response.headers.get("Content-Length") or 0), 0
        progress(done, total)
        while data := response.read(CHUNK):
            file.write(data)
            done += len(data)
            progress(done, total)
    if total and done != total:
        raise OSError(f"it broke off after {done} of {total} bytes")
    file.flush()
    os.fsync(file.fileno())


def _check_kind(path: Path, kind: str) -> None:
    """A cheap look: JSON has a bracket at either end; an array has a header and its length."""
    if kind == ".npy":
        np.load(path, mmap_mode="r", allow_pickle=False)
        return
    with open(path, "rb") as file:
        head = file.read(256).lstrip()
        file.seek(max(0, path.stat().st_size - 256))
        tail = file.read().rstrip()
    if (head[:1] + tail[-1:]) not in (b"[]", b"{}"):
        raise ValueError("what came is not JSON")


def _silent(name: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


def main(argv: list[str] | None = None) -> int:
    """The command line: fetch a file, print its checksum and path; the exit code is 2 if not."""
    parser = argparse.ArgumentParser(
        "python -m ece.data.download", description=__doc__.split("\n")[0]
    )
    parser.add_argument("name", choices=FILES, help="the file")
    parser.add_argument("--folder", help="where it goes (default: ECE_CACHE, or ~/.cache/ece)")
    parser.add_argument("--sha256", help="checksum that it must have")
    parser.add_argument("--home", metavar="URL", help="another folder that has it, e.g. a mirror")
    given = parser.parse_args(argv)
    try:
        with tqdm(unit="B", unit_scale=True, file=sys.stderr, disable=None) as bar:
            path = fetch(given.name, given.folder, partial(_show, bar), given.sha256, given.home)
    except DataError as error:
        parser.error(str(error))
    sys.stdout.write(f"{checksum(path)}  {path}\n")
    return 0


def _show(bar: tqdm, name: str, done: int, total: int) -> None:
    bar.set_description(name)
    bar.total, bar.n = total or None, done
    bar.refresh()


if __name__ == "__main__":
    sys.exit(main())
