"""The edit put before the prompt: what a user would try first, and no weight changes.

Where a prompt is like that of an edit, by TF-IDF over words, the model reads the edit's sentence
before the prompt, in the form of in-context editing (Zheng et al. 2023, arXiv 2305.12740) but
without its demonstrations. An edit costs an entry of the memory, a query in scope the tokens of
its sentence.
"""

from typing import Annotated

import torch
from jaxtyping import Int
from pydantic import Field
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from torch import Tensor

from ece.baselines.base import Task
from ece.baselines.memory import View
from ece.errors import checked
from ece.facts import Fact, decode, encode

ENTRY = "New fact: {} {}.\nPrompt:\n"
"""What is read before the prompt. SmolLM2 follows it; the sentence alone it often does not."""


@checked
class Retrieval:
    """Settings of retrieval; a `ConfigError` names the first one of a wrong type or range."""

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Cosine of two prompts' TF-IDF vectors above which the edit is put before the prompt."""


def view(task: Task, facts: list[Fact]) -> View:
    """Give the model to use once `facts` are in the memory; of equal prompts the last holds."""
    last = {fact.text: fact for fact in facts}
    entries = [encode(task.tokenizer, ENTRY.format(f.text, f.target)) for f in last.values()]
    # Hashed words: one that no edit has counts most, as a rare word does, and is not left out.
    counts = HashingVectorizer(norm=None, alternate_sign=False)
    scale = TfidfTransformer()
    memory = scale.fit_transform(counts.transform(last)) if last else None

    def find(rows: list[list[int]]) -> Int[Tensor, " row"]:
        texts = [decode(task.tokenizer, row) for row in rows]
        likeness = (scale.transform(counts.transform(texts)) @ memory.T).toarray()
        best, entry = torch.from_numpy(likeness).max(1)
        return entry.where(best > task.numbers.threshold, -1)

    return View(task.model, task.model, entries, find, cut=len(encode(task.tokenizer, "")))
