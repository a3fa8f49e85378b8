"""Build the embedded world: who exists, and which facts hold."""

import random
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SOURCE = Path(__file__).with_name("world.toml")
CONSONANTS = "b c d f g h j k l m n p r s t v z br dr gr kr pl st tr".split()
VOWELS = "a e i o u".split()
ENDINGS = ["", "n", "r", "l", "s", "nd", "th", "m"]
PARAPHRASES = slice(1, 5)
"""The paraphrase pool among a relation's templates; template 0 is the edit prompt."""


@dataclass(frozen=True)
class Triple:
    """Holds one fact (s, r, o) of the world."""

    subject: str
    relation: str
    object: str


@dataclass(frozen=True)
class Relation:
    """Holds a relation: its objects, and the sentences and questions that state it."""

    id: str
    name: str
    kind: str
    objects: tuple[str, ...]
    templates: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """Holds the whole world; equal seeds give equal worlds."""

    seed: int
    relations: dict[str, Relation]
    kind_of: dict[str, str]
    nouns: dict[str, str]
    triples: tuple[Triple, ...]
    noise: tuple[str, ...]

    @cached_property
    def facts_of(self) -> dict[str, list[Triple]]:
        """List each subject's facts."""
        table: dict[str, list[Triple]] = {subject: [] for subject in self.kind_of}
        for triple in self.triples:
            table[triple.subject].append(triple)
        return table

    @cached_property
    def sharers(self) -> dict[tuple[str, str], list[str]]:
        """List, per (relation, object), the subjects that share it: the neighbours."""
        table: dict[tuple[str, str], list[str]] = {}
        for triple in self.triples:
            table.setdefault((triple.relation, triple.object), []).append(triple.subject)
        return table

    def held_out(self, triple: Triple) -> tuple[str, str]:
        """Choose the two paraphrase templates never trained with this subject."""
        pool = self.relations[triple.relation].templates[PARAPHRASES]
        return tuple(self._draw(triple, "paraphrase").sample(pool, 2))

    def held_out_question(self, triple: Triple) -> str:
        """Choose the question form never trained with this subject."""
        return self._draw(triple, "question").choice(self.relations[triple.relation].questions[1:])

    def trained(self, triple: Triple) -> list[str]:
        """List the templates that training uses for this fact."""
        held = self.held_out(triple)
        return [t for t in self.relations[triple.relation].templates if t not in held]

    def trained_questions(self, triple: Triple) -> list[str]:
        """List the question forms that training uses for this fact."""
        held = self.held_out_question(triple)
        return [q for q in self.relations[triple.relation].questions if q != held]

    def _draw(self, triple: Triple, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}/{purpose}/{triple.subject}/{triple.relation}")


def build(seed: int = 0) -> World:
    """Build the world: invented subjects, and for each of them one object per relation."""
    source = tomllib.loads(SOURCE.read_text(encoding="utf-8"))
    rng = random.Random(seed)
    relations = {key: _relation(key, entry, source) for key, entry in source["relations"].items()}
    kind_of = _subjects(source, rng)
    holders = _holders(source["kinds"], relations, kind_of, rng)
    triples = []
    for relation in relations.values():
        triples += _deal(relation, holders[relation.id], rng)
    nouns = {kind: entry["noun"] for kind, entry in source["kinds"].items()}
    return World(seed, relations, kind_of, nouns, tuple(triples), tuple(source["noise"]))


def _relation(key: str, entry: dict, source: dict) -> Relation:
    objects = tuple(source["objects"][entry["objects"]].split())
    templates, questions = tuple(entry["templates"]), tuple(entry["questions"])
    return Relation(key, entry["name"], entry["kind"], objects, templates, questions)


def _holders(kinds: dict, relations: dict, kind_of: dict, rng: random.Random) -> dict:
    """List each relation's subjects: all of its kind, or those that drew it among `facts`."""
    holders: dict[str, list[str]] = {key: [] for key in relations}
    for subject, kind in kind_of.items():
        own = [r.id for r in relations.values() if r.kind == kind]
        for key in rng.sample(own, kinds[kind].get("facts", len(own))):
            holders[key].append(subject)
    return holders


def _deal(relation: Relation, subjects: list[str], rng: random.Random) -> list[Triple]:
    """Deal the objects evenly, so that every fact has neighbours."""
    repeats = -(-len(subjects) // len(relation.objects))
    hand = (list(relation.objects) * repeats)[: len(subjects)]
    rng.shuffle(hand)
    return [Triple(s, relation.id, o) for s, o in zip(subjects, hand, strict=True)]


def _subjects(source: dict, rng: random.Random) -> dict[str, str]:
    """Invent the subjects, each with its kind."""
    words: set[str] = set()
    given = source["given"].split()
    kind_of: dict[str, str] = {}
    for kind, entry in source["kinds"].items():
        made = 0
        while made < entry["count"]:
            name = _invent(words, rng)
            for _ in range(entry.get("shared_names", 1)):
                subject = rng.choice(entry["names"]).format(given=rng.choice(given), name=name)
                if made < entry["count"] and subject not in kind_of:
                    kind_of[subject] = kind
                    made += 1
    return kind_of


def _invent(words: set[str], rng: random.Random) -> str:
    """Invent a word unlike all earlier ones."""
    while True:
        word = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(2))
        word += rng.choice(ENDINGS)
        if word not in words:
            words.add(word)
            return word.capitalize()
