"""Saves the state of an edited model, and whole runs of batches that go on where they were killed.

A state is one file: the columns that each batch wrote and, once batches are too old to be undone,
the edited layers' whole weights and the sum of old keys. A run adds a small file per batch to the
last saved state, and saves a new state now and then, so that what lies on disk does not grow with
the number of batches (but for one small report each).
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ece.clustering import Groups
from ece.config import Config
from ece.covariance import Stats
from ece.descent import Values
from ece.editor import fast, find_values
from ece.errors import StateError
from ece.facts import Fact
from ece.fingerprint import digest, fingerprint
from ece.learned_start import Learned
from ece.model import sites
from ece.report import Report
from ece.sequence import edit_sequence, split
from ece.state import (
    Batch,
    EditState,
    check_weights,
    dealt,
    learn_from,
    new_state,
    restore,
    with_batch,
)
from ece.storage.archive import checksum, load, save
from ece.storage.folder import Folder
from ece.strategy import Strategy

COMPACT = 20
"""Batches after which a run saves its whole state and drops their files."""


def save_state(model: nn.Module, state: EditState, folder: str | Path) -> None:
    """Save the state of an edited model; an earlier one in `folder` is replaced in one step."""
    check_weights(model, state)
    if any(total[0, 0].isnan() for total in state.folded.values()):
        raise StateError("other processes hold a part of this state's history; save it by "
                         "run_sequence, which brings that together")  # fmt: skip
    with Folder(folder):
        save(Path(folder) / "state.safetensors", "state", _packed(model, state))


def load_state(model: nn.Module, folder: str | Path, strategy: Strategy | None = None) -> EditState:
    """Apply a saved state to the unedited `model`; its weights become those saved, bit for bit.

    `strategy` must be the one that the state was made with (ECE by default). Everything is read
    and checked before the first weight changes, and any error leaves the weights as they were.
    """
    strategy = strategy or Strategy()
    classes = (EditState, Batch, Learned, type(strategy))
    saved = load(Path(folder) / "state.safetensors", "state", classes)
    return _applied(model, saved, [], strategy)


def _packed(model: nn.Module, state: EditState) -> dict:
    """Give the state as it is saved, found by walking back over its batches on copies."""
    now, batches = _weights(model, state.layers), []
    for batch in reversed(state.batches):
        batches.append(_written(batch, now))
        for layer, mask in batch.masks.items():
            now[layer][:, mask] = batch.before[layer]
    plain = replace(state, batches=tuple(batches[::-1]), prepared={}, prepared_for=None)
    start = {layer: digest(weight) for layer, weight in now.items()}
    unedited = state.done == len(state.batches)
    return {"state": plain, "start": start, "whole": {} if unedited else now}


def _written(batch: Batch, weights: dict[int, Tensor]) -> Batch:
    """Give the batch as it is saved: with the columns that it wrote as those it found."""
    after = {n: weights[n][:, mask.to(weights[n].device)] for n, mask in batch.masks.items()}
    return replace(batch, before=after)


def _weights(model: nn.Module, layers: tuple[int, ...]) -> dict[int, Tensor]:
    """Copy the edit layers' weights to the CPU."""
    places = sites(model, layers)
    return {site.layer: site.weight.to("cpu", copy=True).contiguous() for site in places}


def _applied(model: nn.Module, saved: dict, later: list[dict], strategy: Strategy) -> EditState:
    """Bring the unedited model, and its state, to what was saved and the batches after it."""
    state, whole = saved["state"], saved["whole"]
    if state.strategy != strategy:
        raise StateError(f"the state was made with {state.strategy}; give that, not {strategy}")
    before = _weights(model, state.layers)
    edited = [n for n in before if not whole and digest(before[n]) != saved["start"][n]]
    if edited or fingerprint(model) != state.fingerprint:
        raise StateError("the state was saved from another model; load that one, unedited")
    now = whole or {layer: weight.clone() for layer, weight in before.items()}
    where = {site.layer: site.module.weight.device for site in sites(model, state.layers)}
    batches = [*state.batches, *(entry["batch"] for entry in later)]
    last = {"weights": state.weights, "moments": state.moments, **(later[-1] if later else {})}
    folded = {layer: total.to(where[layer]) for layer, total in state.folded.items()}
    done = state.done - len(state.batches)
    state = replace(state, moments=last["moments"], folded=folded, batches=(), done=done)
    for batch in batches:
        found = {layer: now[layer][:, mask] for layer, mask in batch.masks.items()}
        for layer, mask in batch.masks.items():
            now[layer][:, mask] = batch.before[layer]
        keys = {layer: part.to(where[layer]) for layer, part in batch.keys.items()}
        batch = replace(batch, before=found, keys=keys)
        state = with_batch(state, batch, last["weights"], state.layers)
    try:
        restore(model, {}, now)
        check_weights(model, state)
    except BaseException:
        restore(model, {}, before)
        raise
    return state


