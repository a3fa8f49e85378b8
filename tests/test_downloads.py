"""Public files: a local server gives them whole, broken off, damaged, or not at all."""

import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
from test_data import people

from ece.data import downloads, load_facts, records_file
from ece.data.downloads import cache, fetch
from ece.errors import DataError

NAME = "multi_counterfact.json"


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; files that start with "cut" are promised longer than they are."""

    def log_message(self, *arguments):
        """Nothing on stderr."""

    def send_header(self, keyword, value):
        if keyword == "Content-Length" and "/cut/" in self.path:
            value = str(int(value) + 100)
        super().send_header(keyword, value)


@pytest.fixture
def served(tmp_path):
    """A folder, and the address under which a server shows it."""
    folder = tmp_path / "served"
    (folder / "cut").mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def good(served):
    """The address of a server that has the file, and the file's text."""
    folder, home = served
    text = json.dumps(people(4), indent=1) + "\n"
    (folder / NAME).write_text(text)
    (folder / "cut" / NAME).write_text(text)
    return home, text


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_download_is_whole_noted_and_not_repeated(good, tmp_path, capsys):
    home, text = good
    path = fetch(NAME, tmp_path / "c", home=home)
    assert path == tmp_path / "c" / NAME and path.read_text() == text
    assert note(path).read_text() == digest(text) + "\n"
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([NAME, note(path).name])
    assert fetch(NAME, path.parent, home="http://127.0.0.1:9/") == path  # nobody is asked again
    assert capsys.readouterr() == ("", "")


def note(path):
    return path.with_name(f"{path.name}.sha256")


def nothing_left(folder):
    return not folder.exists() or not list(folder.iterdir())


def test_a_download_that_breaks_off_leaves_nothing(good, tmp_path):
    home, _ = good
    with pytest.raises(DataError, match=rf"{NAME} cannot be downloaded from {home}cut/.*; try"):
        fetch(NAME, tmp_path / "c", home=home + "cut/")
    assert nothing_left(tmp_path / "c")


@pytest.mark.parametrize("text", ["<html>log in first</html>", "", '[{"a": 1}, {"b"'])
def test_what_is_not_json_is_refused(served, tmp_path, text):
    folder, home = served
    (folder / NAME).write_text(text)
    with pytest.raises(DataError, match="is not JSON"):
        fetch(NAME, tmp_path / "c", home=home)
    assert nothing_left(tmp_path / "c")


def test_arrays_are_arrays_and_never_pickles(served, tmp_path):
    folder, home = served
    np.save(folder / "idf.npy", np.arange(5.0))
    path = fetch("idf.npy", tmp_path / "c", home=home)
    assert np.load(path, allow_pickle=False).tolist() == [0, 1, 2, 3, 4]
    np.save(folder / "idf.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="idf.npy cannot be downloaded"):
        fetch("idf.npy", tmp_path / "d", home=home)
    assert nothing_left(tmp_path / "d")


def test_without_network_file_address_reason_and_remedy_are_named(served, tmp_path):
    _, home = served
    for wrong, reason in ((home, "404"), ("http://127.0.0.1:9/", "refused"), ("gopher://x/", "x")):
        with pytest.raises(DataError) as caught:
            fetch("attribute_snippets.json", tmp_path / "c", home=wrong)
        message = str(caught.value)
        assert f"attribute_snippets.json cannot be downloaded from {wrong}" in message
        assert reason in message and "name a file you have" in message
        assert nothing_left(tmp_path / "c")


def test_a_cached_file_that_changed_is_found(good, tmp_path):
    home, text = good
    path = fetch(NAME, tmp_path / "c", home=home)
    path.write_text(text.replace("French", "Dutch "))
    with pytest.raises(DataError, match=f"expected is {digest(text)}; delete it to get"):
        fetch(NAME, path.parent, home=home)
    path.unlink()
    assert fetch(NAME, path.parent, home=home).read_text() == text
    note(path).write_bytes(b"\x80")
    with pytest.raises(DataError, match="delete it to get it again"):
        fetch(NAME, path.parent, home=home)
    path.unlink()
    assert fetch(NAME, path.parent, home=home) == path


def test_a_given_checksum_is_asked_of_download_and_cache(good, tmp_path):
    home, text = good
    right, wrong = digest(text), "0" * 64
    with pytest.raises(DataError, match=f"(?s){NAME} cannot be .*{wrong}.*{right}"):
        fetch(NAME, tmp_path / "c", sha256=wrong, home=home)
    assert nothing_left(tmp_path / "c")
    path = fetch(NAME, tmp_path / "c", sha256=right.upper(), home=home)
    with pytest.raises(DataError, match=f"its SHA-256 is {right}, expected is {wrong}"):
        fetch(NAME, path.parent, sha256=wrong, home=home)
    assert records_file("counterfact", path, right) == path
    with pytest.raises(DataError, match="its SHA-256 is"):
        records_file("counterfact", path, wrong)
    with pytest.raises(DataError, match="absent.json: No such file"):
        records_file("counterfact", tmp_path / "absent.json", right)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ECE_CACHE", str(tmp_path / "here"))
    assert cache() == tmp_path / "here"
    monkeypatch.delenv("ECE_CACHE")
    assert cache() == Path(pooch.os_cache("ece"))
    with pytest.raises(DataError, match="unknown public file 'facts.json'; known: multi_count"):
        fetch("facts.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set ECE_CACHE to a folder with free space"):
        fetch(NAME, tmp_path / "file" / "c")


def test_public_means_the_file_of_the_dataset(good, monkeypatch, tmp_path):
    home, _ = good
    monkeypatch.setenv("ECE_CACHE", str(tmp_path / "c"))
    monkeypatch.setitem(downloads.FILES, NAME, home)
    assert len(load_facts("counterfact", path="public")) == 4
    assert records_file("counterfact", "public") == tmp_path / "c" / NAME
    assert records_file("zsre", None) is None
