"""What is saved comes back to the bit or is refused by name; killed runs end with the same bits."""

import json
import os
import resource
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from conftest import SUBJECTS, TEXTS, build, history
from ece import checks, sequence
from ece.baselines.alphaedit import AlphaEdit
from ece.baselines.blue import Blue
from ece.baselines.rome import Rome
from ece.clustering import Groups
from ece.covariance import second_moment
from ece.descent import Values
from ece.editor import compute_values
from ece.errors import EditError, StateError, StatsError
from ece.facts import Fact
from ece.fingerprint import fingerprint
from ece.model import sites
from ece.sequence import edit_sequence
from ece.state import dealt, new_state, undo
from ece.storage import (
    Folder,
    archive,
    checksum,
    contents,
    folder,
    journal,
    load,
    load_moments,
    load_state,
    locked,
    moments,
    run_sequence,
    save,
    save_moments,
    save_state,
    write,
)
from ece.strategy import Strategy


class Killed(BaseException):
    """As abrupt as a signal: nothing in the package may catch it for good."""


EVENTS = {"replace": os, "unlink": os, "fsync": os, "save_file": archive, "remove": folder}


class Deadly:
    """Counts what happens to files, and kills before one of these events."""

    def __init__(self, monkeypatch, last: int | None = None, events=tuple(EVENTS)):
        self.count, self.last = 0, last
        for name in events:
            monkeypatch.setattr(EVENTS[name], name, self.counted(getattr(EVENTS[name], name)))

    def counted(self, real):
        def call(*arguments, **named):
            if self.count == self.last:
                raise Killed
            self.count += 1
            return real(*arguments, **named)

        return call


@pytest.fixture(params=("gpt2", "llama"))
def family(request) -> str:
    """Both ways round that weights can lie; files know nothing else of a family."""
    return request.param


def weights(model, layers=(0, 1)) -> list[torch.Tensor]:
    return [site.weight.clone() for site in sites(model, layers)]


