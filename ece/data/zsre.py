"""Convert records of ZsRE, QAEdit and WikiBigEdit to facts: questions with one answer each."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ece.data.schema import BadRecord, convert, number, text
from ece.facts import Fact

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Fields:
    """Says where a record of one data set holds the parts of a fact, as paths of keys."""

    question: Path
    target: Path
    rephrased: Path
    neighbour: Path
    answer: Path
    """The answer of the neighbour, which is another question."""
    id: str
    mark: bool = False
    """Whether the neighbour gets a question mark, as in the published evaluation of ZsRE."""


ZSRE = Fields(("src",), ("answers", 0), ("rephrase",), ("loc",), ("loc_ans",), "case_id", True)
QAEDIT = Fields(("prompt",), ("target",), ("rephrase",), ("locality", 0, "loc"),
                ("locality", 0, "loc_ans"), "id")  # fmt: skip
WIKIBIGEDIT = Fields(("prompt",), ("target_new",), ("rephrase_prompt",), ("locality_prompt",),
                     ("locality_ground_truth",), "id")  # fmt: skip


def facts_from_questions(
    fields: Fields, records, source: str = "records", skip_bad: bool = False
) -> list[Fact]:
    """Make one `Fact` per record; its only neighbour is an unrelated question.

    `Fact.true` is the answer of that neighbour (of QAEdit's five neighbours with five answers, the
    first). So token accuracy means what it does in the paper, while a comparison of `target` and
    `true` on one prompt means nothing. The question stands for the relation, which only the
    embedded records name. source, skip_bad: as for `facts_from_counterfact`.
    """
    return convert(partial(_fact, fields), records, source, skip_bad)


facts_from_zsre: Callable[..., list[Fact]] = partial(facts_from_questions, ZSRE)
"""`facts_from_questions` for ZsRE, whose target is `answers[0]`; `alt` is not used."""


def _fact(fields: Fields, record, place: int) -> Fact:
    subject, neighbour = text(record, "subject"), text(record, *fields.neighbour)
    mark = "?" if fields.mark and not neighbour.endswith("?") else ""
    return Fact(
        prompt=_slot(text(record, *fields.question), subject, fields.question[0]),
        subject=subject,
        target=text(record, *fields.target),
        true=text(record, *fields.answer),
        relation=text(record, "relation_id") if "relation_id" in record else "",
        id=number(record, fields.id, place),
        paraphrases=(text(record, *fields.rephrased),),
        neighbours=(neighbour + mark,),
    )


def _slot(question: str, subject: str, field: str) -> str:
    """Put "{}" in place of the one mention of the subject, preferably a whole word."""
    words = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", question))
    found = words or list(re.finditer(re.escape(subject), question))
    if len(found) != 1 or "{}" in question:
        reason = f"the subject {subject!r} is {len(found)} times in {question!r}"
        raise BadRecord(field, reason, "word it so that the subject is there once, without '{}'")
    return question[: found[0].start()] + "{}" + question[found[0].end() :]
