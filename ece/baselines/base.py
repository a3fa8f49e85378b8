"""Says what a baseline beside the editor is: a few functions with one way to call them."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, nn

from ece.errors import ConfigError
from ece.facts import Fact, encode, target_ids
from ece.fingerprint import fingerprint
from ece.model import Site
from ece.storage import checksum

Weights = dict[str, Tensor]
"""Parameter name -> value; of a model's own, or of what a baseline has trained."""


@dataclass(frozen=True)
class Task:
    """Everything that a baseline may look at when it edits or trains."""

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
    """One method. It reads a model and returns values; `ece.baselines.sequence` writes them."""

    numbers: type
    """Dataclass of its settings; every field has a default and a docstring."""
    preset: dict[str, Any]
    """Settings that make this method, e.g. what tells FT-M from FT-L."""
    edit: Callable[[Task, list[Fact]], Weights] | None = None
    """New values of the parameters that change for a batch; None: weights stay as they are."""
    train: Callable[..., Weights] | None = None
    """`(task, facts, save_to, progress)`: what is learned ahead, on facts never edited."""
    view: Callable[[Task, list[Fact]], nn.Module] | None = None
    """The model to use once all these facts were written; None: the model itself."""
    late: tuple[str, ...] = ()
    """Settings that training does not look at: another value of them trains nothing anew."""

    def configure(self, method: str, **settings) -> Any:
        """Build its settings: the preset, then `settings`; `ConfigError` names what is wrong."""
        known = [field.name for field in fields(self.numbers)]
        for name in sorted(set(settings) - set(known)):
            text = f"'{name}' is no setting of method {method}; known: {', '.join(known)}"
            raise ConfigError(text)
        return self.numbers(**{**self.preset, **settings})

    def learning(self, task: Task) -> Task:
        """Give the task as `train` sees it: its `late` settings have their defaults."""
        plain = {name: getattr(self.numbers, name) for name in self.late}
        return replace(task, numbers=replace(task.numbers, **plain))


def wordings(fact: Fact, seen: bool) -> tuple[str, ...]:
    """List the prompts by which training asks for a fact: its own, and starts of free text.

    seen: its paraphrases too. Where the facts of a relation share these wordings, as in the
    atlas and in CounterFact, generalization is measured in the very same. Facts that have no
    other wordings (ZsRE) always give their paraphrases.
    """
    spare = (fact.text, *fact.generation)
    return (*spare, *fact.paraphrases) if seen or not fact.generation else spare


def identity(task: Task, facts: list[Fact], **more) -> dict[str, Any]:
    """Name everything that decides what comes of a task and its facts."""
    return {
        "model": fingerprint(task.model),
        "settings": checksum(task.numbers),
        "facts": checksum(facts),
        "training": checksum(task.trained),
        **more,
    }


def lengths(tokenizer, facts: list[Fact]) -> list[int]:
    """Count the tokens of each fact's prompt and target."""
    return [len(encode(tokenizer, f.text)) + len(target_ids(tokenizer, f.target)) for f in facts]


def names_of(model: nn.Module, places: list[Site]) -> dict[int, str]:
    """Map each layer to the name of its down-projection's weight among the parameters."""
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    return {site.layer: named[id(site.module.weight)] for site in places}
