"""The package's errors and its check of settings.

An error is one sentence that names the input, the reason and the remedy. All are raised before any
weight changes, or after every changed weight was put back; of a sequence, the batches before stay.
"""

from functools import wraps

import torch
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor, nn


class EditError(ValueError):
    """The root of the package's errors."""


class ConfigError(EditError):
    """A setting has a wrong type, or is out of its range."""


class ModelError(EditError):
    """A model lacks something the method needs, or is not the one meant."""


class DataError(EditError):
    """A record, a file or a request for facts cannot be used."""


class FactError(EditError):
    """A fact cannot be edited as it stands."""

    def __init__(self, fact: int, field: str, reason: str, remedy: str, place: int | None = None):
        """Name the fact by its id and its place in the list, and the field that is at fault."""
        where = f"fact {fact}, " if fact >= 0 else ""
        where += f"facts[{place}], " if place is not None else ""
        super().__init__(f"{where}field '{field}': {reason}; {remedy}")
        self.fact, self.field, self.reason, self.remedy = fact, field, reason, remedy


class StatsError(EditError):
    """Second moments belong to another model, or a file of them is damaged."""


class SolveError(EditError):
    """A linear system has no usable solution."""


class StateError(EditError):
    """An edit state does not fit the model, the facts, or its own checksum."""


def checked(cls: type) -> type:
    """Make `cls` a frozen dataclass that checks types and ranges, or raises `ConfigError`."""
    strict = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, validate_default=True)
    made = dataclass(frozen=True, config=strict)(cls)
    build, names = made.__init__, list(made.__dataclass_fields__)

    @wraps(build)
    def __init__(self, *values, **named):
        try:
            build(self, *values, **named)
        except ValidationError as error:
            first = error.errors()[0]
            cause, name = first.get("ctx", {}).get("error"), (*first["loc"], "?")[0]
            if isinstance(cause, EditError):  # raised by the class's own __post_init__
                raise cause from None
            name = names[name] if isinstance(name, int) and name < len(names) else name
            reason = first["msg"].replace("Input should", "it should")
            unknown = f"it is no setting; known: {', '.join(names)}"
            reason = reason.replace("Unexpected keyword argument", unknown)
            reason = {"too_short": "give at least one"}.get(first["type"], reason)
            if first["type"] == "missing":
                raise ConfigError(f"setting '{name}' is missing; give it") from None
            raise ConfigError(f"setting '{name}' is {shown(first['input'])}; {reason}") from None

    made.__init__ = __init__
    return made


def shown(value) -> str:
    """Write a value as the command line does: tuples as 4,5,6."""
    return ",".join(map(str, value)) or "empty" if isinstance(value, tuple) else repr(value)


def check_type(name: str, value, kind: type) -> None:
    """Raise `ConfigError` for a value of another type."""
    if not isinstance(value, kind):
        raise ConfigError(f"'{name}' is {value!r:.60}; give an object of ece's {kind.__name__}")


def check_engine(engine) -> None:
    """Raise `ConfigError` for what cannot find values."""
    if not (hasattr(engine, "prepare") and hasattr(engine, "reader")):
        raise ConfigError(f"'engine' is {engine!r:.60}; give ece.engine or ece.objective")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise `StateError` naming a tensor that is not finite."""
    if not torch.isfinite(tensor).all():
        raise StateError(f"{name} are not finite; check the model's weights and the config")


def check_mode(model: nn.Module) -> None:
    """Raise `ModelError` for a model in training mode."""
    if model.training:
        raise ModelError("the model is in training mode, so its dropout makes every value random; "
                         "call model.eval()")  # fmt: skip
