"""A Sphinx extension: buttons that open a chapter on Binder or Colab, where the book is published.

GitHub Actions names the repository in GITHUB_REPOSITORY. Elsewhere nobody knows where the
notebooks can be fetched from, so there are no buttons.
"""

import os

BUTTONS = {
    "binderhub_url": "https://mybinder.org",
    "colab_url": "https://colab.research.google.com",
    "notebook_interface": "jupyterlab",
}


def add(app, config) -> None:
    """Add the buttons to the theme's options."""
    if repository := os.environ.get("GITHUB_REPOSITORY"):
        config.html_theme_options |= {
            "repository_url": f"https://github.com/{repository}",
            "repository_branch": os.environ.get("GITHUB_REF_NAME") or "main",
            "launch_buttons": BUTTONS,
        }


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("config-inited", add, priority=100)
    return {"parallel_read_safe": True}
