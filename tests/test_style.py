"""House rules that reading alone does not keep."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = """
    errors config model facts hooks naive walk upper stats keys score attribution group loss
    prepare values
    solve prune state report files fields download storage edit reading published generate metrics
    texts trace references data results tables flags kept baselines sessions settings inputs asking
    cell experiment grid measure stages bench statements organism evidence
    plots
""".split()
"""Data flows one way: a module imports only modules that stand before it. Add new ones here."""
ATLAS_MAY_IMPORT = {"errors", "config", "model", "facts"}
ATLAS_COMMANDS = {"check", "__main__"}  # they use the editor; no other module imports them
MAY_IMPORT_ATLAS = {"data", "inputs", "stages", "bench", "organism"}
LONGEST_FUNCTION = 45

MODULES = sorted((ROOT / "ece").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def name(path: Path) -> str:
    """Path of a module inside the package, for test ids and messages."""
    return path.relative_to(ROOT).as_posix()


each_module = pytest.mark.parametrize("path", MODULES, ids=name)


def imports(tree: ast.AST) -> Iterator[str]:
    """First-level modules of the package that a module imports, at any depth of its code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "ece":
            found = [f"ece.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import; write `from ece.x import y`"
            found = [node.module]
        else:
            continue
        yield from (module.split(".")[1] for module in found if module.startswith("ece."))


def test_the_package_was_found():
    assert len(MODULES) > 10


@each_module
def test_imports_go_one_way(path):
    package, *inside = path.relative_to(ROOT / "ece").with_suffix("").parts
    if package == "__init__" or inside and inside[-1] in ATLAS_COMMANDS:
        return
    if package == "atlas":
        allowed = ATLAS_MAY_IMPORT
    else:
        assert package in ORDER, f"give ece.{package} its place in ORDER"
        allowed = set(ORDER[: ORDER.index(package)])
        allowed |= {"atlas"} if package in MAY_IMPORT_ATLAS else set()
    used = set(imports(TREES[path])) - {package}
    assert used <= allowed, f"{name(path)} imports {sorted(used - allowed)}, which comes after it"


@each_module
def test_functions_are_short(path):
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.FunctionDef)
        and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert not long, f"lines per function, at most {LONGEST_FUNCTION}"


@each_module
def test_modules_say_what_they_are_for(path):
    assert ast.get_docstring(TREES[path]) or not TREES[path].body


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
