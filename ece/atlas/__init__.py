"""Hold the embedded world, and train the three small models that know it."""

from ece.atlas.records import biographies, corpus, facts, records, references
from ece.atlas.tasks import held_out as task_items
from ece.atlas.world import build

__all__ = ["biographies", "build", "corpus", "facts", "records", "references", "task_items"]
