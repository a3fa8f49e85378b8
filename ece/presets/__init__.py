"""The numbers of every method on every model known: `methods.toml`, and one file per model.

A preset is a file of numbers, and of more names that the model goes by (`also`). A model without
one gets what `suggest` says for its depth.
"""

import tomllib
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path

from ece.baselines import BASELINES, STRATEGIES
from ece.config import Config
from ece.errors import ConfigError
from ece.loading import configuration
from ece.strategy import Strategy

METHODS = (*STRATEGIES, *BASELINES)
"""Names of all methods, those of the editor first."""


def models() -> list[str]:
    """List the models that have a preset."""
    names = (path.name for path in files(__name__).iterdir() if path.name.endswith(".toml"))
    return sorted(name.removesuffix(".toml") for name in names if name != "methods.toml")


def suggest(depth: int, batch: int = 100) -> dict:
    r"""Suggest settings for a model of `depth` blocks, from which to search on.

    Layers lie at an eighth to a quarter of the depth, as Llama-3's in the paper's appendix C;
    $\lambda$ is 20 times the batch; what else `Config` has fits any model as it is.
    """
    last = min(max(1, round(depth / 4)), depth - 2)
    if last < 0:
        raise ConfigError(f"the model has {depth} blocks; a value needs a block above it")
    return {"layers": tuple(range(min(depth // 8, last), last + 1)), "lam": 20.0 * batch}


def configure(
    model_name: str, method: str, depth: int | None = None, batch: int = 100, **overrides
) -> Config:
    """Make the settings of `method` on a model; keyword `overrides` win.

    model_name: as for `ece.load`, or the path of a preset file; a preset is found by the last part
    ("EleutherAI/gpt-j-6b" is "gpt-j-6b"). Without one the settings are those that `suggest` gives
    for `depth` (by default read from the model's configuration) and `batch`. Raises `ConfigError`,
    or `ModelError` for a model without a preset that cannot be had.
    """
    _known("method", method, STRATEGIES)
    model = _model(model_name, depth, batch)
    plain = {**model["config"], **makes(method), **_own(model, method)}
    strange = sorted(set(overrides) - _names(Config))
    if strange:
        known = ", ".join(sorted(_names(Config)))
        raise ConfigError(f"'{strange[0]}' is no setting of the editor; known: {known}")
    chosen = {**plain, **overrides}
    if chosen.get("clusters", Config.clusters) is None and "own_steps" not in overrides:
        own, most = (chosen.get(name, getattr(Config, name)) for name in ("own_steps", "steps"))
        chosen["own_steps"] = min(own, most)  # there is no phase 1 that it would be left by
    return Config(**{name: value for name, value in chosen.items() if name in _names(Config)})


def strategy(model_name: str, method: str, depth: int | None = None, **overrides) -> Strategy:
    """Make the strategy of `method`, with its numbers on a model; `overrides` win."""
    _known("method", method, STRATEGIES)
    default, model = STRATEGIES[method], _model(model_name, depth)
    own = {n: v for n, v in _own(model, method).items() if n in _names(default)}
    strange = sorted(set(overrides) - _names(default))
    if strange:
        known = ", ".join(sorted(_names(default)))
        raise ConfigError(f"'{strange[0]}' is no setting of method {method}; known: {known}")
    return replace(default, **{**own, **overrides})


def numbers(model_name: str, method: str, depth: int | None = None, **overrides):
    """Make the settings of fine-tuning, MEND or SERAC on a model; `overrides` win."""
    _known("method", method, BASELINES)
    model = _model(model_name, depth)
    return BASELINES[method].configure(method, **{**_own(model, method), **overrides})


def _names(kind) -> set[str]:
    return {field.name for field in fields(kind)}


def _known(what: str, name: str, table) -> None:
    if name not in table:
        raise ConfigError(f"unknown {what} '{name}'; known: {', '.join(table)}")


def makes(method: str) -> dict:
    """List the numbers that make a method of the editor what it is, on any model."""
    return _read("methods").get(method, {})


def _own(model: dict, method: str) -> dict:
    return model.get("methods", {}).get(method, {})


def preset_of(model_name: str) -> str | None:
    """Find a model's preset: its name, or the path that was given; None where there is none."""
    short = str(model_name).rstrip("/").split("/")[-1].lower()
    if short.endswith(".toml"):
        return str(model_name)
    named = short in (every := models())
    return short if named else next((n for n in every if short in _read(n).get("also", ())), None)


def check(path: str) -> None:
    """Raise `ConfigError` unless `path` can be a preset file."""
    if not path.endswith(".toml"):
        raise ConfigError(f"setting 'preset' is {path!r}; name a file that ends in .toml, as "
                          "`ece tune` writes it")  # fmt: skip


def _model(model_name: str, depth: int | None, batch: int = 100) -> dict:
    """Read the preset of a model, or make one by `suggest`."""
    if name := preset_of(model_name):
        return _checked(Path(name)) if name.endswith(".toml") else _read(name)
    depth = depth or configuration(str(model_name)).get_text_config().num_hidden_layers
    config = suggest(depth, batch)
    last = {"layers": config["layers"][-1:]}
    return {"config": config, "methods": dict.fromkeys(("rome", "ft-l", "ft-w", "ft-m"), last)}


def _checked(path: Path) -> dict:
    """Read a preset file of somebody's own, and refuse what nobody would read in it."""
    found, both = _parsed(path), ("config", "methods")
    methods = found.get("methods", {})
    inner = methods.values() if isinstance(methods, dict) else ()
    if not all(isinstance(part, dict) for part in (found.get("config", {}), methods, *inner)):
        raise ConfigError(f"{path}: 'config', 'methods' and each method are tables; write [config] "
                          "and [methods.NAME]")  # fmt: skip
    tables = [("the file", found, both), ("[config]", found.get("config", {}), _names(Config)),
              ("[methods]", methods, METHODS)]  # fmt: skip
    for method in set(methods) & set(METHODS):
        kind = BASELINES[method].numbers if method in BASELINES else STRATEGIES[method]
        known = _names(kind) | (_names(Config) if method in STRATEGIES else set())
        tables.append((f"method {method}", methods[method], known))
    for where, table, known in tables:
        if strange := sorted(set(table) - set(known)):
            raise ConfigError(f"{path}, {where}: '{strange[0]}' is not known; known: "
                              f"{', '.join(sorted(known))}")  # fmt: skip
    if "config" not in found:
        raise ConfigError(f"{path} has no table [config]; add one with layers and lam")
    try:
        Config(**found["config"])
    except ConfigError as error:
        raise ConfigError(f"{path}, [config]: {error}") from error
    return found


def _read(name: str) -> dict:
    return _parsed(files(__name__) / f"{name}.toml")


def _parsed(path) -> dict:
    """Read one preset file, lists as tuples and the text "none" as None."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return tuple(value) if isinstance(value, list) else None if value == "none" else value

    try:
        found = plain(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as a preset ({error}); name a file that "
                          "`ece tune` wrote") from error  # fmt: skip
    return found
