"""The embedded world and the three small models that know it."""

from ece.atlas.records import biographies, corpus, records, references
from ece.atlas.tasks import held_out as task_items
from ece.atlas.world import build

__all__ = ["biographies", "build", "corpus", "records", "references", "task_items"]
