"""Settings of a run: what they accept, what they are known by, and the command for them."""

from dataclasses import replace
from pydoc_data.topics import topics

import pytest

from ece.baselines import BASELINES, STRATEGIES
from ece.data import python_docs, world
from ece.data.schema import digest
from ece.errors import ConfigError, ModelError
from ece.experiments.spec import UNKNOWN, Settings, run_id

WRONG = [
    (dict(facts=4.5), "setting 'facts' is 4.5"),
    (dict(facts=0), "setting 'facts' is 0"),
    (dict(facts="3"), "setting 'facts' is '3'"),
    (dict(batch=-1), "setting 'batch' is -1"),
    (dict(batch=True), "setting 'batch' is True"),
    (dict(seed=2**70), "setting 'seed' is"),
    (dict(text_tokens=-1), "setting 'text_tokens' is -1"),
    (dict(text_facts=3), "setting 'text_facts' is 3; it needs the setting 'text_tokens'"),
    (dict(references="x.json"), "'references' is 'x.json'; it needs the setting 'text_tokens'"),
    (dict(sha256="0" * 64), "setting 'sha256' .* it needs the setting 'data'"),
    (dict(skip_bad=True), "setting 'skip_bad' is True; it needs the setting 'data'"),
    (dict(dataset="qaedit"), "setting 'data' is None; .* 'qaedit'"),
    (dict(dataset="qaedit", data="world"), "setting 'data' is 'world'; .* 'qaedit'"),
    (dict(skip_bad=True, data="world"), "setting 'data' is 'world'; .* are for files"),
    (dict(known=True), "setting 'known' is True; it needs the setting 'data'"),
    (dict(known=True, dataset="zsre", data="world"), "setting 'known' is True; records of zsre"),
    (dict(method="x"), "setting 'method' is 'x'; known: ece-as"),
    (dict(dataset="wiki"), "setting 'dataset' is 'wiki'; known: counterfact"),
    (dict(dtype="int8"), "setting 'dtype' is 'int8'"),
    (dict(stats_tokens=0), "setting 'stats_tokens' is 0"),
    (dict(points=(3,), batch=2), "setting 'points' is 3; 3 does not end a batch of 2"),
    (dict(points=(400,)), "setting 'points' is 400; 400 does not end"),
    (dict(adaptive=2, method="ft-l"), "setting 'adaptive' is 2; ft-l has no layers to choose"),
    (dict(config={"p": 1.5}), "setting 'p' is 1.5"),
    (dict(config={"null": 0.1}), "'null' is no setting"),
    (dict(config={"keep": 2.0}, method="rect"), "setting 'keep' is 2.0"),
    (dict(config={"lam": 3.0}, method="ft-l"), "'lam' is no setting of method ft-l"),
    (dict(frobnicate=1), "'frobnicate'"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_what_no_run_can_use_is_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Settings(**wrong)


@pytest.mark.parametrize("method", [*STRATEGIES, *BASELINES])
def test_every_method_has_an_identity_that_says_all_of_it(method):
    settings = Settings(method=method)
    found = settings.identity("f")
    assert found["config"].keys() == vars(settings.configure()).keys()
    names = vars(settings.strategy()).keys() if settings.edits else set()
    assert found["strategy"].keys() == names - {"prompts"}  # off, and no run stored before had it
    if "prompts" in names:
        kept = Settings(method=method, config={"prompts": 0.5}).identity("f")["strategy"]
        assert kept == {**found["strategy"], "prompts": 0.5}
    assert (found["stats_tokens"] is None) == (method in BASELINES)
    assert found["sources"] == {"model": "f", "data": None, "references": None, "stats_text": None}


def test_the_identity_is_that_of_the_settings_not_of_how_they_were_given(tmp_path):
    plain = Settings(method="ece-rs")
    id_of = lambda settings: run_id(settings.identity("f"))  # noqa: E731
    for same in (
        dict(config={"p": 0.99, "history": True}),  # what the preset has anyway
        dict(model="some/where/atlas-gpt2"),
        dict(compat=True),  # has no effect on CounterFact
        dict(device="cpu"),
    ):
        assert id_of(replace(plain, **same)) == id_of(plain), same
    others = [
        dict(config={"p": 0.9}), dict(config={"history": False}), dict(seed=1), dict(facts=199),
        dict(method="ece-as"), dict(stats_tokens=7), dict(dtype="float16"), dict(batch=20),
        dict(points=(25,)), dict(text_tokens=5), dict(adaptive=2), dict(dataset="zsre"),
    ]  # fmt: skip
    assert len({id_of(replace(plain, **other)) for other in others} | {id_of(plain)}) == 13
    assert run_id(plain.identity("g")) != id_of(plain)


def test_files_count_by_their_content(tmp_path):
    one, two = tmp_path / "a.json", tmp_path / "b.json"
    one.write_text("[1]")
    two.write_text("[1]")
    first, second = (Settings(data=str(path)).identity() for path in (one, two))
    assert first == second and len(first["sources"]["data"]) == 64
    two.write_text("[2]")
    assert Settings(data=str(two)).identity() != first
    assert Settings(data=str(tmp_path / "none")).identity()["sources"]["data"] == UNKNOWN


def test_a_folder_of_tasks_is_a_source_that_may_be_elsewhere(tmp_path):
    """Else no result of such a run would be found on a machine without the folder."""
    asks = {"also": ("abilities",), "stats_text": "python-docs"}
    absent = Settings(tasks=str(tmp_path / "none"), **asks).identity()
    (tmp_path / "rte.json").write_text("[]")
    here = Settings(tasks=str(tmp_path), **asks).identity()
    assert absent["sources"]["tasks"] == UNKNOWN and len(here["sources"]["tasks"]) == 64
    assert {**here, "sources": 0} == {**absent, "sources": 0}
    (tmp_path / "rte.json").write_text("[1]")
    assert Settings(tasks=str(tmp_path), **asks).identity() != here
    assert Settings(tasks="hub", **asks).identity()["tasks"] == "hub"
    assert "tasks" not in Settings(**asks).identity()["sources"]


def test_facts_of_the_world_count_by_their_records(monkeypatch):
    plain, found = Settings(), Settings(data="world").identity()
    assert found["sources"]["data"] == digest(world.records())
    assert {**found, "sources": 0} == {**plain.identity(), "sources": 0}, "nothing else differs"
    monkeypatch.setattr(world, "MOST", 20)  # as if a package held other facts
    assert Settings(data="world").identity() != found
    assert Settings(data="world").name != plain.name, "both may stand in one grid"


def test_known_is_part_of_the_identity(tmp_path):
    plain = Settings(data=str(tmp_path / "none"))
    only = replace(plain, known=True)
    assert plain.identity()["known"] is False and only.name != plain.name
    assert only.identity() == plain.identity() | {"known": True}


def test_the_text_that_comes_with_python_counts_by_its_content(monkeypatch):
    settings = Settings(stats_text="python-docs")
    found = settings.identity()["sources"]["stats_text"]
    assert found == digest(list(python_docs()))
    monkeypatch.setitem(topics, "assert", "Another release has other words.")
    assert settings.identity()["sources"]["stats_text"] != found


def test_layers_found_on_the_run_are_no_part_of_the_identity():
    found = [Settings(adaptive=2, config=c).identity() for c in ({}, {"layers": (0, 1)})]
    assert found[0] == found[1] and found[0]["config"]["layers"] is None
    assert found[0] != Settings(adaptive=1).identity()


def test_the_name_says_what_differs_from_the_preset():
    settings = Settings("hub/gpt2-xl", "memit", config={"layers": (4, 5), "lam": 2.0}, seed=3)
    assert settings.name == "gpt2-xl_memit_counterfact_200x25_lam-2.0_layers-4,5_s3"
    assert Settings(adaptive=2).name == "atlas-gpt2_ece-rs_counterfact_200x25_adaptive-2_s0"


def test_a_model_that_cannot_be_read_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wanted = "model 'gpt-17' has no preset, and its configuration cannot be read"
    with pytest.raises(ModelError, match=wanted):
        Settings(model="gpt-17")
