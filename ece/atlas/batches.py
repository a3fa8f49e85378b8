"""Make training batches: rows packed from documents, each step seeded by its number."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ece.atlas.masks import RowMasks
from ece.atlas.tasks import training_item, training_piece
from ece.atlas.text import Piece, document
from ece.atlas.world import World


@dataclass(frozen=True)
class Encoded:
    """Holds a piece as tokens: the subject is first..last (last < 0: none)."""

    ids: np.ndarray
    weights: np.ndarray
    first: int
    last: int


@dataclass(frozen=True)
class Batch:
    """Holds the tensors of one training step."""

    ids: Int[Tensor, "row token"]
    weights: Float[Tensor, "row token"]
    attention: Float[Tensor, "row 1 token token"]
    early: Float[Tensor, "row 1 token token"]
    mlp: Bool[Tensor, "row token"]
    subjects: Tensor
    """[mention, 2]: row and place of each subject's last token."""
    attributes: Tensor
    """[mention, slot]: the tokens of that subject's objects, -1 where it has fewer."""


@dataclass(frozen=True)
class Mixture:
    """Says what a batch is made of."""

    rows: int = 16
    """rows of a batch"""
    length: int = 64
    """tokens of a row"""
    tasks: float = 0.35
    """share of rows' documents that are task items"""
    gather: float = 0.7
    """share of rows in which the subject's last token is the only way to the subject"""
    isolate: float = 0.5
    """share of rows in which a subject reads nothing before itself"""
    other: float = 0.2
    """share of the other tokens that carry loss"""
    gathering: float = 0.5
    """weight of the loss that asks the subject's last token for all its objects"""
    site: int = 2
    """the block after which that loss looks: the end of the storage site"""
    late: bool = True
    """whether in `gather` rows the blocks up to `site` see nothing of the subject from later
    tokens, so that all reading comes after it"""
    weight: float = 0.5
    """loss weight of a token that is not an answer"""


class Batches:
    """Makes the batch of any step; equal seeds and steps give equal batches."""

    def __init__(
        self, world: World, tokenizer: PreTrainedTokenizerFast, mixture: Mixture, seed: int
    ):
        self.world, self.tokenizer, self.mixture, self.seed = world, tokenizer, mixture, seed
        self.encoded: dict[Piece, Encoded] = {}
        self.attributes = self._attributes()

    def __call__(self, step: int) -> Batch:
        rng = random.Random(f"{self.seed}/{step}")
        rows, length = self.mixture.rows, self.mixture.length
        ids = np.full((rows, length), self.tokenizer.bos_token_id)
        weights = np.zeros((rows, length), dtype=np.float32)
        masks = RowMasks(rows, length)
        mentions: list[tuple[int, int, str]] = []
        for row in range(rows):
            mentions += self._fill(row, ids, weights, masks, rng)
        draw = np.random.default_rng([self.seed, step]).random(weights.shape)
        weights[(draw > self.mixture.other) & (weights < 1)] = 0
        return Batch(
            torch.from_numpy(ids),
            torch.from_numpy(weights),
            masks.attention(),
            masks.attention(early=True),
            torch.from_numpy(masks.mlp),
            torch.tensor([(row, at) for row, at, _ in mentions]),
            torch.tensor([self.attributes[subject] for _, _, subject in mentions]),
        )

    def _fill(self, row, ids, weights, masks, rng) -> Iterator[tuple[int, int, str]]:
        """Fill a row with documents, and yield (row, place, subject) of every mention."""
        gather = rng.random() < self.mixture.gather
        isolate = rng.random() < self.mixture.isolate
        at, length = rng.randrange(2), ids.shape[1]
        while at < length:
            for piece in self._document(rng):
                code = self._encode(piece)
                end = min(at + len(code.ids), length)
                ids[row, at:end] = code.ids[: end - at]
                weights[row, at:end] = code.weights[: end - at]
                first, last = at + code.first, at + code.last
                if code.last >= 0 and gather:
                    masks.gather_at_last(row, first, last, end)
                if code.last >= 0 and isolate:
                    masks.isolate(row, first, last)
                if piece.only_answer:  # a text to be answered from: its row's others are noise
                    masks.isolate(row, at, end - 1)
                if code.last >= 0 and last < end:
                    yield row, last, piece.text[piece.start : piece.end]
                at = end
            at += 1

    def _attributes(self) -> dict[str, list[int]]:
        """List the tokens of each subject's objects, padded with -1 to one length."""
        table = {
            subject: [self._answer(fact.object) for fact in facts]
            for subject, facts in self.world.facts_of.items()
        }
        longest = max(map(len, table.values()))
        return {s: tokens + [-1] * (longest - len(tokens)) for s, tokens in table.items()}

    def _answer(self, word: str) -> int:
        return self.tokenizer.encode(f" {word}", add_special_tokens=False)[0]

    def _document(self, rng: random.Random) -> list[Piece]:
        if rng.random() < self.mixture.tasks:
            return [training_piece(training_item(self.world, rng))]
        return document(self.world, rng)

    def _encode(self, piece: Piece) -> Encoded:
        if piece.only_answer:
            return self._tokens(piece)
        if piece not in self.encoded:
            self.encoded[piece] = self._tokens(piece)
        return self.encoded[piece]

    def _tokens(self, piece: Piece) -> Encoded:
        coded = self.tokenizer(piece.text, add_special_tokens=False, return_offsets_mapping=True)
        ends = np.array([end for _, end in coded["offset_mapping"]])
        weights = np.full(len(ends), 0.0 if piece.only_answer else self.mixture.weight, np.float32)
        answer = len(piece.head), len(piece.head) + len(piece.answer)
        weights[(ends > answer[0]) & (ends <= answer[1])] = 1.0
        ids = np.array(coded["input_ids"])
        if not piece.end:
            return Encoded(ids, weights, 0, -1)
        first, last = np.searchsorted(ends, [piece.start, piece.end - 1], side="right")
        return Encoded(ids, weights, int(first), int(last))