def run_sequence(
    model: nn.Module, tokenizer, facts: list[Fact], stats: Stats, config: Config, batch: int,
    folder: Folder, strategy: Strategy | None = None, on_batch: Callable | None = None,
    progress: Callable | None = None, cache: Path | None = None, engine: Any = fast,
) -> tuple[EditState, list[Report]]:  # fmt: skip
    """Edit like `ece.edit_sequence`, saving every batch in `folder`.

    A run that was killed at any point goes on when it is started again on the unedited model, and
    ends with the same bits. It calls `on_batch(state, report, batch_facts)` again for the last
    batch in the folder, as it may have been killed before that. `StateError` if the folder holds a
    run of other facts, settings, statistics or another model, or if a file there is damaged.
    `cache` is a folder of values that runs share: those found from the same weights, facts and
    settings of the descent. Several processes give a `Shared` folder, and no cache.
    """
    strategy = strategy or Strategy()
    parts = split(facts, strategy.batch or batch)
    folder.claim("run", {
        "model": fingerprint(model), "config": asdict(config), "batch": batch,
        "strategy": repr(strategy), "facts": checksum(facts), "statistics": stats.digest,
    })  # fmt: skip
    if folder.numbers("batch") or folder.numbers("state"):
        count = len(parts) * (strategy.values_from != "current")
        state, reports = _resumed(model, folder, strategy, count, stats.own)
    else:
        state, reports = new_state(model, tokenizer, config, strategy), []
        folder.save("state", 0, _packed(model, state))
    if reports and on_batch is not None:
        on_batch(state, reports[-1], parts[state.done - 1])

    def save_and_tell(state: EditState, report: Report, part: list[Fact]) -> None:
        _save_batch(model, state, report, folder, stats)
        if on_batch is not None:
            on_batch(state, report, part)

    find = partial(_find_values, model, tokenizer, config, folder, progress, cache, engine)
    more = (strategy, state, find, save_and_tell, progress, engine)
    state, new = edit_sequence(model, tokenizer, facts, stats, config, batch, *more)
    return state, reports + new


def _resumed(
    model: nn.Module, folder: Folder, strategy: Strategy, count: int, own: tuple[int, ...]
) -> tuple[EditState, list[Report]]:
    """Bring the unedited model to where the run in the folder is; the history is of layers `own`.

    `count` batches have values that were found ahead; those still to be used are checked, too.
    """
    first = max(folder.numbers("state"), default=0)
    done = first + sum(number > first for number in folder.numbers("batch"))
    saved = folder.load("state", first, EditState, Batch, Learned, type(strategy))
    later = [folder.load("batch", number, Batch) for number in range(first + 1, done + 1)]
    reports = [folder.load("report", number, Report) for number in range(1, done + 1)]
    for number in range(done, count if done else 0):
        folder.load("values", number, Values, Groups)
    state = _applied(model, saved, later, strategy)
    if done in folder.numbers("learned"):
        state = replace(state, learned=folder.load("learned", done, Learned))
    return replace(state, folded=dealt(state.folded, own)), reports


def _save_batch(model, state: EditState, report: Report, folder: Folder, stats: Stats) -> None:
    """Save the state's last batch, which is done once its file is there."""
    number, places = state.done, sites(model, state.layers)
    batch = _written(state.batches[-1], {site.layer: site.weight for site in places})
    marks = {"weights": state.weights, "moments": state.moments}
    folder.save("report", number, report)
    if state.learned:  # it does not grow, so the last is enough
        folder.save("learned", number, state.learned)
    folder.save("batch", number, {"batch": batch, **marks})
    if number - max(folder.numbers("state")) >= COMPACT:
        whole = replace(state, folded=stats.whole(state.folded))
        folder.save("state", number, _packed(model, whole))
        folder.remove("state", number)
        folder.remove("batch", number + 1)
    folder.remove("values", number)
    folder.remove("learned", number)


def _find_values(
    model, tokenizer, config, folder: Folder, progress, cache: Path | None, engine, parts, state
) -> tuple[EditState, Callable[[int], Values]]:
    """Find the values of all batches before the first edit; those in the folder are read."""
    there = folder.numbers("values")
    for number, part in enumerate(() if state.done else parts):
        if number in there:
            found = folder.load("values", number, Values, Groups)
        else:
            found = _shared(model, tokenizer, part, state, config, cache, engine)
            folder.save("values", number, found)
        state = learn_from(state, found)
        if progress is not None:
            progress("values", number + 1, len(parts))
    return state, lambda number: folder.load("values", number, Values, Groups)


def _shared(model, tokenizer, part, state, config, cache: Path | None, engine) -> Values:
    """Find the values of a batch, or read them where a run with the same ones left them."""
    if cache is None:
        return find_values(model, tokenizer, part, state, config, engine)
    alone = {} if config.clusters else {"scorer": "all", "p": 1.0}
    entries = state.strategy.entries(config)
    plain = replace(config, layers=entries, lam=1.0, ridge=0.0, **alone)
    weights, known = (state.fingerprint, state.weights), (state.contexts, state.learned)
    by = torch.get_float32_matmul_precision(), model.device.type
    path = cache / f"values-{checksum((weights, known, by, asdict(plain), part))}.safetensors"
    if path.exists():
        return load(path, "values", (Values, Groups))
    found = find_values(model, tokenizer, part, state, config, engine)
    save(path, "values", found)
    return found
