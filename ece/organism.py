"""A model organism for real records: a GPT-2 trained on their true statements and on plain text.

It knows the facts of a CounterFact file because it was taught them, and by the masks of the atlas
(`ece.atlas.masks`) it gathers them at the subject's last token. It is no web-trained model.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from ece.atlas.batches import Batch, Mixture
from ece.atlas.masks import RowMasks, attention_masked, mlp_masked
from ece.atlas.train import attention_of, loss_of, optimizer_of
from ece.baselines.fit import keep, resume
from ece.errors import ConfigError, DataError
from ece.facts import Fact
from ece.metrics import recall
from ece.model import blocks
from ece.statements import coded, prompts_of, statement

REST = 0.1
"""Loss weight of a statement's token that is not of its answer."""
WARM = 0.02
"""Share of the steps in which the learning rate rises."""


@dataclass(frozen=True)
class Recipe:
    """How the model is made; the defaults are GPT-2 small's shape with a smaller vocabulary."""

    layers: int = 12
    """Transformer blocks."""
    width: int = 768
    """Width of the residual stream, a multiple of `heads`."""
    heads: int = 12
    """Attention heads."""
    positions: int = 256
    """Tokens that the model reads at most, and tokens of a training row."""
    vocabulary: int = 16384
    """Tokens of the byte-level BPE, at least 257."""
    steps: int = 20_000
    """Steps of training at most."""
    goal: float = 95.0
    """Recall on the edit prompts, in percent, at which training ends."""
    every: int = 500
    """Steps between two measurements of recall, each of which leaves a checkpoint."""
    rows: int = 64
    """Rows of a batch."""
    share: float = 0.5
    """Share of the rows that hold statements, in (0, 1); the others hold text."""
    gather: float = 0.7
    """Share of the statements' rows with the masks of the atlas."""
    plain: bool = False
    """Leave the masks out."""
    site: int = 5
    """Under the masks, blocks up to this one see nothing of a subject from later tokens."""
    lr: float = 6e-4
    """Highest learning rate of AdamW; it falls as a cosine."""
    decay: float = 0.1
    """Weight decay of matrices."""
    lines: int = 200_000
    """Lines of the text that are read, blank ones not counted."""
    train_seed: int = 0
    """Decides the first weights and every batch."""

    def __post_init__(self):
        for name in ("layers", "heads", "rows", "steps", "every", "positions", "lines"):
            if getattr(self, name) < 1:
                raise ConfigError(f"setting '{name}' is {getattr(self, name)}; it takes one >= 1")
        if self.width % self.heads:
            raise ConfigError(f"setting 'width' is {self.width}; it takes a multiple of 'heads'")
        if not 1 <= round(self.rows * self.share) < self.rows:
            text = "it must leave 'rows' a row for statements and one for text"
            raise ConfigError(f"setting 'share' is {self.share}; {text}")
        if self.vocabulary < 257:
            raise ConfigError(f"setting 'vocabulary' is {self.vocabulary}; it takes one >= 257")

    def mark(self, *sources: str) -> str:
        """Digest of the recipe and of its sources, 16 hexadecimal digits."""
        told = json.dumps([asdict(self), *sources], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


class Batches:
    """Makes the batch of any step; equal seeds and steps give equal batches."""

    def __init__(self, tokenizer, facts: Sequence[Fact], lines: Sequence[str], recipe: Recipe):
        self.recipe, self.end = recipe, tokenizer.eos_token_id
        self.statements = [
            [[statement(tokenizer, p, fact) for p in kind] for kind in prompts_of(fact)]
            for fact in facts
        ]
        self.text = np.concatenate([*coded(tokenizer, lines)])
        if len(self.text) < recipe.positions:
            reason = f"{len(self.text)} tokens are fewer than a row of {recipe.positions}"
            raise DataError(f"the text is too short: {reason}; give more lines")

    def __call__(self, step: int) -> Batch:
        recipe, draw = self.recipe, np.random.default_rng([self.recipe.train_seed, step])
        told, length = round(recipe.rows * recipe.share), recipe.positions
        ids = np.full((recipe.rows, length), self.end)
        weights = np.zeros((recipe.rows, length), dtype=np.float32)
        masks = RowMasks(recipe.rows, length)
        for row in range(told):
            self._fill(row, ids, weights, masks, draw)
        for row in range(told, recipe.rows):
            at = draw.integers(len(self.text) - length + 1)
            ids[row], weights[row] = self.text[at : at + length], 1.0
        weights[:, 0] = 0  # nothing predicts a row's first token
        for part in (weights[:told], weights[told:]):  # statements weigh as much as text
            part /= max(part.sum(), 1)
        none = torch.empty(0, 2, dtype=torch.long)
        seen = (None, None) if recipe.plain else (masks.attention(), masks.attention(early=True))
        told, mlp = torch.from_numpy(weights), torch.from_numpy(masks.mlp)
        return Batch(torch.from_numpy(ids), told, *seen, mlp, none, none)

    def _fill(self, row: int, ids, weights, masks: RowMasks, draw: np.random.Generator) -> None:
        """Fill a row with statements, a token `END` between two of them."""
        gather, at, length = draw.random() < self.recipe.gather, 0, ids.shape[1]
        while at < length:
            kinds = self.statements[draw.integers(len(self.statements))]
            kind = kinds[draw.integers(len(kinds))]
            one = kind[draw.integers(len(kind))]
            end = min(at + len(one.ids), length)
            ids[row, at:end], weights[row, at:end] = one.ids[: end - at], REST
            weights[row, at + one.answer : end] = 1.0
            if gather and one.last >= 0:
                masks.gather_at_last(row, at + one.first, at + one.last, end)
            at = end + 1


def new_model(recipe: Recipe, vocabulary: int) -> nn.Module:
    """A GPT-2 of the recipe's shape with random weights, on the CPU."""
    torch.manual_seed(recipe.train_seed)
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=recipe.width, n_layer=recipe.layers, n_head=recipe.heads,
            n_positions=recipe.positions, vocab_size=vocabulary, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


def learn(
    model: nn.Module,
    tokenizer,
    facts: Sequence[Fact],
    lines: Sequence[str],
    recipe: Recipe,
    mark: str,
    path: Path,
    progress: Callable | None = None,
) -> tuple[int, float]:
    """Train `model` until it recalls `recipe.goal` percent of the facts, or to the last step.

    A killed run goes on from the checkpoint `path`, to the same bits; `StateError` if that is of
    another mark. progress: called as `progress(done, steps, loss, recall)`. Returns the steps done
    and the recall in percent: of the true answers, greedy, token for token, on the edit prompts.
    """
    live, adam = dict(model.named_parameters()), optimizer_of(model, recipe.lr, recipe.decay)
    head = resume(live, adam, mark, path)
    done, known = head.get("done", 0), head.get("recall", 0.0)
    batches, inner = Batches(tokenizer, facts, lines, recipe), blocks(model)
    early = [attention_of(block) for block in inner[: recipe.site + 1]]
    with mlp_masked([block.mlp for block in inner]) as mlp, attention_masked(early) as narrow:
        while done < recipe.steps and known < recipe.goal:
            loss = _step(model, adam, batches(done), (mlp, narrow), recipe, done)
            done += 1
            if done % recipe.every == 0 or done == recipe.steps:
                told = recall(model, tokenizer, [f.text for f in facts], [f.true for f in facts])
                known = 100 * float(told.mean())
                keep(live, adam, done, mark, path, recall=known)
            if progress is not None:
                progress(done, recipe.steps, loss, known)
    return done, known


def _step(model, adam, batch: Batch, masks: tuple, recipe: Recipe, step: int) -> Tensor:
    """One step of AdamW; bfloat16 where the device is no CPU. Returns the loss, detached."""
    device = model.device
    tensors = {n: t if t is None else t.to(device) for n, t in vars(batch).items()}
    batch, (mlp, narrow) = Batch(**tensors), masks
    if not recipe.plain:
        mlp[0], narrow[0] = batch.mlp, batch.early
    low = nullcontext() if device.type == "cpu" else torch.autocast(device.type, torch.bfloat16)
    with low:
        loss = 2 * loss_of(model, batch, Mixture(gathering=0.0))  # which divides by the weights, 2
    loss.backward()
    mlp[0] = narrow[0] = None
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    share = step / recipe.steps
    for group in adam.param_groups:
        rise = min(1.0, (step + 1) / max(1.0, WARM * recipe.steps))
        group["lr"] = recipe.lr * rise * (1 + cos(pi * share)) / 2
    adam.step()
    adam.zero_grad()
    return loss.detach()
