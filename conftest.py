"""Every test process, and every kernel that it starts, sees the same plain environment."""

import os
from functools import partial

import compare_outputs

for name in [name for name in os.environ if name.startswith("ECE_")]:
    if name in ("ECE_REAL_DATA", "ECE_CACHE", "ECE_ALL_DIGITS", "ECE_TEST_DEVICE"):
        continue  # where records and downloads lie, which changes no output
    del os.environ[name]  # the chapters' own defaults are what the committed outputs show
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TQDM_DISABLE="1",
)


def pytest_itemcollected(item):
    """Compare the cells of chapters as `book/compare_outputs.py` says."""
    if isinstance(item, compare_outputs.IPyNbCell):
        item.compare_outputs = partial(compare_outputs.compare, item)
