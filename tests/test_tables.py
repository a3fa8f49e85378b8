"""Tables: means and intervals over seeds, groups, and markup that a page can show."""

from ece.book.tables import WIDTH, Rate, by, html, origin, pooled


def result(score, half, **names):
    versions = {"torch": "2", "transformers": "5"}
    origin = {"commit": "c", "device": "cpu", "dtype": "float32", "versions": versions}
    rates = {"efficacy": score, "efficacy_ci": half, "score": score, "fluency": None}
    return {**names, "after": rates, "provenance": origin}


def test_a_rate_over_seeds_is_their_mean_with_a_narrower_interval():
    runs = [result(90.0, 3.0), result(96.0, 4.0)]
    rate = pooled(runs, "efficacy")
    assert rate == Rate(93.0, 2.5, 2)  # sqrt(3^2 + 4^2) / 2
    assert str(rate) == "93.0 ± 2.5"
    assert pooled(runs, "score") == Rate(93.0, None, 2) and str(pooled(runs, "score")) == "93.0"
    assert pooled(runs, "fluency") is None and pooled([], "efficacy") is None


def test_results_are_grouped_in_order():
    runs = [result(1.0, 1.0, method=m, seed=s) for s in (0, 1) for m in ("b", "a")]
    groups = by(runs, "method")
    assert list(groups) == [("b",), ("a",)] and [r["seed"] for r in groups["a",]] == [0, 1]


def test_origins_are_told_in_short_lines():
    runs = [result(1.0, 1.0) for _ in range(9)]
    for i, run in enumerate(runs):
        run["provenance"] = {**run["provenance"], "commit": f"{i}" * 40}
    text = origin(runs, {"a": "python -m ece.experiments.cli --facts 2"})
    assert "9 runs, 1 declared but not run here" in text and "0000000, 1111111" in text
    assert "torch: 2" in text and "ece.experiments.cli \\\n  --facts 2" in text
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "0 runs" in origin([], {}) and "no files" in origin([], {})


def test_a_table_marks_cells_escapes_text_and_can_scroll():
    text = html(["name", "x"], [["a<b", Rate(1, 2, 1)], ["c", None]], lambda i, j: "b" * (j == i))
    assert "a&lt;b" in text and "<b>a&lt;b</b>" in text and "1.0 ± 2.0" in text
    assert "–" in text and "overflow-x:auto" in text
