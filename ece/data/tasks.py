"""Items of the paper's six general-ability tasks (Section 4.5), from records or from the hub.

Prompts are those of the published harness, without its slips: it adds a second space after CoLA's
"Answer:" and turns RTE's labels round.
"""

import random
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ece.data.schema import BadRecord, convert, read_records, text, texts, value
from ece.errors import DataError
from ece.evaluation.abilities import Item


class Form(NamedTuple):
    """How a task's records become items."""

    prompt: str
    """With the names of the record's fields in braces."""
    choices: tuple[str, ...]
    """What the labels 0, 1, ... are written as."""
    hub: tuple[str, str, str]
    """Data set, configuration and split on the Hugging Face hub."""


GLUE = "nyu-mll/glue"
TASKS = {
    "sst2": Form("Review :{sentence}\nSentiment :", ("negative", "positive"),
                 (GLUE, "sst2", "validation")),
    "mrpc": Form("Are the sentences paraphrases of each other.\nSentence 1: {sentence1}\n"
                 "Sentence 2: {sentence2}\nAnswer:", ("No", "Yes"), (GLUE, "mrpc", "validation")),
    "mmlu": Form("Question: {question}\n(A) {0}\n(B) {1}\n(C) {2}\n(D) {3}\nAnswer:",
                 ("A", "B", "C", "D"), ("cais/mmlu", "all", "test")),
    "cola": Form("Is this sentence linguistically acceptable?\nSentence: {sentence}\nAnswer:",
                 ("No", "Yes"), (GLUE, "cola", "validation")),
    "rte": Form("{sentence1}\nquestion: {sentence2} True or False?\nanswer:", ("True", "False"),
                (GLUE, "rte", "validation")),
    "nli": Form("{sentence1} entails the {sentence2} True or False? Answer:", ("True", "False"),
                (GLUE, "rte", "train")),
}  # fmt: skip
"""The paper's tasks. What its authors call NLI is, by its texts, RTE's part for training."""
FIELD = re.compile(r"\{(\w+)\}")
WRITTEN = {"entailment": 0, "not_entailment": 1}
"""Labels that some records have in words."""


def load_items(
    task: str, n: int | None = None, seed: int = 0, path: str | Path | None = None, *,
    records: Sequence | None = None, compat: bool = False,
) -> list[Item]:  # fmt: skip
    """Draw `n` items of a task (None: all) in an order that the seed decides.

    Either path, a JSON file with a list of the task's records, or "hub", or `records`. compat:
    repeat the slips of the published harness. Raises `DataError`.
    """
    if task not in TASKS:
        raise DataError(f"unknown task '{task}'; known: {', '.join(TASKS)}")
    if path is None and records is None:
        raise DataError(f"items of {task} need a source; name a file of records, or 'hub'")
    source = str(path or "the given records")
    if records is None:
        records = hub_records(task) if path == "hub" else read_records(path)
    items = convert(partial(_item, task, compat), records, source, skip_bad=False)
    random.Random(seed).shuffle(items)
    if n is not None and (type(n) is not int or not 1 <= n <= len(items)):
        raise DataError(f"{n} items of {task} were requested of {source}, which has {len(items)}; "
                        f"choose 1 to {len(items)}")  # fmt: skip
    return items[:n]


def hub_records(task: str) -> list[dict]:
    """Read a task's records from the Hugging Face hub, by its library `datasets`."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"records of {task} come from the hub by the package 'datasets', which is "
                        "not installed; install it, or name a file of "
                        "records") from error  # fmt: skip
    name, config, split = TASKS[task].hub
    try:
        return list(load_dataset(name, config, split=split))
    except Exception as error:  # whatever the library raises without a network
        raise DataError(f"{name} ({config}, {split}) cannot be read from the hub ({error}); try "
                        "again where it can be reached, or name a file of "
                        "records") from error  # fmt: skip


def _item(task: str, compat: bool, record, place: int) -> Item:
    """Make an item of a record."""
    form, key = TASKS[task], "answer" if task == "mmlu" else "label"
    names, label = FIELD.findall(form.prompt), value(record, key)
    words = texts(record, "choices") if task == "mmlu" else ()
    if task == "mmlu" and len(words) != len(form.choices):
        raise BadRecord("choices", f"{len(words)} are given", f"give {len(form.choices)}")
    parts = {n: words[int(n)] if n.isdigit() else text(record, n) for n in names}
    prompt = FIELD.sub(lambda found: parts[found[1]], form.prompt)
    label = WRITTEN.get(label, label) if isinstance(label, str) else label
    if isinstance(label, bool) or label not in range(len(form.choices)):
        reason = f"{label!r} is no label"
        raise BadRecord(key, reason, f"give 0 to {len(form.choices) - 1}")
    if compat:
        prompt += " " if task == "cola" else ""
        label = 1 - label if task == "rte" else label
    return Item(task, prompt, form.choices, label)
