"""A Sphinx extension: the package's docstrings are in Markdown, autodoc reads reStructuredText."""

import re
from typing import get_type_hints

from sphinx.ext.autodoc import AttributeDocumenter
from sphinx.util.typing import stringify_annotation

CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
MATH = re.compile(r"(?<!\\)\$([^$]+)\$")
NAME = re.compile(r"ece(\.\w+)+")


def to_rst(lines: list[str]) -> list[str]:
    """Convert code, formulas, lists and indented blocks; a list and a block stand by themselves."""
    found, before = [], ""
    for line in lines:
        indented = line.startswith("    ")
        starts = line.lstrip().startswith("- ") and not before.startswith(("- ", "  "))
        if indented and not before.strip() and not _inside(found):
            found += ["::", ""]
        elif starts and before.strip():
            found.append("")
        found.append(line if indented else _inline(line))
        before = line
    return found


def _inside(found: list[str]) -> bool:
    """Tell whether the last text, blank lines left out, belongs to an indented block or a list."""
    last = next((line for line in reversed(found) if line.strip()), "")
    return last.startswith("  ") or last == "::"


def _inline(line: str) -> str:
    """Convert one line of text."""
    line = CODE.sub(lambda m: _role(m[1]) if NAME.fullmatch(m[1]) else f"``{m[1]}``", line)
    return MATH.sub(r":math:`\1`", line)


def _role(name: str) -> str:
    return f":py:obj:`{name}`"


class Field(AttributeDocumenter):
    """Documents a field by its plain type, without what `Annotated` adds for the checks."""

    objtype = "attribute"
    priority = AttributeDocumenter.priority + 1

    def add_directive_header(self, sig: str) -> None:
        """Leave the annotation out, and add the plain type instead."""
        hints, self.config.autodoc_typehints = self.config.autodoc_typehints, "none"
        super().add_directive_header(sig)
        self.config.autodoc_typehints = hints
        try:
            kind = get_type_hints(self.parent)[self.objpath[-1]]
        except (NameError, TypeError, KeyError):
            return
        self.add_line(f"   :type: {stringify_annotation(kind, 'smart')}", self.get_sourcename())


def setup(app) -> dict:
    """Register with Sphinx."""

    def convert(app, what, name, obj, options, lines):
        lines[:] = to_rst(lines)

    def shorten(app, what, name, obj, options, signature, returns):
        return ("", None) if what == "class" else None  # its fields are listed below it

    app.add_autodocumenter(Field, override=True)
    app.connect("autodoc-process-docstring", convert)
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True}
