"""The objective of `ece.objective`, fast: what a value cannot change is run once.

`prepare` and `reader` are drop-ins for the literal functions of the same names, equal to them in
values and gradients (tests/test_engine.py).
"""

from ece.engine.batching import prepare
from ece.engine.keys import reader

__all__ = ["prepare", "reader"]
