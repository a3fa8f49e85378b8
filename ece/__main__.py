"""`python -m ece`: the command `ece`."""

import sys

from ece.experiments.cli import main

sys.exit(main())
