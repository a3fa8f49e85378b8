"""Tables of the book: means over seeds, differences at equal seeds, and HTML for a page."""

from collections.abc import Mapping
from html import escape
from re import sub
from textwrap import wrap

import numpy as np
import pandas as pd
from IPython.display import HTML
from pandas.io.formats.style import Styler

from ece.experiments.results import Results

WIDTH = 38  # characters of a printed line that a phone shows
STYLE = "white-space:nowrap;text-align:right;font-size:0.9em"


def wide(cells: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Make a row for each group of runs and a column for each metric, its mean over the runs."""
    found = cells.pivot_table(index=list(by), columns="metric", values="value", sort=False)
    return found.reset_index().rename_axis(columns=None)


def by_method(found: Results) -> pd.DataFrame:
    """Average what was measured at the end by method; last the unedited model; column `seeds`."""
    cells = found.cells()
    rates = wide(cells[cells.when == "after"], "method").set_index("method")
    before = cells[cells.when == "pre"].drop_duplicates(["model", "dataset", "seed", "metric"])
    rates.loc["unedited"] = before.groupby("metric").value.mean()
    return rates.assign(seeds=found.runs.groupby("method").seed.nunique().astype("Int64"))


def pooled(cells: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Average `value` over the runs of each group; columns value, seeds and ci.

    The half width `ci` treats the runs as independent samples of facts; it is missing where one
    of them states none.
    """
    groups = cells.groupby(list(by), sort=False)
    half = groups["ci"].agg(lambda own: (own**2).sum(skipna=False) ** 0.5 / len(own))
    return groups.agg(value=("value", "mean"), seeds=("value", "size")).assign(ci=half)


def interval(row: pd.Series) -> str:
    """Write `row.value` with the half width `row.ci` of its interval, if it has one."""
    return f"{row.value:.1f}" + ("" if pd.isna(row.ci) else f" ± {row.ci:.1f}")


def gaps(scores: pd.DataFrame, one: str) -> pd.DataFrame:
    """Subtract every other column of `scores`, which has a row for each seed, from column `one`.

    A row for each other column: mean, low and high over the seeds that both have, and a verdict:
    "ahead" if `one` is higher at every seed, "behind" if it is lower at every seed, else "even".
    """
    found = 0 - scores.drop(columns=one).sub(scores[one], axis=0).agg(["mean", "max", "min"])
    found = found.T.dropna().set_axis(["mean", "low", "high"], axis=1)
    sides = [found.low > 0, found.high < 0]
    return found.assign(verdict=np.select(sides, ["ahead", "behind"], "even"))


def signed(found: pd.DataFrame) -> pd.Series:
    """Write the mean of each row of `gaps`, with "?" where the seeds disagree about the sign."""
    return found["mean"].map("{:+.1f}".format) + np.where(found.verdict == "even", "?", "")


def origin(runs: pd.DataFrame, missing: Mapping[str, str]) -> str:
    """Say in short lines where `runs` come from, and how to run the first of those missing.

    missing: name -> command of cells that were declared but not run.
    """
    lines = [f"{len(runs)} runs, {len(missing)} declared but not run here"]
    origins = pd.json_normalize(list(runs.provenance))
    names = ("commit", "device", "dtype", "versions.torch", "versions.transformers")
    for name in names if len(runs) else ():
        values = sorted(set(origins[name].str[:7] if name == "commit" else origins[name]))
        text = f"{name.removeprefix('versions.')}: {', '.join(values)}"
        lines += wrap(text, WIDTH, subsequent_indent="  ")
    if missing:
        lines += ["the first of those:", next(iter(missing.values())).replace(" --", " \\\n  --")]
    return "\n".join(lines)


def table(frame: pd.DataFrame, caption: str, digits=1, bold=None, underlined=None) -> HTML:
    """Show `frame` under its caption; it scrolls sideways where a screen is narrow.

    Of an index of several levels the first is a line of its own above its rows.
    bold, underlined: frames of truth values, for the cells to be marked.
    """
    name = sub(r"\W+", "-", caption.lower())
    blank = [[None] * axis.nlevels for axis in (frame.index, frame.columns)]
    look = {"precision": digits, "na_rep": "–", "escape": "html", "cell_ids": False}
    look |= {"uuid": name, "table_attributes": f'class="dataframe" style="{STYLE}"'}
    shown = Styler(frame.rename_axis(index=blank[0], columns=blank[1]), **look)
    shown = shown.format_index(precision=2, escape="html")
    for marked, css in ((bold, "font-weight:bold"), (underlined, "text-decoration:underline")):
        if marked is not None:
            styles = marked.map({True: css}.get)
            shown = shown.apply(lambda _, styles=styles: styles, axis=None)
    top = f'<figure style="margin:0"><figcaption>{escape(caption)}</figcaption>'
    html = shown.to_html()
    if frame.index.nlevels > 1:
        span = f'colspan="{frame.index.nlevels - 1 + frame.shape[1]}" scope="rowgroup"'
        html = sub(r'<tr>\s*<th class="blank" >&nbsp;</th>', "<tr>", html)
        first = r'(<th class="row_heading level0)[^>]*>(.*?)</th>'
        html = sub(first, rf'\1" {span}><span>\2</span></th>\n    </tr>\n    <tr>', html)
    return HTML(f'{top}<div style="overflow-x:auto">{html}</div></figure>')
