"""ECE: explainable and efficient editing of language models."""

from ece.config import METHODS, PRESETS, Config, configure
from ece.covariance import second_moment
from ece.editor import compute_values, edit_batch, edit_sequence, load_state, new_state, save_state
from ece.errors import EditError
from ece.facts import Fact
from ece.model import load, sites
from ece.state import EditState, undo

__all__ = [
    "METHODS",
    "PRESETS",
    "Config",
    "EditError",
    "EditState",
    "Fact",
    "compute_values",
    "configure",
    "edit_batch",
    "edit_sequence",
    "load",
    "load_state",
    "new_state",
    "save_state",
    "second_moment",
    "sites",
    "undo",
]
