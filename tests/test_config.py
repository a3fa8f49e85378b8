"""The configuration refuses what makes no sense, and says which field."""

import ast
import inspect
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from ece.config import Config
from ece.errors import ConfigError, EditError

GOOD = dict(layers=(0, 1), lr=0.5, lam=10.0)
NAN, INF = float("nan"), float("inf")
BAD = [
    ("layers", (1, 0)),
    ("layers", ()),
    ("layers", (0, 0)),
    ("layers", (-1, 0)),
    ("layers", (True,)),
    ("layers", (0.0, 1.0)),
    ("layers", [0, 1]),
    ("layers", 1),
    ("layers", "01"),
    ("lr", 0.0),
    ("lr", 1e30),
    ("lr", NAN),
    ("lr", "0.5"),
    ("lr_unit", "norm"),
    ("passes", "float64"),
    ("lam", -1.0),
    ("lam", INF),
    ("lam", None),
    ("ridge", -1e-9),
    ("ridge", NAN),
    ("scorer", "magic"),
    ("scorer", None),
    ("p", 0.0),
    ("p", 1.1),
    ("clusters", 0),
    ("clusters", 2.5),
    ("clusters", True),
    ("shared", "none"),
    ("steps", 0),
    ("steps", 4),  # fewer than own_steps
    ("own_steps", 26),
    ("own_steps", 0),
    ("clamp", 0.0),
    ("weight_decay", -0.1),
    ("kl_factor", -1.0),
    ("kl_factor", INF),
    ("stop", NAN),
    ("stop", -1.0),
    ("contexts", -1),
    ("contexts", "5"),
    ("context_tokens", 0),
    ("seed", -1),
    ("seed", 2**70),
    ("seed", 0.0),
    ("max_tokens", 0),
    ("max_tokens", 2**40),
]


@pytest.mark.parametrize("field, value", BAD)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(field, value):
    named = "own_steps" if (field, value) == ("steps", 4) else field
    with pytest.raises(ConfigError, match=f"'{named}'"):
        Config(**{**GOOD, field: value})
    with pytest.raises(ConfigError, match=f"'{named}'"):
        replace(Config(**GOOD), **{field: value})


def test_every_field_was_tried():
    assert {field for field, _ in BAD} == {field.name for field in fields(Config)}
    assert len(fields(Config)) <= 20


def test_an_error_says_the_value_and_what_fits():
    with pytest.raises(ConfigError, match=r"'clusters' is 2\.5; .*integer"):
        Config(**GOOD, clusters=2.5)
    with pytest.raises(ConfigError, match=r"'p' is 1\.5; .*less than or equal to 1"):
        Config(**GOOD, p=1.5)


@pytest.mark.parametrize("gone", ["null", "history", "spread", "values_from", "undo", "keep"])
def test_what_belongs_to_a_rival_is_no_setting(gone):
    with pytest.raises(ConfigError, match=f"'{gone}'.*known: layers, lam"):
        Config(**GOOD, **{gone: 1})


def test_what_is_left_out_is_named():
    with pytest.raises(ConfigError, match="'lam'"):
        Config(layers=(0,), lr=0.1)
    with pytest.raises(EditError):
        Config()


def test_a_config_cannot_change_and_equals_its_twin():
    config = Config(**GOOD)
    assert config == Config(**GOOD) != Config(**{**GOOD, "lam": 11.0})
    assert hash(config) == hash(Config(**GOOD))
    with pytest.raises(FrozenInstanceError):
        config.lam = 3.0


def test_whole_numbers_will_do_for_reals():
    assert Config(layers=(0,), lr=1, lam=20).lam == 20.0


def test_every_field_has_a_docstring():
    body = ast.parse(inspect.getsource(Config)).body[0].body
    documented = {
        a.target.id
        for a, b in zip(body, body[1:], strict=False)
        if isinstance(a, ast.AnnAssign) and isinstance(b, ast.Expr)
    }
    assert documented == {field.name for field in fields(Config)}
