"""Facts to edit: CounterFact and ZsRE records, from a file or from the embedded world.

`load_facts("counterfact", n=200, seed=0)` draws 200 facts of the embedded world, in an order that
the seed decides. Records are checked one by one; a `DataError` names file, record and field.
"""

import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ece import atlas
from ece.data.download import fetch
from ece.data.schema import Bad, check_sha256, read_records, text, texts
from ece.errors import DataError
from ece.facts import Fact

MEASURE = {"counterfact": "success", "zsre": "accuracy"}
"""Which reading of the rates a dataset reports (`ece.evaluation.metrics.Scores.summary`)."""
PUBLIC = {"counterfact": "multi_counterfact.json", "zsre": "zsre_mend_eval.json"}
"""The public file of a dataset, as in the published evaluation (`ece.data.download`)."""


def facts_from_counterfact(
    records: Sequence[dict], source: str = "records", skip_bad: bool = False
) -> list[Fact]:
    """One `Fact` per CounterFact record; its neighbours are asked for `target_true`."""
    return _convert(_counterfact, records, source, skip_bad)


def facts_from_zsre(
    records: Sequence[dict], source: str = "records", skip_bad: bool = False
) -> list[Fact]:
    """One `Fact` per record of the ZsRE evaluation split.

    The target is `answers[0]`, as in the published evaluation (`alt` is not used). The only
    neighbour is the unrelated question `loc`, to which a question mark is added as there, and
    `true` is *its* answer `loc_ans`: token accuracy then means what the paper's does, while
    comparing target and `true` on one prompt means nothing. ZsRE names no relation, so the
    question stands in for it (the embedded records do name it).
    """
    return _convert(_zsre, records, source, skip_bad)


def load_facts(
    dataset: str,
    n: int | None = None,
    seed: int = 0,
    path: str | Path | None = None,
    skip_bad: bool = False,
) -> list[Fact]:
    """`n` facts (None: all there are), shuffled by `seed`.

    path: a JSON file with a list of records; None takes those of the embedded world, "public"
    the dataset's public file (`records_file`).
    No two facts share subject and relation (the first drawn stays), and a subject comes again
    only after all others have come as often. skip_bad leaves unusable records out, with one
    warning that counts them, where `DataError` would name the first.
    """
    convert = _converter(dataset)
    path = records_file(dataset, path)
    source = f"the embedded {dataset} records" if path is None else str(path)
    facts = convert(load_records(dataset, path), source, skip_bad)
    random.Random(seed).shuffle(facts)
    distinct = _in_rounds(_distinct(facts))
    if n is not None and not 1 <= n <= len(distinct):
        raise DataError(
            f"{n} facts were asked of {source}, which hold {len(distinct)} that no two share "
            f"subject and relation; ask for 1 to {len(distinct)}"
        )
    return distinct[:n]


def records_file(
    dataset: str,
    path: str | Path | None,
    sha256: str | None = None,
    progress: Callable | None = None,
) -> Path | None:
    """The file that `path` means: None none, "public" the dataset's, which is fetched if needed.

    sha256: what the file must have. progress: as in `ece.data.download.fetch`. Raises `DataError`.
    """
    _converter(dataset)
    if path is None:
        return None
    if path == "public":
        return fetch(PUBLIC[dataset], progress=progress, sha256=sha256)
    if sha256 is not None:
        check_sha256(path, sha256)
    return Path(path)


def load_records(dataset: str, path: str | Path | None) -> list:
    """The records of a file, or (None) those of the embedded world."""
    return atlas.records(dataset) if path is None else read_records(path)


def _distinct(facts: list[Fact]) -> list[Fact]:
    """Facts in order, without those that speak of the subject and relation of an earlier one."""
    seen, kept = set(), []
    for fact in facts:
        names = {(fact.subject, fact.relation or fact.prompt), (fact.subject, fact.prompt)}
        if not names & seen:
            kept.append(fact)
        seen |= names
    return kept


def _in_rounds(facts: list[Fact]) -> list[Fact]:
    """Each subject's first fact, in order, then each one's second, and so on."""
    seen, rounds = Counter(), []
    for fact in facts:
        rounds.append(seen[fact.subject])
        seen[fact.subject] += 1
    return [facts[i] for i in sorted(range(len(facts)), key=rounds.__getitem__)]


def _converter(dataset: str) -> Callable[..., list[Fact]]:
    known = {"counterfact": facts_from_counterfact, "zsre": facts_from_zsre}
    if dataset not in known:
        raise DataError(f"unknown dataset '{dataset}'; known: {', '.join(known)}")
    return known[dataset]


def _convert(one, records, source: str, skip_bad: bool) -> list[Fact]:
    facts, errors = [], []
    for number, record in enumerate(records):
        try:
            facts.append(one(record, number))
        except Bad as bad:
            field, reason, mend = bad.args
            errors.append(f"{source}, record {number}, field '{field}': {reason}; {mend}")
            if not skip_bad:
                raise DataError(errors[0]) from None
    if errors:
        count = f"{len(errors)} of {len(records)} records left out"
        warnings.warn(f"{count}; the first: {errors[0]}", stacklevel=4)
    return facts


def _counterfact(record: dict, number: int) -> Fact:
    prompt = text(record, "requested_rewrite", "prompt")
    if prompt.count("{}") != 1:
        reason = f"{prompt!r} has '{{}}' {prompt.count('{}')} times"
        raise Bad("requested_rewrite.prompt", reason, "put it once, where the subject goes")
    target = text(record, "requested_rewrite", "target_new", "str")
    true = text(record, "requested_rewrite", "target_true", "str")
    if target == true:
        reason = f"is {target!r} like target_true"
        raise Bad("requested_rewrite.target_new.str", reason, "name another object")
    return Fact(
        prompt=prompt,
        subject=text(record, "requested_rewrite", "subject"),
        target=target,
        true=true,
        relation=text(record, "requested_rewrite", "relation_id"),
        id=_id(record, number),
        paraphrases=texts(record, "paraphrase_prompts"),
        neighbours=texts(record, "neighborhood_prompts"),
        generation=texts(record, "generation_prompts"),
    )


def _zsre(record: dict, number: int) -> Fact:
    subject = text(record, "subject")
    return Fact(
        prompt=_slot(text(record, "src"), subject),
        subject=subject,
        target=texts(record, "answers", least=1)[0],
        true=text(record, "loc_ans"),
        relation=text(record, "relation_id") if "relation_id" in record else "",
        id=_id(record, number),
        paraphrases=(text(record, "rephrase"),),
        neighbours=(_asked(text(record, "loc")),),
    )


def _asked(question: str) -> str:
    """`question` with its mark, which ZsRE's unrelated questions lack."""
    return question if question.endswith("?") else f"{question}?"


def _slot(question: str, subject: str) -> str:
    """`question` with "{}" in place of its one mention of `subject`, by preference a whole word."""
    words = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", question))
    found = words or list(re.finditer(re.escape(subject), question))
    if len(found) != 1 or "{}" in question:
        reason = f"the subject {subject!r} is {len(found)} times in {question!r}"
        raise Bad("src", reason, "word the question so that it is there once, without '{}'")
    return question[: found[0].start()] + "{}" + question[found[0].end() :]


def _id(record: dict, number: int) -> int:
    name = record.get("case_id", number)
    if not isinstance(name, int):
        raise Bad("case_id", f"{name!r} is no whole number", "number the records or leave it out")
    return name
