"""Editing: one batch, or a sequence of them. Single editing is a batch of one."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ece.config import Config
from ece.covariance import Stats, check
from ece.descent import Values, renewed, two_step
from ece.engine.batching import prepare
from ece.engine.keys import mix, subject_rows, walk_past, walk_to_subjects
from ece.engine.prefix import Walk, rewritten
from ece.errors import StateError
from ece.facts import Fact, validate
from ece.model import fingerprint, sites
from ece.report import Report, value_part
from ece.scoring import batch_set, scores
from ece.solver import largest, null_basis, solve_reported, solve_within, spread
from ece.state import (
    Batch,
    EditState,
    check_finite,
    check_layers,
    check_weights,
    new_state,
    pushed,
    restore,
    undo,
)
from ece.storage.journal import (
    load_state,
    load_values,
    open_run,
    save_batch,
    save_state,
    save_values,
)

__all__ = [
    "EditState",
    "Report",
    "compute_values",
    "edit_batch",
    "edit_sequence",
    "load_state",
    "new_state",
    "save_state",
    "undo",
]


def compute_values(
    model: nn.Module,
    tokenizer,
    facts: list[Fact],
    state: EditState | tuple[str, ...],
    config: Config,
) -> Values:
    """Values of one batch from the model's present weights (`state`, or its contexts)."""
    templates = state.contexts if isinstance(state, EditState) else state
    check_layers(model, config)
    validate(facts, tokenizer, model, templates)
    return _values(model, tokenizer, facts, templates, config)


def _values(model, tokenizer, facts, templates, config) -> Values:
    """`compute_values` of facts that were validated."""
    found, began = [], time.perf_counter()
    for layer in _entries(config):
        problem = prepare(model, tokenizer, facts, templates, config, layer)
        check_finite(f"keys or states at layer {layer}", problem.keys.sum() + problem.hidden.sum())
        found.append(two_step(problem, sites(model, (layer,))[0].weight, config))
    first = found[0] if len(found) == 2 else None
    return replace(found[-1], first=first, seconds=time.perf_counter() - began)


def _entries(config: Config) -> tuple[int, ...]:
    """Layers where values enter: the last, or with "boundary" the first and the last."""
    even = config.spread == "even" or len(config.layers) == 1
    return config.layers[-1:] if even else (config.layers[0], config.layers[-1])


def edit_batch(
    model: nn.Module,
    tokenizer,
    facts: list[Fact],
    stats: Stats,
    state: EditState,
    config: Config,
    values: Values | None = None,
) -> tuple[EditState, Report]:
    """Write `facts` into the model's weights, all of them or (on any error) none.

        state = new_state(model, tokenizer, config)
        state, report = edit_batch(model, tokenizer, facts, stats, state, config)

    `values` may have been computed ahead (`compute_values`); otherwise the present weights
    give them. Returns the next state; the one given stays valid for `undo` bookkeeping.
    """
    _check(model, tokenizer, facts, stats, state, config)
    values = values or _values(model, tokenizer, facts, state.contexts, config)
    _check_values(values, facts, config)
    done: dict[str, dict[int, Tensor]] = {"masks": {}, "before": {}, "keys": {}}
    seconds = {"values": values.seconds, "keys": 0.0, "solve": 0.0}
    record = {"norms": {}, "jitter": {}, "seconds": seconds}
    if config.null is not None and not state.bases:
        bases = {n: null_basis(stats.moment(n, config.names), config.null) for n in config.layers}
        state = replace(state, bases=bases)
    try:
        rows = subject_rows(tokenizer, facts, state.contexts)
        walk = walk_to_subjects(model, rows, len(facts), config.max_tokens)
        for layer, goal, left in _plan(values, config):
            walk = _edit_layer(walk, stats, state, config, layer, goal, left, done, record)
    except BaseException:
        restore(model, done["masks"], done["before"])
        raise
    batch = Batch(tuple(fact.id for fact in facts), **done)
    layers = list(done["masks"])
    neurons = {layer: int(mask.sum()) for layer, mask in done["masks"].items()}
    report = Report(
        **value_part(facts, values), layers=layers, neurons=neurons, masks=done["masks"], **record
    )
    after = replace(pushed(state, batch, config.undo), weights=fingerprint(model, state.layers))
    return after, report


def _plan(values: Values, config: Config) -> list[tuple[int, Values, int]]:
    """`(layer, values it works towards, layers left)`, in the order of editing."""
    if values.first is not None:
        return [(values.first.layer, values.first, 1), (values.layer, values, 1)]
    count = len(config.layers)
    return [(layer, values, count - i) for i, layer in enumerate(config.layers)]


def _edit_layer(walk, stats, state, config, layer, goal, left, done, record) -> Walk:
    """Solve for one layer with the keys of the model as it is now, and write the update.

    Returns the walk behind `layer` as written, where the next layer's keys go on.
    """
    began = time.perf_counter()
    site = sites(walk.model, (layer,))[0]
    passed, keys, states = walk_past(walk, len(goal.hidden), layer, goal.layer)
    K = mix(keys, config.keys)
    check_finite(f"keys at layer {layer}", K)
    R = spread(goal.z.to(states) - states, config.spread, left)
    middle = time.perf_counter()
    share = 1.0 if config.scorer == "all" else config.p
    mask = batch_set(scores(config.scorer, K, site.weight), share)
    weight, moment = site.weight, stats.moment(layer, config.names)
    delta, jitter = _update(R.T, K, moment, weight, state, config, layer, mask)
    before = weight[:, mask].clone()
    # Sum in float64, round once: half-precision weights keep as much of the update as they can.
    written = (before.double() + delta[:, mask].to(before.device)).to(weight.dtype)
    check_finite(f"updated weights of layer {layer}", written)
    done["masks"][layer], done["before"][layer] = mask.cpu(), before.cpu()
    if config.history:
        done["keys"][layer] = K.detach().clone()
    weight[:, mask] = written
    record["norms"][layer], record["jitter"][layer] = float(delta.norm()), jitter
    solved = time.perf_counter()
    walk = passed.walk
    if layer != config.layers[-1]:
        change = torch.zeros(weight.shape, device=weight.device)
        change[:, mask] = written.float() - before.float()
        walk = rewritten(passed, change)
    record["seconds"]["keys"] += middle - began + time.perf_counter() - solved
    record["seconds"]["solve"] += solved - middle
    return walk


