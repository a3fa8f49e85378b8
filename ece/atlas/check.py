"""What the atlas models know, and where: recall, specificity, swap effect, task accuracy."""

import numpy as np

from ece.atlas.records import records
from ece.atlas.tasks import TASKS, Item, held_out
from ece.atlas.world import World, build
from ece.data.loading import facts_from_counterfact
from ece.evaluation.causal_tracing import swap
from ece.evaluation.metrics import evaluate, recall
from ece.evaluation.teacher_forcing import read
from ece.facts import Fact

RECALL = 98.0
"""Least recall and pre-edit specificity, in percent, of a shipped model."""


def check(model, tokenizer) -> dict:
    """All rates in percent; `swap` is per layer, `tasks` per task."""
    world = build()
    facts = facts_from_counterfact(records())[: len(world.kind_of)]  # each subject once
    return {
        **recalls(model, tokenizer, world),
        "specificity": evaluate(model, tokenizer, facts).summary()["specificity"],
        "swap": [round(100 * share, 1) for share in swap_effect(model, tokenizer, facts).tolist()],
        "tasks": {task: accuracy(model, tokenizer, held_out(world, task)) for task in TASKS},
    }


def recalls(model, tokenizer, world: World) -> dict:
    """Top-1 recall on edit prompts, unseen paraphrases and unseen questions."""
    wanted = {"edit": [], "unseen": [], "question": []}
    for fact in world.triples:
        relation = world.relations[fact.relation]
        wanted["edit"].append((relation.templates[0], fact))
        wanted["unseen"] += [(template, fact) for template in world.held_out(fact)]
        wanted["question"].append((world.held_out_question(fact), fact))
    rates = {}
    for name, pairs in wanted.items():
        prompts = [template.format(fact.subject) for template, fact in pairs]
        hits = recall(model, tokenizer, prompts, [fact.object for _, fact in pairs])
        rates[f"recall_{name}"] = round(100 * float(np.mean(hits)), 2)
    return rates


def swap_effect(model, tokenizer, facts: list[Fact], pairs: int = 200, at: str = "subject"):
    """Interchange tracing over pairs of known facts of one relation, per layer, in [0, 1]."""
    known = recall(model, tokenizer, [f.text for f in facts], [f.true for f in facts])
    waiting: dict[str, Fact] = {}
    found = []
    for fact, knows in zip(facts, known, strict=True):
        other = waiting.get(fact.relation)
        if knows and other is not None and other.true != fact.true:
            found.append((waiting.pop(fact.relation), fact))
        elif knows and other is None:
            waiting[fact.relation] = fact
    return swap(model, tokenizer, found[:pairs], at)


def accuracy(model, tokenizer, items: list[Item]) -> float:
    """Percent of items whose right continuation has the least NLL per token of the choices."""
    pairs = [(item.prompt, choice) for item in items for choice in item.choices]
    nll = read(model, tokenizer, pairs)[0]
    ends = np.cumsum([len(item.choices) for item in items])[:-1]
    chosen = [part.argmin() for part in np.split(nll, ends)]
    return round(
        100 * float(np.mean([i.label == c for i, c in zip(items, chosen, strict=True)])), 1
    )
