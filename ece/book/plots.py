"""Pictures of the method: every function draws given numbers on a given axis and returns None.

Nothing is computed here beyond positions and labels. Colours are those of Okabe and Ito, which
readers with any colour vision can tell apart, and a method has the same one in every figure.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes

BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
RED, PINK, YELLOW, BLACK, GREY = "#D55E00", "#CC79A7", "#B8A800", "#000000", "#7F7F7F"
INDIGO, WINE, PURPLE = "#332288", "#882255", "#AA4499"  # Tol's muted palette, to the end
TEAL, SAND, OLIVE, BRICK, STEEL = "#44AA99", "#DDCC77", "#999933", "#661100", "#6699CC"
ROSE, NIGHT = "#CC6677", "#1A3A5C"
COLOURS = MappingProxyType(
    {
        "ece-as": ORANGE,
        "ece-wi": SKY,
        "ece-rs": GREEN,
        "ece-plus": RED,
        "memit": BLUE,
        "memit-history": PINK,
        "alphaedit": YELLOW,
        "blue": INDIGO,
        "rect": WINE,
        "prune": ROSE,
        "rome": PURPLE,
        "mend": TEAL,
        "serac": STEEL,
        "serac-seen": NIGHT,
        "ft-l": SAND,
        "ft-w": OLIVE,
        "ft-m": BRICK,
        "paper": BLACK,
        "pre": GREY,
    }
)
"""The colour of each method, of the paper's own numbers, and of the model before any edit."""
MAP = "viridis"


def style() -> None:
    """Set matplotlib so that a figure as wide as a phone can still be read."""
    matplotlib.rcParams.update(
        {
            "figure.figsize": (4.6, 3.0),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "savefig.bbox": "tight",
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.labelsize": 11,
            "legend.fontsize": 10,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#DDDDDD",
            "grid.linewidth": 0.6,
            "svg.hashsalt": "ece",
        }
    )


def colour(method: str) -> str:
    """The colour of `method`; `KeyError` lists the known ones."""
    if method not in COLOURS:
        raise KeyError(f"no colour for '{method}'; known: {', '.join(COLOURS)}")
    return COLOURS[method]


def score_cut(
    scores: Float[np.ndarray, " ff"],
    cumulative: Float[np.ndarray, " ff"],
    kept: int,
    p: float,
    ax: Axes,
) -> None:
    """Eq 8: scores in descending order, their cumulative share (0..1), and where p cuts."""
    rank = np.arange(1, len(scores) + 1)
    ax.fill_between(rank[:kept], scores[:kept], color=GREEN, alpha=0.5, label=f"{kept} chosen")
    ax.fill_between(rank[kept - 1 :], scores[kept - 1 :], color=GREY, alpha=0.4, label="others")
    ax.set(xlabel="neurons, highest score first", ylabel="score", xlim=(1, len(scores)), ylim=0)
    share = ax.twinx()
    share.plot(rank, 100 * cumulative, color=BLUE)
    share.axhline(100 * p, color=BLUE, linestyle=":")
    share.axvline(kept, color=BLACK, linestyle="--", linewidth=1)
    share.set_ylabel("cumulative share, %", color=BLUE)
    share.set_ylim(0, 105)
    share.grid(False)
    ax.legend(loc="center right")


def jaccard_matrix(
    distance: Float[np.ndarray, "edit edit"],
    labels: Int[np.ndarray, " edit"],
    anchors: Int[np.ndarray, " cluster"],
    ax: Axes,
) -> None:
    """Distances between facts sorted by cluster: lines between clusters, a star on anchors.

    labels: cluster of each row, ascending; anchors: rows of the medoids (Eq 10).
    """
    image = ax.imshow(distance, cmap=MAP, vmin=0, vmax=1, interpolation="nearest")
    for edge in np.flatnonzero(np.diff(labels)) + 0.5:
        ax.axhline(edge, color="white", linewidth=1)
        ax.axvline(edge, color="white", linewidth=1)
    ax.plot(anchors, anchors, "*", color=RED, markeredgecolor="white", markersize=12)
    ax.grid(False)
    ax.set(xlabel="fact", ylabel="fact")
    ax.figure.colorbar(image, ax=ax, label="Jaccard distance")


