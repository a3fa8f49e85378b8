"""What can go wrong, said so that a reader can mend it.

Every error of the package is an `EditError`: one sentence naming the input, the reason
and the mend. All of them are raised before any weight changes, or after every changed
weight was put back.
"""


class EditError(ValueError):
    """Root of the package's errors."""


class ConfigError(EditError):
    """A number or a name of the configuration is out of its range."""


class ModelError(EditError):
    """A model lacks something the method needs, or is not the one meant."""


class DataError(EditError):
    """A record, a file or a request for facts that cannot be used."""


class FactError(EditError):
    """A fact cannot be edited as it stands."""

    def __init__(self, fact: int, field: str, reason: str, mend: str):
        """`fact` is the fact's id, `field` the name of the offending field."""
        super().__init__(f"fact {fact}, field '{field}': {reason}; {mend}")
        self.fact, self.field, self.reason, self.mend = fact, field, reason, mend


class StatsError(EditError):
    """Second moments that do not belong to this model, or a damaged file of them."""


class SolveError(EditError):
    """A linear system without a usable solution."""


class StateError(EditError):
    """An edit state that does not fit the model, the facts, or its own checksum."""