def _update(R, K, moment, weight, state, config, layer, mask) -> tuple[Tensor, float]:
    """The layer's update and the jitter its factorisation needed."""
    folded, recent = None, None
    if config.history:
        folded, recent = state.folded.get(layer), state.recent(layer)
    if config.null is None:
        numbers = (config.lam, config.ridge, recent, config.exact)
        delta, jitter = solve_reported(R, K, moment, folded, mask, *numbers)
    else:
        basis = state.bases[layer].to(K.device)
        delta, jitter = solve_within(R, K, basis, folded, config.lam, recent), 0.0
    return (delta if config.keep == 1 else largest(delta, weight, config.keep)), jitter


def _check(model, tokenizer, facts, stats, state, config) -> None:
    """Everything that can be known before any work; raises, changes nothing."""
    check_layers(model, config)
    if config.layers != state.layers:
        raise StateError(f"the state edits layers {state.layers}, the config {config.layers}")
    validate(facts, tokenizer, model, state.contexts)
    check(stats, state.fingerprint, config.layers, config.names)
    for site in sites(model, config.layers):
        check_finite(f"weights of layer {site.layer}", site.weight)
    check_weights(model, state)


def _check_values(values: Values, facts: list[Fact], config: Config) -> None:
    wanted = _entries(config)
    found = (values.layer,) if values.first is None else (values.first.layer, values.layer)
    if found != wanted or len(values.hidden) != len(facts):
        raise StateError(
            f"values for {len(values.hidden)} facts at layers {found} given, needed are "
            f"{len(facts)} facts at layers {wanted}; compute them with this config"
        )
    for part in filter(None, (values, values.first)):
        check_finite("values", part.z)


def edit_sequence(
    model: nn.Module,
    tokenizer,
    facts: list[Fact],
    stats: Stats,
    config: Config,
    batch: int,
    on_batch: Callable | None = None,
    save_to: str | Path | None = None,
    progress: Callable | None = None,
) -> tuple[EditState, list[Report]]:
    """Edit `facts` in batches of `batch`, in order; resumes from `save_to` if it has a run.

    With `config.single` every fact is a batch of its own, whatever `batch` says. Unless
    `values_from` is "current", all values are computed before the first edit (and kept in
    `save_to`). After each batch, in this order: the state is saved, `on_batch(state, report,
    batch_facts)` and `progress(stage, done, total)` are called ("values" or "edit"). A run
    killed at any point and started again on the unedited model ends with the same bits; it
    calls `on_batch` again for the last batch on disk, which may have been killed before it.
    """
    batch = 1 if config.single else batch
    parts = [facts[i : i + batch] for i in range(0, len(facts), batch)]
    run = open_run(model, tokenizer, facts, config, batch, save_to)
    state, reports = run if run else (new_state(model, tokenizer, config), [])
    for part in parts:
        validate(part, tokenizer, model, state.contexts)
    if reports and on_batch is not None:
        on_batch(state, reports[-1], parts[len(reports) - 1])
    ahead = _ahead(model, tokenizer, parts, state, config, save_to, progress)
    seen = {fact.subject for part in parts[: len(reports)] for fact in part}
    for number in range(len(reports), len(parts)):
        part, values = parts[number], ahead.get(number)
        if config.values_from == "again":
            values = _again(model, tokenizer, part, seen, values, state, config)
        state, report = edit_batch(model, tokenizer, part, stats, state, config, values)
        seen |= {fact.subject for fact in part}
        if save_to is not None:
            save_batch(model, state, report, save_to)
        reports = reports + [report]
        if on_batch is not None:
            on_batch(state, report, parts[number])
        if progress is not None:
            progress("edit", number + 1, len(parts))
    return state, reports


def _again(model, tokenizer, part, seen, values, state, config) -> Values:
    """`values`, but from the present weights for subjects that were edited before.

    Where a subject is edited again, a value from the original weights is a state without the
    earlier edit, and writing it would take that edit back.
    """
    at = [i for i, fact in enumerate(part) if fact.subject in seen]
    if not at:
        return values
    return renewed(values, at, _values(model, tokenizer, [part[i] for i in at],
                                       state.contexts, config))  # fmt: skip


def _ahead(model, tokenizer, parts, state, config, save_to, progress) -> dict[int, Values]:
    """Values of all batches still to come, from the original weights; from disk if there."""
    if config.values_from == "current":
        return {}
    found = {}
    for number in range(state.done, len(parts)):
        kept = None if save_to is None else load_values(save_to, number)
        if kept is None:
            if state.done:
                raise StateError(f"{save_to} lost the values of batch {number}; start anew")
            kept = compute_values(model, tokenizer, parts[number], state, config)
            if save_to is not None:
                save_values(kept, save_to, number)
        found[number] = kept
        if progress is not None:
            progress("values", number + 1, len(parts))
    return found
