"""ECE: explainable and efficient editing of language models."""

from importlib import import_module
from importlib.metadata import version

from ece.config import Config
from ece.covariance import Stats, blend, second_moment
from ece.editor import compute_values, edit_batch
from ece.errors import EditError
from ece.facts import Fact
from ece.loading import load
from ece.model import sites
from ece.report import Report
from ece.sequence import edit_sequence
from ece.state import EditState, new_state, undo
from ece.strategy import Strategy

FOLDERS = "atlas baselines data engine evaluation experiments presets storage".split()


def __getattr__(name: str):
    """Import a folder when it is first used, as `ece.data`; `ece.__version__` is the package's."""
    if name in FOLDERS:
        return import_module(f"ece.{name}")
    if name == "__version__":
        return version("ece")
    raise AttributeError(f"module 'ece' has no attribute '{name}'")


__all__ = ["Config", "EditError", "EditState", "Fact", "Report", "Stats", "Strategy", "blend",
           "compute_values", "edit_batch", "edit_sequence", "load", "new_state", "second_moment",
           "sites", "undo"]  # fmt: skip
