"""MEMIT (Meng et al. 2023): all neurons, one system a batch, no memory of earlier batches."""

from ece.baselines.least_squares import LeastSquares
from ece.errors import checked


@checked
class Memit(LeastSquares):
    """Least squares over all neurons; `Memit(history=True)` also keeps what was edited before."""
