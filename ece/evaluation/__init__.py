"""Measure a model: how well edits took, what they cost, how it writes, where it keeps facts."""

from ece.evaluation.checks import check_lengths
from ece.evaluation.metrics import evaluate

__all__ = ["check_lengths", "evaluate"]
