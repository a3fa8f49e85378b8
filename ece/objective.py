"""The loss of a value, taken literally: the whole model over all tokens, one fact at a time.

`ece.engine` is the fast drop-in: the same two functions, equal to these in values and gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import kl_div

from ece.config import Config
from ece.facts import Fact, locate, locate_all, pad, target_ids
from ece.hooks import add_at, capture, gain, in_projection_units, states_at
from ece.model import Site, sites

ESSENCE = "{} is a"  # the prompt after which the distribution should stay as it was


@dataclass(frozen=True)
class Objective:
    """The facts of a call, ready for descent on values that enter after `layer`."""

    layer: int
    """The layer after which values enter."""
    parts: list
    """Facts measured together. Each part has `facts` (their numbers), `losses(value)` and
    `take(places)`; see `Whole`."""
    hidden: Float[Tensor, "edit model"]
    """$h$: the state after `layer` (see `measured`) at the bare prompt's subject-last token."""
    keys: Float[Tensor, "edit ff"]
    """Keys at `layer` (`mix`)."""
    nll: Float[Tensor, " edit"]
    """NLL of the targets before any change (nats per token, mean over contexts)."""
    holds: Bool[Tensor, " edit"]
    """Whether the bare prompt already goes on with the target."""
    start: Float[Tensor, "edit model"] | None = None
    """Where the descent begins, if something is known of it (`ece.learned_start`)."""
    merge: Callable[[list], list] = list
    """Puts small parts together, where that is faster."""
    share: Callable[[list], list] = list
    """Gives the parts that this process measures; all, if it is alone (`ece.engine.parallel`)."""
    total: Callable[[Tensor], Tensor] = torch.clone
    """Adds up what all processes found."""

    def take(self, facts: Int[Tensor, " some"]) -> "Objective":
        """Keep some facts, in the order given."""
        place = torch.full((len(self.hidden),), -1, device=facts.device)
        place[facts] = torch.arange(len(facts), device=facts.device)
        parts = []
        for part in self.parts:
            at = (place[part.facts] >= 0).nonzero()[:, 0]
            if len(at):
                part = part.take(at)
                parts.append(replace(part, facts=place[part.facts]))
        columns = {name: getattr(self, name)[facts] for name in ("hidden", "keys", "nll", "holds")}
        return replace(self, parts=parts, start=None, **columns)


@dataclass(frozen=True)
class Whole:
    """One fact's loss (Eq 11-12): a row per context with its target, the essence prompt last."""

    model: nn.Module
    site: Site
    facts: Int[Tensor, " 1"]
    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]
    at: Int[Tensor, " row"]
    """The subject's last token, where the value is added."""
    first: list[int]
    """Per context, the token that predicts the target's first."""
    target: list[int]
    usual: Float[Tensor, " vocab"] | None = None
    """Log-probabilities after the essence prompt before any change."""

    def log_probs(self, value: Float[Tensor, "1 model"]) -> Float[Tensor, "row token vocab"]:
        """Log-probabilities everywhere, with the value added at the subject's last token."""
        with add_at(self.site, self.at, value.expand(len(self.at), -1)):
            out = self.model(input_ids=self.ids, attention_mask=self.mask, use_cache=False)
        return out.logits.float().log_softmax(-1)

    def essence(self, log_p: Float[Tensor, "row token vocab"]) -> Float[Tensor, " vocab"]:
        """Log-probabilities after the essence prompt."""
        return log_p[-1, int(self.mask[-1].sum()) - 1]

    def nll(self, log_p: Float[Tensor, "row token vocab"]) -> Float[Tensor, ""]:
        """Mean over contexts of the target's NLL per token."""
        rows = [-sum(log_p[i, first + j, token] for j, token in enumerate(self.target))
                for i, first in enumerate(self.first)]  # fmt: skip
        return sum(rows) / len(rows) / len(self.target)

    def losses(self, value: Float[Tensor, "1 model"]) -> tuple[Tensor, Tensor]:
        """Compute per fact the NLL of the target and the KL divergence after the essence prompt."""
        log_p = self.log_probs(value)
        kl = kl_div(self.usual, self.essence(log_p), log_target=True, reduction="sum")
        return self.nll(log_p)[None], kl[None]

    def take(self, places: Int[Tensor, " some"]) -> "Whole":
        """Return the part itself: it holds one fact."""
        return self


