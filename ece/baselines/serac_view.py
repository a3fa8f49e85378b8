"""What SERAC lets be asked: base model, memory, scope classifier and counterfactual model."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import ModelOutput

from ece.baselines import serac_answer, serac_scope
from ece.baselines.base import Task, Weights
from ece.facts import Fact, encode, pad


class View(nn.Module):
    """Stands in for the base model, whose weights it leaves alone.

    Each row is compared with every edit. Where the likeliest edit passes the threshold, the
    counterfactual model reads that edit and the row and answers; elsewhere the base model does,
    as if there were no memory. A row is judged by its tokens up to the first whose logits are
    kept: this is the question, so all answers that are scored for it are routed alike.
    """

    def __init__(self, task: Task, facts: list[Fact]):
        super().__init__()
        self.task, self.base, self.config = task, task.model, task.model.config
        last = {fact.text: fact for fact in facts}  # a later edit of the same prompt holds
        self.entries = [serac_answer.entry(task.tokenizer, fact) for fact in last.values()]
        self.scope = part(task.trained, "scope")
        self.answerer = serac_answer.network(task)
        self.answerer.load_state_dict(part(task.trained, "counterfactual"), strict=False)
        if last:
            rows = [encode(task.tokenizer, serac_scope.statement(fact)) for fact in last.values()]
            self.memory = serac_scope.embed(task, self.scope, rows)

    @property
    def device(self) -> torch.device:
        """Where the base model takes its tokens."""
        return self.base.device

    def get_input_embeddings(self) -> nn.Module:
        """The base model's."""
        return self.base.get_input_embeddings()

    def route(self, rows: list[list[int]]) -> Int[Tensor, " row"]:
        """Per row of tokens the number of the edit that it asks for; -1: none."""
        if not self.entries:
            return torch.full((len(rows),), -1, device=self.device)
        vectors = serac_scope.embed(self.task, self.scope, rows)
        best, entry = serac_scope.logits(self.scope, self.memory, vectors).max(0)
        return entry.where(best.sigmoid() > self.task.numbers.threshold, -1)

    def forward(
        self,
        input_ids: Int[Tensor, "row token"],
        attention_mask: Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int | Bool[Tensor, "row token"] = 0,
    ) -> ModelOutput:
        """Logits `[kept, vocab]` for a mask of the tokens to keep, else `[row, token, vocab]`.

        Rows are padded on the right. logits_to_keep: as in transformers; a number keeps that many
        last tokens, 0 keeps all. Nothing is cached.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask, whole = mask.bool(), isinstance(logits_to_keep, int)
        keep = torch.zeros_like(mask) if whole else logits_to_keep
        if whole:
            keep[:, -logits_to_keep:] = True
        ends = mask.sum(1) if whole else keep.int().argmax(1) + 1
        rows = [row[:end] for row, end in zip(input_ids.tolist(), ends.tolist(), strict=True)]
        entry = self.route(rows)
        if (entry < 0).all():
            return self.base(
                input_ids=input_ids,
                attention_mask=attention_mask,
                use_cache=False,
                logits_to_keep=logits_to_keep,
            )
        logits = self._logits(input_ids, mask, keep, entry)
        return CausalLMOutput(logits=logits.unflatten(0, (len(keep), -1)) if whole else logits)

    def _logits(self, ids, mask, keep, entry) -> Tensor:
        """Logits at the kept tokens, of the base model or of the counterfactual one by row."""
        inside = entry >= 0
        owner = inside[keep.nonzero()[:, 0]]
        said = self._answers(ids[inside], mask[inside], keep[inside], entry[inside])
        logits = said.new_empty(len(owner), said.shape[-1])
        logits[owner] = said
        if not inside.all():
            logits[~owner] = self.base(
                input_ids=ids[~inside],
                attention_mask=mask[~inside],
                use_cache=False,
                logits_to_keep=keep[~inside],
            ).logits.to(said)
        return logits

    def _answers(self, ids, mask, keep, entry) -> Tensor:
        """Logits of the counterfactual model at the kept tokens, each row after its edit."""
        edits = [self.entries[i] for i in entry.tolist()]
        rows = [[*edit, *row] for edit, row in zip(edits, ids.tolist(), strict=True)]
        both, there = (tensor.to(ids.device) for tensor in pad(rows))
        kept = torch.zeros_like(there)
        for i, edit in enumerate(edits):
            kept[i, len(edit) : len(rows[i])] = keep[i]
            there[i, len(edit) : len(rows[i])] = mask[i]
        return self.answerer(
            input_ids=both, attention_mask=there, use_cache=False, logits_to_keep=kept
        ).logits

    @torch.no_grad()
    def generate(self, ids: Int[Tensor, "row token"], max_length: int, **options) -> Tensor:
        """Texts up to `max_length` tokens; a row's scope is decided once, by its prompt.

        ids: prompts of one length, without padding. The base model goes on with all of them, so
        that what it writes out of scope is bit for bit its own.
        """
        texts = self.base.generate(ids, max_length=max_length, **options)
        entry = self.route(ids.tolist())
        inside = entry >= 0
        if inside.any():
            edits = [self.entries[i] for i in entry[inside].tolist()]
            rows = [[*e, *row] for e, row in zip(edits, ids[inside].tolist(), strict=True)]
            texts = texts.clone()
            texts[inside, ids.shape[1] :] = self._continue(rows, max_length - ids.shape[1], options)
        return texts

    def _continue(self, rows: list[list[int]], count: int, options) -> Int[Tensor, "row token"]:
        """`count` new tokens per row, drawn without a trace on the global random numbers."""
        ids, mask = (tensor.to(self.device) for tensor in pad(rows, "left"))
        options = {k: v for k, v in options.items() if k not in ("attention_mask", "min_length")}
        with torch.random.fork_rng([] if ids.device.type == "cpu" else [ids.device]):
            out = self.answerer.generate(ids, attention_mask=mask, max_new_tokens=count, **options)
        return out[:, ids.shape[1] :]


def part(weights: Weights, name: str) -> Weights:
    """The tensors under prefix `name`, without it."""
    return {
        key.removeprefix(f"{name}."): value
        for key, value in weights.items()
        if key.startswith(f"{name}.")
    }
