"""Load facts to edit from records: which ones, in which order."""

import random
from collections import Counter
from functools import partial
from pathlib import Path

from ece.data.counterfact import facts_from_counterfact
from ece.data.downloads import fetch
from ece.data.schema import checksum, read_records
from ece.data.table import facts_from_table
from ece.data.zsre import QAEDIT, WIKIBIGEDIT, facts_from_questions, facts_from_zsre
from ece.errors import DataError
from ece.facts import Fact

CONVERT = {
    "counterfact": facts_from_counterfact,
    "zsre": facts_from_zsre,
    "qaedit": partial(facts_from_questions, QAEDIT),
    "wikibigedit": partial(facts_from_questions, WIKIBIGEDIT),
}
"""Data set -> what makes facts of its records."""
MEASURE = {"counterfact": "success", "zsre": "accuracy", "qaedit": "accuracy",
           "wikibigedit": "accuracy"}  # fmt: skip
"""Data set -> the measure it reports (`ece.evaluation.metrics.Scores.summary`)."""
PUBLIC = {"counterfact": "multi_counterfact.json", "zsre": "zsre_mend_eval.json"}
"""Data set -> its public file, as in the published evaluation (`ece.data.downloads`)."""


def load_facts(
    dataset: str, n: int | None = None, seed: int = 0, path: str | Path | None = None, *,
    records=None, skip_bad: bool = False,
) -> list[Fact]:  # fmt: skip
    """Draw `n` facts (None: all there are) in an order that the seed decides.

    Either path, a JSON file with a list of records, a CSV table (`facts_from_table`), or "public"
    for the public file of the data set; or records, such a list. No two facts share subject and
    relation (the first drawn stays), and a subject returns only after all others came as often.
    skip_bad: leave bad records out, with one warning. Facts of the embedded world:
    `ece.atlas.facts`. Raises `DataError`.
    """
    check_dataset(dataset)
    if (path is None) == (records is None):
        raise DataError(f"facts of {dataset} need either 'path' or 'records'; name a file, 'public'"
                        ", or call ece.atlas.facts for the embedded world")  # fmt: skip
    source, facts = "the given records", None
    if records is None:
        file = records_file(dataset, path)
        source = str(file)
        if source.endswith(".csv"):
            facts = facts_from_table(file)
        else:
            records = read_records(file)
    for name, found in {"seed": seed, "n": 1 if n is None else n}.items():
        if not isinstance(found, int) or isinstance(found, bool):
            raise DataError(f"{name} is {found!r}; give a whole number")
    facts = facts or CONVERT[dataset](records, source, skip_bad)
    random.Random(seed).shuffle(facts)
    distinct = in_rounds(_distinct(facts))
    if n is not None and not 1 <= n <= len(distinct):
        raise DataError(f"{n} facts were requested of {source}, and {len(distinct)} there differ "
                        f"in subject or relation; choose 1 to {len(distinct)}")  # fmt: skip
    return distinct[:n]


def records_file(
    dataset: str, path: str | Path | None, sha256: str | None = None, progress: bool = False
) -> Path | None:
    """Find the file that `path` means: None for None; "public" is fetched if needed.

    sha256: the checksum that the file must have. progress: as for `ece.data.downloads.fetch`.
    """
    check_dataset(dataset)
    if path is None:
        return None
    if path == "public":
        if dataset not in PUBLIC:
            raise DataError(f"{dataset} has no public file; name a file of its records")
        return fetch(PUBLIC[dataset], sha256=sha256, progress=progress)
    if sha256 is not None:
        checksum(path, sha256)
    return Path(path)


def check_dataset(dataset: str) -> None:
    """Raise `DataError` for the name of a data set that is not known."""
    if dataset not in CONVERT:
        raise DataError(f"unknown data set '{dataset}'; known: {', '.join(CONVERT)}")


def _distinct(facts: list[Fact]) -> list[Fact]:
    """Leave out facts about the subject and relation (or prompt) of an earlier one."""
    seen, left = set(), []
    for fact in facts:
        names = {(fact.subject, fact.relation or fact.prompt), (fact.subject, fact.prompt)}
        if not names & seen:
            left.append(fact)
        seen |= names
    return left


def in_rounds(facts: list) -> list:
    """Put each subject's first fact first, in order, then each one's second, and so on."""
    seen, rounds = Counter(), []
    for fact in facts:
        rounds.append(seen[fact.subject])
        seen[fact.subject] += 1
    return [facts[i] for i in sorted(range(len(facts)), key=rounds.__getitem__)]
