"""Tables: means and intervals over seeds, differences at equal seeds, HTML that a page shows."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ece.book.tables import WIDTH, by_method, gaps, interval, origin, pooled, signed, table, wide
from ece.experiments.results import Results

RATE = st.floats(0, 100)


def cells(rows):
    columns = ["run", "method", "metric", "value", "ci"]
    return pd.DataFrame(rows, columns=columns)


def test_wide_has_a_row_for_each_group_in_order_of_appearance_and_averages_its_runs():
    found = wide(
        cells(
            [("r1", "b", "score", 90.0, None), ("r2", "b", "score", 96.0, None)]
            + [("r1", "b", "efficacy", 99.0, 1.0), ("r3", "a", "score", 50.0, None)]
        ),
        "method",
    )
    assert found.method.tolist() == ["b", "a"] and found.score.tolist() == [93.0, 50.0]
    assert found.efficacy[0] == 99.0 and np.isnan(found.efficacy[1])


def test_a_rate_over_seeds_is_their_mean_with_a_narrower_interval():
    rows = [("r1", "m", "efficacy", 90.0, 3.0), ("r2", "m", "efficacy", 96.0, 4.0)]
    rows += [("r1", "m", "score", 90.0, None), ("r2", "m", "score", 96.0, 4.0)]
    found = pooled(cells(rows), "method", "metric").loc["m"]
    assert found.loc["efficacy"].tolist() == [93.0, 2, 2.5]  # sqrt(3^2 + 4^2) / 2
    assert found.seeds["score"] == 2 and np.isnan(found.ci["score"])
    assert [interval(row) for _, row in found.iterrows()] == ["93.0 ± 2.5", "93.0"]


@given(st.lists(st.tuples(RATE, st.floats(0, 10)), min_size=1, max_size=5))
def test_intervals_shrink_with_the_root_of_the_number_of_seeds(runs):
    rows = [(f"r{i}", "m", "score", value, ci) for i, (value, ci) in enumerate(runs)]
    [found] = pooled(cells(rows), "method").itertuples()
    assert found.value == pytest.approx(np.mean([value for value, _ in runs]))
    assert found.ci <= max(ci for _, ci in runs) / len(runs) ** 0.5 + 1e-9


@given(st.lists(st.tuples(RATE, RATE), min_size=1, max_size=5))
def test_a_verdict_needs_every_seed(pairs):
    found = gaps(pd.DataFrame(pairs, columns=["one", "other"]), "one").loc["other"]
    by_hand = [one - other for one, other in pairs]
    assert found["mean"] == pytest.approx(np.mean(by_hand))
    assert (found.low, found.high) == (min(by_hand), max(by_hand))
    words = "ahead" if min(by_hand) > 0 else "behind" if max(by_hand) < 0 else "even"
    assert found.verdict == words
    told = signed(gaps(pd.DataFrame(pairs, columns=["one", "other"]), "one"))["other"]
    assert told.endswith("?") == (words == "even") and told[0] in "+-"


def test_only_seeds_that_both_have_are_compared():
    scores = pd.DataFrame({"one": [9.0, 8.0, 7.0], "two": [1.0, None, 8.0], "no": None})
    found = gaps(scores, "one")
    assert found.index.tolist() == ["two"] and found["mean"]["two"] == 3.5
    assert gaps(scores[["one"]].assign(same=scores.one), "one")["mean"].map(str)["same"] == "0.0"


def runs(*commits):
    versions = {"torch": "2", "transformers": "5"}
    own = {"device": "cpu", "dtype": "float32", "versions": versions}
    return pd.DataFrame({"provenance": [{"commit": c * 40, **own} for c in commits]})


def test_origins_are_written_in_short_lines():
    text = origin(runs(*"012345678"), {"a": "ece run --facts 2"})
    assert "9 runs, 1 declared but not run here" in text and "0000000, 1111111" in text
    assert "torch: 2" in text and "ece run \\\n  --facts 2" in text
    assert max(map(len, text.splitlines())) <= WIDTH
    assert origin(runs(), {}) == "0 runs, 0 declared but not run here"


def test_a_table_escapes_text_marks_cells_and_can_scroll_under_its_caption():
    frame = pd.DataFrame({"x": [1.25, None], "name": ["a<b", "c"]}, index=[0.5, 0.75])
    marked = pd.DataFrame({"x": [True, False], "name": [False, True]}, index=frame.index)
    text = table(frame, "Rates <of> it", 1, bold=marked, underlined=~marked).data
    assert "<figcaption>Rates &lt;of&gt; it</figcaption>" in text and "overflow-x:auto" in text
    assert "a&lt;b" in text and ">1.2<" in text and ">–<" in text and ">0.75<" in text
    assert text.count("font-weight: bold") == text.count("text-decoration: underline") == 1
    assert table(frame, "Rates", 2).data == table(frame, "Rates", 2).data  # no random ids


def test_two_tables_of_a_page_do_not_share_their_styles():
    frame = pd.DataFrame({"x": [1.0]})
    texts = [table(frame, caption, bold=frame > 0).data for caption in ("One", "Two")]
    assert "#T_one" in texts[0] and "#T_two" in texts[1]


def test_by_method_has_rates_at_the_end_the_unedited_model_and_seeds():
    runs = pd.DataFrame([("r1", "a", 0), ("r2", "a", 1), ("r3", "b", 0)],
                        columns=["run", "method", "seed"])  # fmt: skip
    runs = runs.assign(model="m", dataset="d")
    rows = [("r1", "pre", 10.0), ("r2", "pre", 30.0), ("r3", "pre", 10.0),
            ("r1", "after", 90.0), ("r2", "after", 80.0), ("r3", "after", 70.0)]  # fmt: skip
    measured = pd.DataFrame(rows, columns=["run", "when", "value"]).assign(metric="score")
    found = by_method(Results(runs, measured, measured))
    assert found.score.to_dict() == {"a": 85.0, "b": 70.0, "unedited": 20.0}
    assert found.seeds[["a", "b"]].tolist() == [2, 1] and pd.isna(found.seeds["unedited"])


def test_the_outer_names_of_rows_are_lines_of_their_own():
    index = pd.MultiIndex.from_tuples([("x", "p"), ("x", "q"), ("y <", "p")])
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0]}, index)
    for shown in (
        frame,
        frame.set_axis(pd.MultiIndex.from_tuples([("m", "a"), ("m", "b")]), axis=1),
    ):
        text = table(shown, "Both").data
        lines = text.split("<tr>")[1 + shown.columns.nlevels :]
        names = [re.findall(r"<th[^>]*>(.*?)</th>", line) for line in lines]
        assert names == [["<span>x</span>"], ["p"], ["q"], ["<span>y &lt;</span>"], ["p"]]
        assert [line.count("<td") for line in lines] == [0, 2, 2, 0, 2]
        assert text.count("<tr>") == text.count("</tr>") and text.count('colspan="3"') == 2
        assert "rowspan" not in text and text.count('class="blank') == shown.columns.nlevels
