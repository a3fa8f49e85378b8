"""One cell of the grid: edit facts into a model in batches; measure before, at write and after."""

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import torch

from ece import atlas
from ece import stats as statistics
from ece.config import METHODS, Config, configure
from ece.data import MEASURE, load_facts, load_records, records_file
from ece.edit import edit_sequence
from ece.errors import ConfigError
from ece.facts import Fact, encode
from ece.flags import words
from ece.kept import keep, kept
from ece.metrics import Scores, evaluate, join, unchanged
from ece.model import CHECKPOINTS, load
from ece.references import References, load_references, references_file
from ece.report import Report
from ece.results import NAMES, batch_record, edit_record, provenance, rounded, source
from ece.texts import consistencies, fluencies, vectorizer
from ece.texts import written as write_texts

MATMUL = ("highest", "high", "medium")
DTYPES = ("float32", "float64", "float16", "bfloat16")
KNOWN = {"method": METHODS, "dataset": MEASURE, "dtype": DTYPES, "matmul": MATMUL}
"""The settings that take one of a few names."""
LEAST = {"facts": 1, "batch": 1, "seed": 0, "text_tokens": 0, "stats_tokens": 1}
"""The settings that are numbers, and their least values."""
SECONDS = ("values", "keys", "solve", "evaluate", "statistics")
DOCUMENT = 20
"""Tokens that a document of the embedded corpus has at the least, on average."""


@dataclass(frozen=True)
class Settings:
    """What to run; `Settings(method="memit", facts=50, config={"lam": 100.0})`."""

    model: str = "atlas-gpt2"
    """Embedded model, hub name, or folder whose last part is a known name."""
    method: str = "ece-rs"
    """Settings of the editor by name."""
    dataset: str = "counterfact"
    """Schema of the records."""
    facts: int = 200
    """Number of facts to edit, >= 1."""
    batch: int = 25
    """Facts written at once, >= 1."""
    seed: int = 0
    """Decides which facts and their order, the contexts and the clustering, >= 0."""
    data: str | None = None
    """JSON file of records, or "public": the published file, fetched once; without it those of
    the embedded world."""
    sha256: str | None = None
    """SHA-256 that the file of records must have."""
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
    references: str | None = None
    """File of reference texts for consistency (ROME's attribute snippets), or "public"; without
    it those of the embedded world."""
    compat: bool = False
    """Repeat the slips of the published ZsRE evaluation; CounterFact's has none to repeat."""
    stats: str | None = None
    """File of second moments: read if it is there, otherwise written."""
    stats_text: str | None = None
    """Plain text for the second moments, one document a line; needed beyond embedded models."""
    stats_tokens: int = 100_000
    """Tokens that the second moments are taken over, at most, >= 1."""
    config: dict = field(default_factory=dict)
    """Fields of `Config` that differ from preset and method."""

    def __post_init__(self):
        for name, known in KNOWN.items():
            value = getattr(self, name)
            if value not in known and (name, value) != ("dtype", None):
                raise ConfigError(f"setting '{name}' is {value!r}; known: {', '.join(known)}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                text = f"setting '{name}' is {getattr(self, name)}; it takes a number >= {least}"
                raise ConfigError(text)
        if self.references is not None and not self.text_tokens:
            raise ConfigError("setting 'references' needs free texts; set 'text_tokens', e.g. 100")

    def configure(self) -> Config:
        """The method's numbers: preset of the model, method, own settings, seed."""
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
) -> dict:
    """Run `settings` and return the result: rates in percent, times in seconds, provenance.

    loaded: (model, tokenizer) to use in place of loading `settings.model`; the model is edited
    and stays so. progress: as in `ece.edit.edit_sequence`. "pre" is before any edit, "at_write"
    each batch right after it was written, "after" all facts after the last batch. With a
    folder `work`, a run killed at any point and started again gives the same result.
    """
    torch.set_float32_matmul_precision(settings.matmul)
    config = settings.configure()
    facts, references, sources = _inputs(settings, progress)
    model, tokenizer = loaded or _load(settings)
    clock = Counter()
    with _timed(clock, "statistics"):
        stats = _statistics(model, tokenizer, settings, config)
    origin = provenance(settings.command(), config, model, stats, sources)
    score = partial(_score, model, tokenizer, settings, references)
    pre = score(facts, clock)
    written, reports = _edit(
        model, tokenizer, facts, stats, settings, score, pre, clock, progress, work
    )
    after = score(facts, clock, pre)
    measure = MEASURE[settings.dataset]
    return {
        **{name: getattr(settings, name) for name in NAMES},
        "pre": rounded(pre.summary(measure)),
        "at_write": rounded(join(written).summary(measure)),
        "after": rounded(after.summary(measure)),
        "batches": batch_record(written, after, measure),
        "edit": edit_record(reports),
        "seconds": {name: round(clock[name], 3) for name in SECONDS},
        "provenance": origin | {"compat": settings.compat},
    }


