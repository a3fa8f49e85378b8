"""The numbers of every method on every model known: `methods.toml`, and one file per model.

A preset is a file of numbers and nothing else; a new model needs none (`ece.Config` takes all
settings by hand).
"""

import tomllib
from dataclasses import fields, replace
from importlib.resources import files

from ece.baselines import BASELINES, STRATEGIES
from ece.config import Config
from ece.errors import ConfigError
from ece.strategy import Strategy

METHODS = (*STRATEGIES, *BASELINES)
"""Names of all methods, those of the editor first."""


def models() -> list[str]:
    """List the models that have a preset."""
    names = (path.name for path in files(__name__).iterdir() if path.name.endswith(".toml"))
    return sorted(name.removesuffix(".toml") for name in names if name != "methods.toml")


def configure(model_name: str, method: str, **overrides) -> Config:
    """Make the settings of `method` on a model; keyword `overrides` win.

    A hub name counts by its last part ("EleutherAI/gpt-j-6b" is "gpt-j-6b").
    Raises `ConfigError` with the known names when one is unknown.
    """
    _known("method", method, STRATEGIES)
    found = {**_model(model_name)["config"], **_methods(method), **_own(model_name, method)}
    strange = sorted(set(overrides) - _names(Config))
    if strange:
        known = ", ".join(sorted(_names(Config)))
        raise ConfigError(f"'{strange[0]}' is no setting of the editor; known: {known}")
    chosen = {**found, **overrides}
    return Config(**{name: value for name, value in chosen.items() if name in _names(Config)})


def strategy(model_name: str, method: str, **overrides) -> Strategy:
    """Make the strategy of `method`, with its numbers on a model; `overrides` win."""
    _known("method", method, STRATEGIES)
    default = STRATEGIES[method]
    own = {n: v for n, v in _own(model_name, method).items() if n in _names(default)}
    strange = sorted(set(overrides) - _names(default))
    if strange:
        known = ", ".join(sorted(_names(default)))
        raise ConfigError(f"'{strange[0]}' is no setting of method {method}; known: {known}")
    return replace(default, **{**own, **overrides})


def numbers(model_name: str, method: str, **overrides):
    """Make the settings of fine-tuning, MEND or SERAC on a model; `overrides` win."""
    _known("method", method, BASELINES)
    return BASELINES[method].configure(method, **{**_own(model_name, method), **overrides})


def _names(kind) -> set[str]:
    return {field.name for field in fields(kind)}


def _known(what: str, name: str, table) -> None:
    if name not in table:
        raise ConfigError(f"unknown {what} '{name}'; known: {', '.join(table)}")


def _methods(method: str) -> dict:
    return _read("methods").get(method, {})


def _own(model_name: str, method: str) -> dict:
    return _model(model_name).get("methods", {}).get(method, {})


def _model(model_name: str) -> dict:
    name = model_name.rstrip("/").split("/")[-1].lower()
    _known("model", name, models())
    return _read(name)


def _read(name: str) -> dict:
    """Read one preset file, lists as tuples and the text "none" as None."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return tuple(value) if isinstance(value, list) else None if value == "none" else value

    return plain(tomllib.loads((files(__name__) / f"{name}.toml").read_text(encoding="utf-8")))
