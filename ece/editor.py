"""Edit one batch, or a sequence of them. Single editing is a batch of one."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ece import engine as fast
from ece.config import Config
from ece.covariance import Stats, check_stats
from ece.descent import Values, renewed, two_step
from ece.errors import StateError, check_finite
from ece.facts import Fact, encode, validate
from ece.model import fingerprint, sites
from ece.objective import mix
from ece.report import Report, value_part
from ece.solver import Knowledge, Update
from ece.state import (
    PROBE,
    Batch,
    EditState,
    check_setting,
    check_weights,
    new_state,
    pushed,
    restore,
)
from ece.strategy import Strategy


def compute_values(
    model: nn.Module, tokenizer, facts: list[Fact], state: EditState, config: Config,
    engine: ModuleType = fast,
) -> Values:  # fmt: skip
    """Find the values of one batch from the model's present weights."""
    check_setting(model, config, state.strategy)
    validate(facts, tokenizer, model, state.contexts)
    return _values(model, tokenizer, facts, state, config, engine)


def _values(model, tokenizer, facts, state: EditState, config, engine) -> Values:
    """Find the values of facts that were validated."""
    found, began = [], time.perf_counter()
    for layer in state.strategy.entries(config):
        problem = engine.prepare(model, tokenizer, facts, state.contexts, config, layer)
        check_finite(f"keys or states at layer {layer}", problem.keys.sum() + problem.hidden.sum())
        found.append(two_step(problem, sites(model, (layer,))[0].weight, config))
    first = found[0] if len(found) == 2 else None
    seconds = time.perf_counter() - began
    return replace(found[-1], facts=names_of(facts), first=first, seconds=seconds)


def names_of(facts: list[Fact]) -> tuple[tuple[str, str], ...]:
    """By what values know their facts: text and target."""
    return tuple((fact.text, fact.target) for fact in facts)


@dataclass(frozen=True)
class _Change:
    """What one layer's update does, before it is written."""

    layer: int
    mask: Bool[Tensor, " ff"]
    before: Float[Tensor, "model chosen"]
    after: Float[Tensor, "model chosen"]
    update: Update
    keys: Float[Tensor, "edit ff"]
    seconds: float


def edit_batch(
    model: nn.Module, tokenizer, facts: list[Fact], stats: Stats, state: EditState, config: Config,
    values: Values | None = None, engine: ModuleType = fast,
) -> tuple[EditState, Report]:  # fmt: skip
    """Write `facts` into the model's weights, all of them or (on any error) none.

        state = new_state(model, tokenizer, config)
        state, report = edit_batch(model, tokenizer, facts, stats, state, config)

    `values` may have been found ahead (`compute_values`); otherwise the present weights give
    them. Returns the next state; the one given stays valid. `engine` is `ece.engine` or its
    literal twin `ece.objective`.
    """
    _check(model, tokenizer, facts, stats, state, config)
    if values is None:
        values = _values(model, tokenizer, facts, state, config, engine)
    _check_values(values, facts, state.strategy.entries(config))
    moments = {n: stats.moments[n] for n in config.layers}
    prepared = state.prepared or _prepared(moments, state.strategy, config)
    state, changes, began = replace(state, prepared=prepared), [], time.perf_counter()
    try:
        reader = engine.reader(model, tokenizer, facts, state.contexts, config.max_tokens)
        for layer, goal, left in _plan(values, config):
            keys, states, reader = reader.read(layer, goal.layer)
            W, residual = sites(model, (layer,))[0].weight, goal.z.to(states) - states
            R = state.strategy.spread(residual, left).T
            changes.append(_change(layer, W, mix(keys), R, moments[layer], state, config))
            reader = reader.after(_write(W, changes[-1]))
        total = time.perf_counter() - began
        weights = fingerprint(model, state.layers)
    except BaseException:
        done = {change.layer: change for change in changes}
        restore(model, {n: c.mask for n, c in done.items()}, {n: c.before for n, c in done.items()})
        raise
    batch = _batch(facts, changes, state.strategy.history)
    report = _report(facts, values, changes, total)
    return pushed(state, batch, stats.digest, prepared, weights), report


def _prepared(moments: dict[int, Tensor], strategy: Strategy, config: Config) -> dict[int, Tensor]:
    found = {layer: strategy.prepare(moment, config) for layer, moment in moments.items()}
    return {layer: tensor for layer, tensor in found.items() if tensor is not None}


def _plan(values: Values, config: Config) -> list[tuple[int, Values, int]]:
    """List `(layer, values it works towards, layers left)`, in the order of editing."""
    if values.first is not None:
        return [(values.first.layer, values.first, 1), (values.layer, values, 1)]
    count = len(config.layers)
    return [(layer, values, count - i) for i, layer in enumerate(config.layers)]


def _change(layer: int, W, K, R, moment, state: EditState, config: Config) -> _Change:
    """Solve for one layer, with the keys of the model as it is now; changes nothing."""
    began, strategy = time.perf_counter(), state.strategy
    check_finite(f"keys at layer {layer}", K)
    check_finite(f"weights of layer {layer}", W)
    mask = strategy.choose(K, W, config)
    old = (state.folded.get(layer), state.recent(layer)) if strategy.history else (None, None)
    known = Knowledge(moment, mask, *old, state.prepared.get(layer))
    update = strategy.solve(R, K, known, config)
    update = update._replace(delta=strategy.finish(update.delta, W))
    before = W[:, mask].clone()
    # Sum in float64, round once: half-precision weights hold as much of the update as they can.
    after = (before.double() + update.delta[:, mask].to(before.device)).to(W.dtype)
    check_finite(f"updated weights of layer {layer}", after)
    return _Change(layer, mask, before, after, update, K, time.perf_counter() - began)


