"""The methods that ECE is compared with, one file or folder each; no one imports another.

Most are strategies handed to the editor (`STRATEGIES`). Fine-tuning, MEND and SERAC change a model
in ways of their own (`BASELINES`; `ece.baselines.sequence` edits facts by them).
"""

from ece.baselines.alphaedit import AlphaEdit
from ece.baselines.base import Baseline, Task, Weights
from ece.baselines.blue import Blue
from ece.baselines.ece_plus import EcePlus
from ece.baselines.ft import FineTuning
from ece.baselines.ft import edit as fine_tune
from ece.baselines.memit import Memit
from ece.baselines.mend.edit import Mend
from ece.baselines.mend.edit import edit as transform
from ece.baselines.mend.edit import train as train_mend
from ece.baselines.prune import Prune
from ece.baselines.rect import Rect
from ece.baselines.retrieval import Retrieval
from ece.baselines.retrieval import view as recalled
from ece.baselines.rome import Rome
from ece.baselines.serac.train import Serac
from ece.baselines.serac.train import train as train_serac
from ece.baselines.serac.view import view
from ece.strategy import Strategy

__all__ = ["BASELINES", "STRATEGIES", "Baseline", "Task", "Weights"]

STRATEGIES: dict[str, Strategy] = {
    "ece-as": Strategy(),
    "ece-wi": Strategy(),
    "ece-rs": Strategy(),
    "ece-plus": EcePlus(),
    "rome": Rome(),
    "memit": Memit(),
    "memit-history": Memit(history=True),
    "alphaedit": AlphaEdit(),
    "blue": Blue(),
    "rect": Rect(),
    "prune": Prune(),
}
"""Methods of the editor: name -> strategy. Their settings are in `ece.presets`."""

BASELINES: dict[str, Baseline] = {
    "ft-l": Baseline(FineTuning, dict(goal="last", ball=5e-4), fine_tune),
    "ft-w": Baseline(FineTuning, dict(goal="last", decay=5e-4), fine_tune),
    "ft-m": Baseline(FineTuning, dict(goal="answer"), fine_tune),
    "mend": Baseline(Mend, {}, transform, train_mend),
    "serac": Baseline(Serac, {}, train=train_serac, view=view, late=("threshold",)),
    "serac-seen": Baseline(
        Serac, dict(seen=True), train=train_serac, view=view, late=("threshold",)
    ),
    "retrieval": Baseline(Retrieval, {}, view=recalled),
}
"""Methods beside the editor: name -> what they do."""
