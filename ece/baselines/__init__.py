"""The methods that the paper compares with, beside the editor's own settings.

`BASELINES[name]` is a `Baseline`; `ece.baselines.sequence.sequence` edits facts by it.
"""

from ece.baselines.base import Baseline, Task, Weights
from ece.baselines.ft import FineTuning
from ece.baselines.ft import edit as fine_tune
from ece.baselines.mend.edit import Mend
from ece.baselines.mend.edit import edit as transform
from ece.baselines.mend.edit import train as train_mend
from ece.baselines.serac.train import Serac, view
from ece.baselines.serac.train import train as train_serac

__all__ = ["BASELINES", "PRESETS", "Baseline", "Task", "Weights", "numbers_of"]

BASELINES: dict[str, Baseline] = {
    "ft-l": Baseline(FineTuning, dict(goal="last", ball=5e-4), fine_tune),
    "ft-w": Baseline(FineTuning, dict(goal="last", decay=5e-4), fine_tune),
    "ft-m": Baseline(FineTuning, dict(goal="answer"), fine_tune),
    "mend": Baseline(Mend, {}, transform, train_mend),
    "serac": Baseline(Serac, {}, train=train_serac, view=view, late=("threshold",)),
    "serac-seen": Baseline(
        Serac, dict(seen=True), train=train_serac, view=view, late=("threshold",)
    ),
}
"""Name -> baseline."""

_ATLAS = ("atlas-gpt2", "atlas-gptj", "atlas-llama")
_GPT2 = ("gpt2-xl", "gpt2-real")
PRESETS: dict[str, dict[str, dict]] = {
    "ft-l": {
        **{name: dict(layers=(2,), lr=1e-2, ball=0.1) for name in _ATLAS},
        **{name: dict(layers=(0,)) for name in _GPT2},
        "gpt-j-6b": dict(layers=(21,), ball=5e-5),
        "llama-3-8b": dict(layers=(21,), ball=5e-5),
    },
    **{
        name: {
            **{model: dict(layers=(2,), lr=1e-2) for model in _ATLAS},
            **{model: dict(layers=(0,)) for model in _GPT2},
            "gpt-j-6b": dict(layers=(21,)),
            "llama-3-8b": dict(layers=(21,)),
        }
        for name in ("ft-w", "ft-m")
    },
}
"""Method -> model -> its numbers, where the defaults are not right."""


def numbers_of(model_name: str, method: str, **settings):
    """The numbers of baseline `method` on a model (a hub name counts by its last part)."""
    name = model_name.rstrip("/").split("/")[-1].lower()
    own = PRESETS.get(method, {}).get(name, {})
    return BASELINES[method].configure(method, **{**own, **settings})
