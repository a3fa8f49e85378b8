"""Figures with a slider: one drawing for each of its values, in a page that needs no network.

Without a script, or on paper, the page shows the drawing where the slider begins.
"""

import base64
import io
from collections.abc import Callable, Sequence
from html import escape

import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.figure import Figure


def slider(
    draw: Callable[[int], Figure], labels: Sequence[str], name: str, alt: Callable[[int], str],
    start: int = 0,
) -> HTML:  # fmt: skip
    """Draw `draw(i)` for each label, and put a slider called `name` under the drawings.

    `alt(i)` describes drawing i in a sentence, which stands below it too. All drawings should
    have the same axes.
    """
    pictures = [_picture(draw(i)) for i in range(len(labels))]
    shown = [
        f'<img src="data:image/png;base64,{data}" alt="{escape(alt(i))}"'
        f"{'' if i == start else ' hidden'}>"
        for i, data in enumerate(pictures)
    ]
    words = escape("|".join(labels))
    return HTML(
        f'<div class="ece-slider" data-labels="{words}" data-start="{start}">{"".join(shown)}'
        f"<label hidden>{escape(name)} <output>{escape(labels[start])}</output>"
        f'<input type="range" min="0" max="{len(labels) - 1}" value="{start}"></label>'
        f'<p class="ece-caption" aria-hidden="true">{escape(alt(start))}</p></div>'
    )


def _picture(figure: Figure) -> str:
    """Encode a figure as PNG, without the cut that would give each its own size."""
    held = io.BytesIO()
    with plt.rc_context({"savefig.bbox": None}):
        figure.savefig(held, format="png")
    plt.close(figure)
    return base64.b64encode(held.getvalue()).decode()
