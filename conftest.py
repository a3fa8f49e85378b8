"""Every test process, and every kernel that it starts, sees the same plain environment."""

import os

for name in [name for name in os.environ if name.startswith("ECE_")]:
    if name == "ECE_REAL_DATA":
        continue  # where tests/test_real_data.py finds records; nothing else reads it
    del os.environ[name]  # the chapters' own defaults are what the committed outputs show
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TQDM_DISABLE="1",
)
