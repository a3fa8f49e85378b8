"""The small extensions that pages are built with, and what the home page claims."""

import base64
import io
from types import SimpleNamespace

import alt_text
import light
import numpy as np
import run_chapters
from docstrings import to_rst
from docutils import nodes
from PIL import Image

from ece.experiments import grid

ROOT = run_chapters.ROOT


def test_docstrings_in_markdown_become_restructured_text():
    given = ["Give `x`, see `ece.solver.solve`.", "", "    x = 1", "    # `not code`", "",
             "By $a_b$:", "- one", "  goes on", "- two"]  # fmt: skip
    assert to_rst(given) == [
        "Give ``x``, see :py:obj:`ece.solver.solve`.", "", "::", "", "    x = 1",
        "    # `not code`", "", "By :math:`a_b`:", "", "- one", "  goes on", "- two",
    ]  # fmt: skip


def test_a_picture_without_a_text_gets_the_one_below_it():
    bare, named = nodes.image(uri="a.png"), nodes.image(uri="b.png", alt="a dog")
    before, below = nodes.paragraph(text="before"), nodes.paragraph(text="a cat")
    document = nodes.section("", before, bare, below, named)
    alt_text.describe(None, document, "page")
    assert bare["alt"] == "a cat" and named["alt"] == "a dog"


def test_a_lighter_page_keeps_its_words_and_the_look_of_its_figures(tmp_path):
    shades = np.linspace(0, 255, 120, dtype=np.uint8)
    drawn = np.stack([shades[:, None].repeat(90, 1)] * 3, -1)
    held = io.BytesIO()
    Image.fromarray(drawn).save(held, "png", compress_level=0)
    script = '<script src="../_static/vendor/fontawesome/6.5.2/js/all.min.js?digest=d"></script>'
    inside = f'<img src="data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}">'
    (tmp_path / "_images").mkdir()
    (tmp_path / "_images" / "a.png").write_bytes(held.getvalue())
    (tmp_path / "page.html").write_text(f"<p>one</p>{script}<script src='own.js'></script>{inside}")
    light.lighten(SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(format="html")), None)
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<p>one</p><script src='own.js'></script><img src=")
    assert len(page) < len(inside) / 4
    small = tmp_path / "_images" / "a.png"
    assert small.stat().st_size < len(held.getvalue()) / 4
    apart = np.array(Image.open(small).convert("RGB")).astype(int) - drawn
    assert abs(apart).max() <= 2


def scores(file: str, *tables: str):
    """The scores after the last batch of the runs of some tables of a grid file."""
    found, _ = grid.results(ROOT / "book" / f"{file}.toml", tables, ROOT / "results")
    return found.cells().query("when == 'after' and metric == 'score' and dataset == 'counterfact'")


def test_the_command_of_the_page_reproducing_printed_what_the_page_shows():
    """The table stood there by hand, and had gone stale with the settings."""
    page = (ROOT / "book" / "reproducing.md").read_text(encoding="utf-8")
    found, _ = grid.results(ROOT / "book" / "grid-real.toml", ["world"], ROOT / "results")
    rates = found.cells().pivot_table("value", "when", "metric").round(1)
    whens = {"pre": "before", "at_write": "right after each batch", "after": "at the end"}
    for when, words in whens.items():
        row = rates.loc[when, ["efficacy", "generalization", "specificity", "score"]]
        assert f"| {words} | {' | '.join(map(str, row))} |" in page


def test_the_home_page_says_what_the_results_say():
    """Its numbers are those of the runs: a changed result fails here."""
    page = " ".join((ROOT / "book" / "intro.md").read_text(encoding="utf-8").split())
    ours = ["ece-as", "ece-wi", "ece-rs"]
    atlas, behind = scores("grid", "table1", "table1-seeds"), []
    for _, own in atlas.groupby("model"):
        rates = own.pivot_table("value", "seed", "method")
        best = rates[ours].mean().idxmax()
        behind.append((rates["memit-history"] - rates[best]).mean())
    assert f"MEMIT with a history leads by {min(behind):.1f} to {max(behind):.1f} points" in page
    real = scores("grid-real", "main").groupby("method").value.mean()
    both = f"{real['memit']:.1f} to {real[ours].max():.1f}"
    assert f"even plain MEMIT is ahead, {both}, at each of three seeds" in page
    each = scores("grid-real", "main").pivot_table("value", "seed", "method")
    assert len(each) == 3 and (each.memit > each[ours].max(axis=1)).all()

    others = scores("grid-real", "main-others", "main-leaders").groupby("method")
    looked_up = others.value.mean()["retrieval"]
    assert f"looked up and put before the prompt has {looked_up:.1f} there, as much as" in page
    assert abs(real["memit-history"] - looked_up) < 0.5
    assert others.seed.nunique()["retrieval"] == 3
    assert f"`ece-plus`, with {real['ece-plus']:.1f} (point 7" in page
    assert real.max() == real["ece-plus"] > others.value.mean().max()
    lead = each["ece-plus"] - each["memit-history"]
    assert f"at each of three seeds, by {lead.min():.1f} to {lead.max():.1f} points" in page
    found, _ = grid.results(ROOT / "book" / "grid-real.toml", ["sequence-2000"], ROOT / "results")
    first = found.cells().query("when == 'after' and metric == 'efficacy_top1'")
    first = first.set_index("method").value
    both = f"{first['ece-plus']:.0f} % of the facts in place of {first['memit-history']:.0f} %"
    assert both in page

    cells = scores("grid", "threshold", "threshold-others")
    rates = cells[cells.method.isin(ours)].pivot_table("value", ["model", "method"], "p")
    gains = rates[1.0] - rates.drop(columns=1.0).max(axis=1)
    assert f"with all neurons, by {min(gains):.1f} to {max(gains):.1f} points" in page
    cells = scores("grid-real", "main", "real-threshold").query("seed == 0")
    rate = cells[cells.method == "ece-rs"].groupby("p").value.mean()
    assert f"they are {rate[1.0] - rate[0.8]:.1f} points ahead" in page
    assert abs(rate[1.0] - rate[0.9]) < 1

    found, _ = grid.results(ROOT / "book" / "grid.toml", ["abilities"], ROOT / "results")
    tasks = found.cells().query("metric == 'abilities_accuracy' and method in @ours")
    tasks = tasks.pivot_table("value", ["model", "method"], "when")
    lost = (tasks.pre - tasks.after).round()
    assert f"ECE loses {lost.min():.0f} to {lost.max():.0f} points of them" in page
    for name, words in (("memit", "without one"), ("memit-history", "MEMIT with a history")):
        tasks = found.cells(method=name).query("metric == 'abilities_accuracy'")
        tasks = tasks.pivot_table("value", "model", "when")
        lost = (tasks.pre - tasks.after).round()
        assert f"{words} {lost.min():.0f} to {lost.max():.0f}" in page
