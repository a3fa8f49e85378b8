"""What every baseline is: a few functions with one calling convention, and its numbers."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import Tensor, nn

from ece.errors import ConfigError
from ece.facts import Fact
from ece.model import Site, fingerprint

Weights = dict[str, Tensor]
"""Parameter name -> value; of a model's own, or of what a baseline has trained."""


@dataclass(frozen=True)
class Task:
    """Everything a baseline may look at when it edits or trains."""

    model: nn.Module
    """The model as it is now; no function of a baseline changes it."""
    tokenizer: Any
    """Its tokenizer."""
    numbers: Any
    """The baseline's settings, an instance of its dataclass."""
    trained: Weights
    """What `Baseline.train` returned; empty without training."""


@dataclass(frozen=True)
class Baseline:
    """One method. It reads a model and returns values; `ece.baselines.sequence` changes weights."""

    numbers: type
    """Frozen dataclass of its settings; every field has a default and a docstring."""
    preset: dict[str, Any]
    """Fields of `numbers` that make this method, e.g. what tells FT-M from FT-L."""
    edit: Callable[[Task, list[Fact]], Weights] | None = None
    """New values of the parameters that change for a batch; None: weights stay as they are."""
    train: Callable[..., Weights] | None = None
    """`(task, facts, save_to, progress)`: what is learned ahead, on facts never edited."""
    view: Callable[[Task, list[Fact]], nn.Module] | None = None
    """The model to be asked once all these facts were written; None: the model itself."""
    late: tuple[str, ...] = ()
    """Numbers that training does not look at: another value of them trains nothing anew."""

    def configure(self, method: str, **settings) -> Any:
        """Its numbers: preset, then `settings`; `ConfigError` names one that it does not have."""
        known = [field.name for field in fields(self.numbers)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            text = f"setting '{unknown[0]}' is not one of method {method}; it has: "
            raise ConfigError(text + ", ".join(known))
        return self.numbers(**{**self.preset, **settings})

    def learning(self, task: Task) -> Task:
        """The task as `train` sees it: its `late` numbers have their defaults."""
        plain = {name: getattr(self.numbers, name) for name in self.late}
        return replace(task, numbers=replace(task.numbers, **plain))


def wordings(fact: Fact, seen: bool) -> tuple[str, ...]:
    """Prompts by which training asks for a fact: its own, and those that free text starts from.

    seen: its paraphrases too. Where the facts of a relation share these wordings, as in the
    atlas and in CounterFact, the edits' generalization is asked in the very same. Facts that
    have no other wordings (ZsRE) always give their paraphrases.
    """
    spare = (fact.text, *fact.generation)
    return (*spare, *fact.paraphrases) if seen or not fact.generation else spare


def mark_of(task: Task, facts: list[Fact], *more) -> str:
    """Digest of model, numbers, facts and whatever else (JSON) decides what comes of them."""
    said = [fingerprint(task.model), asdict(task.numbers), [asdict(fact) for fact in facts], *more]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def names_of(model: nn.Module, places: list[Site]) -> dict[int, str]:
    """Layer -> name of its down-projection's weight in `model.named_parameters()`."""
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    return {site.layer: named[id(site.module.weight)] for site in places}