def _write(W: Float[Tensor, "model ff"], change: _Change) -> Float[Tensor, "model ff"]:
    """Write the change into the weights; returns it as a matrix."""
    written = torch.zeros(W.shape, device=W.device)
    written[:, change.mask] = change.after.float() - change.before.float()
    W[:, change.mask] = change.after
    return written


def _batch(facts: list[Fact], changes: list[_Change], history: bool) -> Batch:
    masks = {c.layer: c.mask.cpu() for c in changes}
    before = {c.layer: c.before.cpu() for c in changes}
    keys = {c.layer: c.keys.detach().clone() for c in changes if history}
    return Batch(tuple(fact.id for fact in facts), masks, before, keys)


def _report(facts: list[Fact], values: Values, changes: list[_Change], total: float) -> Report:
    solve, norms, rounding = sum(c.seconds for c in changes), {}, {}
    for c in changes:
        written, wanted = c.after.double() - c.before.double(), c.update.delta[:, c.mask]
        norms[c.layer] = float(written.norm())
        rounding[c.layer] = float((written - wanted.to(written)).norm() / wanted.norm())
    return Report(
        **value_part(facts, values),
        layers=[c.layer for c in changes],
        neurons={c.layer: int(c.mask.sum()) for c in changes},
        masks={c.layer: c.mask.cpu() for c in changes},
        norms=norms,
        rounding=rounding,
        jitter={c.layer: c.update.jitter for c in changes},
        seconds={"values": values.seconds, "keys": total - solve, "solve": solve},
    )


def _check(model, tokenizer, facts, stats, state: EditState, config: Config) -> None:
    """Check everything that can be known before any work."""
    check_setting(model, config, state.strategy)
    if config.layers != state.layers:
        raise StateError(f"the state edits layers {state.layers}, the config {config.layers}; "
                         "make a new state for other layers")  # fmt: skip
    if tuple(encode(tokenizer, PROBE)) != state.probe:
        raise StateError("this tokenizer is not the one the state began with; use that one")
    validate(facts, tokenizer, model, state.contexts)
    check_stats(stats, state.fingerprint, config.layers)
    if state.moments not in ("", stats.digest):
        raise StateError("these statistics are not those the state began with; use the same ones")
    check_weights(model, state)


def _check_values(values: Values, facts: list[Fact], entries: tuple[int, ...]) -> None:
    """Refuse values of other facts or for other layers."""
    found = (values.layer,) if values.first is None else (values.first.layer, values.layer)
    if found != entries or values.facts != names_of(facts):
        raise StateError(f"values of other facts or for layers {found} given, not for {entries}; "
                         "compute them from these facts and this config")  # fmt: skip
    for part in filter(None, (values, values.first)):
        check_finite("values", part.z)


def edit_sequence(
    model: nn.Module, tokenizer, facts: list[Fact], stats: Stats, config: Config, batch: int,
    strategy: Strategy | None = None, state: EditState | None = None,
    ahead: Callable[[int], Values] | None = None, on_batch: Callable | None = None,
    progress: Callable | None = None, engine: ModuleType = fast,
) -> tuple[EditState, list[Report]]:  # fmt: skip
    """Edit `facts` in batches of `batch`, in order.

    Unless the strategy takes values from the "current" weights, all are found before the first
    edit; `ahead(number)` gives those of a batch found earlier. `state`: its batches are done, go
    on after them. After each batch `on_batch(state, report, batch_facts)` and
    `progress(stage, done, total)` are called ("values" or "edit"). Nothing is written to disk.
    """
    state = state or new_state(model, tokenizer, config, strategy)
    parts = split(facts, state.strategy.batch or batch)
    for part in parts[state.done :]:
        validate(part, tokenizer, model, state.contexts)
    found, reports = {}, []
    if ahead is None and state.strategy.values_from != "current":
        if state.done:
            raise StateError("a sequence that goes on needs the values found before its first "
                             "edit; give them by 'ahead'")  # fmt: skip
        for number, part in enumerate(parts):
            found[number] = _values(model, tokenizer, part, state, config, engine)
            if progress is not None:
                progress("values", number + 1, len(parts))
    seen = {fact.subject for part in parts[: state.done] for fact in part}
    for number in range(state.done, len(parts)):
        part = parts[number]
        values = found.pop(number, None) if ahead is None else ahead(number)
        if state.strategy.values_from == "again":
            values = _again(model, tokenizer, part, seen, values, state, config, engine)
        done = edit_batch(model, tokenizer, part, stats, state, config, values, engine)
        state, report = done
        seen |= {fact.subject for fact in part}
        reports.append(report)
        if on_batch is not None:
            on_batch(state, report, part)
        if progress is not None:
            progress("edit", number + 1, len(parts))
    return state, reports


def split(facts: list[Fact], batch: int) -> list[list[Fact]]:
    """Cut facts into batches."""
    if not isinstance(batch, int) or batch < 1:
        raise StateError(f"'batch' is {batch!r}; it should be a whole number of facts >= 1")
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
    return renewed(values, at, _values(model, tokenizer, some, state, config, engine))
