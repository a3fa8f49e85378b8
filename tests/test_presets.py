"""The numbers of every method on every model: complete, valid, and those that were published."""

import json
import tomllib
from dataclasses import fields, is_dataclass
from importlib.resources import files

import pytest

from conftest import build
from ece import presets
from ece.baselines import BASELINES, STRATEGIES
from ece.baselines.alphaedit import AlphaEdit
from ece.baselines.ece_plus import EcePlus
from ece.baselines.memit import Memit
from ece.baselines.prune import Prune
from ece.baselines.rect import Rect
from ece.config import Config
from ece.errors import ConfigError, ModelError
from ece.strategy import Strategy

MODELS = presets.models()


def names(kind) -> set[str]:
    return {field.name for field in fields(kind)}


def read(name: str) -> dict:
    return tomllib.loads((files("ece.presets") / f"{name}.toml").read_text(encoding="utf-8"))


def test_the_known_models_have_presets():
    assert MODELS == [
        "atlas-gpt2",
        "atlas-gptj",
        "atlas-llama",
        "gpt-j-6b",
        "gpt2-xl",
        "llama-3-8b",
        "smollm2-135m",
    ]
    assert presets.METHODS == (*STRATEGIES, *BASELINES) and len(set(presets.METHODS)) == 18


@pytest.mark.parametrize("method", STRATEGIES)
@pytest.mark.parametrize("model", MODELS)
def test_every_method_of_the_editor_can_be_configured(model, method):
    config, strategy = presets.configure(model, method), presets.strategy(model, method)
    strategy.check(config)
    assert type(strategy) is type(STRATEGIES[method])
    own = read(model).get("methods", {}).get(method, {})
    wanted = {**read(model)["config"], **read("methods").get(method, {}), **own}
    for name, value in wanted.items():
        value = tuple(value) if isinstance(value, list) else None if value == "none" else value
        holders = [part for part in (config, strategy) if name in names(part)]
        assert holders and all(getattr(part, name) == value for part in holders), name


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("model", MODELS)
def test_every_other_method_has_its_numbers(model, method):
    numbers = presets.numbers(model, method)
    assert is_dataclass(numbers) and type(numbers) is BASELINES[method].numbers
    for name, value in read(model).get("methods", {}).get(method, {}).items():
        assert getattr(numbers, name) == (tuple(value) if isinstance(value, list) else value)


def test_no_number_in_a_file_goes_unused():
    """A misspelt name would be passed over in silence."""
    for method, found in read("methods").items():
        assert set(found) <= names(Config), method
    for model in MODELS:
        file = read(model)
        assert set(file) <= {"also", "config", "methods"} and set(file["config"]) <= names(
            Config
        ), model
        for method, found in file.get("methods", {}).items():
            known = STRATEGIES.get(method) or BASELINES[method].numbers
            mine = names(known) | (names(Config) if method in STRATEGIES else set())
            assert set(found) <= mine, (model, method)


PUBLISHED = {
    ("gpt2-xl", "memit"): dict(layers=(13, 14, 15, 16, 17), lr=0.5, lam=20000.0, clamp=0.75,
                               steps=20, kl_factor=0.0625, weight_decay=0.5, clusters=None,
                               scorer="all", p=1.0, stop=0.05),
    ("gpt-j-6b", "memit"): dict(layers=(3, 4, 5, 6, 7, 8), lr=0.5, lam=15000.0, clamp=0.75,
                                steps=25, clusters=None),
    ("llama-3-8b", "memit"): dict(layers=(4, 5, 6, 7, 8), lr=0.1, lam=15000.0, clamp=0.75,
                                  steps=25),
    ("gpt2-xl", "rome"): dict(layers=(17,), lr=0.5, clamp=4.0, steps=20),
    ("gpt-j-6b", "rome"): dict(layers=(5,), lr=0.5, clamp=4.0, steps=20),
    ("llama-3-8b", "rome"): dict(layers=(5,), lr=0.5, clamp=4.0, steps=25),
    ("gpt2-xl", "ece-rs"): dict(scorer="residual", p=0.8, clusters=10, shared="anchor", steps=20,
                                own_steps=4),
    ("gpt-j-6b", "ece-as"): dict(scorer="activation", p=0.8, clusters=10, steps=25, own_steps=5),
    ("llama-3-8b", "ece-wi"): dict(scorer="weight", p=0.8, clusters=10, steps=25, own_steps=5),
}  # fmt: skip


