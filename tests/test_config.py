"""The configuration refuses what makes no sense, and says which field."""

from dataclasses import fields

import pytest

from ece.config import METHODS, OWN, PRESETS, Config, configure
from ece.errors import ConfigError

GOOD = dict(layers=(0, 1), lr=0.5, lam=10.0)
BAD = dict(
    layers=(1, 0),
    lr=0.0,
    lam=-1.0,
    scorer="magic",
    p=0.0,
    clusters=0,
    shared="none",
    steps=0,
    own_steps=26,
    clamp=0.0,
    weight_decay=-0.1,
    kl_factor=-1.0,
    keys="other",
    spread="wide",
    values_from="nowhere",
    contexts=-1,
    context_tokens=0,
    seed=-1,
    max_tokens=0,
)


@pytest.mark.parametrize("field", BAD)
def test_each_field_is_checked_by_name(field):
    Config(**GOOD)
    with pytest.raises(ConfigError, match=f"'{field}'"):
        Config(**{**GOOD, field: BAD[field]})


def test_every_combination_of_model_and_method_is_a_valid_config():
    for model in PRESETS:
        for method in METHODS:
            wanted = {**PRESETS[model], **OWN.get(method, {}).get(model, {})}
            assert configure(model, method).layers == wanted["layers"]


def test_overrides_win_and_hub_names_count_by_their_last_part():
    assert configure("EleutherAI/gpt-j-6b", "memit", lam=7.0).lam == 7.0
    assert configure("gpt-j-6b", "memit").clusters is None


def test_unknown_names_list_the_known_ones():
    for call in (("gpt-9", "memit"), ("gpt2-xl", "emit")):
        with pytest.raises(ConfigError, match="gpt2-xl|memit-history"):
            configure(*call)
    with pytest.raises(ConfigError, match="lam"):
        configure("gpt2-xl", "memit", lambd=3)


def test_every_field_has_a_docstring():
    import ast
    import inspect

    body = ast.parse(inspect.getsource(Config)).body[0].body
    documented = {
        a.target.id
        for a, b in zip(body, body[1:], strict=False)
        if isinstance(a, ast.AnnAssign) and isinstance(b, ast.Expr)
    }
    assert documented == {field.name for field in fields(Config)}
