"""What is checked before any work: facts, settings, statistics, weights, values."""

import re
import warnings

from ece.config import Config
from ece.covariance import Stats
from ece.descent import Values
from ece.errors import FactError, StateError, StatsError, check_finite, check_type, shown
from ece.facts import Fact, encode_all, is_broken, locate_all, names_of, probe, target_ids
from ece.hooks import states_at
from ece.model import room, sites
from ece.state import EditState, check_setting, check_weights

SINK = 3.0  # a first token's state so many times as long as the next one's is an attention sink


def check_request(model, tokenizer, facts, state: EditState, config: Config) -> None:
    """Check what finding values needs: settings, facts, and whether the state fits them."""
    check_type("state", state, EditState)
    check_setting(model, config, state.strategy)
    check_layers(config, state)
    if len(state.contexts) != 1 + config.contexts:
        raise StateError(f"the state has {len(state.contexts) - 1} contexts, the config "
                         f"{config.contexts}; make a new state for another number")  # fmt: skip
    check_tokenizer(tokenizer, state)
    validate(facts, tokenizer, model, state.contexts)


def check_batch(model, tokenizer, facts, stats, state: EditState, config: Config) -> None:
    """Check everything that can be known before any work."""
    check_request(model, tokenizer, facts, state, config)
    check_stats(stats, state.fingerprint, config.layers)
    if stats.probe not in ((), state.probe):
        raise StatsError("these statistics were taken with another tokenizer; use the model's own")
    if state.moments not in ("", stats.digest):
        raise StateError("these statistics are not those the state began with; use the same ones")
    for site in sites(model, config.layers):
        found, size = tuple(stats.moments[site.layer].shape), site.shape[1]
        if found != (size, size):
            raise StatsError(f"statistics of layer {site.layer} have the shape {shown(found)}, "
                             f"needed is {size},{size}; take ece.second_moment's")  # fmt: skip
    check_weights(model, state)


def check_layers(config: Config, state: EditState) -> None:
    """Refuse edit layers other than the state's."""
    if config.layers != state.layers:
        raise StateError(f"the state edits layers {shown(state.layers)}, the config "
                         f"{shown(config.layers)}; make a new state for other layers")  # fmt: skip


def check_tokenizer(tokenizer, state: EditState) -> None:
    """Refuse a tokenizer other than the one the state began with."""
    if probe(tokenizer) != state.probe:
        raise StateError("this tokenizer is not the one the state began with; use that one")


def check_values(values: Values, facts: list[Fact], state: EditState, config: Config) -> None:
    """Refuse values of another model, of other facts or for other layers."""
    check_type("values", values, Values)
    if values.model != state.fingerprint:
        raise StateError("values of another model; compute them with this one")
    entries = state.strategy.entries(config)
    found = (values.layer,) if values.first is None else (values.first.layer, values.layer)
    if found != entries:
        raise StateError(f"values for layers {shown(found)} given, needed for "
                         f"{shown(entries)}; compute them with this config")  # fmt: skip
    if values.facts != names_of(facts):
        raise StateError("values of other facts, or in another order; compute them from these")
    for part in filter(None, (values, values.first)):
        if not len(facts) == len(part.hidden) == len(part.delta):
            raise StateError(f"values hold {len(part.delta)} rows for {len(facts)} facts; compute "
                             "them from these facts")  # fmt: skip
        check_finite("values", part.z)


