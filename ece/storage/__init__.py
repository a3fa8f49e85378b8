"""Saves what took long, whole or not at all, and goes on where a process was killed.

Everything lies in files of one format (`archive`): safetensors with a description and a checksum.
A file that is missing, damaged or of something else is a `StateError` by name, and so are a full
disk and a folder that cannot be written to.

- A state for yourself: `save_state(model, state, folder)` writes `folder/state.safetensors`, and
  `load_state(model, folder)` brings the unedited model to it.
- Edits for others: `save_edits(path, edits_since(before, model, facts))` writes what changed since
  `before = snapshot(model, layers)`, `toggle(model, load_edits(path))` applies it or takes it back,
  and `save_adapter` writes it for the library peft.
- A run: `with Folder(path) as folder` locks a folder; `run_sequence(..., folder)` edits there.
  It holds `run` (facts, settings, model, statistics: who comes with others is refused),
  `state-00020` (after so many batches), `batch-00021` (each since), `report-00021` (of every
  batch), `values-00021` (found ahead for the batch after so many). Whoever measures may add kinds
  of their own: `folder.claim("cell", settings)`, `folder.save("scores", 3, {...})`.
- Second moments: `moments(model, tokenizer, texts, layers, path)` writes `path`, and `path` +
  ".part" on the way. Processes deal out their layers by `held`.

Beside these lie empty ".lock" files, which the operating system frees when their process ends.
"""

from ece.storage.adapter import save_adapter
from ece.storage.archive import check_identity, checksum, load, save
from ece.storage.edits import EditSet, edits_since, load_edits, save_edits, snapshot, toggle
from ece.storage.files import remove, write
from ece.storage.folder import Folder
from ece.storage.journal import load_state, run_sequence, save_state
from ece.storage.lock import locked
from ece.storage.second_moments import contents, load_moments, moments, save_moments

__all__ = ["EditSet", "Folder", "check_identity", "checksum", "contents", "edits_since", "load",
           "load_edits", "load_moments", "load_state", "locked", "moments", "remove",
           "run_sequence", "save", "save_adapter", "save_edits", "save_moments", "save_state",
           "snapshot", "toggle", "write"]  # fmt: skip