def _inputs(settings: Settings, progress: Callable | None) -> tuple[list[Fact], References, dict]:
    """Facts, what free texts are compared with (empty if none are written), files read."""
    data = records_file(settings.dataset, settings.data, settings.sha256, progress)
    path = references_file(settings.references, progress)
    facts = load_facts(settings.dataset, settings.facts, settings.seed, data, settings.skip_bad)
    if not settings.text_tokens:
        references = References({}, None)
    elif path is None:
        references = References(texts := atlas.references(), vectorizer(texts))
    else:
        references = load_references(path, load_records(settings.dataset, data))
    return facts, references, {"data": source(data), "references": source(path)}


def _edit(model, tokenizer, facts, stats, settings, score, pre, clock, progress, work):
    """Write all batches; -> their scores at write, their reports. Times go to `clock`."""
    written: dict[int, tuple[Scores, dict]] = {}
    folder = None if work is None else Path(work)

    def on_batch(state, report: Report, batch: list[Fact]) -> None:
        number, first = state.done - 1, (state.done - 1) * settings.batch
        own = Counter()
        scores = score(batch, clock=own, before=pre.part(first, first + len(batch)))
        written[number] = scores, {**report.seconds, **own}
        if folder is not None:
            keep(folder, number, *written[number])

    _, reports = edit_sequence(
        model, tokenizer, facts, stats, settings.configure(), settings.batch, on_batch,
        work, progress,
    )  # fmt: skip
    parts = [written[i] if i in written else kept(folder, i) for i in range(len(reports))]
    for _, seconds in parts:
        clock.update(seconds)
    return [scores for scores, _ in parts], reports


def _score(
    model, tokenizer, settings: Settings, references: References, facts, clock, before=None
) -> Scores:
    """The facts' scores now; `before` are those of the unedited model."""
    with _timed(clock, "evaluate"):
        compat = settings.compat and settings.dataset == "zsre"
        scores = evaluate(model, tokenizer, facts, compat=compat)
        if before is not None:
            scores = replace(scores, unchanged=unchanged(before, scores))
        if not settings.text_tokens:
            return scores
        texts = write_texts(model, tokenizer, facts, settings.text_tokens, settings.seed)
        likeness = consistencies(facts, texts, *references)
        return replace(scores, fluency=fluencies(texts), consistency=likeness)


@contextmanager
def _timed(clock: Counter, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    clock[name] += time.perf_counter() - began


def _load(settings: Settings):
    """(model, tokenizer); a device or a name that does not work is a `ConfigError` naming it."""
    dtype = settings.dtype and getattr(torch, settings.dtype)
    try:
        if settings.device not in (None, "auto"):
            torch.empty(0, device=settings.device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"setting 'device' is {settings.device!r}: {why}") from error
    try:
        return load(settings.model, settings.device, dtype)
    except OSError as error:
        why = str(error).splitlines()[0]
        raise ConfigError(
            f"setting 'model' is {settings.model!r}, which is no folder and cannot be had from "
            f"the hub ({why}); name an embedded model, a folder, or a hub model within reach"
        ) from error


def _statistics(model, tokenizer, settings: Settings, config: Config) -> statistics.Stats:
    """Second moments: from the file of statistics, the file of text, or the embedded corpus."""
    if settings.stats is not None and Path(settings.stats).exists():
        return statistics.load(settings.stats, model)
    if settings.stats_text is not None:
        texts = Path(settings.stats_text).read_text(encoding="utf-8").splitlines()
    elif (folder := CHECKPOINTS / settings.model).is_dir() and folder.parent == CHECKPOINTS:
        texts = atlas.corpus(1 + settings.stats_tokens // DOCUMENT)
    else:
        raise ConfigError(
            f"setting 'stats_text' is missing: {settings.model} is no embedded model, so name a "
            "file of plain text for the second moments, or 'stats' with a file of them"
        )
    some = _first(texts, tokenizer, settings.stats_tokens)
    part = settings.stats and f"{settings.stats}.part"
    stats = statistics.second_moment(model, tokenizer, some, config.layers, save_to=part)
    if settings.stats is not None:
        statistics.save(stats, settings.stats)
        Path(part).unlink(missing_ok=True)
    return stats


def _first(texts: list[str], tokenizer, tokens: int) -> Iterator[str]:
    """Texts that are not blank, until `tokens` tokens are reached."""
    for text in filter(str.strip, texts):
        if tokens <= 0:
            return
        tokens -= len(encode(tokenizer, text))
        yield text
