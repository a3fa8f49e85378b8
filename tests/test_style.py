"""House rules of `ece/`: imports, sizes, docstrings, words, and what no module may do."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "ece").glob("*.py"))  # the method; everything else stands in folders
MODULES = sorted((ROOT / "ece").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}

LINES = {"package": 13630, "core": 2475, "core file": 200, "function": 40}
"""Ceilings where the code stands. The aims, 6,500, 1,200 and 160, are not reached: lower these as
files shrink. They rose for capabilities (own facts, edits as files, several processes: 790 lines)
and for faults that reviews and new users found (470)."""
NOT_VERBS = set("A All An Each Every How One Per The What When Where Whether Which".split())
OLD_NAMES = set("asked heard kept mended organism said told".split())
OLD_WORDS = re.compile(
    r"(?<![\w`'\"-])(asked|heard|kept|mend(s|ed|ing)?|organism|told)(?![\w`'\"-])"
)
"""Words that the code had for prompt, log-likelihood, save, correct: one term per thing."""


def name(path: Path) -> str:
    """Path of a module inside the repository, for test ids and messages."""
    return path.relative_to(ROOT).as_posix()


def lines(path: Path) -> int:
    """Lines of a file, all counted, as `wc -l` does."""
    return path.read_text(encoding="utf-8").count("\n")


each_module = pytest.mark.parametrize("path", MODULES, ids=name)


# Imports. The contracts are in pyproject.toml.


def test_import_contracts_hold():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_contracts_name_every_file_of_the_method():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {one["id"]: one for one in settings["tool"]["importlinter"]["contracts"]}
    stems = {path.stem for path in CORE} - {"__init__", "__main__"}
    assert set(contracts["method"]["source_modules"]) == {"ece"} | {f"ece.{stem}" for stem in stems}
    folders = {f"ece.{path.parent.name}" for path in (ROOT / "ece").glob("*/__init__.py")}
    assert folders <= set(contracts["method"]["forbidden_modules"])


@each_module
def test_imports_are_absolute(path):
    for node in ast.walk(TREES[path]):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name(path)}:{node.lineno}"


# Sizes.


def test_the_package_is_small():
    assert len(MODULES) > 10
    assert sum(map(lines, MODULES)) <= LINES["package"]


def test_the_method_is_smaller():
    assert sum(map(lines, CORE)) <= LINES["core"]
    long = {name(path): lines(path) for path in CORE if lines(path) > LINES["core file"]}
    assert not long, f"lines per file, at most {LINES['core file']}"


@each_module
def test_functions_are_short(path):
    sizes = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.FunctionDef)
    }
    long = {name: size for name, size in sizes.items() if size > LINES["function"]}
    assert not long, f"lines per function, at most {LINES['function']}"


# Words.


@each_module
def test_modules_say_what_they_are_for(path):
    assert ast.get_docstring(TREES[path]) or not TREES[path].body


@each_module
def test_docstrings_begin_with_a_sentence(path):
    """One line, with an end; of a function, with a verb first (a property may be named)."""
    bad = []
    for node in ast.walk(TREES[path]):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        first = (ast.get_docstring(node) or "It is left out.").splitlines()[0]
        verb = not isinstance(node, ast.FunctionDef) or is_property(node)
        verb = verb or first.split()[0] not in NOT_VERBS
        if not re.fullmatch(r"[A-Z`$].* .*[.?]", first) or not verb:
            bad.append(f"{getattr(node, 'name', 'module')}: {first}")
    assert not bad, "\n".join([name(path), *bad])


def is_property(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(mark).endswith("property") for mark in function.decorator_list)


@each_module
def test_one_term_per_thing(path):
    found = {word for word in identifiers(TREES[path]) if OLD_NAMES & set(words(word))}
    assert not found, f"{name(path)} has old names"
    found = [text for text in prose(path) if OLD_WORDS.search(text)]
    assert not found, f"{name(path)} has old words"


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Every name that a module gives or uses."""
    for node in ast.walk(tree):
        for field in ("id", "name", "arg", "attr"):
            if isinstance(value := getattr(node, field, None), str):
                yield value


def words(identifier: str) -> list[str]:
    """`read_asked` and `ReadAsked` are both read, asked."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", identifier).lower().split("_")


def prose(path: Path) -> Iterator[str]:
    """What people read: comments, docstrings (also of fields), and texts of errors."""
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)
        elif isinstance(node, ast.Raise):
            parts = (part for part in ast.walk(node) if isinstance(part, ast.Constant))
            yield from (str(part.value) for part in parts)


# What no module does.


@each_module
def test_no_global_state_device_or_pickle(path):
    for node in ast.walk(TREES[path]):
        at = f"{name(path)}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Global), f"{at} global"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            device = node.value == "cuda" or node.value.startswith("cuda:")
            assert not device, f"{at} names a device; take it from the weights or the caller"
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert not called.endswith(".cuda"), f"{at} moves to a fixed device"
        if called == "torch.load":
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert keywords.get("weights_only") == "True", f"{at} opens a pickle"
        if isinstance(node, ast.Import):
            assert "pickle" not in [alias.name for alias in node.names], f"{at} pickle"
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert ast.unparse(node.value) == "False", f"{at} runs code of a download"


@each_module
def test_only_commands_print(path):
    """Printing is for `main()` and `__main__.py`; everything else returns what it found."""
    if path.name == "__main__.py":
        return
    commands = [
        range(node.lineno, node.end_lineno + 1)
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    ]
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            inside = any(node.lineno in lines for lines in commands)
            assert inside, f"{name(path)}:{node.lineno} prints"
