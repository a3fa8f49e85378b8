"""One cell of the grid: edit facts into a model in batches; measure before, at write and after."""

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ece import atlas
from ece.attribution import chosen_layers
from ece.baselines import BASELINES, Task, numbers_of
from ece.baselines.trained import trained
from ece.config import METHODS, configure
from ece.data import MEASURE, load_facts
from ece.errors import ConfigError
from ece.facts import Fact
from ece.flags import words
from ece.inputs import model_of, statistics_of
from ece.kept import Measured, keep, kept
from ece.metrics import Scores, evaluate, join, unchanged
from ece.results import NAMES, batch_record, provenance, rounded
from ece.sessions import Session, baseline_session, editor_session
from ece.texts import consistencies, fluencies
from ece.texts import written as write_texts

MATMUL = ("highest", "high", "medium")
DTYPES = ("float32", "float64", "float16", "bfloat16")
EVERY = (*METHODS, *BASELINES)
"""All methods, those of the editor first."""
KNOWN = {"method": EVERY, "dataset": MEASURE, "dtype": DTYPES, "matmul": MATMUL}
"""The settings that take one of a few names."""
LEAST = {"facts": 1, "batch": 1, "seed": 0, "text_tokens": 0, "text_facts": 0, "adaptive": 0,
         "stats_tokens": 1}  # fmt: skip
"""The settings that are numbers, and their least values."""
SECONDS = ("values", "keys", "solve", "evaluate", "statistics")
"""Stages whose seconds every result states; baselines add "edit" and "train"."""


@dataclass(frozen=True)
class Settings:
    """What to run; `Settings(method="memit", facts=50, config={"lam": 100.0})`."""

    model: str = "atlas-gpt2"
    """Embedded model, hub name, or folder whose last part is a known name."""
    method: str = "ece-rs"
    """Settings of the editor, or a baseline, by name."""
    dataset: str = "counterfact"
    """Schema of the records."""
    facts: int = 200
    """Number of facts to edit, >= 1."""
    batch: int = 25
    """Facts written at once, >= 1."""
    seed: int = 0
    """Decides which facts and their order, the contexts and the clustering, >= 0."""
    data: str | None = None
    """JSON file of records; without it those of the embedded world."""
    skip_bad: bool = False
    """Leave unusable records of the file out, with a warning."""
    device: str | None = None
    """Where the model goes, as torch names it, or "auto"; without it the CPU."""
    dtype: str | None = None
    """Number format of the weights; without it float32."""
    matmul: str = "highest"
    """Precision of float32 products, as torch names it: "high" is TF32 where there is any."""
    text_tokens: int = 0
    """Length of the free texts for fluency and consistency, in tokens; 0: none are written."""
    text_facts: int = 0
    """Facts that free texts are written about, the first of the sequence; 0: all."""
    points: tuple[int, ...] = ()
    """Numbers of edits, ends of batches, at which all facts so far are measured as well."""
    adaptive: int = 0
    """Edit layers chosen by attribution on these facts, that many; 0: those of the preset."""
    stats: str | None = None
    """File of second moments: read if it is there, otherwise written."""
    stats_text: str | None = None
    """Plain text for the second moments, one document a line; needed beyond embedded models."""
    stats_tokens: int = 100_000
    """Tokens that the second moments are taken over, at most, >= 1."""
    config: dict = field(default_factory=dict)
    """Fields of `Config` (or of a baseline's numbers) that differ from preset and method."""

    def __post_init__(self):
        for name, known in KNOWN.items():
            value = getattr(self, name)
            if value not in known and (name, value) != ("dtype", None):
                raise ConfigError(f"setting '{name}' is {value!r}; known: {', '.join(known)}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                text = f"setting '{name}' is {getattr(self, name)}; it takes a number >= {least}"
                raise ConfigError(text)

        wrong = [n for n in self.points if n % self.batch or not 0 < n <= self.facts]
        if wrong:
            text = f"setting 'points' holds {wrong[0]}; it takes ends of batches of {self.batch}"
            raise ConfigError(f"{text}, at most {self.facts}")

    def configure(self):
        """The method's numbers: preset of the model, method, own settings, seed."""
        if self.method in BASELINES:
            return numbers_of(self.model, self.method, **self.config)
        return configure(self.model, self.method, **{"seed": self.seed, **self.config})

    def command(self) -> str:
        """The command line that runs these settings."""
        told = [f for f in fields(self) if f.default is not MISSING]
        values = {f.name: getattr(self, f.name) for f in told}
        plain = {f.name for f in told if f.name not in NAMES and values[f.name] == f.default}
        values = {name: value for name, value in values.items() if name not in plain}
        return shlex.join(["python", "-m", "ece.experiment", *words(values | self.config)])


def run(
    settings: Settings,
    loaded=None,
    progress: Callable | None = None,
    work: str | Path | None = None,
    cache: str | Path | None = None,
) -> dict:
    """Run `settings` and return the result: rates in percent, times in seconds, provenance.

    loaded: (model, tokenizer) to use in place of loading `settings.model`; the model is edited
    and stays so. progress: as in `ece.edit.edit_sequence`. "pre" is before any edit, "at_write"
    each batch right after it was written, "after" all facts after the last batch. With a
    folder `work`, a run killed at any point and started again gives the same result. A folder
    `cache` keeps what does not depend on the facts: second moments, and what baselines learn.
    """
    torch.set_float32_matmul_precision(settings.matmul)
    settings.configure()
    facts = load_facts(
        settings.dataset, settings.facts, settings.seed, settings.data, settings.skip_bad
    )
    model, tokenizer = loaded or model_of(settings)
    clock = Counter()
    start = _baseline if settings.method in BASELINES else _editor
    session, numbers, tokens = start(
        model, tokenizer, facts, settings, clock, work, cache, progress
    )
    origin = provenance(settings.command(), numbers, model, tokens)
    ask = partial(_score, tokenizer, settings)
    pre = ask(model, facts, clock)
    written, curve, record = _write(session, facts, settings, ask, pre, clock, work)
    with session.view(facts) as edited:
        after = ask(edited, facts, clock, pre)
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
        "provenance": origin,
    }


