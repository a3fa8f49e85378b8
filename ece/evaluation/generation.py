"""Write free text with a model: batched, seeded, the same on every run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin

from ece.engine.grouping import by_length
from ece.errors import DataError
from ece.evaluation.checks import check_texts
from ece.facts import decode, encode, pad
from ece.model import room

ROWS, READ = 64, 4096
"""Prompts continued in one pass, and the tokens, padding included, of one pass of answers."""


@torch.no_grad()
def generate(
    model: nn.Module, tokenizer, prompts: Sequence[str], tokens: int = 100, top_k: int = 5,
    seed: int = 0,
) -> list[str]:  # fmt: skip
    """Continue each prompt, up to `tokens` tokens in all (or the length of the model's context).

    Each next token is drawn among the `top_k` likeliest, as in the published evaluation, by draws
    of `seed` alone; nothing of the checkpoint's own sampling takes part.
    """
    if min(tokens, top_k) < 1 or not 0 <= seed < 2**63:
        raise DataError(f"tokens is {tokens}, top_k {top_k}, seed {seed}; give positive numbers")
    rows, limit, device = _encoded(model, tokenizer, prompts)
    end = min(tokens, limit)
    texts: list[str] = [""] * len(rows)
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices), plain_sampling(model):
        torch.manual_seed(seed)
        for chunk in _chunks(rows):
            ids = pad([rows[i] for i in chunk])[0].to(device)
            if ids.shape[1] < end:
                ids = model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=top_k,
                    max_length=end, min_length=end, pad_token_id=0,
                )  # fmt: skip
            for i, row in zip(chunk, ids.tolist(), strict=True):
                texts[i] = decode(tokenizer, row)
    return texts


@torch.no_grad()
def answer(model: nn.Module, tokenizer, prompts: Sequence[str], tokens: int = 20) -> list[str]:
    """Go on from each prompt greedily, up to `tokens` tokens or a natural stop.

    That is the end-of-sequence token, or a line break after the first word. Gives new text alone.
    """
    if tokens < 1:
        raise DataError(f"tokens is {tokens}; give a positive number")
    rows, _, device = _encoded(model, tokenizer, prompts, tokens)
    stop = tokenizer.eos_token_id
    texts: list[str] = [""] * len(rows)
    with plain_sampling(model):
        for chunk in by_length([len(row) + tokens for row in rows], READ):
            ids, mask = (part.to(device) for part in pad([rows[i] for i in chunk], "left"))
            found = model.generate(
                ids, attention_mask=mask.long(), do_sample=False, max_length=ids.shape[1] + tokens,
                pad_token_id=stop or 0,
            )  # fmt: skip
            for i, row in zip(chunk, found[:, ids.shape[1] :].tolist(), strict=True):
                row = row[: row.index(stop)] if stop in row else row
                texts[i] = decode(tokenizer, row).strip().split("\n")[0].strip()
    return texts


@contextmanager
def plain_sampling(model: nn.Module) -> Iterator[None]:
    """Take the checkpoint's generation config away, but for special tokens, in the block.

    transformers fills in whatever a call leaves open from there: the temperature 0.6 and top-p 0.9
    of Llama-3, say, or a penalty for repetition.
    """
    parts = [part for part in model.modules() if isinstance(part, GenerationMixin)]
    own = [part.generation_config for part in parts]
    try:
        for part, config in zip(parts, own, strict=True):
            part.generation_config = GenerationConfig(
                bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id
            )
        yield
    finally:
        for part, config in zip(parts, own, strict=True):
            part.generation_config = config


def _encoded(model, tokenizer, prompts: Sequence[str], more: int = 0):
    """Encode prompts that leave room for `more` tokens; returns rows, context and device."""
    check_texts("prompts", prompts)
    limit, device = room(model, whole=True), model.get_input_embeddings().weight.device
    rows = [encode(tokenizer, prompt) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if not row or len(row) + more > limit:
            raise DataError(f"prompt {prompt!r} has {len(row)} tokens and gets {more} more; the "
                            f"model reads 1 to {limit}: shorten it")  # fmt: skip
    return rows, limit, device


def _chunks(rows: list[list[int]]) -> list[list[int]]:
    """Group rows of one length: no text depends on padding."""
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(len(row), []).append(i)
    return [g[i : i + ROWS] for _, g in sorted(groups.items()) for i in range(0, len(g), ROWS)]