def loss_phases(
    losses: Float[np.ndarray, "step edit"],
    mean: Float[np.ndarray, " step"],
    shared_steps: int,
    ax: Axes,
) -> None:
    """Loss of each fact (thin) and their mean over the steps; a line where phase 2 begins."""
    steps = np.arange(1, len(mean) + 1)
    ax.plot(steps, losses, color=SKY, linewidth=0.7, alpha=0.6)
    ax.plot(steps, mean, color=BLUE, label="mean")
    ax.axvline(shared_steps + 0.5, color=BLACK, linestyle="--", linewidth=1)
    top = ax.get_xaxis_transform()
    for x, side, name in ((shared_steps, "right", "shared"), (shared_steps + 1, "left", "own")):
        ax.text(x, 0.97, name, transform=top, ha=side, va="top", color=RED)
    ax.set(xlabel="gradient step", ylabel="loss, nats", ylim=(0, None))
    ax.legend(loc="center right")


def update_norms(
    norms: Float[np.ndarray, " ff"], chosen: Bool[np.ndarray, " ff"], ax: Axes
) -> None:
    """Column norms of the update, neuron by neuron; neurons left alone are drawn in grey."""
    neuron = np.arange(len(norms))
    ax.vlines(neuron[chosen], 0, norms[chosen], color=GREEN, linewidth=1, label="chosen")
    ax.plot(neuron[~chosen], norms[~chosen], ".", color=GREY, markersize=3, label="not chosen")
    ax.set(xlabel="neuron", ylabel="norm of its column of $\\Delta$", ylim=(0, None))
    ax.legend()


def over_batches(
    edited: Sequence[int],
    series: Mapping[str, Sequence[float]],
    ax: Axes,
    ylabel: str = "score, %",
    lowest: float = 0,
) -> None:
    """A rate in percent per method against the number of facts edited so far.

    lowest: where the axis begins, in percent.
    """
    for method, values in series.items():
        ax.plot(edited, values, marker="o", markersize=4, color=colour(method), label=method)
    ax.set(xlabel="facts edited", ylabel=ylabel, ylim=(lowest, 102))
    ax.legend()


def method_bars(
    rates: Mapping[str, tuple[float, float]], ax: Axes, xlabel: str = "score, %"
) -> None:
    """A rate in percent per method, with the half width of its interval."""
    for row, (method, (mean, half_width)) in enumerate(rates.items()):
        ax.barh(row, mean, xerr=half_width, color=colour(method), ecolor=BLACK, capsize=3)
        ax.text(mean + half_width + 2, row, f"{mean:.1f}", va="center")
    ax.set_yticks(range(len(rates)), list(rates))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel=xlabel, xlim=(0, 118), xticks=range(0, 101, 20))


def answers(
    names: Sequence[str],
    before: Float[np.ndarray, " answer"],
    after: Float[np.ndarray, " answer"],
    ax: Axes,
) -> None:
    """Probability (0..1) of candidate answers before and after the edit."""
    rows = np.arange(len(names))
    ax.barh(rows - 0.2, 100 * before, height=0.38, color=GREY, label="before")
    ax.barh(rows + 0.2, 100 * after, height=0.38, color=RED, label="after")
    ax.set_yticks(rows, list(names))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="probability, %", xlim=(0, 100))
    ax.legend()


def tracing(effect: Float[np.ndarray, "layer token"], tokens: Sequence[str], ax: Axes) -> None:
    """How much of the answer returns when one state is restored, by layer and token."""
    image = ax.imshow(effect, cmap=MAP, aspect="auto", origin="lower", interpolation="nearest")
    ax.set_xticks(range(len(tokens)), list(tokens), rotation=60, ha="right")
    ax.set_yticks(range(len(effect)))
    ax.grid(False)
    ax.set(xlabel="token", ylabel="layer")
    ax.figure.colorbar(image, ax=ax, label="effect on the answer")
