"""The loss of values for a chunk of facts: NLL of the target and KL after the essence prompt."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import kl_div, pad
from transformers.modeling_outputs import BaseModelOutput

from ece.engine.suffix import Upper, stacked
from ece.model import structure


@dataclass(frozen=True)
class Chunk:
    """Facts measured together."""

    facts: Int[Tensor, " edit"]
    """Which facts of the problem these are."""
    upper: Upper
    """The rows of their contexts, fact by fact."""
    essence: Upper
    """A row per fact; these are short, and beside the contexts' rows they would be padding."""
    head: Callable[[Tensor], Tensor]
    """The way from final states to logits (`head_of`)."""
    where: Int[Tensor, "edit context place"]
    """Tokens (counted from the subject's last) that predict the target's tokens."""
    targets: Int[Tensor, "edit place"]
    """The target's ids; short targets are filled up, with share 0."""
    share: Float[Tensor, "edit place"]
    """One over the target's length on its tokens, so that NLL is per token."""
    end: Int[Tensor, " edit"]
    """The last token of the essence row."""
    usual: Float[Tensor, "edit vocab"] | None = None
    """Log-probabilities there before the edit."""

    @cached_property
    def real(self) -> Int[Tensor, " real"]:
        """The places that targets fill, counted through `where`."""
        return (self.share > 0)[:, None].expand(self.where.shape).flatten().nonzero()[:, 0]

    @cached_property
    def wanted(self) -> Int[Tensor, " real"]:
        """The ids of the tokens there."""
        return self.targets[:, None].expand(self.where.shape).flatten()[self.real]

    def losses(
        self, value: Float[Tensor, "edit model"]
    ) -> tuple[Float[Tensor, " edit"], Float[Tensor, " edit"]]:
        """Compute per fact the NLL of the target and the KL divergence after the essence prompt."""
        targets, essence = log_probs(self, value)
        kl = kl_div(self.usual, essence, reduction="none", log_target=True).sum(1)
        return nll_of(self, targets), kl

    def take(self, keep: Int[Tensor, " some"]) -> "Chunk":
        """Keep some of the facts (places in the chunk)."""
        each = self.where.shape[1]
        rows = (keep[:, None] * each + torch.arange(each, device=keep.device)).flatten()
        fields = ("facts", "where", "targets", "share", "end", "usual")
        columns = {name: getattr(self, name)[keep] for name in fields}
        uppers = dict(upper=self.upper.take(rows), essence=self.essence.take(keep))
        return replace(self, **uppers, **columns)


def merged(chunks: list[Chunk], most: int) -> list[Chunk]:
    """Join small neighbours, as long as the whole holds no more than `most` tokens.

    A few facts by themselves leave a device idle: anchors, or those that are not done yet.
    """
    groups: list[list[Chunk]] = []
    for chunk in chunks:
        both = [*groups[-1], chunk] if groups else []
        rows = sum(len(part.upper.mask) for part in both)
        if both and rows * max(part.upper.mask.shape[-1] for part in both) <= most:
            groups[-1] = both
        else:
            groups.append([chunk])
    return [group[0] if len(group) == 1 else _joined(group) for group in groups]


def _joined(chunks: list[Chunk]) -> Chunk:
    """Join chunks; targets are filled up to the longest, with share 0."""
    width = max(chunk.targets.shape[1] for chunk in chunks)

    def column(name: str) -> Tensor:
        parts = [getattr(chunk, name) for chunk in chunks]
        if name in ("where", "targets", "share"):
            parts = [pad(part, (0, width - part.shape[-1])) for part in parts]
        return torch.cat(parts)

    fields = ("facts", "where", "targets", "share", "end", "usual")
    uppers = {name: stacked([getattr(chunk, name) for chunk in chunks])
              for name in ("upper", "essence")}  # fmt: skip
    return replace(chunks[0], **uppers, **{name: column(name) for name in fields})


def log_probs(
    chunk: Chunk, total: Float[Tensor, "edit model"]
) -> tuple[Float[Tensor, "real vocab"], Float[Tensor, "edit vocab"]]:
    """Compute log-probabilities at the target's places and at the essence's end, values added.

    The LM head runs at these places only, and what the model does behind it.
    """
    edits, contexts, places = chunk.where.shape
    states = chunk.upper.run(total.repeat_interleave(contexts, 0))
    target = states[chunk.real // places, chunk.where.flatten()[chunk.real]]
    essence = chunk.essence.run(total)[torch.arange(edits, device=states.device), chunk.end]
    logits = (chunk.head(part).float() for part in (target, essence))
    return tuple(part.log_softmax(-1).to(states.device) for part in logits)


class _Done(BaseModelOutput):
    """What the base model gives where its final states are there already: no more than these."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@torch.no_grad()
def head_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Find the way from final states to logits: the LM head, or `logits` where there is more."""
    head, draw = model.get_output_embeddings(), torch.Generator().manual_seed(0)
    # Long states, for a scale or a cap on the logits to show in any number format.
    probe = 64 * torch.randn(2, head.weight.shape[-1], generator=draw).to(head.weight)
    more = partial(logits, model)
    return head if torch.equal(head(probe).float(), more(probe).float()) else more


def logits(model: nn.Module, states: Float[Tensor, "*place d"]) -> Float[Tensor, "*place vocab"]:
    """Turn final states into logits as the model does: by its head, and what comes behind it."""
    base, flat = model.get_submodule(structure(model).base), states.flatten(0, -2)[None]
    own = {n: f for n, f in vars(base).items() if n == "forward"}  # of a model on several devices
    try:
        base.forward = lambda *_, **__: _Done(last_hidden_state=flat)
        return model(inputs_embeds=flat, use_cache=False).logits[0].unflatten(0, states.shape[:-1])
    finally:
        del base.forward
        vars(base).update(own)


def nll_of(chunk: Chunk, log_p: Float[Tensor, "real vocab"]) -> Float[Tensor, " edit"]:
    """Compute the mean over contexts of the targets' NLL per token."""
    picked = log_p.gather(1, chunk.wanted[:, None])[:, 0]
    return -(_placed(chunk, picked) * chunk.share[:, None]).sum(2).mean(1)


def likeliest(chunk: Chunk, log_p: Float[Tensor, "real vocab"]) -> Bool[Tensor, "edit context"]:
    """Say per context whether every target token is the likeliest."""
    return ~_placed(chunk, log_p.argmax(-1) != chunk.wanted).any(2)


def _placed(chunk: Chunk, found: Shaped[Tensor, " real"]) -> Shaped[Tensor, "edit context place"]:
    """Put what was found at the real places where it belongs, zeros elsewhere."""
    grid = found.new_zeros(chunk.where.numel())
    return grid.scatter(0, chunk.real, found).view(chunk.where.shape)