def same(one, two) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def flip(path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


@contextmanager
def full_disk():
    """Within, no file can grow beyond 4 kB."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


# Archives


@dataclass(frozen=True)
class Pair:
    one: torch.Tensor
    two: dict


def test_a_nest_of_anything_comes_back_to_the_bit(tmp_path):
    t = torch.randn(3, 4)
    content = {
        "a": t, "same": (t, t[0]), "turned": t.T, 3: [1, 2.5, None, True, "x", float("inf")],
        "none": torch.zeros(2, 0), "half": t.bfloat16(), "mask": t > 0, "long": t[0].long(),
        "pair": Pair(torch.tensor(2.0), {0: torch.ones(1), 7: {"$": "y"}}), "empty": [(), {}],
    }  # fmt: skip
    save(tmp_path / "a", "things", content)
    back = load(tmp_path / "a", "things", [Pair])
    assert list(back) == list(content)
    assert back[3] == content[3] and back["empty"] == content["empty"]
    for name in ("a", "turned", "none", "half", "mask", "long"):
        assert back[name].dtype == content[name].dtype and torch.equal(back[name], content[name])
    assert torch.equal(back["same"][1], t[0]) and back["pair"].two[7] == {"$": "y"}
    assert checksum(content) == checksum(back) != checksum({**content, "half": t})
    assert checksum({"x": t, "y": 1}) == checksum({"y": 1, "x": t})
    back["a"].add_(1)
    assert torch.equal(load(tmp_path / "a", "things", [Pair])["a"], t)
    (tmp_path / "plain").touch()
    assert os.stat(tmp_path / "a").st_mode == os.stat(tmp_path / "plain").st_mode


def test_every_changed_byte_and_every_lost_end_is_seen(tmp_path):
    path = tmp_path / "a.safetensors"
    save(path, "things", {"a": torch.randn(3), "b": [1, 2]})
    whole = path.read_bytes()
    for at in range(len(whole)):
        flip(path, at)
        with pytest.raises(StateError, match="a.safetensors.*name another place"):
            load(path, "things")
        path.write_bytes(whole[:at])
        with pytest.raises(StateError, match="a.safetensors.*name another place"):
            load(path, "things")
        path.write_bytes(whole)
    assert load(path, "things")["b"] == [1, 2]


def test_what_is_missing_or_something_else_is_named(tmp_path):
    save(tmp_path / "a", "things", {})
    save_file({"a": torch.ones(1)}, tmp_path / "foreign")
    (tmp_path / "text").write_text("binary \0 or not")
    reasons = {"a": "holds things, not state", "b": "No such file", "text": "cannot be read",
               "foreign": "not written by this package", ".": "cannot be read"}  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(StateError, match=reason):
            load(tmp_path / name, "state")


def test_a_full_disk_or_a_closed_folder_is_named_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.safetensors"
    save(path, "things", {"a": torch.ones(3)})
    with full_disk():
        for call, content in ((save, ("things", torch.ones(4000))), (write, (b"x" * 9999,))):
            with pytest.raises(StateError, match=f"{path} cannot be written: .*free some space"):
                call(path, *content)
    assert torch.equal(load(path, "things")["a"], torch.ones(3))
    assert os.listdir(tmp_path) == ["a.safetensors"]
    for broken in (path / "b", path / "c" / "d"):  # a file where a folder should be
        with pytest.raises(StateError, match="cannot be written"):
            write(broken, b"x")
        with pytest.raises(StateError, match="cannot be made"), Folder(broken):
            pass


def test_what_is_no_file_is_not_replaced(tmp_path):
    """A device such as /dev/null would have become a plain file."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(StateError, match="is no file; name a file"):
            save(path, "kind", {})
    assert (tmp_path / "pipe").is_fifo()


def test_a_place_where_nothing_can_be_locked_is_named():
    """filelock tried again and again, for ever."""
    with (
        pytest.raises(StateError, match="cannot be locked: .*name a place that you may write to"),
        locked("/proc/none", wait=True),
    ):
        pass


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path):
    path, sizes = tmp_path / "a", range(1000, 1008)

    def work(size):
        for _ in range(9):
            write(path, bytes([size % 256]) * size)

    threads = [threading.Thread(target=work, args=[size]) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = path.read_bytes()
    assert len(data) in sizes and len(set(data)) == 1 and os.listdir(tmp_path) == ["a"]


# Locks and folders


def test_a_folder_in_use_is_refused_and_a_dead_process_leaves_no_lock(tmp_path):
    code = (
        "import sys, filelock\nlock = filelock.FileLock(sys.argv[1])\nlock.acquire()\n"
        "print('locked', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(StateError, match=f"{tmp_path} is in use by another run; wait"):
            Folder(tmp_path).__enter__()
        other.kill()
    with Folder(tmp_path) as folder, pytest.raises(StateError, match="in use"):
        Folder(folder.path).__enter__()
    with Folder(tmp_path):
        pass


def test_whoever_waits_gets_the_lock_afterwards(tmp_path):
    order = []

    def second():
        with locked(tmp_path / "file", wait=True):
            order.append("second")

    with locked(tmp_path / "file"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and os.listdir(tmp_path) == [".file.lock"]


def test_a_folder_belongs_to_one_run_and_knows_its_files(tmp_path):
    with Folder(tmp_path / "new" / "run") as folder:
        folder.claim("cell", {"seed": 1, "layers": (1, 2)})
        folder.claim("other", {"seed": 2})
        for number in (3, 12, 100_000):
            folder.save("scores", number, {"a": number})
        assert folder.numbers("scores") == [3, 12, 100_000] and not folder.numbers("score")
        assert folder.load("scores", 12) == {"a": 12}
        (folder.path / "scores-00012.safetensors").rename(folder.path / "scores-00013.safetensors")
        with pytest.raises(StateError, match="scores-00013.safetensors is number 12"):
            folder.load("scores", 13)
        folder.remove("scores", 100_000)
        assert folder.numbers("scores") == [100_000]
        (folder.path / ".scores-00001.safetensors.7.7.tmp").touch()  # of a process long dead
    with Folder(folder.path) as folder:
        folder.claim("cell", {"seed": 1, "layers": (1, 2)})
        for other in ({"seed": 2, "layers": (1, 2)}, {"layers": (1, 2)}):
            with pytest.raises(
                StateError, match="another run .'seed' differs.; name another place"
            ):
                folder.claim("cell", other)
        assert not list(folder.path.glob(".*.tmp"))


# Second moments


def test_a_killed_pass_goes_on_to_the_same_bits(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("ece.storage.second_moments.SAVE_EVERY", 2)
    whole = second_moment(model, tokenizer, TEXTS[:40], (0, 1), 100)
    path, seen = tmp_path / "c0", []

    def kill(tokens):
        seen.append(tokens)
        if len(seen) == 5:
            raise Killed

    with pytest.raises(Killed):
        moments(model, tokenizer, TEXTS[:40], (0, 1), path, 100, progress=kill)
    seen.clear()
    found, texts = moments(model, tokenizer, TEXTS[:40], (0, 1), path, 100, progress=seen.append)
    assert seen[0] == 500 and found.tokens == whole.tokens
    assert all(torch.equal(found.moments[n], whole.moments[n]) for n in (0, 1))
    assert sorted(os.listdir(tmp_path)) == [".c0.lock", "c0"]
    plain, again = moments(model, tokenizer, iter(TEXTS[:40]), (0, 1), max_tokens=100)
    assert plain.digest == whole.digest and texts == again != moments(
        model, tokenizer, TEXTS[:39], (0, 1), max_tokens=100)[1]  # fmt: skip


def test_an_interrupted_pass_is_never_mixed_with_another(model, tokenizer, tmp_path, monkeypatch):
    """Other texts gave mixed moments, another `max_tokens` skipped texts."""
    monkeypatch.setattr("ece.storage.second_moments.SAVE_EVERY", 1)
    path, seen = tmp_path / "c0", []

    def kill(tokens):
        seen.append(tokens)
        if len(seen) == 3:
            raise Killed

    with pytest.raises(Killed):
        moments(model, tokenizer, TEXTS[:40], (0, 1), path, 100, progress=kill)
    others = [TEXTS[1], *TEXTS[1:40]], TEXTS[:2], []
    for texts in others:
        with pytest.raises(
            StateError, match="c0.part is of another run .'texts' differs.*remove it"
        ):
            moments(model, tokenizer, texts, (0, 1), path, 100)

    def names(tokenizer, text):
        return [True] * 999

    for name, layers, budget, select in (
        ("max_tokens", (0, 1), 50, None),
        ("layers", (0,), 100, None),
        ("tokens counted", (0, 1), 100, names),
    ):
        with pytest.raises(StateError, match=f"c0.part is of another run .'{name}' differs"):
            moments(model, tokenizer, TEXTS[:40], layers, path, budget, select)
    with pytest.raises(StateError, match="'model' differs"):
        moments(build(model.config.model_type, 1), tokenizer, TEXTS[:40], (0, 1), path, 100)
    with pytest.raises(StatsError, match="one string"):
        moments(model, tokenizer, "a text", (0, 1), tmp_path / "new")
    for nameless in (partial(names), lambda tokenizer, text: [True] * 999):
        with pytest.raises(StatsError, match="a function with a name"):
            moments(model, tokenizer, TEXTS, (0, 1), tmp_path / "new", select=nameless)


def test_finished_moments_are_read_and_only_for_what_they_are(stats, model, tokenizer, tmp_path):
    path = tmp_path / "c0"
    made = moments(model, tokenizer, TEXTS[:60], (0, 1, 2), path)
    again = moments(model, tokenizer, TEXTS[:60], (0, 2), path, progress=pytest.fail)
    assert made[0].digest == again[0].digest == stats.digest and made[1] == again[1]
    with pytest.raises(StateError, match="c0 is of another run .'texts' differs"):
        moments(model, tokenizer, TEXTS[:59], (0, 1, 2), path)
    with pytest.raises(StatsError, match="layer 3"):
        moments(model, tokenizer, TEXTS[:60], (0, 3), path)
    other = build(model.config.model_type, 1)
    with pytest.raises(StatsError, match="not of the model as"):
        load_moments(path, other)
    with pytest.raises(StatsError, match="not of the model as"):
        moments(other, tokenizer, TEXTS[:60], (0,), path)
    assert load_moments(path, model).digest == stats.digest
    held = contents(path)
    assert (held["digest"], held["model"]) == (stats.digest, fingerprint(model))
    assert held["layers"] == (0, 1, 2) and held["texts"] == made[1]
    assert held["neurons"][2] == len(stats.moments[2]) and held["tokens"] == stats.tokens
    save_moments(stats, path)  # of texts that nobody knows: a run would say they are its own
    with pytest.raises(StateError, match="c0 is of another run .'texts' differs"):
        moments(model, tokenizer, TEXTS[:60], (0,), path)
    flip(path, -3)
    with pytest.raises(EditError, match="c0 is damaged"):
        load_moments(path)
    with full_disk(), pytest.raises(EditError, match="cannot be written.*free some space"):
        save_moments(stats, path)
    with pytest.raises(EditError, match="cannot be locked|cannot be written"):
        moments(model, tokenizer, TEXTS[:9], (0,), path / "below")


# A state for oneself


@pytest.fixture(scope="module")
def edited(tokenizers, facts, all_stats, config):
    """Per family a model with three batches, of which the last two can be undone."""
    made = {}
    for name in ("gpt2", "llama"):
        model = build(name)
        state = new_state(model, tokenizers[name], config, undo=2)
        ahead = {n: compute_values(model, tokenizers[name], facts[2 * n : 2 * n + 2], state, config)
                 for n in range(3)}  # fmt: skip
        state, _ = edit_sequence(
            model,
            tokenizers[name],
            facts,
            all_stats[name],
            config,
            2,
            None,
            state,
            lambda _, begun, found=ahead: (begun, found.get),
        )
        made[name] = model, state
    return made


@pytest.mark.parametrize("undoable", [2, 5])
def test_a_saved_state_comes_back_and_can_be_undone(
    family, tokenizer, facts, stats, config, edited, tmp_path, undoable
):
    model, state = edited[family]
    if undoable == 5:  # nothing was folded: columns say it all
        model = build(family)
        state, _ = edit_sequence(model, tokenizer, facts, stats, config, 2)
    save_state(model, state, tmp_path)
    other = build(family)
    back = load_state(other, tmp_path)
    assert same(weights(other), weights(model))
    for name in ("fingerprint", "contexts", "weights", "layers", "done", "undoable", "moments"):
        assert getattr(back, name) == getattr(state, name)
    for layer in config.layers:
        assert torch.equal(history(back, layer), history(state, layer))
    mine, theirs = undo(other, back, 2), undo(twin := build_like(model), state, 2)
    assert mine.weights == theirs.weights and same(weights(other), weights(twin))


def build_like(model):
    """A copy with the same weights."""
    twin = build(model.config.model_type)
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("own", [(1,), ()])  # a process may own no layer at all
def test_a_state_that_lacks_other_processes_history_is_not_saved(family, edited, tmp_path, own):
    model, state = edited[family]
    assert state.folded
    with pytest.raises(StateError, match="hold a part of this state's history"):
        save_state(model, replace(state, folded=dealt(state.folded, own)), tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_history_of_some_edit_layers_is_whole(
    model, family, tokenizer, facts, stats, config, tmp_path
):
    """BLUE writes the first and the last edit layer alone."""
    config = replace(config, layers=(0, 1, 2), scorer="all", p=1.0, clusters=None)
    state = new_state(model, tokenizer, config, Blue(), undo=1)
    state, _ = edit_sequence(model, tokenizer, facts, stats, config, 2, Blue(), state)
    assert {*state.folded} == {0, 2}
    save_state(model, state, tmp_path)
    back = load_state(build(family), tmp_path, Blue())
    assert all(torch.equal(back.folded[layer], state.folded[layer]) for layer in (0, 2))


def test_a_state_without_batches_can_be_saved(model, family, tokenizer, config, tmp_path):
    save_state(model, new_state(model, tokenizer, config), tmp_path)
    assert load_state(build(family), tmp_path).batches == ()


def test_a_kill_while_saving_over_an_older_state_leaves_one_of_them_whole(
    family, edited, tmp_path, monkeypatch
):
    """It lost both at half of the events."""
    model, state = edited[family]
    older = build_like(model)
    before = undo(older, state)
    with monkeypatch.context() as patch:
        save_state(model, state, tmp_path / "count")
        counter = Deadly(patch)
        save_state(model, state, tmp_path / "count")
    assert counter.count >= 4
    for last in range(counter.count):
        folder = tmp_path / str(last)
        save_state(older, before, folder)
        with monkeypatch.context() as patch:
            Deadly(patch, last)
            with pytest.raises(Killed):
                save_state(model, state, folder)
        found = load_state(build(family), folder)
        assert found.weights in (before.weights, state.weights)
        save_state(model, state, folder)
        assert load_state(build(family), folder).weights == state.weights
        assert sorted(os.listdir(folder)) == [".lock", "state.safetensors"]


def test_what_does_not_fit_is_refused_and_no_weight_changes(
    family, tokenizer, edited, tmp_path, monkeypatch
):
    model, state = edited[family]
    save_state(model, state, tmp_path)
    fresh, first = build(family), weights(build(family))
    with pytest.raises(StateError, match="state.safetensors was saved with another Strategy; use"):
        load_state(fresh, tmp_path, AlphaEdit())
    with pytest.raises(StateError, match="with Strategy.history=True.*give that, not .*=False"):
        load_state(fresh, tmp_path, Strategy(history=False))
    with pytest.raises(StateError, match="another model"):
        load_state(build(family, 1), tmp_path)
    one = build(family)
    sites(one, (1,))[0].weight[3, 5] += 1
    undone = undo(twin := build_like(model), state, 2)
    save_state(twin, replace(undone, batches=(), done=0), tmp_path / "columns")
    for changed, error in ((one, "unedited"), (twin, "unedited")):
        held = weights(changed)
        with pytest.raises(StateError, match=error):
            load_state(changed, tmp_path / "columns")
        assert same(weights(changed), held)
    monkeypatch.setattr(journal, "check_weights", lambda *a: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):  # an error after the weights were written
        load_state(fresh, tmp_path)
    assert same(weights(fresh), first)
    flip(tmp_path / "state.safetensors", -1)
    with pytest.raises(StateError, match="state.safetensors is damaged"):
        load_state(fresh, tmp_path)
    with pytest.raises(StateError, match="No such file"):
        load_state(fresh, tmp_path / "nowhere")
    assert same(weights(fresh), first)


# Runs


def run(family, tokenizer, facts, stats, config, path, batch=2, strategy=None, **more):
    """Run to the end in a folder, on a fresh model; -> its weights, state, reports."""
    model = build(family)
    with Folder(path) as folder:
        things = (facts, stats, config, batch, folder, strategy)
        found = run_sequence(model, tokenizer, *things, **more)
    return weights(model), *found


def told(report) -> dict:
    return json.loads(json.dumps({**report.to_dict(), "seconds": None}))


def check_same(found, whole) -> None:
    assert same(found[0], whole[0]) and found[1].weights == whole[1].weights
    assert [batch.facts for batch in found[1].batches] == [b.facts for b in whole[1].batches]
    for layer in whole[1].layers:
        for one, two in ((history(found[1], layer), history(whole[1], layer)),):
            assert one is two is None or torch.equal(one, two)
    for one, two in zip(found[2], whole[2], strict=True):
        assert told(one) == told(two)
        assert all(torch.equal(one.masks[n], two.masks[n]) for n in two.masks)


@pytest.fixture
def small(config):
    """Settings with which a batch takes little time."""
    return replace(config, contexts=0, steps=2, own_steps=1, ridge=1e-3)


def test_a_run_checks_everything_once_and_before_it_finds_a_value(
    tokenizers, facts, all_stats, small, tmp_path, monkeypatch
):
    """Facts were checked three times, and statistics only when all values had been found."""
    things, found, seen = ("llama", tokenizers["llama"], facts), [], []
    find, check = journal.find_values, checks.validate
    monkeypatch.setattr(journal, "find_values", lambda *g: found.append(g[2]) or find(*g))
    counted = lambda some, *g: seen.extend(some) or check(some, *g)  # noqa: E731
    for module in (checks, sequence):
        monkeypatch.setattr(module, "validate", counted)
    with pytest.raises(StatsError, match="another tokenizer"):
        run(*things, replace(all_stats["llama"], probe=(1, 2)), small, tmp_path / "wrong")
    assert not found and seen
    seen.clear()
    run(*things, all_stats["llama"], small, tmp_path / "right")
    assert seen == facts and sum(found, []) == facts


def test_a_run_killed_at_any_file_event_goes_on_to_the_same_bits(
    tokenizers, facts, all_stats, small, tmp_path, monkeypatch
):
    """Two batches, after which the state is saved anew; what a kill leaves of a file
    that was not finished is nothing."""
    monkeypatch.setattr(journal, "COMPACT", 2)
    things = ("gpt2", tokenizers["gpt2"], facts[:2], all_stats["gpt2"], small)
    whole = edit_sequence(model := build("gpt2"), *things[1:], 1)
    whole = (weights(model), *whole)
    with monkeypatch.context() as patch:
        counter = Deadly(patch, events=("replace", "remove"))
        check_same(run(*things, tmp_path / "count", batch=1), whole)
    assert counter.count > 10
    for last in range(counter.count):
        path = tmp_path / str(last)
        with monkeypatch.context() as patch:
            Deadly(patch, last, ("replace", "remove"))
            with pytest.raises(Killed):
                run(*things, path, batch=1)
        check_same(run(*things, path, batch=1), whole)
        assert not list(path.glob(".*.tmp"))


@pytest.mark.parametrize("family, strategy", [
    ("gpt2", None), ("llama", Rome()), ("gptj", Blue()), ("llama", Strategy(values_from="again"))
], ids=str)  # fmt: skip
def test_a_killed_run_of_any_strategy_goes_on_to_the_same_bits(
    tokenizer, family, facts, stats, small, tmp_path, monkeypatch, strategy
):
    monkeypatch.setattr(journal, "COMPACT", 3)
    if isinstance(strategy, Rome | Blue):
        small = replace(small, scorer="all")
    facts = [*facts, *(replace(fact, target="Rome", relation="again") for fact in facts[:2])]
    whole = edit_sequence(model := build(family), tokenizer, facts, stats, small, 1, strategy)
    things = (family, tokenizer, facts, stats, small, tmp_path, 1, strategy)
    seen = []

    def kill(state, report, part):
        seen.append(state.done)
        if state.done in (2, 5, 7) and seen.count(state.done) == 1:
            raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            run(*things, on_batch=kill)
    check_same(run(*things, on_batch=kill), (weights(model), *whole))
    assert seen == [1, 2, 2, 3, 4, 5, 5, 6, 7, 7, 8]
    check_same(run(*things, on_batch=kill), (weights(model), *whole))
    assert seen[-2:] == [8, 8]  # a finished run is read, not repeated


def test_another_run_in_the_folder_is_refused(family, tokenizer, facts, stats, small, tmp_path):
    """Other statistics went unnoticed."""
    run(family, tokenizer, facts, stats, small, tmp_path, 3)
    others = second_moment(build(family), tokenizer, TEXTS[:5], (0, 1, 2))
    for what, arguments in {
        "facts": (facts[:4], stats, small, tmp_path, 3),
        "batch": (facts, stats, small, tmp_path, 2),
        "config": (facts, stats, replace(small, lam=9.0), tmp_path, 3),
        "statistics": (facts, others, small, tmp_path, 3),
        "strategy": (facts, stats, small, tmp_path, 3, Strategy(history=False)),
    }.items():
        with pytest.raises(StateError, match=f"is of another run .'{what}' differs"):
            run(family, tokenizer, *arguments)
    other = build(family, 1)
    with Folder(tmp_path) as folder, pytest.raises(StateError, match="'model' differs"):
        run_sequence(other, tokenizer, facts, stats, small, 3, folder)


def test_any_damaged_or_missing_file_is_named_before_a_weight_changes(
    tokenizers, facts, all_stats, small, tmp_path, monkeypatch
):
    monkeypatch.setattr(journal, "COMPACT", 2)
    things = (tokenizers["gpt2"], facts, all_stats["gpt2"], small, 1)

    def kill(state, report, part):
        if state.done == 4:
            raise Killed

    with pytest.raises(Killed):
        run("gpt2", *things[:4], tmp_path, 1, on_batch=kill)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    wanted = [*(f"report-0000{n}" for n in (1, 2, 3, 4)), "run", "state-00004"]
    assert names == [f"{name}.safetensors" for name in
                     sorted([*wanted, "values-00004", "values-00005"])]  # fmt: skip
    model = build("gpt2")
    first = weights(model)
    for name in names:
        path = tmp_path / name
        whole = path.read_bytes()
        for damage in ("flip", "empty", "remove"):
            if damage == "flip":
                flip(path, len(whole) // 2)
            elif damage == "empty":
                path.write_bytes(b"")
            else:
                path.unlink()
            if not (name.startswith("state") and not path.exists()):
                with Folder(tmp_path) as folder, pytest.raises(StateError, match=name):
                    run_sequence(model, *things, folder)
                assert same(weights(model), first), name
            path.write_bytes(whole)
    run("gpt2", *things[:4], tmp_path, 1)


def test_a_batch_missing_among_others_is_named(tokenizer, family, facts, stats, small, tmp_path):
    run(family, tokenizer, facts, stats, small, tmp_path, 1)
    (tmp_path / "batch-00003.safetensors").unlink()
    with pytest.raises(StateError, match="batch-00003.*No such file"):
        run(family, tokenizer, facts, stats, small, tmp_path, 1)
    (tmp_path / "state-00000.safetensors").unlink()
    with pytest.raises(StateError, match="state-00000.*No such file"):
        run(family, tokenizer, facts, stats, small, tmp_path, 1)


def test_what_a_long_run_writes_and_holds_does_not_grow(
    tokenizers, all_stats, small, tmp_path, monkeypatch
):
    """ROME writes a whole matrix per fact: its folder and its manifest grew without bound."""
    monkeypatch.setattr(journal, "COMPACT", 3)
    prompts = ("{} lives in", "It is cold, says {}", "Near {} is")
    facts = [Fact(prompt, name, "Paris", id=len(prompts) * i + j)
             for i, name in enumerate(SUBJECTS) for j, prompt in enumerate(prompts)]  # fmt: skip
    config, sizes, written = replace(small, scorer="all"), [], []

    def counted(temporary, path, real=os.replace):
        written.append(os.stat(temporary).st_size)
        real(temporary, path)

    def on_batch(state, report, part):
        held = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
        reports = [size for name, size in held.items() if name.startswith("report")]
        assert max(reports) - min(reports) < 200  # digits of numbers
        size = sum(held.values()) - sum(reports)
        sizes.append((len(held) - len(reports), size, sum(written)))
        written.clear()

    monkeypatch.setattr(os, "replace", counted)
    run("gpt2", tokenizers["gpt2"], facts, all_stats["gpt2"], config, tmp_path, 1, Rome(),
        on_batch=on_batch)  # fmt: skip
    assert len(sizes) == 18
    cycles = [sizes[i : i + 3] for i in range(6, 18, 3)]  # each with one whole state
    for column in range(3):
        most = [max(line[column] for line in cycle) for cycle in cycles]
        assert max(most) <= 1.01 * min(most)


def test_a_kind_of_values_comes_back_whole(model, tokenizer, facts, config, tmp_path):
    for strategy, shared in ((Blue(), "anchor"), (Strategy(), "mean"), (Strategy(), "zero")):
        own = replace(config, shared=shared, scorer="all")
        state = new_state(model, tokenizer, own, strategy)
        values = compute_values(model, tokenizer, facts, state, own)
        save(tmp_path / "values", "values", values)
        back = load(tmp_path / "values", "values", [Values, Groups])
        assert back.facts == values.facts and (back.first is None) == (values.first is None)
        assert checksum(back) == checksum(values)


def test_a_full_disk_in_a_run_names_the_file_and_the_run_goes_on_later(
    tokenizers, facts, all_stats, small, tmp_path
):
    things = (tokenizers["gpt2"], facts[:2], all_stats["gpt2"], small, tmp_path, 1)
    whole = edit_sequence(model := build("gpt2"), *things[:4], 1)
    with full_disk(), pytest.raises(StateError, match="batch-00001.safetensors cannot be written"):
        run("gpt2", *things)
    check_same(run("gpt2", *things), (weights(model), *whole))