def validate(facts: list[Fact], tokenizer, model, templates: tuple[str, ...] = ("{}",)) -> None:
    """Raise `FactError` for the first fact that cannot be edited in one batch with the others.

    `templates` are the contexts under which the prompts will be seen; they count for the length.
    """
    others = [f for f in facts if not isinstance(f, Fact)] if isinstance(facts, list) else [facts]
    if others:
        raise FactError(-1, "facts", f"{type(others[0]).__name__} given", "give a list of ece.Fact")
    if not facts:
        raise FactError(-1, "facts", "the batch is empty", "give at least one fact")
    seen, most = {}, room(model)
    for number, fact in enumerate(facts):
        for field, reason, remedy in _faults(fact):
            raise FactError(fact.id, field, reason, remedy, number)
        answer = target_ids(tokenizer, fact.target)
        if not answer:
            raise FactError(fact.id, "target", "it has no tokens", "give visible text", number)
        texts = [template.replace("{}", fact.text) for template in templates]
        size = max(len(ids) for ids, _ in encode_all(tokenizer, texts)) + len(answer)
        if size > most:
            reason = f"prompt, prefix and target take {size} tokens, the model reads {most}"
            raise FactError(fact.id, "prompt", reason, "shorten it or the contexts", number)
        # One relation of a subject, one prompt or one text can have one answer in a batch.
        names = {(fact.subject, fact.relation or fact.prompt), (fact.subject, fact.prompt)}
        for name in (*names, ("", fact.text)):
            first = seen.setdefault(name, number)
            if first != number:
                same = facts[first].target.strip() == fact.target.strip()
                reason = f"it {'repeats' if same else 'contradicts'} facts[{first}]"
                raise FactError(fact.id, "subject", f"{reason} (same subject and relation)",
                                "keep one of the two in a batch", number)  # fmt: skip


def _faults(fact: Fact):
    """Yield what is wrong with a fact's texts: field, reason, remedy."""
    slots = fact.prompt.count("{}")
    if slots != 1:
        where = "not in the prompt" if slots == 0 else f"in the prompt {slots} times"
        yield "prompt", f"the subject is {where}", 'mark its one place by "{}"'
    for field in ("prompt", "subject", "target"):
        text = getattr(fact, field)
        if not text.strip():
            yield field, "it is empty", "give visible text"
        if is_broken(text):
            yield field, "it holds half of a surrogate pair", "give valid text"
    if fact.subject != fact.subject.strip():
        yield "subject", "it starts or ends with white space", "put the space into the prompt"
    if fact.prompt != fact.prompt.rstrip():
        yield "prompt", "it ends with white space", "leave that out; the target brings a space"
    if re.search(rf"(?<!\w){re.escape(fact.subject)}(?!\w)", fact.prompt.replace("{}", "\0")):
        reason = f"the prompt mentions '{fact.subject}' again beside its slot"
        yield "subject", reason, "word the prompt with one mention"


def warn_of_sinks(model, tokenizer, facts: list[Fact], layer: int) -> None:
    """Warn of subjects that are the first token of their text, where that token is a sink.

    Many models give every text's first token nearly the same, very long state. An edit of it
    reaches all texts (Yang et al., 2024, arXiv:2406.11263).
    """
    placed = locate_all(tokenizer, [(fact.prompt, fact.subject) for fact in facts])
    first = [ids[:2] if at == 0 and len(ids) > 1 else [] for ids, at in placed]
    if not any(first):
        return
    length = states_at(model, [ids for ids in first if ids], layer).float().norm(dim=-1)
    long = iter((length[:, 0] > SINK * length[:, 1]).tolist())
    if sunk := [fact for fact, ids in zip(facts, first, strict=True) if ids and next(long)]:
        names = ", ".join(f"'{fact.text}'" for fact in sunk)
        warnings.warn(f"the subject of {names:.300} is the first token of the text, whose state "
                      "all texts share in this model: the edit may break it; put words before "
                      "the subject, such as 'Note: ', or leave it out", stacklevel=4)  # fmt: skip


def check_stats(stats: Stats, model_fingerprint: str, layers: tuple[int, ...]) -> None:
    """Raise `StatsError` unless `stats` belong to the model and hold moments of `layers`."""
    if not isinstance(stats, Stats):
        raise StatsError(f"statistics are {stats!r}; give those of ece.second_moment")
    if stats.fingerprint != model_fingerprint:
        raise StatsError("these statistics are not of the model as this state found it; if it had "
                         "been edited, go on with the state of those edits or undo them, otherwise "
                         "compute statistics for it")  # fmt: skip
    if missing := [layer for layer in layers if layer not in stats.moments]:
        known = ", ".join(map(str, stats.moments))
        raise StatsError(f"no statistics for layer {missing[0]}, only for {known}; compute them")