def prepare(
    model: nn.Module, tokenizer, facts: list[Fact], templates: tuple[str, ...], config: Config,
    layer: int,
) -> Objective:  # fmt: skip
    """Make the objective of `facts` under all templates; see `Objective`."""
    parts = [whole(model, tokenizer, fact, i, templates, layer) for i, fact in enumerate(facts)]
    rows = reader(model, tokenizer, facts, templates, config.max_tokens)
    keys, hidden, _ = rows.read(layer, layer)
    before, made, holds = [], [], []
    with torch.no_grad():
        for part in parts:
            log_p = part.log_probs(torch.zeros_like(hidden[:1]))
            before.append(part.nll(log_p))
            made.append(replace(part, usual=part.essence(log_p)))
            best = log_p[0, part.first[0] :].argmax(-1)[: len(part.target)]
            holds.append(best.tolist() == part.target)
    stated = torch.tensor(holds, device=hidden.device)
    return Objective(layer, made, hidden, mix(keys), torch.stack(before), stated)


def whole(model, tokenizer, fact: Fact, number: int, templates, layer: int) -> Whole:
    """Make the rows of one fact, on the model's device, without its usual log-probabilities."""
    device, target = model.get_input_embeddings().weight.device, target_ids(tokenizer, fact.target)
    placed = [locate(tokenizer, t.replace("{}", fact.prompt), fact.subject) for t in templates]
    essence, end = locate(tokenizer, ESSENCE, fact.subject)
    ids, mask = pad([ids + target for ids, _ in placed] + [essence])
    at = torch.tensor([at for _, at in placed] + [end], device=device)
    first, site = [len(ids) - 1 for ids, _ in placed], sites(model, (layer,))[0]
    some = torch.tensor([number], device=device)
    return Whole(model, site, some, ids.to(device), mask.long().to(device), at, first, target)


def subject_rows(tokenizer, facts: list[Fact], templates: tuple[str, ...]) -> list[list[int]]:
    """Encode up to the subject's last token, fact by fact, template by template.

    What follows cannot change the key there (causality), so it is not run.
    """
    pairs = [(t.replace("{}", fact.prompt), fact.subject) for fact in facts for t in templates]
    return [ids[: last + 1] for ids, last in locate_all(tokenizer, pairs)]


def mix(keys: Float[Tensor, "edit context ff"]) -> Float[Tensor, "edit ff"]:
    """Mix one key per fact (Eq 3): half the bare prompt's (context 0), half the others' mean."""
    return keys[:, 0] if keys.shape[1] == 1 else keys[:, 0] / 2 + keys[:, 1:].mean(1) / 2


@dataclass(frozen=True)
class Reader:
    """Reads keys and states at the subjects' last tokens, layer by layer, as the model is now."""

    model: nn.Module
    rows: list[list[int]]
    edits: int

    @torch.no_grad()
    def read(self, layer: int, at: int) -> tuple[Tensor, Tensor, "Reader"]:
        """Keys `[edit, context, ff]` at `layer`, bare prompts' `measured` states after `at`.

        Layers are read in increasing order; the third part reads the next of them.
        """
        last = torch.tensor([len(row) - 1 for row in self.rows])
        every = torch.arange(len(self.rows))
        with capture(here := sites(self.model, (layer,))) as found:
            states = states_at(self.model, self.rows, at)
        keys = found[layer][every, last].unflatten(0, (self.edits, -1))
        states = states[every, last].unflatten(0, (self.edits, -1))[:, 0]
        return keys, in_projection_units(here[0], gain(self.model, layer), keys[:, 0], states), self

    def after(self, change: Float[Tensor, "model ff"]) -> "Reader":
        """Go on once `change` was added to the layer just read: the model itself knows."""
        return self


def reader(
    model: nn.Module, tokenizer, facts: list[Fact], templates: tuple[str, ...], max_tokens: int
) -> Reader:
    """Make the reader of the facts' keys and states; see `Reader`."""
    return Reader(model, subject_rows(tokenizer, facts, templates), len(facts))
