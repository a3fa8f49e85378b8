"""Files that name each other agree (pins, commands, contents, pages); the chapter runner works."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import run_chapters
import yaml

ROOT = run_chapters.ROOT
COMMANDS = "env book render refresh test bench evidence atlas lab serve clean".split()
NOT_TEXT = {".png", ".safetensors"}
NOT_OURS = ("book/_static/mathjax/", "ece/atlas/checkpoints/")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pins() -> dict[str, str]:
    lines = [line for line in read("requirements.txt").splitlines() if line and line[0] != "#"]
    return dict(re.fullmatch(r"([a-z0-9-]+)==([\w.]+)", line).groups() for line in lines)


def make(*arguments: str, **environment: str) -> str:
    """Output of `make`, as if nothing of the book's options were set outside."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", "--no-print-directory", "-s", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=kept | environment, check=True, capture_output=True, text=True
    ).stdout


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True)
    return [ROOT / name for name in listed.stdout.decode().splitlines() if (ROOT / name).exists()]


# Versions stand in one place.


def test_everything_is_pinned_exactly():
    assert len(pins()) > 100


def test_this_environment_is_the_pinned_one():
    installed = {re.sub(r"[-_.]+", "-", d.name).lower(): d for d in metadata.distributions()}
    for package in pins().keys() & installed.keys():
        here, version = installed[package].version.split("+")[0], pins()[package]
        assert here == version, f"{package} is {here} here, {version} in requirements.txt"


def test_environment_yml_takes_the_pins():
    wanted = yaml.safe_load(read("environment.yml"))["dependencies"]
    python, pip, from_pip = wanted
    assert (pip, from_pip) == ("pip", {"pip": ["-r requirements.txt", "-e ."]})
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert project["requires-python"] == ">=" + python.removeprefix("python=")


def test_dependencies_are_pinned_and_named_without_versions():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert set(project["dependencies"]) <= set(pins())


# Commands.


def test_help_lists_every_command():
    listed = [line.split()[0] for line in make("help").splitlines()]
    assert listed[1 : len(COMMANDS) + 1] == COMMANDS


def test_documented_commands_exist():
    for page in [ROOT / "README.md", *(ROOT / "book").glob("*.md")]:
        code = " ".join(re.findall(r"```bash\n.*?```|`[^`\n]+`", page.read_text(), re.DOTALL))
        named = set(re.findall(r"\bmake ([a-z]+)", code))
        assert named <= set(COMMANDS), f"{page.name} names {named - set(COMMANDS)}"


def test_options_reach_the_chapters():
    show = ["--eval", "show: ; @env; echo RUN=$(RUN)", "show"]
    plain = make(*show)
    # ECE_REAL_DATA is for tests, and may be set while they run.
    assert not re.search("^ECE_(MODEL|DEVICE|DATA)=.", plain, re.MULTILINE)
    assert "RUN=_build/run/embedded\n" in plain
    given = make(*show, "MODEL=some/model", "DEVICE=mps", "DATA=facts.json")
    assert "ECE_MODEL=some/model\n" in given and "ECE_DEVICE=mps\n" in given
    assert f"ECE_DATA={ROOT}/facts.json\n" in given
    assert "RUN=_build/run/some--model\n" in given
    assert "ECE_DATA=public\n" in make(*show, "DATA=public")


def test_tests_see_no_options(monkeypatch):
    code = "import conftest, os; print([n for n in os.environ if n.startswith('ECE_')])"
    monkeypatch.setenv("ECE_MODEL", "another")
    monkeypatch.delenv("ECE_REAL_DATA", raising=False)  # the one that tests do see
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr


# Pages.


def contents() -> list[str]:
    toc = yaml.safe_load(read("_toc.yml"))
    return [toc["root"]] + [page["file"] for part in toc["parts"] for page in part["chapters"]]


def test_contents_name_every_page():
    pages = [path for path in (ROOT / "book").glob("*.md")]
    pages += (ROOT / "notebooks").glob("*.ipynb")
    there = {path.relative_to(ROOT).with_suffix("").as_posix() for path in pages}
    assert sorted(contents()) == sorted(there)


def test_chapters_stand_in_order():
    chapters = [page for page in contents() if page.startswith("notebooks/")]
    assert chapters == sorted(chapters)


def test_paper_map_names_what_exists():
    page = read("book/paper-map.md")
    for dotted in re.findall(r"`(ece\.[\w.]+)`", page):
        module, _, attribute = dotted.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), dotted
    for test in set(re.findall(r"`(test_\w+)`", page)):
        assert (ROOT / "tests" / f"{test}.py").exists(), test
    for chapter in set(re.findall(r"`(\d\d_\w+)`", page)):
        assert (ROOT / "notebooks" / f"{chapter}.py").exists(), chapter


def test_readme_names_existing_pages():
    for name in re.findall(r"`((?:book|notebooks)/[\w-]+)`", read("README.md")):
        assert name in contents(), name


def test_readme_example_runs(capsys):
    code = re.search(r"```python\n(.*?)```", read("README.md"), re.DOTALL).group(1)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert names["before"]["efficacy"] < 50 < names["after"]["efficacy"]


def test_nothing_names_a_machine():
    """No absolute path of a home or a work folder in any file that is committed."""
    files = [path for path in tracked() if path.suffix not in NOT_TEXT | {".ipynb", ".svg"}]
    assert files
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(NOT_OURS):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not run_chapters.ABSOLUTE.search(line), f"{name}:{number}: {line}"


# The chapter runner.

CHAPTER = """# %% [markdown]
# # A chapter

# %%
import os, sys
print("in", os.path.basename(os.getcwd()))

# %%
{}
"""


@pytest.fixture
def chapter(tmp_path):
    """A function that writes a two-cell chapter and runs it; the stored notebook."""

    def run(last_cell: str) -> Path:
        source = tmp_path / "99_trial.py"
        source.write_text(CHAPTER.format(last_cell), encoding="utf-8")
        target = source.with_suffix(".ipynb")
        run_chapters.execute(source, target, tmp_path)
        return target

    return run


def test_runner_stores_outputs_and_nothing_of_the_run(chapter, tmp_path):
    first = chapter("6 * 7").read_bytes()
    book = nbformat.reads(first.decode(), as_version=4)
    assert book.cells[1].outputs[0].text == f"in {tmp_path.name}\n"
    assert book.cells[2].outputs[0].data["text/plain"] == "42"
    assert list(run_chapters.complaints(book)) == []
    assert chapter("6 * 7").read_bytes() == first


def test_runner_names_chapter_cell_and_error(chapter):
    with pytest.raises(run_chapters.ChapterError) as caught:
        chapter("missing + 1")
    assert "99_trial.py, cell 2 ('missing + 1')" in str(caught.value)
    assert "NameError: name 'missing' is not defined" in str(caught.value)


def test_complaints_find_what_a_page_must_not_hold(chapter):
    path = chapter('print("warned", file=sys.stderr); os.sep + "home/me/x"')
    book = nbformat.read(path, as_version=4)
    book.cells[1].execution_count = None
    found = " ".join(run_chapters.complaints(book))
    for complaint in ("was not executed", "writes to stderr: warned", "shows an absolute path"):
        assert complaint in found
