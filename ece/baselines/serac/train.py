"""SERAC: edits go to a memory, weights stay as they are (Mitchell et al. 2022).

"Memory-Based Model Editing at Scale", arXiv 2206.06520. A scope classifier decides whether a text
asks for an edit in the memory; if so a small counterfactual model answers, given the edit, and
else the base model. Both are trained ahead on facts that are never edited; an edit then costs
one entry of the memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ece.baselines.base import Task, Weights, mark_of
from ece.baselines.serac import answer as serac_answer
from ece.baselines.serac import scope as serac_scope
from ece.baselines.serac.view import View
from ece.baselines.training import fit
from ece.errors import ConfigError
from ece.facts import Fact


@dataclass(frozen=True)
class Serac:
    """The numbers of SERAC; a `ConfigError` names one out of its range."""

    threshold: float = 0.5
    """Probability of being in scope above which the counterfactual model answers, in [0, 1]."""
    depth: float = 0.5
    """Block whose states the scope classifier reads, as a share of the model's depth, [0, 1]."""
    heads: int = 8
    """Attention heads with which the scope classifier pools the states of a text."""
    scope_width: int = 192
    """Length of the vectors that the scope classifier compares."""
    scope_steps: int = 600
    """Training steps of the scope classifier."""
    scope_lr: float = 1e-2
    """Learning rate of Adam for the scope classifier."""
    width: int = 128
    """Width of the counterfactual model, a multiple of 32."""
    blocks: int = 2
    """Blocks of the counterfactual model."""
    steps: int = 600
    """Training steps of the counterfactual model."""
    lr: float = 2e-3
    """Learning rate of Adam for the counterfactual model."""
    text: float = 0.1
    """Weight in the loss of tokens that are no answer, from which fluent text is learned, >= 0."""
    batch: int = 32
    """Facts per training step."""
    seen: bool = False
    """Whether training sees paraphrases too, in whose wordings generalization is asked."""
    seed: int = 0
    """Seed of the first weights and of every draw."""

    def __post_init__(self):
        if self.width % 32 or self.width < 32:
            raise ConfigError(f"setting 'width' is {self.width}; give a multiple of 32")
        for name in ("threshold", "depth"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"setting '{name}' is {getattr(self, name)}; give 0 to 1")
        for name in ("heads", "scope_width", "blocks", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"setting '{name}' is {getattr(self, name)}; give 1 or more")


def train(
    task: Task,
    facts: list[Fact],
    save_to: str | Path | None = None,
    progress: Callable | None = None,
) -> Weights:
    """Train both parts; returns their tensors under "scope." and "counterfactual.".

    facts: none of those that will be edited; their other wordings and neighbours are used.
    save_to: path from which two are made, one per part, so that a killed run goes on.
    """
    numbers, mark = task.numbers, mark_of(task, facts)
    made = serac_answer.network(task)
    jobs = {
        "scope": (
            serac_scope.start(task),
            serac_scope.loss(task, facts),
            numbers.scope_steps,
            numbers.scope_lr,
        ),
        "counterfactual": (
            serac_answer.start(made),
            serac_answer.loss(task, made, facts),
            numbers.steps,
            numbers.lr,
        ),
    }
    trained, total, before = {}, numbers.scope_steps + numbers.steps, 0
    for name, job in jobs.items():
        path = save_to and Path(save_to).with_name(f"{Path(save_to).name}-{name}")
        found = fit(*job, mark, numbers.seed, path, _shifted(progress, before, total))
        trained |= {f"{name}.{key}": value for key, value in found.items()}
        before += job[2]
    return trained


def view(task: Task, facts: list[Fact]) -> View:
    """The model to be asked once `facts` are in the memory; of equal prompts the last holds."""
    return View(task, facts)


def _shifted(progress: Callable | None, before: int, total: int) -> Callable | None:
    """Progress of one part, told as that of the whole."""
    return progress and (lambda stage, done, steps: progress(stage, before + done, total))