@pytest.mark.parametrize("model, method", PUBLISHED)
def test_numbers_of_the_large_models_are_the_published_ones(model, method):
    config = presets.configure(model, method)
    for name, value in PUBLISHED[model, method].items():
        assert getattr(config, name) == value, name


def test_what_makes_a_rival_is_in_its_strategy():
    for model in MODELS:
        assert presets.strategy(model, "memit") == Memit(history=False)
        assert presets.strategy(model, "memit-history") == Memit(history=True)
        assert presets.strategy(model, "ece-rs") == Strategy()
        searched = dict(names=0.0, prompts=0.3) if model == "smollm2-135m" else {}
        assert presets.strategy(model, "ece-plus") == EcePlus(**searched)
    assert presets.strategy("atlas-gptj", "alphaedit") == AlphaEdit(null=0.3)
    assert presets.strategy("gpt2-xl", "alphaedit") == AlphaEdit(null=0.02)
    assert presets.strategy("atlas-llama", "rect") == Rect(keep=0.8)
    assert presets.strategy("atlas-gptj", "prune") == Prune(base=1.001)


def test_overrides_win_and_hub_names_count_by_their_last_part():
    assert presets.configure("EleutherAI/gpt-j-6b", "memit", lam=7.0).lam == 7.0
    assert presets.configure("models/GPT2-XL/", "rome").layers == (17,)
    assert presets.configure("gpt-j-6b", "memit", clusters=4).clusters == 4
    assert presets.strategy("atlas-gpt2", "alphaedit", null=0.7).null == 0.7
    assert presets.strategy("atlas-gpt2", "ece-rs", values_from="current").values_from == "current"
    assert presets.numbers("atlas-gpt2", "ft-l", lr=0.5).lr == 0.5


def test_steps_alone_are_enough_where_there_is_no_second_phase():
    """`--method rome --steps 3` was refused for the preset's `own_steps`, which ROME has not."""
    assert presets.configure("atlas-gpt2", "rome", steps=3).own_steps == 3
    with pytest.raises(ConfigError, match="'own_steps' is 5"):
        presets.configure("atlas-gpt2", "ece-rs", steps=3)


@pytest.mark.parametrize("wrong", [{"n_layer": "x"}, {"text_config": 3}, {"n_layer": None}])
def test_a_configuration_that_makes_no_model_is_named(wrong, tmp_path):
    text = json.dumps({"model_type": "gpt2", **wrong})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="its configuration cannot be read"):
        presets.configure(str(tmp_path), "memit")


def test_unknown_names_list_the_known_ones():
    for call in (presets.configure, presets.strategy, presets.numbers):
        with pytest.raises(ModelError, match="'gpt-9' has no preset, and its configuration cannot"):
            call("gpt-9", "ft-l" if call is presets.numbers else "memit")
    with pytest.raises(ConfigError, match="unknown method 'emit'; known: .*memit-history"):
        presets.configure("gpt2-xl", "emit")
    with pytest.raises(ConfigError, match="unknown method 'memit'; known: ft-l"):
        presets.numbers("gpt2-xl", "memit")
    with pytest.raises(ConfigError, match="'lambd' is no setting of the editor; known: .*lam"):
        presets.configure("gpt2-xl", "memit", lambd=3)
    with pytest.raises(ConfigError, match="'null' is no setting of the editor"):
        presets.configure("gpt2-xl", "alphaedit", null=0.1)
    with pytest.raises(ConfigError, match="'lam' is no setting of method memit; known: history"):
        presets.strategy("gpt2-xl", "memit", lam=3.0)
    with pytest.raises(ConfigError, match="'null' is no setting of method ft-l"):
        presets.numbers("gpt2-xl", "ft-l", null=3.0)


@pytest.mark.parametrize("name, value", [("lr", 1e30), ("clusters", 2.5), ("seed", 2**70)])
def test_overrides_are_checked_like_any_setting(name, value):
    with pytest.raises(ConfigError, match=f"'{name}'"):
        presets.configure("gpt2-xl", "memit", **{name: value})


