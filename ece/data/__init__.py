"""Load facts to edit, and reference texts, from records of the data sets."""

from ece.data.counterfact import facts_from_counterfact
from ece.data.downloads import fetch
from ece.data.loading import MEASURE, load_facts, records_file
from ece.data.references import References, load_references, references_file
from ece.data.schema import checksum, read_lines, read_records
from ece.data.texts import python_docs
from ece.data.zsre import facts_from_zsre

__all__ = ["MEASURE", "References", "checksum", "facts_from_counterfact", "facts_from_zsre",
           "fetch", "load_facts", "load_references", "python_docs", "read_lines",
           "read_records", "records_file", "references_file"]  # fmt: skip
