"""Edit one batch of facts; single editing is a batch of one."""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ece import engine as fast
from ece import learned_start
from ece.checks import check_batch, check_request, check_values, warn_of_sinks
from ece.config import Config
from ece.covariance import Stats
from ece.descent import Values, two_step
from ece.errors import check_engine, check_finite
from ece.facts import Fact, names_of
from ece.fingerprint import fingerprint
from ece.model import Site, narrowed, sites
from ece.objective import mix
from ece.report import Report, value_part
from ece.solver import Knowledge, Update
from ece.state import Batch, EditState, learn_from, restore, with_batch


def compute_values(
    model: nn.Module, tokenizer, facts: list[Fact], state: EditState, config: Config,
    engine: Any = fast,
) -> Values:  # fmt: skip
    """Find the values of one batch from the model's present weights.

    Raises `FactError`, `ConfigError`, `ModelError` or `StateError` for what cannot be used.
    """
    check_engine(engine)
    check_request(model, tokenizer, facts, state, config)
    return find_values(model, tokenizer, facts, state, config, engine)


def find_values(model, tokenizer, facts, state: EditState, config, engine) -> Values:
    """Find the values of facts that were validated."""
    warn_of_sinks(model, tokenizer, facts, config.layers[-1])
    found, began = [], time.perf_counter()
    runs = model if config.passes == "model" else narrowed(model, config.passes)
    for layer in state.strategy.entries(config):
        problem = engine.prepare(runs, tokenizer, facts, state.contexts, config, layer)
        if runs is not model:  # values are added to the states of the model itself
            rows = engine.reader(model, tokenizer, facts, state.contexts, config.max_tokens)
            keys, hidden, _ = rows.read(layer, layer)
            problem = replace(problem, keys=mix(keys), hidden=hidden)
        for name, found_there in (("keys", problem.keys), ("states", problem.hidden)):
            check_finite(f"{name} at layer {layer}", found_there)
        phi = None
        if config.shared == "learned":
            phi = learned_start.features(model, tokenizer, facts).to(problem.hidden.device)
            begin = learned_start.predicted(state.learned.get(layer), phi, problem.hidden)
            problem = replace(problem, start=begin)
        values = two_step(problem, sites(model, (layer,))[0].weight, config)
        found.append(replace(values, features=phi))
    first = found[0] if len(found) == 2 else None
    made_for = dict(facts=names_of(facts), model=state.fingerprint, first=first)
    return replace(found[-1], **made_for, seconds=time.perf_counter() - began)


@dataclass(frozen=True)
class _Change:
    """What one layer's update does, before it is written."""

    layer: int
    mask: Bool[Tensor, " ff"]
    before: Float[Tensor, "model chosen"]
    after: Float[Tensor, "model chosen"]
    update: Update
    keys: Float[Tensor, "row ff"]
    """Keys that later batches keep."""
    seconds: float


def edit_batch(
    model: nn.Module, tokenizer, facts: list[Fact], stats: Stats, state: EditState, config: Config,
    values: Values | None = None, engine: Any = fast,
) -> tuple[EditState, Report]:  # fmt: skip
    """Write `facts` into the model's weights (Eq 1, 15-16), all or (on any error) none.

        state = new_state(model, tokenizer, config)
        state, report = edit_batch(model, tokenizer, facts, stats, state, config)

    `values` may have been found ahead (`compute_values`); otherwise the present weights give
    them. Returns the next state; the one given stays valid. `engine` is `ece.engine` or its
    literal twin `ece.objective`.
    """
    check_engine(engine)
    check_batch(model, tokenizer, facts, stats, state, config)
    return write_batch(model, tokenizer, facts, stats, state, config, values, engine)


