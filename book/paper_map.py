"""A Sphinx extension: from an equation to its functions, chapters and tests, and back.

What implements an equation says so in its docstring ("Eq 8", "Eq 11-13"). Chapters and tests are
found by what their code names. The directive `paper-map` makes the table, from lines that give
the title of each equation, and the page of the package states the same below each function.
"""

import ast
import importlib
import re
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parent.parent
PAGE = "paper-map"
FEW = 1
"""Tests that a line of the table names: that of the function's own file, where there is one."""
TAG = re.compile(r"\bEq (\d+(?:-\d+)?(?:, \d+(?:-\d+)?)*)")


def numbers(text: str) -> list[int]:
    """List the equations that a text names: "Eq 4, 11-13" is 4, 11, 12, 13."""
    found = set()
    for tag in TAG.findall(text):
        for part in tag.split(", "):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return sorted(found)


@lru_cache
def tags() -> dict[str, list[int]]:
    """Map each public function, class and method whose docstring names equations to them."""
    found = {}
    for path in sorted((ROOT / "ece").rglob("[!_]*.py")):
        if path.parent.name == "book":  # it draws, and implements nothing
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name, node in _defined(ast.parse(path.read_text(encoding="utf-8")), module):
            if named := numbers(ast.get_docstring(node) or ""):
                found[name] = named
    return found


def _defined(tree: ast.AST, within: str):
    """Walk over the public classes, functions and methods below a node, with their full names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{within}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _defined(node, f"{within}.{node.name}")


@lru_cache
def users(folder: str) -> dict[str, list[str]]:
    """Map each name of the package to the files of a folder whose code uses it."""
    found = defaultdict(list)
    for path in sorted((ROOT / folder).glob("*.py")):
        for name in used(path.read_text(encoding="utf-8")):
            found[name].append(path.stem)
    return found


def used(source: str) -> set[str]:
    """List what a file uses of the package, each under the name of where it is defined."""
    tree, known = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ece":
            known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            known |= {a.asname or a.name: a.name for a in node.names if a.name == "ece"}
    dotted = {_dotted(node, known) for node in ast.walk(tree)} - {None}
    return {origin for name in dotted if (origin := _origin(name))}


def _dotted(node: ast.AST, known: dict[str, str]) -> str | None:
    """Spell `a.b.c` out, where `a` was imported from the package."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value, known)):
        return f"{before}.{node.attr}"
    return None


@lru_cache
def _origin(name: str) -> str | None:
    """Find where a function or class is defined that is used as `name`."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                found = getattr(found, part)
        except (ImportError, AttributeError):
            continue
        owner, own = (getattr(found, key, None) for key in ("__module__", "__qualname__"))
        return f"{owner}.{own}" if owner and own else None
    return None


def places(name: str) -> tuple[list[str], list[str]]:
    """List the chapters and the tests of a function; those of its class where it has none."""
    tests = [stem for stem in users("tests").get(name, []) if stem.startswith("test_")]
    module = f"test_{name.split('.')[-2]}"
    found = users("notebooks").get(name, []), sorted(tests, key=lambda stem: stem != module)
    if any(found) or not (owner := name.rpartition(".")[0]).rpartition(".")[2][:1].isupper():
        return found
    return places(owner)


class PaperMap(SphinxDirective):
    """The table of all equations; a line of its content is "number: title"."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Write the table in Markdown, and let the page's parser read it."""
        rows = ["| Equation | Function | Chapters | Tests |", "|---|---|---|---|"]
        for line in self.content:
            number, _, title = line.partition(": ")
            named = f"{number}, {title}"
            for name, equations in tags().items():
                if int(number) in equations:
                    chapters, tests = places(name)
                    links = [f"{{doc}}`{_count(s)} </notebooks/{s}>`" for s in chapters]
                    cells = [
                        named,
                        f"{{py:obj}}`{_public(name)[4:]} <{_public(name)}>`",
                        ", ".join(links),
                        _few(tests),
                    ]
                    rows.append(f"| {' | '.join(cells)} |")
                    named = ""
        box = nodes.container()
        self.state.nested_parse(StringList(rows, source=PAGE), self.content_offset, box)
        return box.children


def _public(name: str) -> str:
    """Find the shortest name by which the package offers a function, which has the link."""
    parts, own = name.split("."), name.rpartition(".")[2]
    for count in range(1, len(parts) - 1):
        short = ".".join([*parts[:count], own])
        if _origin(short) == name:
            return short
    owner, _, own = name.rpartition(".")
    inside = owner.rpartition(".")[2][:1].isupper()
    return f"{_public(owner)}.{own}" if inside else name


def _count(stem: str) -> str:
    """Name a chapter by its number in the sidebar; the quickstart has none."""
    number, _, title = stem.partition("_")
    return number.lstrip("0") or title


def _few(tests: list[str]) -> str:
    """Name a few tests, and say how many more there are."""
    named = ", ".join(f"`{stem}`" for stem in tests[:FEW])
    return named + f" and {len(tests) - FEW} more" * (len(tests) > FEW)


def note(name: str) -> list[str]:
    """Say below a function which equation it is, where it is shown and what tests it."""
    if name not in tags():
        return []
    chapters, tests = places(name)
    links = ", ".join(f":doc:`/notebooks/{stem}`" for stem in chapters)
    codes = ", ".join(f"``{stem}``" for stem in tests)
    named = ", ".join(map(str, tags()[name]))
    text = f":doc:`Paper </book/{PAGE}>`: Eq {named}."
    text += f" Shown in {links}." * bool(links) + f" Tested by {codes}." * bool(codes)
    return ["", text, ""]


def shown(chapter: str) -> list[tuple[list[int], str]]:
    """List what a chapter uses of the equations' functions: (equations, public name), in order."""
    found = [(named, _public(name)) for name, named in tags().items() if chapter in places(name)[0]]
    return sorted(found)


def close(app, tree: nodes.document) -> None:
    """Close a chapter with the functions it shows, each with its equations and its link."""
    folder, _, chapter = app.env.docname.rpartition("/")
    if folder != "notebooks" or not (used_here := shown(chapter)):
        return
    line = nodes.paragraph(classes=["ece-equations"])
    line += nodes.inline("", "Of the paper, this page uses ")
    for place, (named, name) in enumerate(used_here):
        line += nodes.Text("; " * bool(place) + f"Eq {', '.join(map(str, named))} in ")
        line += _link("py", "obj", name, name.removeprefix("ece."), app.env.docname)
    line += nodes.Text(" (")
    line += _link("std", "doc", f"/book/{PAGE}", "all equations", app.env.docname)
    line += nodes.Text(").")
    sections = [node for node in tree.children if isinstance(node, nodes.section)]
    sections[-1] += line


def _link(domain: str, kind: str, target: str, text: str, page: str) -> addnodes.pending_xref:
    look = nodes.literal if domain == "py" else nodes.inline
    settings = {"refdomain": domain, "reftype": kind, "reftarget": target, "refdoc": page}
    settings |= {"refexplicit": True, "refwarn": True}
    return addnodes.pending_xref("", look("", text), **settings)


def setup(app) -> dict:
    """Register with Sphinx."""

    def add(app, what, name, obj, options, lines):
        lines += note(_origin(name) or name)

    app.add_directive("paper-map", PaperMap)
    app.connect("autodoc-process-docstring", add, priority=900)
    app.connect("doctree-read", close)
    return {"parallel_read_safe": True}
