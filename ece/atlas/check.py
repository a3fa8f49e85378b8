"""Check what the embedded models know, and where: recall, specificity, tracing, tasks."""

import numpy as np

from ece.atlas.records import records
from ece.atlas.tasks import TASKS, held_out
from ece.atlas.world import World, build
from ece.data import facts_from_counterfact
from ece.evaluation.abilities import Item, rates, verdicts
from ece.evaluation.causal_tracing import swap
from ece.evaluation.metrics import evaluate, known, recall
from ece.facts import Fact

RECALL = 98.0
"""Least recall and pre-edit specificity, in percent, of a shipped model."""


def check(model, tokenizer) -> dict:
    """Measure all rates, in percent; `swap` is per layer, `tasks` per task."""
    world = build()
    facts = facts_from_counterfact(records())[: len(world.kind_of)]  # each subject once
    return {
        **recalls(model, tokenizer, world),
        "specificity": evaluate(model, tokenizer, facts).summary()["specificity"],
        "swap": [round(100 * share, 1) for share in swap_effect(model, tokenizer, facts).tolist()],
        "tasks": {task: accuracy(model, tokenizer, held_out(world, task)) for task in TASKS},
    }


def recalls(model, tokenizer, world: World) -> dict:
    """Measure top-1 recall on edit prompts, unseen paraphrases and unseen questions."""
    templates = {"edit": [], "unseen": [], "question": []}
    for fact in world.triples:
        relation = world.relations[fact.relation]
        templates["edit"].append((relation.templates[0], fact))
        templates["unseen"] += [(template, fact) for template in world.held_out(fact)]
        templates["question"].append((world.held_out_question(fact), fact))
    rates = {}
    for name, pairs in templates.items():
        prompts = [template.format(fact.subject) for template, fact in pairs]
        hits = recall(model, tokenizer, prompts, [fact.object for _, fact in pairs])
        rates[f"recall_{name}"] = round(100 * float(np.mean(hits)), 2)
    return rates


def swap_effect(model, tokenizer, facts: list[Fact]):
    """Trace by interchange over 200 pairs of known facts of one relation, per layer, in [0, 1]."""
    waiting: dict[str, Fact] = {}
    found = []
    for fact in known(model, tokenizer, facts):
        other = waiting.setdefault(fact.relation, fact)
        if other.true != fact.true:
            found.append((waiting.pop(fact.relation), fact))
    return swap(model, tokenizer, found[:200])


def accuracy(model, tokenizer, items: list[Item]) -> float:
    """Measure the percentage of items whose right choice has the least NLL per token."""
    return round(rates(items, verdicts(model, tokenizer, items, write=False))["accuracy"], 1)
