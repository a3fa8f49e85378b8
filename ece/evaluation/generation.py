"""Free text from a model: batched, seeded, the same on every run."""

from collections.abc import Sequence

import torch
from torch import nn

from ece.facts import decode, encode, pad

ROWS = 64
"""Prompts that are continued together."""


@torch.inference_mode()
def generate(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[str],
    tokens: int = 100,
    top_k: int = 5,
    seed: int = 0,
) -> list[str]:
    """Each prompt with its continuation, up to `tokens` tokens in all (or the model's room).

    Every next token is drawn among the `top_k` likeliest, as in the published evaluation. The
    draws are seeded by `seed` and leave the global generator as it was; transformers keeps the
    keys and values.
    """
    room = min(tokens, getattr(model.config, "max_position_embeddings", tokens))
    device = model.get_input_embeddings().weight.device
    rows = [encode(tokenizer, prompt) for prompt in prompts]
    texts: list[str] = [""] * len(rows)
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for chunk in _chunks(rows):
            ids = pad([rows[i] for i in chunk])[0].to(device)
            if ids.shape[1] < room:
                ids = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    top_k=top_k,
                    max_length=room,
                    min_length=room,
                    pad_token_id=0,
                )
            for i, row in zip(chunk, ids.tolist(), strict=True):
                texts[i] = decode(tokenizer, row)
    return texts


def _chunks(rows: list[list[int]]) -> list[list[int]]:
    """Rows of one length together: no text depends on padding."""
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(len(row), []).append(i)
    return [g[i : i + ROWS] for _, g in sorted(groups.items()) for i in range(0, len(g), ROWS)]
