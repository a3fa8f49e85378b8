"""SERAC: edits go to a memory, weights stay as they are (Mitchell et al. 2022).

"Memory-Based Model Editing at Scale", arXiv 2206.06520. A scope classifier decides whether a text
asks for an edit in the memory; if so a small counterfactual model answers, given the edit, and
else the base model. Both are trained ahead on facts that are never edited; an edit then costs
one entry of the memory.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ece.baselines.base import Task, Weights, identity
from ece.baselines.serac import answer as serac_answer
from ece.baselines.serac import scope as serac_scope
from ece.baselines.training import fit
from ece.config import Count, NotNegative, Positive, Seed
from ece.errors import ConfigError, checked
from ece.facts import Fact

Steps = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@checked
class Serac:
    """Settings of SERAC; a `ConfigError` names the first one of a wrong type or range."""

    threshold: Share = 0.5
    """Probability of being in scope above which the counterfactual model answers."""
    depth: Share = 0.5
    """Block whose states the scope classifier reads, as a share of the model's depth."""
    heads: Count = 8
    """Attention heads with which the scope classifier pools the states of a text."""
    scope_width: Count = 192
    """Length of the vectors that the scope classifier compares."""
    scope_steps: Steps = 600
    """Training steps of the scope classifier."""
    scope_lr: Positive = 1e-2
    """Learning rate of Adam for the scope classifier."""
    width: Annotated[int, Field(ge=32, multiple_of=32)] = 128
    """Width of the counterfactual model, a multiple of 32."""
    blocks: Count = 2
    """Blocks of the counterfactual model."""
    steps: Steps = 600
    """Training steps of the counterfactual model."""
    lr: Positive = 2e-3
    """Learning rate of Adam for the counterfactual model."""
    text: NotNegative = 0.1
    """Weight in the loss of tokens that are no answer, from which fluent text is learned."""
    batch: Count = 32
    """Facts per training step."""
    seen: bool = False
    """Whether training sees paraphrases too, in whose wordings generalization is measured."""
    seed: Seed = 0
    """Seed of the first weights and of every draw."""


def train(
    task: Task, facts: list[Fact], save_to: str | Path | None = None,
    progress: Callable | None = None,
) -> Weights:  # fmt: skip
    """Train both parts; returns their tensors under "scope." and "counterfactual.".

    facts: none of those that will be edited; their other wordings and neighbours are used.
    save_to: path from which two are made, one per part, so that a killed training goes on.
    """
    if not facts:
        raise ConfigError("SERAC trains on facts that are not edited, and none are left; add some")
    numbers, made_of = task.numbers, identity(task, facts)
    made, total = serac_answer.network(task), numbers.scope_steps + numbers.steps
    start, loss = serac_scope.start(task), serac_scope.loss(task, facts)
    scope = (start, loss, numbers.scope_steps, numbers.scope_lr)
    start, loss = serac_answer.start(made), serac_answer.loss(task, made, facts)
    answer = (start, loss, numbers.steps, numbers.lr)
    trained, before = {}, 0
    for name, job in {"scope": scope, "counterfactual": answer}.items():
        path = save_to and f"{save_to}-{name}"
        found = fit(*job, made_of, numbers.seed, path, _shifted(progress, before, total))
        trained |= {f"{name}.{key}": value for key, value in found.items()}
        before += job[2]
    return trained


def _shifted(progress: Callable | None, before: int, total: int) -> Callable | None:
    """Report the progress of one part as that of the whole."""
    return progress and (lambda stage, done, steps: progress(stage, before + done, total))
