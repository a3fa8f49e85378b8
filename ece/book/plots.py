"""Figures of the book: every function draws what it is given and returns the axes it drew on.

Nothing is computed here beyond positions and labels. Colours are those of Okabe and Ito, which
readers with any colour vision can tell apart, and a method has the same one in every figure.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from numpy import ndarray

BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
RED, PINK, YELLOW, BLACK, GREY = "#D55E00", "#CC79A7", "#B8A800", "#000000", "#7F7F7F"
OTHERS = (BLUE, RED, GREEN, ORANGE, SKY, PINK)  # of lines that are no methods, in order
COLOURS = (
    {"ece-as": ORANGE, "ece-wi": SKY, "ece-rs": GREEN, "ece-plus": RED, "memit": BLUE}
    | {"memit-history": PINK, "alphaedit": YELLOW, "paper": BLACK, "pre": GREY}
    | {"blue": "#332288", "rect": "#882255", "prune": "#CC6677", "rome": "#AA4499"}  # Tol's muted
    | {"mend": "#44AA99", "serac": "#6699CC", "serac-seen": "#1A3A5C", "retrieval": "#8C6D31"}
    | {"ft-l": "#6B5B00", "ft-w": "#999933", "ft-m": "#661100"}
)
"""The colour of each method, of the paper's own numbers, and of the model before any edit."""
WIDTH = 5.8  # inches: the column's width, and few enough that a phone's text is 9 pixels high


def style() -> None:
    """Set up seaborn so that a figure fills the column, and can still be read on a phone."""
    own = {"figure.figsize": (WIDTH, 3.5), "figure.dpi": 124, "savefig.bbox": "tight"}
    own |= {"figure.constrained_layout.use": True, "legend.handlelength": 2.6}
    own |= {"font.size": 11, "axes.titlesize": 12, "axes.labelsize": 11, "legend.fontsize": 11}
    own |= {"xtick.labelsize": 11, "ytick.labelsize": 11, "lines.linewidth": 2.0}
    own |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    own |= {"axes.grid": True, "grid.color": "#DDDDDD", "grid.linewidth": 0.6}
    sns.set_theme(style="ticks", font="DejaVu Sans", rc=own)


def colour(method: str) -> str:
    """Return the colour of `method`; `KeyError` lists the known ones."""
    if method not in COLOURS:
        raise KeyError(f"no colour for '{method}'; known: {', '.join(COLOURS)}")
    return COLOURS[method]


def palette(names: Iterable, others: Sequence[str] = OTHERS) -> dict:
    """Give each name a colour: a method its own, all other names the next of `others`."""
    following = cycle(others)
    return {name: COLOURS.get(name) or next(following) for name in dict.fromkeys(names)}


def panels(
    frame: pd.DataFrame, draw: Callable, by: str | None = "model", height=3.2, columns=2
) -> ndarray:
    """Call `draw(part, ax)` with the part of `frame` for each value of `by`, one below the other.

    Without `by` there is one part. All panels share one legend below, in `columns`; 0: no legend.
    """
    parts = dict(list(frame.groupby(by, sort=False))) if by else {"": frame}
    shown, size = {}, (WIDTH, height * len(parts))
    figure, axes = plt.subplots(len(parts), 1, sharex=True, squeeze=False, figsize=size)
    for (name, part), ax in zip(parts.items(), axes[:, 0], strict=True):
        draw(part, ax)
        ax.set(title=name, xlabel=ax.get_xlabel() if ax is axes[-1, 0] else "")
        handles, labels = ax.get_legend_handles_labels()  # seaborn puts names of columns between
        shown |= {n: h for n, h in zip(labels, handles, strict=True) if n not in frame}
        if ax.get_legend():
            ax.get_legend().remove()
    if shown and columns:
        figure.legend(shown.values(), shown, loc="outside lower center", ncols=columns)
    return axes[:, 0]


