"""Result files side by side: means over seeds with intervals, and tables for a page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import NamedTuple

WIDTH = 38
"""Characters of a printed line that a phone shows."""


class Rate(NamedTuple):
    """A rate over one or more runs."""

    mean: float
    """Mean over the runs."""
    half: float | None
    """Half width of its 95 % interval over facts; None for a score, which has none."""
    seeds: int
    """Number of runs."""

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.half is None else f" ± {self.half:.1f}")


def pooled(results: Sequence[Mapping], name: str, time: str = "after") -> Rate | None:
    """Mean of rate `name` over runs that differ in the seed only; None if none states it.

    The interval treats the runs as independent samples of facts.
    """
    rates = [result[time].get(name) for result in results]
    known = [(rate, r[time].get(f"{name}_ci")) for rate, r in zip(rates, results, strict=True)]
    known = [(rate, half) for rate, half in known if rate is not None]
    if not known:
        return None
    halves = [half for _, half in known if half is not None]
    whole = len(halves) == len(known)
    half = sum(h**2 for h in halves) ** 0.5 / len(halves) if halves and whole else None
    return Rate(sum(rate for rate, _ in known) / len(known), half, len(known))


def by(results: Iterable[Mapping], *names: str) -> dict[tuple, list[Mapping]]:
    """Results grouped by these fields, in the order of appearance."""
    groups: dict[tuple, list[Mapping]] = {}
    for result in results:
        groups.setdefault(tuple(result[name] for name in names), []).append(result)
    return groups


def origin(results: Sequence[Mapping], missing: Mapping[str, str]) -> str:
    """Where results come from, in short lines; how many were not run, and how to run the first.

    missing: name -> command, as by `ece.experiments.grid.results`.
    """
    told = [f"{len(results)} runs, {len(missing)} declared but not run here"]
    origins = [result["provenance"] for result in results]
    values = {name: {str(o[name]) for o in origins} for name in ("commit", "device", "dtype")}
    for library in ("torch", "transformers"):
        values[library] = {o["versions"][library] for o in origins}
    for name, found in values.items():
        short = ", ".join(sorted(value[:7] if name == "commit" else value for value in found))
        told += wrap(f"{name}: {short or 'no files'}", WIDTH, subsequent_indent="  ")
    if missing:
        told += ["the first of those:", next(iter(missing.values())).replace(" --", " \\\n  --")]
    return "\n".join(told)


def html(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    marked: Callable[[int, int], str] = lambda row, column: "",
    title: str = "",
) -> str:
    """A table that scrolls sideways where a screen is narrow.

    marked: (row, column) -> "b" or "u" for a cell to be set in bold or underlined, else "".
    """
    cells = [
        [_cell(value, marked(i, j), j) for j, value in enumerate(row)] for i, row in enumerate(rows)
    ]
    top = "".join(_cell(name, "", j, "th") for j, name in enumerate(head))
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    return (
        f'<div style="overflow-x:auto;font-size:0.85em"><table>{caption}'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: object, mark: str, column: int, tag: str = "td") -> str:
    text = escape("–" if value is None else str(value))
    side = "left" if column == 0 else "right"
    inner = f"<{mark}>{text}</{mark}>" if mark else text
    style = f"text-align:{side};white-space:nowrap;padding:0.1em 0.6em"
    return f'<{tag} style="{style}">{inner}</{tag}>'
