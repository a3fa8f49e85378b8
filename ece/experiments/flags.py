"""Makes flags of a command from the fields of dataclasses, and reads them."""

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields, make_dataclass
from textwrap import dedent
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import Positional
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

ALIASES = {"lam": ["--lambda"]}
REGISTRY = ConstructorRegistry()


def read_options(kind: type, words: list[str], prog: str):
    """Read the flags of a dataclass and build it, which checks its values."""
    return kind(**vars(parse(flags_of(kind), words, prog=prog, description=kind.__doc__)))


def parse(kind: type, words: list[str], **more):
    """Read the flags of a dataclass from the words of a command line."""
    more |= {"registry": REGISTRY, "config": (tyro.conf.OmitArgPrefixes,)}
    return tyro.cli(kind, args=words, **more)


def flags_of(
    kinds: type | list[type], defaults: Mapping[str, Any] | None = None, doc: str = "", skip=()
) -> type:
    """Make a dataclass of the same flags that checks nothing: who reads the flags builds `kind`.

    defaults: values of the fields it is to have; without it all, with their own defaults.
    """
    members = {}
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        hints, docs = get_type_hints(kind, include_extras=True), field_docs(kind)
        for own in fields(kind):
            default = own.default if defaults is None else defaults.get(own.name, MISSING)
            single = get_origin(hints[own.name]) is Literal and len(get_args(hints[own.name])) == 1
            if own.name in skip or single or default is MISSING:
                continue
            note = tyro.conf.arg(help=docs[own.name], aliases=ALIASES.get(own.name))
            hint = Annotated[hints[own.name], note]
            members[own.name] = (own.name, hint, field(default=default))
        doc = doc or kind.__doc__
    return make_dataclass("Flags", members.values(), namespace={"__doc__": doc})


def field_docs(kind: type) -> dict[str, str]:
    """Read the text under each field in the body of a dataclass and of those it comes from."""
    found = {}
    for cls in reversed([base for base in kind.__mro__ if base is not object]):
        (node,) = ast.parse(dedent(inspect.getsource(cls))).body
        for first, second in zip(node.body, node.body[1:], strict=False):
            if isinstance(first, ast.AnnAssign) and isinstance(second, ast.Expr):
                found[first.target.id] = " ".join(inspect.cleandoc(second.value.value).split())
    return found


@REGISTRY.primitive_rule
def _lists_and_none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Read lists as 4,5,6 and "none" as None; leave all else, and words without flags, to tyro."""
    if get_origin(info.type) not in (tuple, Union, UnionType) or Positional in info.markers:
        return None
    word, read = reader_of(info.type)
    show = lambda value: [text_of(value)]  # noqa: E731
    return PrimitiveConstructorSpec(1, word, lambda words: read(*words), lambda value: True, show)


def reader_of(kind) -> tuple[str, Callable[[str], Any]]:
    """Find what a type is called in the help, and what reads it from a text."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return reader_of(parts[0])
    if origin is Literal:
        return "|".join(parts), lambda text: _one_of(parts, text)
    if origin is None:
        return kind.__name__.upper(), kind
    word, read = reader_of(parts[0])
    if origin is tuple:
        return f"{word},{word},...", lambda text: tuple(map(read, filter(None, text.split(","))))
    return f"{word}|none", lambda text: None if text == "none" else read(text)


def _one_of(known: tuple[str, ...], text: str) -> str:
    if text not in known:
        raise ValueError(f"'{text}' is not known; known: {', '.join(known)}")
    return text


def text_of(value: Any) -> str:
    """Write a value as it is written everywhere: lists as 4,5,6, and None as none."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def words(values: Mapping[str, Any]) -> list[str]:
    """Write the words of a command line that set flags to `values`."""
    found = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        switch = [f"--{flag}" if value else f"--no-{flag}"]
        found += switch if isinstance(value, bool) else [f"--{flag}", text_of(value)]
    return found
