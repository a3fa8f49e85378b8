"""What one batch did, in numbers that can be written to JSON."""

from dataclasses import dataclass, fields

from torch import Tensor

from ece.descent import Values


@dataclass(frozen=True)
class Report:
    """One batch: its facts, its clusters, where it wrote, and what the values reached."""

    facts: list[int]
    """Ids of the facts."""
    held: list[bool]
    """Facts that the model stated before: edited all the same, only reported."""
    labels: list[int]
    """The cluster of each fact; empty without clusters."""
    anchors: list[int]
    """Ids of the anchors, one per cluster."""
    layers: list[int]
    """Layers written to, in order."""
    neurons: dict[int, int]
    """Per layer, the number of chosen neurons."""
    masks: dict[int, Tensor]
    """Per layer, the chosen neurons, bool `[ff]`; not part of `to_dict`."""
    loss_before: list[float]
    """NLL (nats per target token, mean over contexts) of the unchanged model."""
    loss_after: list[float]
    """The same with the value in place, before the weights changed."""
    steps: list[int]
    """Descent steps that each fact took (phase 2 of two)."""
    shared_steps: list[int]
    """Steps that each cluster took in phase 1; empty without one."""
    norms: dict[int, float]
    """Per layer, the Frobenius norm of the change as it was written."""
    rounding: dict[int, float]
    """Per layer, the share of the update that the weights' number format lost."""
    jitter: dict[int, float]
    """Per layer, the share of the mean diagonal added for the factorisation; mostly 0."""
    seconds: dict[str, float]
    """Wall time of "values", "keys" and "solve"."""

    def to_dict(self) -> dict:
        """Everything but the masks, for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "masks"}


def value_part(facts: list, values: Values) -> dict:
    """Fill the fields of a report that the values decide."""
    groups, steps = values.groups, [] if values.shared is None else values.shared.steps.tolist()
    medoids = [] if groups is None else groups.medoids.tolist()
    if len(steps) > len(medoids):  # "mean" has them per fact, "anchor" per cluster
        steps = [steps[i] for i in medoids]
    return dict(
        facts=[fact.id for fact in facts],
        held=values.holds.tolist(),
        labels=[] if groups is None else groups.labels.tolist(),
        anchors=[facts[i].id for i in medoids],
        loss_before=values.nll.tolist(),
        loss_after=values.losses[-1].tolist(),
        steps=values.steps.tolist(),
        shared_steps=steps,
    )
