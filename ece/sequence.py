"""Edit a sequence of batches, one after the other."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ece.checks import check_batch, validate
from ece.config import Config
from ece.covariance import Stats
from ece.descent import Values, renewed
from ece.editor import fast, find_values, write_batch
from ece.errors import ConfigError, FactError, StateError, check_engine, check_type
from ece.facts import Fact, names_of
from ece.report import Report
from ece.state import EditState, check_weights, learn_from, new_state
from ece.strategy import Strategy


def edit_sequence(
    model: nn.Module, tokenizer, facts: list[Fact], stats: Stats, config: Config, batch: int,
    strategy: Strategy | None = None, state: EditState | None = None,
    ahead: Callable | None = None, on_batch: Callable | None = None,
    progress: Callable | None = None, engine: Any = fast,
) -> tuple[EditState, list[Report]]:  # fmt: skip
    """Edit `facts` in batches of `batch`, in order (Eq 2, 17-18).

    Unless the strategy takes values from the "current" weights, all are found before the first
    edit; `ahead(batches, state)` may do it otherwise: it returns a state, and what gives a batch's
    values by its number. `state`: its batches are done, go on after them. After each batch
    `on_batch(state, report, batch_facts)` and `progress(stage, done, total)` are called ("values"
    or "edit"). Everything is checked before anything is found. What fails later, in a callback or
    by an interrupt, leaves the batches before it written: the error's `state` has them, for `undo`
    or to go on. Raises every error of `ece.errors`.
    """
    on_batch, progress = (call or (lambda *_: None) for call in (on_batch, progress))
    state = state or new_state(model, tokenizer, config, strategy)
    parts = _checked(model, tokenizer, facts, stats, config, batch, strategy, state, engine)
    reports, values_of = [], None
    if state.strategy.values_from != "current":
        find = ahead or partial(_found_ahead, model, tokenizer, config, progress, engine)
        state, values_of = find(parts, state)
    seen = {fact.subject for part in parts[: state.done] for fact in part}
    try:
        for number, part in list(enumerate(parts))[state.done :]:
            values = None if values_of is None else values_of(number)
            if state.strategy.values_from == "again":
                values = _again(model, tokenizer, part, seen, values, state, config, engine)
            check_weights(model, state)  # a callback may have changed them
            more = (stats, state, config, values, engine)
            state, report = write_batch(model, tokenizer, part, *more)
            seen |= {fact.subject for fact in part}
            reports.append(report)
            on_batch(state, report, part)
            progress("edit", number + 1, len(parts))
    except BaseException as error:
        error.state = state  # type: ignore[attr-defined]
        raise
    return state, reports


def _checked(
    model, tokenizer, facts, stats, config, batch, strategy, state: EditState, engine
) -> list[list[Fact]]:
    """Check everything before the first edit; returns all batches, those done first."""
    check_type("state", state, EditState)
    check_engine(engine)
    if strategy is not None and strategy != state.strategy:
        raise StateError(f"the state is edited by {state.strategy}, not by {strategy}; go on with "
                         "the same strategy")  # fmt: skip
    parts = split(facts, state.strategy.batch or batch)
    names = [names_of(part) for part in parts[: state.done]]
    held = [batch.facts for batch in state.batches]
    if state.done > len(parts) or names[len(names) - len(held) :] != held:
        raise StateError(f"the state has done {state.done} batches, and these facts do not begin "
                         "with them; give all facts of its sequence, in their order")  # fmt: skip
    for part in parts[state.done : state.done + 1]:
        check_batch(model, tokenizer, part, stats, state, config)
    for part in parts[state.done + 1 :]:
        validate(part, tokenizer, model, state.contexts)
    return parts


def _found_ahead(
    model, tokenizer, config, progress, engine, parts, state
) -> tuple[EditState, Callable[[int], Values]]:
    """Find the values of all batches from the unedited weights."""
    if state.done:
        raise StateError("a sequence that goes on needs the values found before its first edit; "
                         "give them by 'ahead', or write more facts by edit_batch")  # fmt: skip
    found = {}
    for number, part in enumerate(parts):
        found[number] = find_values(model, tokenizer, part, state, config, engine)
        state = learn_from(state, found[number])
        progress("values", number + 1, len(parts))
    return state, found.pop


def split(facts: list[Fact], batch: int) -> list[list[Fact]]:
    """Cut facts into batches."""
    if not isinstance(facts, list):
        raise FactError(-1, "facts", f"{type(facts).__name__} given", "give a list of ece.Fact")
    if not facts:
        raise FactError(-1, "facts", "the list is empty", "give at least one fact")
    if type(batch) is not int or batch < 1:
        raise ConfigError(f"'batch' is {batch!r}; it should be a whole number of facts >= 1")
    return [facts[i : i + batch] for i in range(0, len(facts), batch)]


def _again(model, tokenizer, part, seen: set[str], values, state, config, engine) -> Values:
    """Take values from the present weights for subjects that were edited before.

    There a value from the original weights is a state without the earlier edit, and writing it
    would take that edit back.
    """
    at = [i for i, fact in enumerate(part) if fact.subject in seen]
    if not at:
        return values
    some = [part[i] for i in at]
    return renewed(values, at, find_values(model, tokenizer, some, state, config, engine))