def lines(
    frame: pd.DataFrame, x: str, y: str, hue="method", style=None, ylabel="%", **kinds
) -> ndarray:
    """Draw `y` against `x`: a line for each `hue`, dashed by `style`; `kinds` as in `panels`.

    Without a legend (`columns=0`) the lines have labels, for `label_ends` once the axes are set.
    """
    look = {"marker": "o", "markersize": 5, "markeredgewidth": 0, "errorbar": None}
    look |= {"x": x, "y": y, "hue": hue, "style": style, "palette": palette(frame[hue])}
    names = {to_hex(shade): name for name, shade in look["palette"].items()}
    legend = "auto" if kinds.get("columns", 2) else False

    def draw(part: pd.DataFrame, ax: Axes) -> None:
        sns.lineplot(part, ax=ax, legend=legend, **look)
        ax.set(ylabel=ylabel)
        for line in () if legend else ax.lines:
            line.set_label(names[to_hex(line.get_color())])

    return panels(frame, draw, **kinds)


def label_ends(ax: Axes, apart: float = 0.075) -> None:
    """Write each line's label beside its end, `apart` of the axes' height between two of them."""
    flat, groups = ax.transData - ax.transAxes, []
    ends = {line: flat.transform(line.get_xydata()[-1])[1] for line in ax.lines}
    shown = [line for line in ax.lines if line.get_label()[0] != "_" and 0 <= ends[line] <= 1]

    def lowest(group: list) -> float:
        return float(np.mean([ends[line] for line in group])) - apart * (len(group) - 1) / 2

    for line in sorted(shown, key=ends.get):
        groups.append([line])  # labels that would meet stand around their common middle
        while len(groups) > 1 and lowest(groups[-1]) < lowest(groups[-2]) + apart * len(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    for line, at in ((line, lowest(g) + apart * i) for g in groups for i, line in enumerate(g)):
        look = {"transform": ax.transAxes, "color": line.get_color(), "va": "center"}
        ax.text(1.03, at, line.get_label(), **look)


def dots(
    frame: pd.DataFrame, x: str, y: str, hue="", shape="", ring="", bar=False, **kinds
) -> ndarray:
    """Draw a dot for each row of `frame` at `x`, in a row of dots for each value of `y`.

    hue, shape: columns that decide colour (else `y` does) and marker; ring: column that is true
    where a dot has a ring; bar: whether to mark the mean of each row; `kinds`: `panels`.
    """
    colours = palette(frame[hue or y], [BLUE])
    markers = dict(zip(frame[shape].unique() if shape else [""], "osD^v", strict=False))
    keys = [(name, shade, "o") for name, shade in colours.items() if hue]
    keys += [(name, GREY, marker) for name, marker in markers.items() if shape]

    def draw(part: pd.DataFrame, ax: Axes) -> None:
        order = list(part[y].unique())
        look = {"x": x, "y": y, "order": order, "orient": "h", "jitter": False, "legend": False}
        for name, marker in markers.items():
            own = {"marker": marker, "size": 6, "alpha": 0.7, "palette": colours, "ax": ax}
            sns.stripplot(part[part[shape] == name] if shape else part, hue=hue or y, **own, **look)
        if ring:
            own = {"facecolors": "none", "edgecolor": BLACK, "linewidth": 1.5, "size": 11}
            sns.stripplot(part[part[ring]], ax=ax, **own, **look)
        if bar:
            ax.plot(part.groupby(y)[x].mean()[order], order, "|", color=BLACK, markersize=16)
        for name, shade, marker in keys:
            ax.plot([], [], marker, color=shade, label=name)
        ax.set(ylabel="")

    return panels(frame, draw, **kinds)


def score_cut(
    scores: Float[ndarray, " ff"],
    cumulative: Float[ndarray, " ff"],
    count: int,
    p: float,
    ax: Axes,
) -> Axes:
    """Draw Eq 8: scores in descending order, their cumulative share (0..1), and where p cuts."""
    rank = np.arange(1, len(scores) + 1)
    ax.fill_between(rank[:count], scores[:count], color=GREEN, alpha=0.5, label=f"{count} chosen")
    ax.fill_between(rank[count - 1 :], scores[count - 1 :], color=GREY, alpha=0.4, label="others")
    ax.set(xlabel="neurons, highest score first", ylabel="score", xlim=(1, len(scores)), ylim=0)
    share = ax.twinx()
    sns.lineplot(x=rank, y=100 * cumulative, color=BLUE, ax=share)
    share.axhline(100 * p, color=BLUE, linestyle=":")
    share.axvline(count, color=BLACK, linestyle="--", linewidth=1)
    share.set_ylabel("cumulative share, %", color=BLUE)
    share.set_ylim(0, 105)
    share.grid(False)
    ax.legend(loc="center right")
    return ax


def jaccard_matrix(
    distance: Float[ndarray, "n n"],
    labels: Int[ndarray, " n"],
    anchors: Int[ndarray, " k"],
    ax: Axes,
) -> Axes:
    """Draw distances of facts sorted by cluster: lines between clusters, a star on each anchor.

    labels: cluster of each row, ascending; anchors: rows of the medoids (Eq 10).
    """
    size, edges = len(labels), np.flatnonzero(np.diff(labels)) + 1
    few = {name: max(1, size // 5) for name in ("xticklabels", "yticklabels")}
    look = {"cmap": "viridis", "square": True, "cbar_kws": {"label": "Jaccard distance"}}
    sns.heatmap(distance, vmin=0, vmax=1, ax=ax, **look, **few)
    ax.hlines(edges, 0, size, color="white", linewidth=1)
    ax.vlines(edges, 0, size, color="white", linewidth=1)
    ax.plot(anchors + 0.5, anchors + 0.5, "*", color=RED, mec="white", markersize=12)
    ax.set(xlabel="fact", ylabel="fact")
    return ax


def loss_phases(
    losses: Float[ndarray, "step edit"], mean: Float[ndarray, " step"], shared_steps: int, ax: Axes
) -> Axes:
    """Draw the loss of each fact (thin) and their mean; a line marks where phase 2 begins."""
    steps = np.arange(1, len(mean) + 1)
    ax.plot(steps, losses, color=SKY, linewidth=0.7, alpha=0.6)
    sns.lineplot(x=steps, y=mean, color=BLUE, label="mean", ax=ax)
    ax.axvline(shared_steps + 0.5, color=BLACK, linestyle="--", linewidth=1)
    look = {"transform": ax.get_xaxis_transform(), "va": "top", "color": RED}
    ax.text(shared_steps, 0.97, "shared", ha="right", **look)
    ax.text(shared_steps + 1, 0.97, "own", ha="left", **look)
    ax.set(xlabel="gradient step", ylabel="loss, nats", ylim=(0, None))
    ax.legend(loc="center right")
    return ax


def answers(
    names: Sequence[str], before: Float[ndarray, " n"], after: Float[ndarray, " n"], ax: Axes
) -> Axes:
    """Draw the probability (0..1) of candidate answers before and after the edit."""
    frame = pd.DataFrame({"before": 100 * before, "after": 100 * after, "answer": list(names)})
    shades, x = {"before": GREY, "after": RED}, "probability, %"
    long = frame.melt("answer", var_name="when", value_name=x)
    sns.barplot(long, x=x, y="answer", hue="when", palette=shades, saturation=1, ax=ax)
    ax.set(ylabel="", xlim=(0, 100))
    ax.legend(title="")
    return ax


def tracing(effect: Float[ndarray, "layer token"], tokens: Sequence[str], ax: Axes) -> Axes:
    """Draw how much of the answer returns when one state is restored, by layer and token."""
    look = {"cmap": "viridis", "cbar_kws": {"label": "effect on the answer"}}
    sns.heatmap(pd.DataFrame(effect, columns=list(tokens)), vmin=0, vmax=1, ax=ax, **look)
    ax.invert_yaxis()
    ax.set(xlabel="token", ylabel="layer")
    return ax
