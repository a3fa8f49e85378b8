"""The examples in the docstrings say what the code returns."""

import doctest
import importlib
import sys
from pathlib import Path

import pytest

import ece

FOLDER = Path(ece.__file__).parent
WITH_EXAMPLES = [path for path in sorted(FOLDER.rglob("*.py")) if ">>> " in path.read_text()]


def test_there_are_examples():
    assert len(WITH_EXAMPLES) >= 6


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_hold(path):
    name = ".".join(("ece", *path.relative_to(FOLDER).with_suffix("").parts))
    importlib.import_module(name)  # a function may have the name of its module
    failed, tried = doctest.testmod(sys.modules[name])
    assert tried and not failed
