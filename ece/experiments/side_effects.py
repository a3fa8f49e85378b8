"""Measures what editing does beside its facts: abilities, drift, free answers, probes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ece import Fact
from ece.evaluation.abilities import Item, rates, verdicts
from ece.evaluation.answers import exact, normal, token_f1
from ece.evaluation.drift import Drift, openings, perplexity
from ece.evaluation.generation import answer, generate
from ece.evaluation.probes import probe
from ece.evaluation.text_quality import fluency
from ece.experiments.inputs import documents, task_items
from ece.experiments.spec import Settings
from ece.facts import encode

READ = 64
"""Texts that perplexity is measured on."""
COMPARED = 8
"""Texts on which whole distributions are compared."""
CASE = 60
"""Tokens of a case's text, with its prompt."""
Rates = dict[str, float]


@dataclass(frozen=True)
class SideEffects:
    """What a run measures beside its facts, prepared on the unedited model."""

    settings: Settings
    tokenizer: object
    items: Mapping[str, list[Item]]
    texts: list[list[int]]
    on_text: Drift | None
    on_neighbours: Drift | None

    @classmethod
    def of(cls, settings: Settings, model, tokenizer, facts: list[Fact]) -> "SideEffects":
        """Draw items and texts, and keep the unedited model's distributions."""
        items = task_items(settings) if "abilities" in settings.also else {}
        if "drift" not in settings.also:
            return cls(settings, tokenizer, items, [], None, None)
        texts = openings(tokenizer, documents(settings, tokenizer, spare=True), READ)
        edited = {fact.text for fact in facts}
        prompts = [n for fact in facts[: settings.also_facts] for n in fact.neighbours[:1]]
        rows = [encode(tokenizer, prompt) for prompt in prompts if prompt not in edited]
        near = Drift.of(model, rows, last=True) if rows else None
        return cls(settings, tokenizer, items, texts, Drift.of(model, texts[:COMPARED]), near)

    def measure(self, model, facts: list[Fact]) -> Rates:
        """Measure the model as it is; what needs facts takes the first of those edited so far."""
        some, found = facts[: self.settings.also_facts], {}
        for part in self.settings.also:
            found |= getattr(self, f"_{part}")(model, some)
        return {name: round(value, 4) for name, value in found.items()}

    def texts_of_cases(self, model, facts: list[Fact]) -> list[str]:
        """Write about the first facts of the sequence, greedily; how many is the setting `cases`.

        The prompt is that of the edit: what the model says of the subject after its answer.
        """
        prompts = [fact.text for fact in facts[: self.settings.cases]]
        return generate(model, self.tokenizer, prompts, CASE, top_k=1) if prompts else []

    def _abilities(self, model, facts: list[Fact]) -> Rates:
        """Accuracy and F1 of each task in percent, and their means over tasks."""
        found, sums = {}, Counter()
        write = self.settings.tasks is not None  # ends of embedded items are too long for that
        for task, items in self.items.items():
            taken = verdicts(model, self.tokenizer, items, write)
            for name, rate in rates(items, taken).items():
                found |= {f"{task}_{name}": rate, f"{task}_{name}_n": len(items)}
                sums[f"abilities_{name}"] += rate / len(self.items)
        return found | sums

    def _drift(self, model, facts: list[Fact]) -> Rates:
        """Perplexity, and the divergence from the unedited model in nats per token."""
        found = {"perplexity": perplexity(model, self.texts), "perplexity_n": len(self.texts)}
        drifts = {"kl_text": self.on_text, "kl_neighbours": self.on_neighbours}
        return found | _means({n: d.divergence(model) for n, d in drifts.items() if d is not None})

    def _answers(self, model, facts: list[Fact]) -> Rates:
        """Free answers that match the target, begin with it, or share words with it, in percent."""
        texts = answer(model, self.tokenizer, [fact.text for fact in facts])
        pairs = [(text, fact.target) for text, fact in zip(texts, facts, strict=True)]
        rates = {"answers_exact": exact, "answers_f1": token_f1, "answers_begin": _begins}
        return _means({n: [100 * rate(*pair) for pair in pairs] for n, rate in rates.items()})

    def _probes(self, model, facts: list[Fact]) -> Rates:
        """Denials and checks of the facts, in percent."""
        found = probe(model, self.tokenizer, facts)._asdict()
        return _means({name: 100 * column for name, column in found.items()})


def cases(facts: list[Fact], before: list[str], after: list[str]) -> list[dict]:
    """Put the texts about the first facts side by side, with their fluency."""
    return [
        {"id": fact.id, "prompt": fact.text, "target": fact.target, "true": fact.true,
         "before": old, "after": new, "fluency": [round(fluency(t), 1) for t in (old, new)]}
        for fact, old, new in zip(facts, before, after, strict=False)
    ]  # fmt: skip


def _begins(answer: str, wanted: str) -> float:
    """Tell whether a free answer begins with the words wanted."""
    words = normal(wanted).split()
    return float(normal(answer).split()[: len(words)] == words)


def _means(columns: Mapping) -> Rates:
    """Average each column over what has a value; beside it `_ci` and `_n`, as records have them."""
    found = {}
    for name, column in columns.items():
        values = np.asarray(column, dtype=float)
        values = values[~np.isnan(values)]
        if count := len(values):
            found |= {name: float(values.mean()), f"{name}_n": count}
        if count > 1:
            found[f"{name}_ci"] = float(1.96 * values.std(ddof=1) / count**0.5)
    return found
