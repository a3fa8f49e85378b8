"""A model with a memory of edits before it: what is in an edit's scope is answered from there."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import ModelOutput

from ece.errors import DataError
from ece.facts import pad as pad_rows
from ece.model import room

Scope = Callable[[list[list[int]]], Int[Tensor, " row"]]
"""Finds the number of the edit that each row of tokens needs; -1: none."""


class Span(NamedTuple):
    """Adjacent tokens of a row whose logits are wanted, and come from one model."""

    row: int
    first: int
    end: int
    """The token after the last."""
    judged: int
    """How many of the row's tokens decide about scope."""


class View(nn.Module):
    """Stands in for the base model, whose weights it leaves alone.

    Where the scope finds an edit for a text, the answerer reads that edit and the row and answers;
    elsewhere the base model does, as if there were no memory. Where a mask says whose logits to
    give, each run of such tokens is an answer and the tokens up to its first the question that is
    judged: all answers scored for a question are routed alike, and a row may hold a question that
    another one goes on from.
    """

    def __init__(
        self, base: nn.Module, answerer: nn.Module, entries: Sequence[Sequence[int]], scope: Scope,
        cut: int = 0,
    ):  # fmt: skip
        """Take the models, the tokens of each edit, and what finds the edit that a row needs.

        cut: tokens at the beginning of a row that the answerer does not read after an edit.
        """
        super().__init__()
        self.training = base.training
        self.base, self.answerer, self.config = base, answerer, base.config
        self.entries, self.scope, self.cut = entries, scope, cut

    @property
    def device(self) -> torch.device:
        """Where the base model takes its tokens."""
        return self.base.device

    def get_input_embeddings(self) -> nn.Module:
        """Give the base model's."""
        return self.base.get_input_embeddings()

    def route(self, rows: list[list[int]]) -> Int[Tensor, " row"]:
        """Find the number of the edit that each row of tokens needs; -1: none."""
        return self.scope(rows) if self.entries else torch.full((len(rows),), -1)

    def forward(
        self, input_ids: Int[Tensor, "row token"], attention_mask: Tensor | None = None,
        use_cache: bool = False, logits_to_keep: int | Bool[Tensor, "row token"] = 0,
    ) -> ModelOutput:  # fmt: skip
        """Give logits `[read, vocab]` for a mask of tokens, else `[row, token, vocab]`.

        Rows are padded on the right. logits_to_keep: as in transformers; a number keeps that many
        last tokens, 0 keeps all. Nothing is cached.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        keep, whole = logits_to_keep, isinstance(logits_to_keep, int)
        if isinstance(keep, int):
            keep = torch.zeros_like(mask, dtype=torch.bool)
            keep[:, -logits_to_keep:] = True
        spans = _spans(keep, mask.sum(1) if whole else None)
        rows = input_ids.tolist()
        edits = self.route([rows[span.row][: span.judged] for span in spans]).tolist()
        if max(edits) < 0:
            return self.base(input_ids=input_ids, attention_mask=attention_mask,
                             use_cache=False, logits_to_keep=logits_to_keep)  # fmt: skip
        logits = self._logits(input_ids, mask, keep, spans, edits)
        return CausalLMOutput(logits=logits.unflatten(0, (len(keep), -1)) if whole else logits)

    def _logits(self, ids, mask, keep, spans: list[Span], edits: list[int]) -> Tensor:
        """Give logits at the tokens of `keep`: the answerer's in spans with an edit."""
        inside = torch.zeros_like(keep)
        found = [(span, edit) for span, edit in zip(spans, edits, strict=True) if edit >= 0]
        for span, _ in found:
            inside[span.row, span.first : span.end] = True
        answers = self._answers(ids.tolist(), found)
        logits = answers.new_empty(int(keep.sum()), answers.shape[-1])
        logits[inside[keep]] = answers
        outside = keep & ~inside
        rows = outside.any(1)
        if rows.any():
            plain = self.base(input_ids=ids[rows], attention_mask=mask[rows], use_cache=False,
                              logits_to_keep=outside[rows])  # fmt: skip
            logits[outside[keep]] = plain.logits.to(answers)
        return logits

    def _answers(self, rows: list[list[int]], found: list[tuple[Span, int]]) -> Tensor:
        """Give the answerer's logits in spans, each after the edit it needs."""
        whole = [[*self.entries[e], *rows[span.row][self.cut : span.end]] for span, e in found]
        self._fits(whole)
        ids, mask = (tensor.to(self.device) for tensor in pad_rows(whole))
        keep = torch.zeros_like(mask)
        for i, (row, (span, _)) in enumerate(zip(whole, found, strict=True)):
            keep[i, len(row) - (span.end - span.first) : len(row)] = True
        inputs = dict(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep)
        return self.answerer(**inputs).logits

    def _fits(self, rows: list[list[int]], more: int = 0) -> None:
        """Raise `DataError` for a prompt that is too long once its edit stands before it."""
        size, most = max(map(len, rows)) + more, room(self.answerer)
        if size > most:
            raise DataError(f"a prompt with the edit before it and its answer takes {size} tokens, "
                            f"the model reads {most}; shorten the prompt")  # fmt: skip

    @torch.no_grad()
    def generate(self, ids: Int[Tensor, "row token"], max_length: int, **options) -> Tensor:
        """Write texts up to `max_length` tokens; a row's scope is decided once, by its prompt.

        ids: prompts, padded on the left where the mask among `options` says so. The base model
        goes on with all of them, so that what it writes out of scope is bit for bit its own.
        """
        texts = self.base.generate(ids, max_length=max_length, **options)
        real = options.get("attention_mask", torch.ones_like(ids)).bool()
        given = [row[own].tolist() for row, own in zip(ids, real, strict=True)]
        entry = self.route(given).to(ids.device)
        inside = entry >= 0
        if inside.any():
            chosen = [(i, row) for i, row in zip(entry.tolist(), given, strict=True) if i >= 0]
            rows = [[*self.entries[i], *row[self.cut :]] for i, row in chosen]
            self._fits(rows, max_length - ids.shape[1])
            new = self._continue(rows, max_length - ids.shape[1], options)
            parts = [texts, torch.cat([ids[inside], new], 1)]  # either may have stopped early
            width, filler = max(part.shape[1] for part in parts), options.get("pad_token_id", 0)
            texts, own = (pad(part, (0, width - part.shape[1]), value=filler) for part in parts)
            texts[inside] = own
        return texts

    def _continue(self, rows: list[list[int]], count: int, options) -> Int[Tensor, "row token"]:
        """Draw `count` new tokens per row; the caller's random numbers stay as they were."""
        ids, mask = (tensor.to(self.device) for tensor in pad_rows(rows, "left"))
        options = {k: v for k, v in options.items() if k not in ("attention_mask", "min_length")}
        with torch.random.fork_rng([] if ids.device.type == "cpu" else [ids.device]):
            out = self.answerer.generate(ids, attention_mask=mask, max_new_tokens=count, **options)
        return out[:, ids.shape[1] :]


def _spans(keep: Bool[Tensor, "row token"], ends: Tensor | None) -> list[Span]:
    """List runs of adjacent tokens of `keep`, judged by what ends at their first token.

    With `ends` (tokens per row) each row is one span, judged as a whole.
    """
    edge = keep.new_zeros(len(keep), 1)
    starts = (keep & ~torch.cat([edge, keep[:, :-1]], 1)).nonzero().tolist()
    lasts = (keep & ~torch.cat([keep[:, 1:], edge], 1)).nonzero().tolist()
    return [
        Span(row, first, last + 1, first + 1 if ends is None else int(ends[row]))
        for (row, first), (_, last) in zip(starts, lasts, strict=True)
    ]
