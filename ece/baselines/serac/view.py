"""The model that SERAC stands for: base model, memory, scope classifier, counterfactual model."""

from jaxtyping import Int
from torch import Tensor

from ece.baselines.base import Task, Weights
from ece.baselines.memory import View
from ece.baselines.serac import answer as serac_answer
from ece.baselines.serac import scope as serac_scope
from ece.facts import Fact, encode


def view(task: Task, facts: list[Fact]) -> View:
    """Give the model to use once `facts` are in the memory; of equal prompts the last holds.

    Each text is compared with every edit. Where the likeliest edit passes the threshold, the
    counterfactual model answers.
    """
    last = {fact.text: fact for fact in facts}  # a later edit of the same prompt holds
    entries = [serac_answer.entry(task.tokenizer, fact) for fact in last.values()]
    scope = _part(task.trained, "scope")
    answerer = serac_answer.network(task)
    answerer.load_state_dict(_part(task.trained, "counterfactual"), strict=False)
    rows = [encode(task.tokenizer, serac_scope.statement(fact)) for fact in last.values()]
    memory = serac_scope.embed(task, scope, rows) if rows else None

    def find(rows: list[list[int]]) -> Int[Tensor, " row"]:
        vectors = serac_scope.embed(task, scope, rows)
        best, entry = serac_scope.logits(scope, memory, vectors).max(0)
        return entry.where(best.sigmoid() > task.numbers.threshold, -1)

    return View(task.model, answerer, entries, find)


def _part(weights: Weights, name: str) -> Weights:
    """Take the tensors under prefix `name`, without it."""
    start = f"{name}."
    return {key.removeprefix(start): v for key, v in weights.items() if key.startswith(start)}
