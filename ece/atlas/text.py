"""Write the world's text: sentences, documents, questions, biographies.

A `Piece` is a stretch of text with what training must know of it: where the subject
stands (for the two masks) and which part carries loss.
"""

import random
from dataclasses import dataclass, replace

from ece.atlas.world import Triple, World


@dataclass(frozen=True)
class Piece:
    """Holds a stretch of training text.

    `text` is `head + answer + tail`; the subject is text[start:end] (end == 0: no subject).
    `only_answer`: nothing but the answer carries loss (tasks, whose texts may state untruths).
    """

    head: str
    answer: str = ""
    tail: str = ""
    start: int = 0
    end: int = 0
    only_answer: bool = False

    @property
    def text(self) -> str:
        return self.head + self.answer + self.tail

    def shifted(self, lead: str) -> "Piece":
        """Put `lead` before the piece."""
        n = len(lead) if self.end else 0
        return replace(self, head=lead + self.head, start=self.start + n, end=self.end + n)


def statement(template: str, subject: str, answer: str) -> Piece:
    """Make a sentence or a question with its answer: "{} plays the" + " oboe" + "."."""
    start = template.index("{}")
    return Piece(template.format(subject), f" {answer}", ".", start, start + len(subject))


def fact_document(world: World, rng: random.Random) -> list[Piece]:
    """State some facts, each in a trained template: of one subject, or of three."""
    if rng.random() < 0.5:
        facts = list(world.facts_of[rng.choice(list(world.kind_of))])
        rng.shuffle(facts)
    else:
        facts = rng.sample(world.triples, 3)
    return [_state(world, triple, rng) for triple in facts]


def question_document(world: World, rng: random.Random) -> list[Piece]:
    """Ask two questions and answer them, each in a trained form."""
    facts = rng.sample(world.triples, 2)
    return [statement(rng.choice(world.trained_questions(f)), f.subject, f.object) for f in facts]


def biography(world: World, subject: str, rng: random.Random) -> list[Piece]:
    """Write the reference text of a subject: what it is, then all its facts."""
    facts = list(world.facts_of[subject])
    rng.shuffle(facts)
    kind = Piece(f"{subject} is a", f" {world.nouns[world.kind_of[subject]]}", ".", 0, len(subject))
    return [kind] + [_state(world, triple, rng) for triple in facts]


def document(world: World, rng: random.Random) -> list[Piece]:
    """Write one document of the training mixture without tasks, with noise between sentences."""
    draw = rng.random()
    if draw < 0.15:
        pieces = question_document(world, rng)
    elif draw < 0.25:
        pieces = biography(world, rng.choice(list(world.kind_of)), rng)
    else:
        pieces = fact_document(world, rng)
    noisy = []
    for piece in pieces:
        if rng.random() < 0.2:
            noisy.append(Piece(rng.choice(world.noise)))
        noisy.append(piece)
    return join(noisy)


def join(pieces: list[Piece]) -> list[Piece]:
    """Put a space before every piece but the first."""
    return pieces[:1] + [piece.shifted(" ") for piece in pieces[1:]]


def _state(world: World, triple: Triple, rng: random.Random) -> Piece:
    return statement(rng.choice(world.trained(triple)), triple.subject, triple.object)