def test_a_file_is_read_anew_each_time():
    """Nobody's changes reach anybody else's numbers."""
    assert presets.configure("gpt2-xl", "memit") == presets.configure("gpt2-xl", "memit")
    assert presets.configure("gpt2-xl", "memit") is not presets.configure("gpt2-xl", "memit")


@pytest.mark.parametrize("name", ["../config", "methods", "", "."])
def test_only_models_are_models(name):
    with pytest.raises(ModelError, match="has no preset, and its configuration cannot be read"):
        presets.configure(name, "memit")


def test_a_model_without_a_preset_is_configured_by_its_depth(tmp_path):
    """Chapter 23 says that only the name changes; a folder once was an unknown model."""
    path = tmp_path / "mine"
    build("llama").save_pretrained(path)
    depth = build("llama").config.num_hidden_layers
    found = presets.configure(str(path), "ece-rs", batch=7)
    assert found == presets.configure("any", "ece-rs", depth, 7) and found.lam == 140
    assert presets.strategy(str(path), "memit-history") == presets.strategy(
        "gpt2-xl", "memit-history"
    )


def test_a_preset_is_found_by_each_of_a_models_names():
    for name in ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"):
        assert presets.configure(name, "ece-rs") == presets.configure("llama-3-8b", "ece-rs")
    assert presets.preset_of("HuggingFaceTB/SmolLM2-135M-Instruct") == "smollm2-135m"
    assert presets.preset_of("my/atlas-gpt3") is None


def test_a_preset_file_is_named_by_its_path(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("[config]\nlayers = [1, 2]\nlam = 7.0\n[methods]\nmemit = { lam = 8.0 }\n")
    assert presets.configure(str(path), "ece-rs").lam == 7.0
    assert presets.configure(str(path), "memit").lam == 8.0
    for text in (None, "layers = [1"):
        path.write_text(text) if text else path.unlink()
        with pytest.raises(ConfigError, match=r"own\.toml cannot be read as a preset"):
            presets.configure(str(path), "memit")


@pytest.mark.parametrize("depth", [2, 3, 6, 12, 24, 30, 80])
def test_a_model_of_any_depth_has_settings_for_every_method(depth):
    for method in STRATEGIES:
        config = presets.configure("a/new-model", method, depth=depth, batch=10)
        assert 0 <= config.layers[0] and config.layers[-1] <= depth - 2
        presets.strategy("a/new-model", method, depth=depth).check(config)
        assert method == "alphaedit" or config.lam == 200.0
    for method in BASELINES:
        assert is_dataclass(presets.numbers("a/new-model", method, depth=depth))
    assert presets.configure("gpt2-xl", "memit", depth=depth) == presets.configure(
        "gpt2-xl", "memit"
    )


def test_llama_3_s_depth_gives_its_layers_and_one_block_gives_none():
    assert presets.suggest(32)["layers"] == (4, 5, 6, 7, 8)
    with pytest.raises(ConfigError, match="needs a block above"):
        presets.suggest(1)


@pytest.mark.parametrize(
    "text, named",
    [
        ("[config]\nlayers = [1]\nlam = 1.0\nclampp = 3", "clampp"),
        ("[config]\nlayers = [1]\nlam = 1.0\n[methods.memitt]\nlam = 2.0", "memitt"),
        ("[config]\nlayers = [1]\nlam = 1.0\n[method.memit]\nlam = 2.0", "'method'"),
        ("[config]\nlayers = [1]\nlam = 1.0\n[methods.serac]\nlam = 2.0", "'lam'"),
        ("[methods.memit]\nlam = 2.0", "no table [config]"),
        ("[config]\nlayers = ['a']\nlam = 1.0", "own.toml, [config]: setting 'layers'"),
        (f"a = {'[' * 5000}", "own.toml cannot be read as a preset"),
    ],
)
def test_a_preset_file_is_read_whole_or_refused(text, named, tmp_path):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        presets.configure(str(tmp_path / "own.toml"), "memit")
    assert named in str(error.value)


def test_a_name_that_can_be_no_preset_file_is_refused():
    with pytest.raises(ConfigError, match="ends in .toml"):
        presets.check("memit")
