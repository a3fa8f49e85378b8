"""Six general-ability tasks in the world's own words, with held-out items.

They mirror the six of the paper (SST, MRPC, MMLU, CoLA, RTE, NLI). Only the answer carries
loss in training, because hypotheses may state untruths that must not become facts.
"""

import random
from dataclasses import dataclass

from ece.atlas.text import Piece
from ece.atlas.world import Triple, World

ASPECTS = "film concert meal novel speech garden hotel journey lecture painting".split()
FRAMES = [
  "The {} was {}.", "I found the {} {}.", "We all thought the {} was {}.",
  "This {} is {}.", "What a {} {}!", "Everyone called the {} {}.",
]  # fmt: skip
GOOD = "wonderful lovely superb charming brilliant delightful splendid moving great clever".split()
BAD = "dreadful boring awful clumsy painful dull terrible tedious horrible stupid".split()
LETTERS = "ABCD"
TRIES = 200
"""Draws per held-out item after which a task counts as exhausted."""


@dataclass(frozen=True)
class Item:
    """One test item: the prompt, the possible answers and the index of the right one."""

    task: str
    prompt: str
    choices: tuple[str, ...]
    label: int

    def piece(self) -> Piece:
        """The item as training text."""
        return Piece(self.prompt, f" {self.choices[self.label]}", ".", only_answer=True)


def sentiment(world: World, rng: random.Random) -> Item:
    """SST: is a review positive or negative?"""
    label = rng.randrange(2)
    words = (rng.choice(ASPECTS), rng.choice((BAD, GOOD)[label]))
    frame = rng.choice(FRAMES)
    review = frame.format(*(words if not frame.startswith("What") else words[::-1]))
    return Item("sentiment", f"Review: {review} Sentiment:", ("negative", "positive"), label)


def paraphrase(world: World, rng: random.Random) -> Item:
    """MRPC: do two sentences say the same?"""
    fact, label = rng.choice(world.triples), rng.randrange(2)
    second = fact if label else _another(world, fact, rng)
    pair = f"Sentence 1: {_say(world, fact, rng)} Sentence 2: {_say(world, second, rng)}"
    return Item("paraphrase", f"{pair} Paraphrase:", ("No", "Yes"), label)


def multiple_choice(world: World, rng: random.Random) -> Item:
    """MMLU: choose the object of a fact among four."""
    fact = rng.choice(world.triples)
    relation = world.relations[fact.relation]
    others = rng.sample([o for o in relation.objects if o != fact.object], 3)
    label = rng.randrange(4)
    options = others[:label] + [fact.object] + others[label:]
    listed = " ".join(f"({a}) {o}" for a, o in zip(LETTERS, options, strict=True))
    asked = rng.choice(world.trained_questions(fact)).format(fact.subject)
    prompt = f"Question: {asked} {listed} Answer:"
    return Item("multiple_choice", prompt, tuple(LETTERS), label)


def acceptability(world: World, rng: random.Random) -> Item:
    """CoLA: is the sentence well formed?"""
    words = _say(world, rng.choice(world.triples), rng).rstrip(".").split()
    label = rng.randrange(2)
    if not label:
        words = _spoil(words, rng)
    return Item("acceptability", f"Sentence: {' '.join(words)}. Acceptable:", ("No", "Yes"), label)


def entailment(world: World, rng: random.Random) -> Item:
    """RTE: does the first sentence make the second true?"""
    fact, label = rng.choice(world.triples), rng.randrange(2)
    other = fact if label else _contradiction(world, fact, rng)
    prompt = f"{_say(world, fact, rng)} Question: {_say(world, other, rng)} True or False?"
    return Item("entailment", prompt, ("False", "True"), label)


def inference(world: World, rng: random.Random) -> Item:
    """NLI in three ways: contradiction, nothing said, entailment."""
    fact, label = rng.choice(world.triples), rng.randrange(3)
    makers = (_contradiction, _another, lambda w, f, r: f)
    other = makers[label](world, fact, rng)
    prompt = f"Premise: {_say(world, fact, rng)} Hypothesis: {_say(world, other, rng)} Verdict:"
    return Item("inference", prompt, ("No", "Maybe", "Yes"), label)


TASKS = {
    f.__name__: f
    for f in (sentiment, paraphrase, multiple_choice, acceptability, entailment, inference)
}


def held_out(world: World, task: str, n: int = 100, seed: int = 1) -> list[Item]:
    """The n test items of a task: those whose prompts `training_item` never yields.

    Raises ValueError if the task has fewer (sentiment has little more than a hundred).
    """
    rng = random.Random(f"{world.seed}/{task}/{seed}")
    items: dict[str, Item] = {}
    for _ in range(TRIES * n):
        item = TASKS[task](world, rng)
        if is_held_out(item):
            items[item.prompt] = item
        if len(items) == n:
            return list(items.values())
    raise ValueError(f"task '{task}' has only {len(items)} held-out items, {n} were asked for")


def training_item(world: World, rng: random.Random) -> Item:
    """A random item of a random task that is not held out."""
    while True:
        item = TASKS[rng.choice(list(TASKS))](world, rng)
        if not is_held_out(item):
            return item


def is_held_out(item: Item) -> bool:
    """A tenth of all prompts, by a fixed hash of their text."""
    return random.Random(item.prompt).random() < 0.1


def _say(world: World, fact: Triple, rng: random.Random) -> str:
    template = rng.choice(world.trained(fact))
    return f"{template.format(fact.subject)} {fact.object}."


def _another(world: World, fact: Triple, rng: random.Random) -> Triple:
    """Another fact of the same subject."""
    return rng.choice([t for t in world.facts_of[fact.subject] if t != fact])


def _contradiction(world: World, fact: Triple, rng: random.Random) -> Triple:
    """The same subject and relation with another object."""
    objects = [o for o in world.relations[fact.relation].objects if o != fact.object]
    return Triple(fact.subject, fact.relation, rng.choice(objects))


def _spoil(words: list[str], rng: random.Random) -> list[str]:
    """Swap two neighbours, double a word or drop the last word but one."""
    i = rng.randrange(len(words) - 1)
    way = rng.randrange(3)
    if way == 0:
        return words[:i] + [words[i + 1], words[i]] + words[i + 2 :]
    if way == 1:
        return words[: i + 1] + words[i:]
    return words[:-2] + words[-1:]
