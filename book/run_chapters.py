"""Run the chapters, into a copy of the book or in place.

    python book/run_chapters.py run --into _build/run/embedded
    python book/run_chapters.py refresh 03

`run` leaves the committed notebooks alone; `refresh` is for authors. A chapter is edited as
`notebooks/NN_name.py` (py:percent). Its notebook is made from that file and nothing else, so no
edit can be lost to an older notebook.
"""

import argparse
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
QUIET = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
ANSI = re.compile(r"\x1b\[[0-9;]*m")
WIDGET = "application/vnd.jupyter.widget-view+json"
# A path of three or more levels from the root, or one from a drive: no page should show it.
WITHIN = re.compile(r"base64,[A-Za-z0-9+/=]+")  # pictures in a page
ABSOLUTE = re.compile(
    r"""(?<![\w.:/<>!)\]}*-])/(?!path/to|no/such|lab/tree)(?:[\w.+-]+/){2}|\b[A-Z]:\\\w"""
)


class ChapterError(Exception):
    """A cell that failed; the message names the chapter, the cell and the error."""


def notebook(source: Path) -> nbformat.NotebookNode:
    """Make the notebook of a `.py` chapter, without outputs."""
    book = jupytext.read(source)
    for number, cell in enumerate(book.cells):
        cell.id = f"cell-{number}"  # random ids would change the file at every run
    book.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return book


def execute(source: Path, target: Path, folder: Path) -> float:
    """Run one chapter in `folder`, write the executed notebook, and return the seconds it took."""
    began, book, running = time.perf_counter(), notebook(source), []
    client = NotebookClient(
        book,
        kernel_name=KERNEL["name"],
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=40"],  # only the errors of the kernel
        resources={"metadata": {"path": str(folder)}},
        on_cell_start=lambda cell, cell_index: running.append(cell_index),
    )
    try:
        client.execute(env=os.environ | QUIET)
    except Exception as error:  # of the cell, or of a kernel that died or did not start
        at = running[-1] if running else 0
        raise ChapterError(failure(source, at, book.cells[at].source, error)) from None
    book.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    text = nbformat.writes(book) + "\n"
    target.write_text(text, encoding="utf-8")
    return time.perf_counter() - began


def failure(source: Path, cell: int, code: str, error: Exception) -> str:
    """Describe a failed cell: chapter, number, first line and traceback."""
    first = next((line for line in code.splitlines() if line.strip()), "")
    return f"{source.name}, cell {cell} ({first!r}):\n{ANSI.sub('', str(error)).rstrip()}"


def attempt(source: Path, into: Path) -> str | None:
    """Run one chapter, print how it went, and return the failure if there is one."""
    try:
        seconds = execute(source, into / f"{source.stem}.ipynb", into)
    except ChapterError as error:
        print(f"FAILED  {source.stem}", flush=True)
        return str(error)
    print(f"{seconds:5.0f} s  {source.stem}", flush=True)
    return None


def complaints(book: nbformat.NotebookNode) -> Iterator[str]:
    """List what a page must not hold: cells not run, errors, warnings, widgets, absolute paths."""
    for number, cell in enumerate(book.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if cell.execution_count is None:
            yield f"cell {number} was not executed"
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"cell {number} ends in {output.ename}: {output.evalue}"
            elif output.get("name") == "stderr":
                yield f"cell {number} writes to stderr: {output.text.strip()[:200]}"
            if WIDGET in output.get("data", {}):
                yield f"cell {number} shows a widget, which a page cannot"
            shown = [output.get("text", ""), *map(str, output.get("data", {}).values())]
            texts = (WITHIN.sub("", text) for text in shown if not is_picture(text))
            if any(map(ABSOLUTE.search, texts)):
                yield f"cell {number} shows an absolute path"


def is_picture(text: str) -> bool:
    """Tell whether an output is base64, in which any text can occur by chance."""
    return len(text) > 500 and " " not in text[:500]


def copy_book(into: Path) -> None:
    """Copy or link all that chapters and pages read, so that a run changes no committed file."""
    shutil.rmtree(into, ignore_errors=True)
    (into / "notebooks").mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, into)
    shutil.copytree(ROOT / "book", into / "book", ignore=shutil.ignore_patterns("__pycache__"))
    for pair in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(pair, into / "notebooks")
    for name in ("ece", "results"):  # read by relative paths, and never written
        (into / name).symlink_to(ROOT / name)


def select(names: list[str]) -> list[Path]:
    """Select the chapters whose names begin with one of `names`; all of them without names."""
    chapters = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
    for name in names or [""]:
        if not any(path.stem.startswith(name) for path in chapters):
            known = ", ".join(path.stem for path in chapters) or "none"
            sys.exit(f"no chapter begins with {name!r}; the chapters are: {known}")
    return [path for path in chapters if not names or path.stem.startswith(tuple(names))]


def run(chapters: list[Path], into: Path, jobs: int) -> list[str]:
    """Run the chapters, `jobs` at a time, and return the failures."""
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        # The last chapters take longest: begun first, they leave no process waiting at the end.
        results = [*pool.map(partial(attempt, into=into), chapters[::-1])]
        return [result for result in results[::-1] if result is not None]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "refresh"])
    parser.add_argument("chapters", nargs="*", help="beginnings of names; none means all")
    parser.add_argument("--into", type=Path, help="folder that `run` fills")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_intermixed_args()
    chapters = select(options.chapters)
    if options.command == "refresh":
        into = ROOT / "notebooks"
    elif options.into is None:
        parser.error("run needs --into, the folder for the executed book")
    else:
        copy_book(options.into.resolve())
        into = options.into.resolve() / "notebooks"
    failures = run(chapters, into, options.jobs)
    if failures:
        sys.exit("\n" + "\n\n".join(failures) + f"\n\n{len(failures)} chapter(s) failed")


if __name__ == "__main__":
    main()
