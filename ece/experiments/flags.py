"""Command-line flags made from dataclasses: name, type, choices and help come from the fields."""

import argparse
import ast
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from textwrap import dedent
from types import NoneType, UnionType
from typing import get_args


def field_docs(cls: type) -> dict[str, str]:
    """Field name -> the string written under it in the class body."""
    (node,) = ast.parse(dedent(inspect.getsource(cls))).body
    pairs = zip(node.body, node.body[1:], strict=False)
    return {
        first.target.id: " ".join(inspect.cleandoc(second.value.value).split())
        for first, second in pairs
        if isinstance(first, ast.AnnAssign) and isinstance(second, ast.Expr)
    }


def add_flags(
    parser,
    cls: type,
    choices: Mapping[str, Iterable[str]],
    skip: Iterable[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> None:
    """One flag per field of `cls`; a flag that is not given leaves no trace in the namespace."""
    docs, aliases = field_docs(cls), aliases or {}
    for field in fields(cls):
        if field.name in skip:
            continue
        names = [_flag(name) for name in (field.name, aliases.get(field.name)) if name]
        options = {"help": docs[field.name].replace("%", "%%"), "default": argparse.SUPPRESS}
        if field.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": _reader(field), "metavar": field.name.upper()}
        if field.name in choices:
            options |= {"choices": list(choices[field.name]), "metavar": None}
        parser.add_argument(*names, dest=field.name, **options)


def words(values: Mapping[str, object]) -> list[str]:
    """The command-line words that set fields to `values`."""
    said = []
    for name, value in values.items():
        if isinstance(value, bool):
            said.append(_flag(name) if value else _flag(f"no_{name}"))
        elif isinstance(value, tuple):
            said += [_flag(name), ",".join(map(str, value))]
        else:
            said += [_flag(name), "none" if value is None else str(value)]
    return said


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _reader(field: Field):
    """What turns the text of a flag into the field's type; argparse names the flag if it fails."""
    kinds = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
    kind = next(k for k in kinds if k is not NoneType)
    read = _integers if get_args(kind) else kind

    def reader(text: str):
        return None if text == "none" and NoneType in kinds else read(text)

    reader.__name__ = "list of numbers" if get_args(kind) else kind.__name__
    return reader


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
