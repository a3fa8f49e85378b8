"""One cell of the grid: edit facts into a model in batches; measure before, at write and after."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ece.baselines import BASELINES, Task
from ece.baselines.trained import trained
from ece.data.loading import MEASURE
from ece.evaluation.layer_attribution import chosen_layers
from ece.evaluation.metrics import join
from ece.experiments.inputs import facts_of, material, model_of, statistics_of
from ece.experiments.measured import Measured, claim, keep, kept
from ece.experiments.results import NAMES, batch_record, provenance, rounded
from ece.experiments.scoring import score, timed
from ece.experiments.sessions import Session, baseline_session, editor_session
from ece.experiments.spec import Settings

SECONDS = ("values", "keys", "solve", "evaluate", "statistics")
"""Stages whose seconds every result states; baselines add "edit" and "train"."""


def run(
    settings: Settings,
    loaded=None,
    progress: Callable | None = None,
    work: str | Path | None = None,
    cache: str | Path | None = None,
) -> dict:
    """Run `settings` and return the result: rates in percent, times in seconds, provenance.

    loaded: (model, tokenizer) to use in place of loading `settings.model`; the model is edited
    and stays so. progress: as in `ece.editor.edit_sequence`. "pre" is before any edit, "at_write"
    each batch right after it was written, "after" all facts after the last batch. With a
    folder `work`, a run killed at any point and started again gives the same result. A folder
    `cache` keeps what does not depend on the facts: second moments, and what baselines learn.
    """
    torch.set_float32_matmul_precision(settings.matmul)
    settings.configure()
    facts, references, sources = material(settings, progress)
    model, tokenizer = loaded or model_of(settings)
    clock = Counter()
    start = _baseline if settings.method in BASELINES else _editor
    session, numbers, tokens = start(
        model, tokenizer, facts, settings, clock, work, cache, progress
    )
    if work is not None:
        claim(Path(work), settings.command())
    origin = provenance(settings.command(), numbers, model, tokens, sources)
    prompts = frozenset(fact.text for fact in facts)
    ask = partial(score, tokenizer, settings, references, clock=clock, edited=prompts)
    pre = ask(model, facts)
    written, curve, record = _write(session, facts, settings, ask, pre, clock, work)
    with session.view(facts) as edited:
        after = ask(edited, facts, before=pre)
    measure = MEASURE[settings.dataset]
    return {
        **{name: getattr(settings, name) for name in NAMES},
        "pre": rounded(pre.summary(measure)),
        "at_write": rounded(join(written).summary(measure)),
        "after": rounded(after.summary(measure)),
        "batches": batch_record(written, after, measure),
        **({"points": curve} if settings.points else {}),
        "edit": record,
        "seconds": {name: round(clock[name], 3) for name in dict.fromkeys((*SECONDS, *clock))},
        "provenance": origin | {"compat": settings.compat},
    }


def _editor(model, tokenizer, facts, settings, clock, work, cache, progress):
    """(session, its numbers, tokens of the statistics) of one of the editor's methods."""
    config = settings.configure()
    if settings.adaptive:
        layers = chosen_layers(model, tokenizer, facts, config.scorer, settings.adaptive)
        config = replace(config, layers=layers)
    with timed(clock, "statistics"):
        stats = statistics_of(model, tokenizer, settings, config.layers, cache, config.names > 0)
    numbers = (stats, config, settings.batch, work, progress)
    return editor_session(model, tokenizer, facts, *numbers), config, stats.tokens


def _baseline(model, tokenizer, facts, settings, clock, work, cache, progress):
    """(session, its numbers, None) of a baseline, trained where it has something to learn."""
    baseline, numbers = BASELINES[settings.method], settings.configure()
    learned = {}
    if baseline.train is not None:
        others = facts_of(settings)
        with timed(clock, "train"):
            task = Task(model, tokenizer, numbers, {})
            learned = trained(baseline, task, others[len(facts) :], cache, progress)
    task = Task(model, tokenizer, numbers, learned)
    session = baseline_session(baseline, task, facts, settings.batch, work, progress)
    return session, numbers, None


def _write(session: Session, facts, settings, ask, pre, clock, work):
    """Write all batches; -> scores at write, rates at `points`, what was done. Times: `clock`."""
    done: dict[int, Measured] = {}
    folder = None if work is None else Path(work)

    def heard(number: int) -> None:
        first, own, curve = number * settings.batch, Counter(), None
        part = facts[first : first + settings.batch]
        end = first + len(part)
        with session.view(facts[:end]) as edited:
            scores = ask(edited, part, before=pre.part(first, end), clock=own)
            if end in settings.points:
                so_far = (edited, facts[:end])
                whole = ask(*so_far, before=pre.part(0, end), clock=own, texts=False)
                curve = {"edited": end, **rounded(whole.summary(MEASURE[settings.dataset]))}
        done[number] = Measured(scores, dict(own), curve)
        if folder is not None:
            keep(folder, number, done[number])

    record, seconds = session.write(heard)
    clock.update(seconds)
    count = -(-len(facts) // settings.batch)
    parts = [done[i] if i in done else kept(folder, i) for i in range(count)]
    for part in parts:
        clock.update(part.seconds)
    return [p.scores for p in parts], [p.curve for p in parts if p.curve], record
