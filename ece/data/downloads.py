"""Fetch the public files of the data sets once into a cache, and check them at every use.

The files are those of ROME's and MEMIT's authors, who published no checksums. So a download is
trusted on first use: its SHA-256 is written beside it, and a file that no longer has it is an
error. Give `sha256` if you know what the file must be.
"""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pooch

from ece.data.schema import checksum
from ece.errors import DataError
from ece.loading.gguf import cache

MEMIT = "https://memit.baulab.info/data/dsets/"
ROME = "https://rome.baulab.info/data/dsets/"
FILES = {"multi_counterfact.json": MEMIT, "counterfact.json": ROME, "zsre_mend_eval.json": MEMIT,
         "attribute_snippets.json": MEMIT, "idf.npy": MEMIT, "tfidf_vocab.json": MEMIT}  # fmt: skip
"""File -> the address of its folder. By far the largest are the snippets, about 900 MB."""


def fetch(
    name: str, folder: str | Path | None = None, sha256: str | None = None,
    home: str | None = None, progress: bool = False,
) -> Path:  # fmt: skip
    """Return the path of the public file `name` in `folder`, after a download if it is not there.

    folder: without it `cache()`. sha256: the checksum the file must have. home: the address of
    another folder that has the file (a mirror). progress: draw a bar on standard error. Raises
    `DataError`, and leaves nothing behind, if the download fails or is not of its kind.
    """
    if name not in FILES:
        raise DataError(f"unknown public file '{name}'; known: {', '.join(FILES)}")
    path = Path(folder or cache()) / name
    note = path.with_name(f"{name}.sha256")
    if not path.exists():
        _download((home or FILES[name]) + name, path, sha256, progress)
        note.unlink(missing_ok=True)  # of an earlier download that was deleted
    noted = note.read_text(errors="replace") if note.exists() else None
    found = checksum(path, sha256 or noted)
    if noted is None:
        with suppress(OSError):  # a cache that cannot be written still serves its files
            part = note.with_name(f"{note.name}.{os.getpid()}")
            part.write_text(f"{found}\n")
            part.replace(note)
    return path


def _download(address: str, path: Path, sha256: str | None, progress: bool) -> None:
    """Put the file at `path` once it is whole and checked; before that it has another name."""

    def receive(url: str, part: str, _) -> None:
        http = pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 20, timeout=60)
        http(url, part, None)
        _check_kind(Path(part), path.suffix)

    pooch.get_logger().setLevel("WARNING")  # it would report each download on standard error
    expected = sha256 and f"sha256:{sha256.strip().lower()}"
    try:
        pooch.retrieve(address, expected, path.name, path.parent, downloader=receive)
    except (OSError, ValueError) as error:  # the errors of requests are OSErrors
        raise DataError(f"{path} cannot be downloaded from {address} ({error}); try again where "
                        "the address can be reached, set ECE_CACHE to a folder with free space, "
                        "or name a file you have") from error  # fmt: skip


def _check_kind(path: Path, kind: str) -> None:
    """Look whether JSON has a bracket at either end, or an array has a header and its length."""
    if kind == ".npy":
        np.load(path, mmap_mode="r", allow_pickle=False)
        return
    with open(path, "rb") as file:
        head = file.read(256).lstrip()
        file.seek(max(0, path.stat().st_size - 256))
        tail = file.read().rstrip()
    if (head[:1] + tail[-1:]) not in (b"[]", b"{}"):
        raise ValueError("what came is not JSON")
