"""Facts to edit: CounterFact and ZsRE records, from a file or from the embedded world.

`load_facts("counterfact", n=200, seed=0)` draws 200 facts of the embedded world, in an order that
the seed decides. Records are checked one by one; a `DataError` names file, record and field.
"""

import json
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ece import atlas
from ece.errors import EditError
from ece.facts import Fact

MEASURE = {"counterfact": "success", "zsre": "accuracy"}
"""Which reading of the rates a dataset reports (`ece.metrics.Scores.summary`)."""


class DataError(EditError):
    """A record, a file or a request for facts that cannot be used."""


class _Bad(Exception):
    """Field, reason and mend of a record; the caller adds file and number."""


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
    neighbour is the unrelated question `loc`, and `true` is *its* answer `loc_ans`: token accuracy
    then means what the paper's does, while comparing target and `true` on one prompt means nothing.
    ZsRE names no relation, so the question stands in for it (the embedded records do name it).
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

    path: a JSON file with a list of records; None takes those of the embedded world.
    No two facts share subject and relation (the first drawn stays), and a subject comes again
    only after all others have come as often. skip_bad leaves unusable records out, with one
    warning that counts them, where `DataError` would name the first.
    """
    convert = _converter(dataset)
    source = f"the embedded {dataset} records" if path is None else str(path)
    records = atlas.records(dataset) if path is None else read_records(path)
    facts = convert(records, source, skip_bad)
    random.Random(seed).shuffle(facts)
    distinct = _in_rounds(_distinct(facts))
    if n is not None and not 1 <= n <= len(distinct):
        raise DataError(
            f"{n} facts were asked of {source}, which hold {len(distinct)} that no two share "
            f"subject and relation; ask for 1 to {len(distinct)}"
        )
    return distinct[:n]


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


def read_records(path: str | Path) -> list[dict]:
    """The records of a JSON file; `DataError` if it is not there or holds no list."""
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a JSON file of records") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); name a JSON file of records") from error
    if not isinstance(records, list) or not records:
        raise DataError(f"{path}: holds no list of records; give a JSON file [{{...}}, ...]")
    return records


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
        except _Bad as bad:
            field, reason, mend = bad.args
            errors.append(f"{source}, record {number}, field '{field}': {reason}; {mend}")
            if not skip_bad:
                raise DataError(errors[0]) from None
    if errors:
        text = f"{len(errors)} of {len(records)} records left out; the first: {errors[0]}"
        warnings.warn(text, stacklevel=4)
    return facts


def _counterfact(record: dict, number: int) -> Fact:
    prompt = _text(record, "requested_rewrite", "prompt")
    if prompt.count("{}") != 1:
        reason = f"{prompt!r} has '{{}}' {prompt.count('{}')} times"
        raise _Bad("requested_rewrite.prompt", reason, "put it once, where the subject goes")
    target = _text(record, "requested_rewrite", "target_new", "str")
    true = _text(record, "requested_rewrite", "target_true", "str")
    if target == true:
        reason = f"is {target!r} like target_true"
        raise _Bad("requested_rewrite.target_new.str", reason, "name another object")
    return Fact(
        prompt=prompt,
        subject=_text(record, "requested_rewrite", "subject"),
        target=target,
        true=true,
        relation=_text(record, "requested_rewrite", "relation_id"),
        id=_id(record, number),
        paraphrases=_texts(record, "paraphrase_prompts"),
        neighbours=_texts(record, "neighborhood_prompts"),
        generation=_texts(record, "generation_prompts"),
    )


def _zsre(record: dict, number: int) -> Fact:
    subject = _text(record, "subject")
    return Fact(
        prompt=_slot(_text(record, "src"), subject),
        subject=subject,
        target=_texts(record, "answers", least=1)[0],
        true=_text(record, "loc_ans"),
        relation=_text(record, "relation_id") if "relation_id" in record else "",
        id=_id(record, number),
        paraphrases=(_text(record, "rephrase"),),
        neighbours=(_text(record, "loc"),),
    )


def _slot(question: str, subject: str) -> str:
    """`question` with "{}" in place of its one mention of `subject`, by preference a whole word."""
    words = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", question))
    found = words or list(re.finditer(re.escape(subject), question))
    if len(found) != 1 or "{}" in question:
        reason = f"the subject {subject!r} is {len(found)} times in {question!r}"
        raise _Bad("src", reason, "word the question so that it is there once, without '{}'")
    return question[: found[0].start()] + "{}" + question[found[0].end() :]


def _id(record: dict, number: int) -> int:
    name = record.get("case_id", number)
    if not isinstance(name, int):
        raise _Bad("case_id", f"{name!r} is no whole number", "number the records or leave it out")
    return name


def _text(record: dict, *keys: str) -> str:
    """The text at a path of keys, without blanks around it."""
    value = _value(record, *keys)
    if not isinstance(value, str) or not value.strip():
        raise _Bad(".".join(keys), f"{value!r} is no text", "give a text that is not empty")
    return value.strip()


def _texts(record: dict, key: str, least: int = 0) -> tuple[str, ...]:
    """The list of texts at `key`, each without blanks around it."""
    values = _value(record, key)
    if not isinstance(values, list) or len(values) < least:
        raise _Bad(key, f"{values!r} is no list of {least} or more texts", "give a list of texts")
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise _Bad(key, f"holds {value!r}, which is no text", "take it out of the list")
    return tuple(value.strip() for value in values)


def _value(record: dict, *keys: str):
    value = record
    for depth, key in enumerate(keys):
        if not isinstance(value, dict) or key not in value:
            mend = "check that the file has the schema of the dataset named"
            raise _Bad(".".join(keys[: depth + 1]), "is missing", mend)
        value = value[key]
    return value
