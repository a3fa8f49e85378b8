"""What one batch did, in numbers that can be written to JSON."""

from dataclasses import asdict, dataclass

import torch
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
    probability_before: list[float]
    """exp(-loss_before)."""
    probability_after: list[float]
    """exp(-loss_after)."""
    steps: list[int]
    """Descent steps each fact took (phase 2 of two)."""
    shared_steps: list[int]
    """Steps each cluster took in phase 1; empty without one."""
    norms: dict[int, float]
    """Per layer, the Frobenius norm of the update."""
    jitter: dict[int, float]
    """Per layer, the share of the mean diagonal added for the factorisation; mostly 0."""
    seconds: dict[str, float]
    """Wall time of "values", "keys" and "solve"."""

    def to_dict(self) -> dict:
        """Everything but the masks, for JSON."""
        shown = {**self.__dict__, "masks": {}}
        out = asdict(Report(**shown))
        out.pop("masks")
        return out

    @staticmethod
    def from_dict(record: dict, masks: dict[int, Tensor]) -> "Report":
        """The inverse of `to_dict`, after JSON has turned layer numbers into text."""
        numbered = {
            name: {int(layer): value for layer, value in record[name].items()}
            for name in ("neurons", "norms", "jitter")
        }
        return Report(**{**record, **numbered, "masks": masks})


def value_part(facts: list, values: Values) -> dict:
    """The fields of a report that the values decide."""
    groups = values.groups
    anchors = [] if groups is None else [facts[i].id for i in groups.medoids.tolist()]
    return dict(
        facts=[fact.id for fact in facts],
        held=values.holds.tolist(),
        labels=[] if groups is None else groups.labels.tolist(),
        anchors=anchors,
        loss_before=values.nll.tolist(),
        loss_after=values.losses[-1].tolist(),
        probability_before=values.before.tolist(),
        probability_after=values.after.tolist(),
        steps=values.steps.tolist(),
        shared_steps=_per_cluster(values),
    )


def _per_cluster(values: Values) -> list[int]:
    if values.shared is None:
        return []
    steps = values.shared.steps
    per_fact = len(steps) != len(values.groups.medoids)
    at = values.groups.medoids.to(steps.device) if per_fact else torch.arange(len(steps))
    return steps[at].tolist()
