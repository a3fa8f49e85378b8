"""Every figure draws what it is given, on axes with labels, and returns the axes it drew on."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from ece.book import plots
from ece.presets import METHODS


@pytest.fixture(autouse=True)
def plt():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context():
        plots.style()
        yield plt
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
        plt.close("all")


@pytest.fixture
def ax(plt):
    return plt.subplots()[1]


def words(holder):
    legend = holder.get_legend() if hasattr(holder, "get_legend") else holder.legends[0]
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def labelled(ax):
    return bool(ax.get_xlabel()) and bool(ax.get_ylabel())


def rates():
    """Two methods on two models at three points."""
    frame = pd.MultiIndex.from_product([["a", "b"], ["memit", "ece-rs"], [1, 2, 3]])
    frame = frame.to_frame(index=False).set_axis(["model", "method", "x"], axis=1)
    return frame.assign(rate=frame.x + 10 * (frame.method == "memit"))


def test_panels_draws_each_part_once_and_one_legend_for_all():
    seen = []
    axes = plots.panels(rates(), lambda part, ax: seen.append((part.model.unique(), ax)))
    assert [list(names) for names, _ in seen] == [["a"], ["b"]]
    assert [ax for _, ax in seen] == list(axes) and [ax.get_title() for ax in axes] == ["a", "b"]
    assert not axes[0].figure.legends  # nothing is labelled


def test_lines_have_the_colour_of_their_method_and_share_a_legend():
    axes = plots.lines(rates(), "x", "rate", ylabel="rate, %")
    assert len(axes) == 2 and words(axes[0].figure) == ["memit", "ece-rs"]
    for ax in axes:
        colours = [to_rgb(line.get_color()) for line in ax.get_lines() if len(line.get_xdata())]
        assert colours == [to_rgb(plots.colour(method)) for method in ("memit", "ece-rs")]
        np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), [11, 12, 13])
        assert ax.get_ylabel() == "rate, %" and ax.get_legend() is None
    assert axes[-1].get_xlabel() == "x" and not axes[0].get_xlabel()


def test_lines_without_a_legend_have_labels_to_stand_at_their_ends():
    axes = plots.lines(rates(), "x", "rate", columns=0)
    assert not axes[0].figure.legends
    for ax in axes:
        plots.label_ends(ax)
        shown = {text.get_text(): to_rgb(text.get_color()) for text in ax.texts}
        assert shown == {name: to_rgb(plots.colour(name)) for name in rates().method.unique()}


def test_lines_can_be_dashed_and_drawn_on_one_panel():
    frame = rates()
    [ax] = plots.lines(frame[frame.method == "memit"], "x", "rate", style="model", by=None)
    assert words(ax.figure) == ["memit", "a", "b"] and ax.get_title() == ""


@pytest.mark.parametrize("shape", [None, "kind"])
def test_dots_have_a_row_for_each_name_in_order(shape):
    frame = rates().assign(kind=list("uvw") * 4, best=[False, True, False] * 4)
    axes = plots.dots(frame, "rate", "method", shape=shape, ring="best", bar=True)
    for ax in axes:
        assert [label.get_text() for label in ax.get_yticklabels()] == ["memit", "ece-rs"]
        points = np.concatenate([part.get_offsets() for part in ax.collections])
        memit = points[points[:, 1] == 0][:, 0]
        assert sorted(memit) == [11, 12, 12, 13]  # three dots and a ring
        bars = [line for line in ax.get_lines() if line.get_marker() == "|"]
        np.testing.assert_allclose(bars[0].get_xdata(), [12, 2])
    assert (words(axes[0].figure) == list("uvw")) if shape else not axes[0].figure.legends


def test_dots_can_be_coloured_by_another_column():
    axes = plots.dots(rates(), "rate", "x", hue="method")
    assert words(axes[0].figure) == ["memit", "ece-rs"]
    shades = {tuple(colour[:3]) for part in axes[0].collections for colour in part.get_facecolors()}
    assert shades == {to_rgb(plots.colour(method)) for method in ("memit", "ece-rs")}


def test_score_cut_marks_the_chosen_count_and_p(ax):
    scores = np.linspace(1, 0.1, 20)
    cumulative = scores.cumsum() / scores.sum()
    assert plots.score_cut(scores, cumulative, 12, 0.8, ax) is ax
    share = ax.figure.axes[1]
    curve, level, cut = share.get_lines()
    np.testing.assert_allclose(curve.get_ydata(), 100 * cumulative)
    assert level.get_ydata()[0] == 80 and cut.get_xdata()[0] == 12
    assert words(ax) == ["12 chosen", "others"]
    assert labelled(ax) and share.get_ylabel()


def test_jaccard_matrix_draws_the_clusters_and_their_anchors(ax):
    distance = np.random.default_rng(0).random((6, 6))
    labels, anchors = np.array([0, 0, 1, 1, 1, 2]), np.array([1, 3, 5])
    assert plots.jaccard_matrix(distance, labels, anchors, ax) is ax
    mesh, rows, columns = ax.collections
    np.testing.assert_array_equal(mesh.get_array(), distance)
    assert [part[0, 1] for part in rows.get_segments()] == [2, 5]
    assert [part[0, 0] for part in columns.get_segments()] == [2, 5]
    np.testing.assert_array_equal(ax.get_lines()[0].get_xdata(), anchors + 0.5)
    assert labelled(ax) and len(ax.figure.axes) == 2


def test_loss_phases_has_a_line_per_fact_and_the_border_between_phases(ax):
    losses = np.random.default_rng(0).random((25, 4))
    assert plots.loss_phases(losses, losses.mean(1), 20, ax) is ax
    assert len(ax.get_lines()) == 4 + 1 + 1
    assert 20 < ax.get_lines()[-1].get_xdata()[0] < 21
    assert [text.get_text() for text in ax.texts] == ["shared", "own"]
    assert labelled(ax)


def test_answers_shows_both_probabilities_of_each(ax):
    before, after = np.array([0.9, 0.1]), np.array([0.2, 0.7])
    assert plots.answers(["French", "English"], before, after, ax) is ax
    widths = [bar.get_width() for bars in ax.containers for bar in bars]
    np.testing.assert_allclose(widths, [90, 10, 20, 70])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["French", "English"]
    assert words(ax) == ["before", "after"] and ax.get_xlabel()


def test_tracing_is_layers_by_tokens_with_the_first_layer_below(ax):
    effect = np.random.default_rng(0).random((3, 5))
    assert plots.tracing(effect, ["The", " tongue", " of", " Anna", " is"], ax) is ax
    np.testing.assert_array_equal(ax.collections[0].get_array(), effect)
    assert [t.get_text() for t in ax.get_xticklabels()][3] == " Anna"
    assert not ax.yaxis_inverted() and labelled(ax)


def test_every_method_has_a_colour_of_its_own():
    colours = [plots.colour(method) for method in METHODS]
    assert len(set(colours)) == len(colours)
    with pytest.raises(KeyError, match="known: ece-as"):
        plots.colour("unheard-of")
    given = plots.palette(["rome", "atlas-gpt2", "rome", "atlas-llama"])
    assert list(given.values()) == [plots.colour("rome"), plots.BLUE, plots.RED]


def test_text_can_be_read_at_phone_width():
    """At 360 CSS pixels (96 to the inch) the smallest text is at least 9 pixels high."""
    width = matplotlib.rcParams["figure.figsize"][0]
    smallest = min(
        matplotlib.rcParams[name] for name in ("font.size", "legend.fontsize", "axes.labelsize")
    )
    assert smallest / 72 * 360 / width >= 9


def test_labels_stand_beside_the_ends_of_lines_and_apart(ax):
    for name, end in (("low", 0.0), ("near", 0.01), ("high", 1.0), ("_silent", 0.5)):
        ax.plot([0, 1], [0.5, end], label=name)
    ax.plot([0, 1], [0.5, 9.0], label="beyond")
    ax.set_ylim(0, 1)
    plots.label_ends(ax, apart=0.1)
    found = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert found == pytest.approx({"low": -0.045, "near": 0.055, "high": 1.0})
    assert {text.get_color() for text in ax.texts} <= {line.get_color() for line in ax.lines}