def _editor(model, tokenizer, facts, settings, clock, work, cache, progress):
    """(session, its numbers, tokens of the statistics) of one of the editor's methods."""
    config = settings.configure()
    if settings.adaptive:
        layers = chosen_layers(model, tokenizer, facts, config.scorer, settings.adaptive)
        config = replace(config, layers=layers)
    with _timed(clock, "statistics"):
        stats = statistics_of(model, tokenizer, settings, config.layers, cache)
    numbers = (stats, config, settings.batch, work, progress)
    return editor_session(model, tokenizer, facts, *numbers), config, stats.tokens


def _baseline(model, tokenizer, facts, settings, clock, work, cache, progress):
    """(session, its numbers, None) of a baseline, trained where it has something to learn."""
    baseline, numbers = BASELINES[settings.method], settings.configure()
    learned = {}
    if baseline.train is not None:
        others = load_facts(settings.dataset, None, settings.seed, settings.data, settings.skip_bad)
        with _timed(clock, "train"):
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
            scores = ask(edited, part, own, pre.part(first, end))
            if end in settings.points:
                whole = ask(edited, facts[:end], own, pre.part(0, end), texts=False)
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


def _score(
    tokenizer, settings: Settings, model, facts: list[Fact], clock: Counter, before=None, texts=True
) -> Scores:
    """The facts' scores now; `before` are those of the unedited model."""
    with _timed(clock, "evaluate"):
        scores = evaluate(model, tokenizer, facts)
        if before is not None:
            scores = replace(scores, unchanged=unchanged(before, scores))
        if not settings.text_tokens or not texts:
            return scores
        return _with_texts(scores, model, tokenizer, settings, facts, before)


def _with_texts(scores, model, tokenizer, settings: Settings, facts, before) -> Scores:
    """Scores with fluency and consistency of the facts that free texts are written about."""
    wanted = np.full(len(facts), True)
    if before is not None:
        wanted = ~np.isnan(before.fluency)
    elif settings.text_facts:
        wanted = np.arange(len(facts)) < settings.text_facts
    some = [fact for fact, said in zip(facts, wanted, strict=True) if said]
    columns = {name: np.full(len(facts), np.nan) for name in ("fluency", "consistency")}
    if some:
        texts = write_texts(model, tokenizer, some, settings.text_tokens, settings.seed)
        columns["fluency"][wanted] = fluencies(texts)
        columns["consistency"][wanted] = consistencies(some, texts, atlas.references())
    return replace(scores, **columns)


@contextmanager
def _timed(clock: Counter, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    clock[name] += time.perf_counter() - began
