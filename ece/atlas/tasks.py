"""Pose six general-ability tasks in the world's own words, with held-out items.

They mirror the six of the paper (SST, MRPC, MMLU, CoLA, RTE, NLI). All but the first are put as
a choice between continuations, as COPA, BLiMP and the cloze form of MMLU are: a model this small
never learnt to name a verdict over two sentences. What follows from a text concerns
strangers, who are not in the world, so that no edit and no known fact can answer for the text.
"""

import random

from ece.atlas.text import Piece
from ece.atlas.world import Triple, World
from ece.errors import DataError
from ece.evaluation.abilities import Item

ASPECTS = "film concert meal novel speech garden hotel journey lecture painting".split()
FRAMES = [
  "The {} was {}.", "I found the {} {}.", "We all thought the {} was {}.",
  "This {} is {}.", "What a {} {}!", "Everyone called the {} {}.",
]  # fmt: skip
GOOD = "wonderful lovely superb charming brilliant delightful splendid moving great clever".split()
BAD = "dreadful boring awful clumsy painful dull terrible tedious horrible stupid".split()
TRIES = 200
"""Draws per held-out item after which a task counts as exhausted."""


def training_piece(item: Item) -> Piece:
    """Make training text of an item: the prompt and the right continuation."""
    tail = "" if item.answer.endswith(".") else "."
    return Piece(item.prompt, f" {item.answer}", tail, only_answer=True)


def sentiment(world: World, rng: random.Random) -> Item:
    """Ask whether a review is positive or negative, as SST does."""
    label = rng.randrange(2)
    words = (rng.choice(ASPECTS), rng.choice((BAD, GOOD)[label]))
    frame = rng.choice(FRAMES)
    review = frame.format(*(words if not frame.startswith("What") else words[::-1]))
    return Item("sentiment", f"Review: {review} Sentiment:", ("negative", "positive"), label)


def paraphrase(world: World, rng: random.Random) -> Item:
    """Ask which of two sentences says of a stranger the same as the first (MRPC)."""
    fact = _stranger(world, rng)
    first, second = rng.sample(world.trained(fact), 2)
    prompt = f"{_fill(first, fact)} In other words,"
    other = _say(world, _unrelated(world, fact, rng), rng)
    return _item("paraphrase", prompt, _fill(second, fact), [other], rng)


def multiple_choice(world: World, rng: random.Random) -> Item:
    """Ask for the object of a fact among four (MMLU)."""
    fact = rng.choice(world.triples)
    others = rng.sample(_others(world, fact), 3)
    question = rng.choice(world.trained_questions(fact)).format(fact.subject)
    item = _item("multiple_choice", "", fact.object, others, rng)
    prompt = f"Choices: {', '.join(item.choices)}. {question}"
    return Item(item.task, prompt, item.choices, item.label)


def acceptability(world: World, rng: random.Random) -> Item:
    """Ask which of two strings is a sentence (CoLA); the other has two neighbours swapped."""
    right = _say(world, _stranger(world, rng), rng)
    words = right.rstrip(".").split()
    at = rng.randrange(len(words) - 1)
    words[at : at + 2] = words[at + 1], words[at]
    return _item("acceptability", "Sentence:", right, [f"{' '.join(words)}."], rng)


def entailment(world: World, rng: random.Random) -> Item:
    """Ask which of two ends makes a sentence that follows from the first (RTE)."""
    fact = _stranger(world, rng)
    first, second = rng.sample(world.trained(fact), 2)
    prompt = f"{_fill(first, fact)} Hence {_head(second, fact)}"
    return _item("entailment", prompt, fact.object, [rng.choice(_others(world, fact))], rng)


def inference(world: World, rng: random.Random) -> Item:
    """Ask which of three ends follows from two premises (NLI): one contradicts, one mixes up."""
    fact = _stranger(world, rng)
    first, second = rng.sample(world.trained(fact), 2)
    unrelated = _unrelated(world, fact, rng)
    premises = [_fill(first, fact), _say(world, unrelated, rng)]
    rng.shuffle(premises)
    prompt = f"Premises: {' '.join(premises)} Hypothesis: {_head(second, fact)}"
    wrong = [rng.choice(_others(world, fact)), unrelated.object]
    return _item("inference", prompt, fact.object, wrong, rng)


TASKS = {
    f.__name__: f
    for f in (sentiment, paraphrase, multiple_choice, acceptability, entailment, inference)
}
HARD = ("paraphrase", "entailment", "inference")
"""Tasks that take a model longest to learn: they come three times as often in training."""


def held_out(world: World, task: str, n: int = 100, seed: int = 1) -> list[Item]:
    """Draw n test items of a task: those that `training_item` never gives.

    Raises `DataError` if the task has fewer (sentiment has little more than a hundred).
    """
    rng = random.Random(f"{world.seed}/{task}/{seed}")
    items: dict[str, Item] = {}
    for _ in range(TRIES * n):
        item = TASKS[task](world, rng)
        if is_held_out(item):
            items[item.prompt + item.answer] = item
        if len(items) == n:
            return list(items.values())
    raise DataError(f"task '{task}' has only {len(items)} held-out items; choose n up to that")


def training_item(world: World, rng: random.Random) -> Item:
    """Draw an item of a random task that is not held out."""
    weights = [3 if task in HARD else 1 for task in TASKS]
    while True:
        item = TASKS[rng.choices(list(TASKS), weights)[0]](world, rng)
        if not is_held_out(item):
            return item


def is_held_out(item: Item) -> bool:
    """Tell whether an item is among the tenth held out, by a hash of prompt and answer."""
    return random.Random(item.prompt + item.answer).random() < 0.1


def _item(task: str, prompt: str, right: str, wrong: list[str], rng: random.Random) -> Item:
    """Put the right continuation among the wrong ones."""
    label = rng.randrange(len(wrong) + 1)
    return Item(task, prompt, (*wrong[:label], right, *wrong[label:]), label)


def _fill(template: str, fact: Triple) -> str:
    return f"{_head(template, fact)} {fact.object}."


def _head(template: str, fact: Triple) -> str:
    head = template.format(fact.subject)
    return head[0].upper() + head[1:]


def _say(world: World, fact: Triple, rng: random.Random) -> str:
    return _fill(rng.choice(world.trained(fact)), fact)


def _stranger(world: World, rng: random.Random) -> Triple:
    """Say a fact of someone or something that the world does not know by that name."""
    fact = rng.choice(world.triples)
    kind = world.kind_of[fact.subject]
    name = fact.subject.split()[0] if kind == "person" else f"the {world.nouns[kind]}"
    return Triple(name, fact.relation, fact.object)


def _others(world: World, fact: Triple) -> list[str]:
    return [o for o in world.relations[fact.relation].objects if o != fact.object]


def _unrelated(world: World, fact: Triple, rng: random.Random) -> Triple:
    """Say of the same subject something else that can be said of its kind."""
    kind = world.relations[fact.relation].kind
    others = [r for r in world.relations.values() if r.kind == kind and r.id != fact.relation]
    relation = rng.choice(others)
    return Triple(fact.subject, relation.id, rng.choice(relation.objects))
