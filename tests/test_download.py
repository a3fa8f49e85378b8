"""Public files: a local server gives them whole, broken off, damaged, or not at all."""

import hashlib
import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from test_data import people

from ece.data import download
from ece.data.download import FILES, cache, fetch, main, note
from ece.data.loading import load_facts, records_file
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


def test_a_download_is_whole_noted_and_not_repeated(good, tmp_path):
    home, text = good
    seen = []
    path = fetch(NAME, tmp_path / "c", lambda *told: seen.append(told), home=home)
    assert path == tmp_path / "c" / NAME and path.read_text() == text
    assert seen[0] == (NAME, 0, len(text)) and seen[-1] == (NAME, len(text), len(text))
    held = json.loads(note(path).read_text())["record"]
    assert held == {"size": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([NAME, note(path).name])
    assert fetch(NAME, path.parent, home="http://127.0.0.1:9/") == path  # nobody is asked again


def test_a_file_address_will_do(served, tmp_path):
    folder, _ = served
    (folder / NAME).write_text("[1]")
    assert fetch(NAME, tmp_path / "c", home=folder.as_uri() + "/").read_text() == "[1]"


def nothing_left(folder):
    return not folder.exists() or not list(folder.iterdir())


def test_a_download_that_breaks_off_leaves_nothing(good, tmp_path):
    home, text = good
    with pytest.raises(DataError, match=rf"{NAME} cannot be had from {home}cut/") as caught:
        fetch(NAME, tmp_path / "c", home=home + "cut/")
    assert f"broke off after {len(text)} of {len(text) + 100} bytes" in str(caught.value)
    assert "--data FILE" in str(caught.value) and nothing_left(tmp_path / "c")


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
    with pytest.raises(DataError, match="idf.npy cannot be had"):
        fetch("idf.npy", tmp_path / "d", home=home)
    assert nothing_left(tmp_path / "d")


def test_without_network_file_address_reason_and_mend_are_named(served, tmp_path):
    _, home = served
    for wrong, reason in ((home, "404"), ("http://127.0.0.1:9/", "refused")):
        with pytest.raises(DataError) as caught:
            fetch("attribute_snippets.json", tmp_path / "c", home=wrong)
        message = str(caught.value)
        assert f"attribute_snippets.json cannot be had from {wrong}" in message
        assert reason in message and "--references FILE" in message
        assert nothing_left(tmp_path / "c")


def test_a_cached_file_that_changed_is_found(good, tmp_path):
    home, text = good
    path = fetch(NAME, tmp_path / "c", home=home)
    path.write_text(text.replace("French", "Dutch "))
    with pytest.raises(DataError, match="is not what it was at its first use.*delete it"):
        fetch(NAME, path.parent, home=home)
    path.unlink()
    assert fetch(NAME, path.parent, home=home).read_text() == text
    note(path).write_text("{")
    with pytest.raises(DataError, match="first-use.json is damaged; delete it"):
        fetch(NAME, path.parent, home=home)


def test_a_given_checksum_is_asked_of_download_and_cache(good, tmp_path):
    home, text = good
    right, wrong = hashlib.sha256(text.encode()).hexdigest(), "0" * 64
    with pytest.raises(DataError, match=f"what came has the SHA-256 {right}, wanted is {wrong}"):
        fetch(NAME, tmp_path / "c", sha256=wrong, home=home)
    assert nothing_left(tmp_path / "c")
    path = fetch(NAME, tmp_path / "c", sha256=right.upper(), home=home)
    with pytest.raises(DataError, match=f"its SHA-256 is {right}, wanted is {wrong}"):
        fetch(NAME, path.parent, sha256=wrong, home=home)
    assert records_file("counterfact", path, right) == path
    with pytest.raises(DataError, match="its SHA-256 is"):
        records_file("counterfact", path, wrong)
    with pytest.raises(DataError, match="absent.json: No such file"):
        records_file("counterfact", tmp_path / "absent.json", right)


def test_known_checksums_are_checksums():
    for file in FILES.values():
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ECE_CACHE", str(tmp_path / "here"))
    assert cache() == tmp_path / "here"
    monkeypatch.delenv("ECE_CACHE")
    assert cache() == Path.home() / ".cache" / "ece"
    with pytest.raises(DataError, match="unknown public file 'facts.json'; known: multi_count"):
        fetch("facts.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set ECE_CACHE to a folder that can be written"):
        fetch(NAME, tmp_path / "file" / "c")


def test_public_means_the_file_of_the_dataset(good, monkeypatch, tmp_path):
    home, _ = good
    monkeypatch.setenv("ECE_CACHE", str(tmp_path / "c"))
    monkeypatch.setitem(download.FILES, NAME, download.PublicFile(home, "x"))
    assert len(load_facts("counterfact", path="public")) == 4
    assert records_file("counterfact", "public") == tmp_path / "c" / NAME
    assert records_file("zsre", None) is None


def test_the_command_prints_checksum_and_path(good, tmp_path, capsys):
    home, text = good
    words = [NAME, "--folder", str(tmp_path / "c"), "--home", home]
    assert main(words) == 0
    total = hashlib.sha256(text.encode()).hexdigest()
    assert capsys.readouterr().out == f"{total}  {tmp_path / 'c' / NAME}\n"
    with pytest.raises(SystemExit) as caught:
        main([*words, "--sha256", "0" * 64])
    assert caught.value.code == 2 and "wanted is 0000" in capsys.readouterr().err
