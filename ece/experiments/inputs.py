"""Gathers what a run starts from, as its settings name it: facts, reference texts, statistics."""

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import nn

from ece import Config, Fact, Stats, Strategy, atlas, blend
from ece.atlas.tasks import TASKS as EMBEDDED_TASKS
from ece.baselines.ece_plus import ends_of_names
from ece.checks import validate
from ece.data import world
from ece.data.loading import load_facts, records_file
from ece.data.references import References, load_references, references_file
from ece.data.schema import checksum, read_records
from ece.data.tasks import TASKS, load_items
from ece.data.texts import read_texts
from ece.engine.parallel import Processes
from ece.errors import ConfigError
from ece.evaluation.abilities import Item
from ece.evaluation.metrics import known
from ece.evaluation.text_quality import vectorizer
from ece.experiments.spec import Settings, run_id, source_checksum
from ece.facts import contexts, encode
from ece.sequence import split
from ece.state import check_begin
from ece.storage import load_moments, moments

EMBEDDED = {None: atlas, world.NAME: world}
"""What needs no file of records, by the setting 'data'."""
TENTH = 10
"""Of so many facts, one is set aside for tuning."""
DOCUMENT = 20
"""Tokens that a document of the embedded corpus has at least, on average."""
SPARE = 500
"""Documents of the embedded corpus that the second moments leave over."""


def gather(settings: Settings, progress: Callable | None) -> tuple[list[Fact], References, dict]:
    """Read facts and reference texts (none where no texts are written).

    Also returned are name and SHA-256 of their files, None for what is embedded. Where only known
    facts are wanted all come: `stated` chooses.
    """
    embedded, count = EMBEDDED.get(settings.data), None if settings.known else settings.facts
    name = None if embedded else settings.data
    data = records_file(settings.dataset, name, settings.sha256, progress is not None)
    path = references_file(settings.references, progress is not None)
    references = References({}, None)
    if settings.text_tokens and path is None:
        references = References(texts := atlas.references(), vectorizer(texts))
    elif settings.text_tokens:
        records = embedded.records(settings.dataset) if embedded else read_records(data)
        references = load_references(path, records)
    world_sum = settings.world_checksum
    made = world_sum and {"file": settings.data, "sha256": world_sum}
    sources = {"data": made or _source(data), "references": _source(path)}
    return facts(settings, data, count), references, sources


def facts(settings: Settings, data: str | Path | None, count: int | None = None) -> list[Fact]:
    """Draw facts of the data set (None: all), in the order of the seed."""
    kind, seed, most = settings.dataset, settings.seed, count if settings.part == "all" else None
    if embedded := EMBEDDED.get(settings.data):
        found = embedded.facts(kind, most, seed)
    else:
        found = load_facts(kind, most, seed, data, skip_bad=settings.skip_bad)
    if settings.part == "all":
        return found
    found = [fact for fact in found if (fact.id % TENTH == 0) == (settings.part == "tune")]
    if count is not None and count > len(found):
        share = "every tenth by its id" if settings.part == "tune" else "all but every tenth"
        raise ConfigError(f"setting 'facts' is {count}; the part to {settings.part} has "
                          f"{len(found)}, {share}; choose fewer, or data='world'")  # fmt: skip
    return found[:count]


def stated(model: nn.Module, tokenizer, facts: list[Fact], count: int) -> list[Fact]:
    """Choose the first `count` facts that the model states; `ConfigError` if these are fewer."""
    found = known(model, tokenizer, facts)
    if len(found) < count:
        raise ConfigError(f"setting 'facts' is {count}; the model states {len(found)} of the "
                          f"{len(facts)} facts; choose fewer, or leave 'known' out")  # fmt: skip
    return found[:count]


def _source(path: Path | None) -> dict | None:
    return path and {"file": path.name, "sha256": checksum(path)}


def check_edits(
    model: nn.Module, tokenizer, facts: list[Fact], config: Config, strategy: Strategy, batch: int
) -> None:
    """Refuse what cannot be edited, with its prefixes, before the statistics, which take long."""
    check_begin(model, config, strategy)
    prefixed = contexts(model, tokenizer, config)
    for part in split(facts, strategy.batch or batch):
        validate(part, tokenizer, model, prefixed)


def statistics(
    model: nn.Module, tokenizer, settings: Settings, config: Config, strategy: Strategy,
    mark: str, cache: str | Path | None = None, progress: Callable | None = None,
    crew: Processes | None = None,
) -> tuple[Stats, dict]:  # fmt: skip
    """Find second moments: in the file of statistics or the cache, else from a text.

    Returns them with what a run's origin states about them. `mark`: the model's fingerprint.
    """
    text, path = settings.stats_text, settings.stats
    if path is None and cache is not None:
        parts = [mark, config.layers, config.max_tokens, settings.stats_tokens,
                 settings.matmul, model.device.type]  # fmt: skip
        name = run_id({"parts": parts, "text": source_checksum(text)})
        path = Path(cache) / f"stats-{name}.safetensors"
    there, silent = path and Path(path).exists(), text is None and not settings.embedded
    if silent and not there:
        raise ConfigError(f"setting 'stats_text' is None; {settings.model} is no embedded model, "
                          "so name a file of plain text for the second moments or 'python-docs', "
                          "or by 'stats' a file that has them")  # fmt: skip

    def passed(place: str | Path | None, select: Callable | None = None) -> tuple[Stats, str]:
        if silent:
            return load_moments(place, model), ""
        hear = progress and (lambda n: progress("statistics", n, settings.stats_tokens))
        more = (config.layers, place, config.max_tokens, select, hear, crew)
        return moments(model, tokenizer, documents(settings, tokenizer), *more)

    stats, digest = passed(path)
    if share := getattr(strategy, "names", 0):
        ends, _ = passed(path and f"{path}.names", ends_of_names)
        stats = blend(stats, ends, share)
    return stats, {"digest": stats.digest, "texts": digest}


def documents(settings: Settings, tokenizer, spare: bool = False) -> Iterator[str]:
    """Read the second moments' texts, up to the tokens allowed; `spare`: those left over."""
    if settings.stats_text is not None:
        texts = read_texts(settings.stats_text)
    else:
        texts = atlas.corpus(1 + SPARE * spare + settings.stats_tokens // DOCUMENT)
    left = settings.stats_tokens
    for text in filter(str.strip, texts):
        if (left <= 0) == spare:
            yield text
        elif left <= 0:
            return
        left -= len(encode(tokenizer, text)) if left > 0 else 0


def task_items(settings: Settings) -> dict[str, list[Item]]:
    """Draw the items of the general-ability tasks, by task."""
    if settings.tasks is None:
        world = atlas.build()
        return {task: atlas.task_items(world, task, settings.items) for task in EMBEDDED_TASKS}
    found = {}
    for task in TASKS:
        path = "hub" if settings.tasks == "hub" else Path(settings.tasks) / f"{task}.json"
        found[task] = load_items(task, settings.items, settings.seed, path)
    return found