def write_batch(
    model, tokenizer, facts: list[Fact], stats: Stats, state: EditState, config: Config,
    values: Values | None, engine: Any,
) -> tuple[EditState, Report]:  # fmt: skip
    """Write facts that were checked; see `edit_batch`."""
    if values is None:
        values = find_values(model, tokenizer, facts, state, config, engine)
        state = learn_from(state, values)
    check_values(values, facts, state, config)
    state, changes, began = _prepared(state, stats, config), [], time.perf_counter()
    try:
        plan = _plan(values, config)
        reader = engine.reader(model, tokenizer, facts, state.contexts, config.max_tokens)
        for layer, goal, left in plan:
            keys, states, reader = reader.read(layer, goal.layer)
            (site,), residual = sites(model, (layer,)), goal.z.to(states) - states
            W, R = site.weight, state.strategy.spread(residual, left).T.to(keys.device)
            beside = state.strategy.beside(model, tokenizer, facts, layer)
            changes.append(_change(layer, W, mix(keys), beside, R, stats, state, config))
            written = _write(site, changes[-1])
            if layer != plan[-1][0]:
                reader = reader.after(written)
        seconds = time.perf_counter() - began
        marks = _batch(facts, changes, state), fingerprint(model, state.layers)
        after = with_batch(state, *marks, stats.own)
        return after, _report(facts, values, changes, seconds)
    except BaseException:
        done = {change.layer: change for change in changes}
        restore(model, {n: c.mask for n, c in done.items()}, {n: c.before for n, c in done.items()})
        raise


def _prepared(state: EditState, stats: Stats, config: Config) -> EditState:
    """Add to the state what its strategy computes once, unless it is there for these settings."""
    settings = state.strategy, config
    if state.prepared_for == settings:
        return state
    here = [layer for layer in config.layers if layer in stats.own]
    found = {n: state.strategy.prepare(stats.moments[n], config) for n in here}
    found = {layer: tensor for layer, tensor in found.items() if tensor is not None}
    return replace(state, moments=stats.digest, prepared=found, prepared_for=settings)


def _plan(values: Values, config: Config) -> list[tuple[int, Values, int]]:
    """List `(layer, values it works towards, layers left)`, in the order of editing."""
    if values.first is not None:
        return [(values.first.layer, values.first, 1), (values.layer, values, 1)]
    count = len(config.layers)
    return [(layer, values, count - i) for i, layer in enumerate(config.layers)]


def _change(layer: int, W, K, beside, R, stats, state: EditState, config: Config) -> _Change:
    """Solve for one layer, with the keys of the model as it is now; changes nothing."""
    began, strategy = time.perf_counter(), state.strategy
    check_finite(f"keys at layer {layer}", K)
    check_finite(f"weights of layer {layer}", W)
    mask = strategy.choose(K, W, config)
    old = (state.folded.get(layer), state.recent(layer)) if strategy.history else (None, None)
    if beside is not None:
        check_finite(f"other keys at layer {layer}", beside)
        old = old[0], beside if old[1] is None else torch.cat([old[1], beside.to(old[1])])
    known = Knowledge(stats.moments[layer], mask, *old, state.prepared.get(layer))
    update = stats.solved(layer, lambda: strategy.solve(R, K, known, config))
    update = update._replace(delta=strategy.finish(update.delta, W))
    before = W[:, mask]
    # Sum in float64, round once: half-precision weights hold as much of the update as they can.
    after = (before.double() + update.delta[:, mask].to(before.device)).to(W.dtype)
    check_finite(f"updated weights of layer {layer}", after)
    K = K if beside is None else torch.cat([K, beside.to(K)])
    return _Change(layer, mask, before, after, update, K, time.perf_counter() - began)


def _write(site: Site, change: _Change) -> Float[Tensor, "model ff"]:
    """Write the change into the weights; returns it as a matrix."""
    written = torch.zeros(site.shape, device=change.after.device)
    written[:, change.mask] = change.after.float() - change.before.float()
    site.write(change.after, change.mask)
    return written


def _batch(facts: list[Fact], changes: list[_Change], state: EditState) -> Batch:
    masks = {c.layer: c.mask.cpu() for c in changes}
    before = {c.layer: c.before.cpu() for c in changes}
    keys = {c.layer: c.keys.detach().clone() for c in changes if state.strategy.history}
    return Batch(names_of(facts), masks, before, keys)


def _report(facts: list[Fact], values: Values, changes: list[_Change], total: float) -> Report:
    solve, norms, rounding = sum(c.seconds for c in changes), {}, {}
    for c in changes:
        written, wanted = c.after.double() - c.before.double(), c.update.delta[:, c.mask]
        norms[c.layer] = float(written.norm())
        lost = (written - wanted.to(written)).norm() / wanted.norm().clamp_min(1e-300)
        rounding[c.layer] = float(lost)
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
