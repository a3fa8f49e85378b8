"""A folder of one run: identities, and numbered files of several kinds."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ece.engine.parallel import Processes
from ece.errors import StateError
from ece.storage.archive import check_identity, load, save
from ece.storage.files import explained, remove
from ece.storage.lock import locked


class Folder:
    """Holds the files of a run, for one process at a time; used as `with Folder(path) as folder`.

    A file of kind "scores" and number 3 is "scores-00003.safetensors".
    """

    def __init__(self, path: str | Path):
        self.path, self._lock = Path(path), ExitStack()

    def __enter__(self) -> "Folder":
        with explained(self.path, "made", "name a folder that you may write to"):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(locked(self.path))
        return self

    def __exit__(self, *error) -> None:
        self._lock.close()

    def claim(self, kind: str, identity: dict[str, Any]) -> None:
        """Make the folder that of the run with this identity; `StateError` if it is another's.

        identity: what decides the run's results, by name; the error says which part differs. One
        folder may be claimed under several kinds.
        """
        path = self.path / f"{kind}.safetensors"
        if not path.exists():
            if [*self.path.glob("*-[0-9]*.safetensors")]:
                raise StateError(f"{path} is missing, which says whose files lie beside it; name "
                                 "another folder, or empty this one")  # fmt: skip
            save(path, kind, identity)
        check_identity(self.path, load(path, kind), identity)

    def save(self, kind: str, number: int, content: Any) -> None:
        """Write one file (see `ece.storage.archive.save`)."""
        save(self._file(kind, number), kind, {"number": number, "content": content})

    def load(self, kind: str, number: int, *classes: type) -> Any:
        """Read one file; `StateError` if it is missing, damaged or was renamed."""
        path = self._file(kind, number)
        found = load(path, kind, classes)
        if found["number"] != number:
            raise StateError(f"{path} is number {found['number']}; give it back its name")
        return found["content"]

    def numbers(self, kind: str) -> list[int]:
        """List the numbers of all files of a kind, increasing."""
        paths = self.path.glob(f"{kind}-*.safetensors")
        ends = (path.stem.removeprefix(f"{kind}-") for path in paths)
        return sorted(int(end) for end in ends if end.isdecimal())

    def remove(self, kind: str, below: int) -> None:
        """Delete the files of a kind whose numbers are smaller than `below`."""
        remove(self._file(kind, number) for number in self.numbers(kind) if number < below)

    def _file(self, kind: str, number: int) -> Path:
        return self.path / f"{kind}-{number:05d}.safetensors"


class Shared(Folder):
    """The folder of several processes, which all see it: the first writes, and all wait for that.

    Each process makes the same calls. Who reads sees what was written by all calls before.
    """

    def __init__(self, path: str | Path, crew: Processes):
        super().__init__(path)
        self.crew = crew

    def __enter__(self) -> "Shared":
        self._by_first(super().__enter__)
        return self

    def claim(self, kind: str, identity: dict[str, Any]) -> None:
        self._by_first(super().claim, kind, identity)

    def save(self, kind: str, number: int, content: Any) -> None:
        self._by_first(super().save, kind, number, content)

    def remove(self, kind: str, below: int) -> None:
        self._by_first(super().remove, kind, below)

    def _by_first(self, call: Callable, *given) -> None:
        """Let the first process do it, between the others' earlier and later calls."""
        self.crew.first(None)
        if self.crew.rank == 0:
            call(*given)
        self.crew.first(None)
