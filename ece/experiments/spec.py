"""What a cell of the grid is: everything that decides its result, and the command for it."""

import shlex
from dataclasses import MISSING, dataclass, field, fields

from ece.baselines import BASELINES, numbers_of
from ece.config import METHODS, configure
from ece.data.loading import MEASURE
from ece.errors import ConfigError
from ece.experiments.flags import words
from ece.experiments.results import NAMES

MATMUL = ("highest", "high", "medium")
DTYPES = ("float32", "float64", "float16", "bfloat16")
EVERY = (*METHODS, *BASELINES)
"""All methods, those of the editor first."""
KNOWN = {"method": EVERY, "dataset": MEASURE, "dtype": DTYPES, "matmul": MATMUL}
"""The settings that take one of a few names."""
LEAST = {"facts": 1, "batch": 1, "seed": 0, "text_tokens": 0, "text_facts": 0, "adaptive": 0,
         "stats_tokens": 1}  # fmt: skip
"""The settings that are numbers, and their least values."""


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
    text_facts: int = 0
    """Facts that free texts are written about, the first of the sequence; 0: all."""
    points: tuple[int, ...] = ()
    """Numbers of edits, ends of batches, at which all facts so far are measured as well."""
    adaptive: int = 0
    """Edit layers chosen by attribution on these facts, that many; 0: those of the preset."""
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

        if self.references is not None and not self.text_tokens:
            raise ConfigError("setting 'references' needs free texts; set 'text_tokens', e.g. 100")
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
        return shlex.join(["python", "-m", "ece.experiments.cli", *words(values | self.config)])
