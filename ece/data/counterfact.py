"""Convert CounterFact records to facts."""

from ece.data.schema import BadRecord, convert, number, text, texts
from ece.facts import Fact


def facts_from_counterfact(records, source: str = "records", skip_bad: bool = False) -> list[Fact]:
    """Make one `Fact` per CounterFact record; the answer of its neighbours is `target_true`.

    source: what errors call the records. skip_bad: leave bad ones out, with one warning.
    """
    return convert(_fact, records, source, skip_bad)


def _fact(record, place: int) -> Fact:
    prompt = text(record, "requested_rewrite", "prompt")
    if prompt.count("{}") != 1:
        reason = f"{prompt!r} has '{{}}' {prompt.count('{}')} times"
        raise BadRecord("requested_rewrite.prompt", reason, "put it once, where the subject goes")
    target = text(record, "requested_rewrite", "target_new", "str")
    true = text(record, "requested_rewrite", "target_true", "str")
    if target == true:
        reason = f"is {target!r} like target_true"
        raise BadRecord("requested_rewrite.target_new.str", reason, "name another object")
    relation = "requested_rewrite", "relation_id"  # may be missing: the prompt stands for it
    return Fact(
        prompt=prompt,
        subject=text(record, "requested_rewrite", "subject"),
        target=target,
        true=true,
        relation=text(record, *relation) if relation[1] in record[relation[0]] else "",
        id=number(record, "case_id", place),
        paraphrases=texts(record, "paraphrase_prompts"),
        neighbours=texts(record, "neighborhood_prompts"),
        generation=texts(record, "generation_prompts"),
    )
