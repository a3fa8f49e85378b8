"""Each plot draws what it is given, on the axis it is given, with labels, and returns nothing."""

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ece.baselines import BASELINES
from ece.book import plots
from ece.config import METHODS


@pytest.fixture
def ax():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context():
        plots.style()
        figure, axis = plt.subplots()
        yield axis
        figure.canvas.draw()
        plt.close(figure)


def words(ax):
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def labelled(ax):
    return bool(ax.get_xlabel()) and bool(ax.get_ylabel())


def test_score_cut_marks_the_chosen_count_and_p(ax):
    scores = np.linspace(1, 0.1, 20)
    cumulative = scores.cumsum() / scores.sum()
    assert plots.score_cut(scores, cumulative, 12, 0.8, ax) is None
    share = ax.figure.axes[1]
    curve, level, cut = share.get_lines()
    np.testing.assert_allclose(curve.get_ydata(), 100 * cumulative)
    assert level.get_ydata()[0] == 80 and cut.get_xdata()[0] == 12
    assert words(ax) == ["12 chosen", "others"]
    assert labelled(ax) and share.get_ylabel()


def test_jaccard_matrix_draws_the_clusters_and_their_anchors(ax):
    distance = np.random.default_rng(0).random((6, 6))
    labels, anchors = np.array([0, 0, 1, 1, 1, 2]), np.array([1, 3, 5])
    assert plots.jaccard_matrix(distance, labels, anchors, ax) is None
    np.testing.assert_array_equal(ax.get_images()[0].get_array(), distance)
    *edges, stars = ax.get_lines()
    assert len(edges) == 2 * 2
    np.testing.assert_array_equal(stars.get_xdata(), anchors)
    assert labelled(ax) and len(ax.figure.axes) == 2


def test_loss_phases_has_a_line_per_fact_and_the_border_between_phases(ax):
    losses = np.random.default_rng(0).random((25, 4))
    assert plots.loss_phases(losses, losses.mean(1), 20, ax) is None
    assert len(ax.get_lines()) == 4 + 1 + 1
    assert 20 < ax.get_lines()[-1].get_xdata()[0] < 21
    assert [text.get_text() for text in ax.texts] == ["shared", "own"]
    assert labelled(ax)


def test_update_norms_tells_chosen_from_others(ax):
    norms = np.array([0.5, 0.0, 0.25, 0.0])
    assert plots.update_norms(norms, norms > 0, ax) is None
    assert [len(c.get_segments()) for c in ax.collections] == [2]
    np.testing.assert_array_equal(ax.get_lines()[0].get_xdata(), [1, 3])
    assert words(ax) == ["chosen", "not chosen"] and labelled(ax)


def test_over_batches_and_bars_use_the_colour_of_the_method(ax):
    series = {"memit": [90.0, 60.0], "ece-rs": [91.0, 80.0]}
    assert plots.over_batches([25, 50], series, ax) is None
    assert [line.get_color() for line in ax.get_lines()] == [plots.colour(m) for m in series]
    assert words(ax) == list(series) and labelled(ax)
    ax.clear()
    assert plots.method_bars({m: (v[-1], 2.0) for m, v in series.items()}, ax) is None
    bars = ax.patches
    assert [bar.get_width() for bar in bars] == [60.0, 80.0]
    assert [to_rgb(bar.get_facecolor()) for bar in bars] == [
        to_rgb(plots.colour(method)) for method in series
    ]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(series)


def test_answers_shows_both_probabilities_of_each(ax):
    before, after = np.array([0.9, 0.1]), np.array([0.2, 0.7])
    assert plots.answers(["French", "English"], before, after, ax) is None
    widths = [bar.get_width() for bar in ax.patches]
    np.testing.assert_allclose(widths, [90, 10, 20, 70])
    assert words(ax) == ["before", "after"] and ax.get_xlabel()


def test_tracing_is_layers_by_tokens(ax):
    effect = np.random.default_rng(0).random((3, 5))
    assert plots.tracing(effect, ["The", " tongue", " of", " Anna", " is"], ax) is None
    assert ax.get_images()[0].get_array().shape == (3, 5)
    assert [t.get_text() for t in ax.get_xticklabels()][3] == " Anna"
    assert labelled(ax)


def test_every_method_has_a_colour_of_its_own():
    colours = [plots.colour(method) for method in (*METHODS, *BASELINES)]
    assert len(set(colours)) == len(colours)
    with pytest.raises(KeyError, match="known: ece-as"):
        plots.colour("unheard-of")


def test_text_can_be_read_at_phone_width(ax):
    """At 360 CSS pixels (96 to the inch) the smallest text is at least 9 pixels high."""
    width = matplotlib.rcParams["figure.figsize"][0]
    smallest = min(
        matplotlib.rcParams[name] for name in ("font.size", "legend.fontsize", "axes.labelsize")
    )
    assert smallest / 72 * 360 / width >= 9
