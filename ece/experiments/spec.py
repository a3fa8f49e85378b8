"""Holds the settings of a run: checked types, the method's numbers, an identity, a command."""

import hashlib
import json
import shlex
from dataclasses import asdict, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ece import Strategy, presets
from ece.atlas.records import SCHEMAS
from ece.baselines import STRATEGIES
from ece.config import Config
from ece.data import world
from ece.data.downloads import cache
from ece.data.loading import MEASURE, PUBLIC
from ece.data.references import SNIPPETS
from ece.data.schema import checksum, digest
from ece.data.texts import PYTHON_DOCS, python_docs
from ece.errors import ConfigError, checked
from ece.experiments.crew import Sharding
from ece.experiments.flags import text_of, words
from ece.experiments.order import Order
from ece.experiments.results import SIX
from ece.state import can_spread

Also = Literal["abilities", "drift", "answers", "probes"]
Dtype = Literal["float32", "float64", "float16", "bfloat16"]
Matmul = Literal["highest", "high", "medium"]
Count = Annotated[int, Field(ge=1, lt=2**31)]
OrNone = Annotated[int, Field(ge=0, lt=2**31)]
UNKNOWN = "?"
"""What an identity says of a source that is not at hand."""


@checked
class Settings:
    """What to run; `Settings(method="memit", facts=50, config={"lam": 100.0})`."""

    model: str = "atlas-gpt2"
    """Embedded model, hub name, folder or GGUF file; a preset is found by the last part of it."""
    method: str = "ece-rs"
    """ECE with one of its scores (ece-as, ece-wi, ece-rs), or a rival (`ece.presets.METHODS`)."""
    dataset: str = "counterfact"
    """Schema of the records: counterfact, zsre, qaedit or wikibigedit."""
    facts: Count = 200
    """Number of facts to edit."""
    batch: Count = 25
    """Facts written at once."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides which facts and their order, the contexts and the clustering."""
    data: str | None = None
    """JSON file of records, CSV table of facts, "public" (the published file, downloaded once), or
    "world" (facts of the real world, from packages); without it those of the embedded world, which
    is invented."""
    sha256: str | None = None
    """SHA-256 that the file of records must have."""
    part: Literal["all", "tune", "test"] = "all"
    """Which facts of the source: every tenth by id to "tune" settings on, the others to "test"."""
    skip_bad: bool = False
    """Leave unusable records of the file out, with a warning."""
    known: bool = False
    """Edit only facts of `data` that the model states before any edit."""
    order: Order = "drawn"
    """Order of the facts: as drawn, or by ECE-RS's clusters, as many as there are batches: those
    of one cluster "together", or each cluster "spread" over all batches."""
    device: str | None = None
    """Where the model goes, as torch names it, or "auto"; without it the CPU."""
    dtype: Dtype = "float32"
    """Number format of the weights."""
    sharding: Sharding | None = None
    """How the processes that `torchrun` started share the model's weights: each computes with its
    part of every matrix, or gathers block by block; without it each has the whole model and some
    of the facts."""
    matmul: Matmul = "highest"
    """Precision of float32 products, as torch names it: "high" is TF32 where there is any."""
    text_tokens: OrNone = 0
    """Length of the free texts for fluency and consistency, in tokens; 0: none are written."""
    text_facts: OrNone = 0
    """Facts about which free texts are written, the first of the sequence; 0: all."""
    at_write: bool = True
    """Measure each batch as soon as it is written, too, and not only at the end."""
    points: tuple[int, ...] = ()
    """Numbers of edits, ends of batches, at which all facts so far are measured as well."""
    also: tuple[Also, ...] = ()
    """What else to measure before any edit, at `points` and at the end: the six general
    "abilities", the "drift" on text and neighbours, free "answers", and "probes" of what an edit
    means; where these need facts, the first `also_facts` of the sequence."""
    also_facts: Count = 100
    """Facts that `also` asks for, the first of the sequence."""
    tasks: str | None = None
    """Items of "abilities": a folder of <task>.json files, or "hub" (by the package datasets);
    without it those of the embedded world."""
    items: Count = 50
    """Items of each ability."""
    cases: OrNone = 0
    """Facts whose free texts, before and at the end, the record keeps; the first."""
    adaptive: OrNone = 0
    """Number of edit layers to choose by attribution on these facts; 0: those of the preset."""
    references: str | None = None
    """File of reference texts for consistency (ROME's attribute snippets), or "public"; without
    it those of the embedded world."""
    compat: bool = False
    """Repeat the slips of the published ZsRE evaluation; CounterFact's has none to repeat."""
    stats: str | None = None
    """File of second moments: read if it is there, otherwise written."""
    stats_text: str | None = None
    """Plain text for the second moments, one document a line, or "python-docs": Python's language
    reference, which comes with Python; needed beyond embedded models."""
    stats_tokens: Count = 100_000
    """Largest number of tokens that the second moments are taken over."""
    preset: str | None = None
    """Preset file with the model's numbers, as `ece tune` writes it; without it the model's own."""
    config: dict[str, Any] = field(default_factory=dict)
    """Numbers of the method that differ from the preset."""

    def __post_init__(self):
        """Check what concerns several settings at once, and the method's numbers."""
        for name, known in {"method": presets.METHODS, "dataset": MEASURE}.items():
            if getattr(self, name) not in known:
                _fail(name, getattr(self, name), f"known: {', '.join(known)}")
        if self.preset is not None:
            presets.check(self.preset)
        for name, needed, remedy in (
            ("references", "text_tokens", "set the length of the free texts, e.g. 100"),
            ("text_facts", "text_tokens", "set the length of the free texts, e.g. 100"),
            ("sha256", "data", "name the file of records"),
            ("skip_bad", "data", "name the file of records"),
            ("known", "data", "name a file of records, or 'world'"),
            ("tasks", "also", "measure 'abilities'"),
        ):
            if getattr(self, name) and not getattr(self, needed):
                _fail(name, getattr(self, name), f"it needs the setting '{needed}'; {remedy}")
        if self.known and self.dataset != "counterfact":
            _fail("known", True, f"records of {self.dataset} name no answer from before the edit")
        if self.data == world.NAME and (self.sha256 or self.skip_bad):
            _fail("data", self.data, "'sha256' and 'skip_bad' are for files; leave them out")
        if self.data in (None, world.NAME) and self.dataset not in SCHEMAS:
            _fail("data", self.data, f"there are no embedded '{self.dataset}'; name a file of "
                  "records")  # fmt: skip
        if "abilities" in self.also and self.tasks is None and not self.embedded:
            _fail("tasks", None, f"{self.model} does not know the embedded world; name a folder of "
                  "the tasks' records, or 'hub'")  # fmt: skip
        if "drift" in self.also and self.stats_text is None and not self.embedded:
            _fail("also", self.also, "drift needs 'stats_text', of which it reads what the second "
                  "moments leave over")  # fmt: skip
        wrong = [n for n in self.points if n % self.batch or not 0 < n <= self.facts]
        if wrong:
            _fail("points", self.points, f"{wrong[0]} does not end a batch of {self.batch}")
        if self.order != "drawn" and not self.edits:
            _fail("order", self.order, f"{self.method} has no layers whose neurons make clusters")
        if self.adaptive and not self.edits:
            _fail("adaptive", self.adaptive, f"{self.method} has no layers to choose")
        self.configure()

    @property
    def edits(self) -> bool:
        """Whether `ece.edit_sequence` runs the method; else it is a baseline of its own."""
        return self.method in STRATEGIES

    @cached_property
    def _built(self) -> tuple[Any, Strategy | None]:
        """The method's numbers and its strategy: presets are read once."""
        name = (self.preset or self.model, self.method)
        if not self.edits:
            return presets.numbers(*name, **self.config), None
        follows = {own.name for own in fields(STRATEGIES[self.method])}
        parts = {n: v for n, v in self.config.items() if n in follows}
        own = {n: v for n, v in self.config.items() if n not in follows}
        config = presets.configure(*name, batch=self.batch, **{"seed": self.seed, **own})
        strategy = presets.strategy(*name, **parts)
        plain = presets.configure(*name, batch=self.batch)
        for unused in strategy.unused(config):
            if own.get(unused, getattr(plain, unused)) != getattr(plain, unused):
                _fail(unused, own[unused], f"{self.method} has no use for it here; leave it out")
        return config, strategy

    @cached_property
    def world_checksum(self) -> str | None:
        """The checksum of the real world's records, where these are edited."""
        return digest(world.records(self.dataset)) if self.data == world.NAME else None

    def configure(self):
        """Build the method's numbers: preset of the model, method, own settings, seed."""
        return self._built[0]

    def fitted(self, model) -> Config:
        """Give a loaded model's numbers: behind norms, the last of layers only suggested."""
        config, own = self.configure(), presets.preset_of(self.preset or self.model)
        if own or "layers" in self.config or can_spread(model, config, self.strategy()):
            return config
        return replace(config, layers=config.layers[-1:])

    def strategy(self) -> Strategy | None:
        """Build the method's strategy; None for a baseline of its own."""
        return self._built[1]

    def identity(self, model: str = UNKNOWN) -> dict:
        """List everything that decides the result, with `model` the fingerprint where known.

        Names of files are no part of it, their checksums are; nor are settings without effect.
        """
        config, strategy = self.configure(), self.strategy()
        own = _json(asdict(config)) | ({"layers": None} if self.adaptive else {})
        text = self.stats_text or (None if self.embedded else self.stats)
        reads = self.edits or "drift" in self.also
        sources = {
            "data": self.world_checksum or source_checksum(self.data, PUBLIC.get(self.dataset)),
            "references": source_checksum(self.references, SNIPPETS),
            "stats_text": source_checksum(text if reads else None),
        }
        if "abilities" in self.also and self.tasks not in (None, "hub"):
            files = [checksum(file) for file in sorted(Path(self.tasks).glob("*.json"))]
            sources["tasks"] = digest(files) if files else UNKNOWN
        return {
            **{name: getattr(self, name) for name in SIX},
            "config": own,
            "strategy": _early(_json(asdict(strategy))) if strategy else {},
            "adaptive": self.adaptive,
            "compat": self.compat and self.dataset == "zsre",
            "dtype": self.dtype,
            "matmul": self.matmul,
            "at_write": self.at_write,
            "known": self.known,
            "part": self.part,
            "points": list(self.points),
            "skip_bad": self.skip_bad,
            **self._later(),
            "text_tokens": self.text_tokens,
            "text_facts": self.text_facts,
            "stats_tokens": self.stats_tokens if reads else None,
            "sources": {"model": model, **sources},
        } | {"model": self.short}

    def _later(self) -> dict:
        """State later settings only where they are set: runs stored before keep their names."""
        found = {"order": self.order} if self.order != "drawn" else {}
        if self.also:
            found |= {"also": sorted(self.also), "also_facts": self.also_facts}
        if "abilities" in self.also:
            kind = self.tasks if self.tasks in (None, "hub") else "folder"
            found |= {"items": self.items, "tasks": kind}
        return found | ({"cases": self.cases} if self.cases else {})

    @property
    def short(self) -> str:
        """The model's name without the folder or the hub's user in front."""
        return self.model.rstrip("/").split("/")[-1]

    @property
    def embedded(self) -> bool:
        """Whether the model comes with the package, and so the texts of its world."""
        return self.model.startswith("atlas-")

    @property
    def name(self) -> str:
        """The run's name for people: what it is, with what differs from the preset."""
        extra = {name: text_of(value) for name, value in sorted(self.config.items())}
        extra |= {"adaptive": self.adaptive} if self.adaptive else {}
        extra |= {"also": text_of(self.also)} if self.also else {}
        extra |= {"data": self.data} if self.data == world.NAME else {}
        extra |= {"known": True} if self.known else {}
        extra |= {"order": self.order} if self.order != "drawn" else {}
        extra |= {"part": self.part} if self.part != "all" else {}
        size = f"{self.facts}x{self.batch}"
        changed = (f"{name}-{value}" for name, value in extra.items())
        return "_".join((self.short, self.method, self.dataset, size, *changed, f"s{self.seed}"))

    def command(self) -> str:
        """Write the command line that runs these settings."""
        plain = {own.name: own.default for own in fields(self) if own.name != "config"}
        values = {name: getattr(self, name) for name in plain}
        values = {n: v for n, v in values.items() if n in SIX or v != plain[n]}
        return shlex.join(["ece", "run", *words(values | self.config)])


def _json(values: dict) -> dict:
    return json.loads(json.dumps(values))


def source_checksum(path: str | None, public: str | None = None) -> str | None:
    """Compute the checksum of a file or text; None without one, UNKNOWN if it is not here."""
    if path == PYTHON_DOCS:
        return digest([*python_docs()])
    place = cache() / str(public) if path == "public" else path and Path(path)
    return (checksum(place) if Path(place).is_file() else UNKNOWN) if place else None


def _early(strategy: dict) -> dict:
    """Leave out later settings that are off, for the same reason as `Settings._later`."""
    return {name: value for name, value in strategy.items() if name != "prompts" or value}


def run_id(identity: dict) -> str:
    """Compute the name of a run on disk: a hash of everything that decides its result."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fail(name: str, value, reason: str):
    shown = text_of(value) if isinstance(value, tuple) else repr(value)
    raise ConfigError(f"setting '{name}' is {shown}; {reason}")
