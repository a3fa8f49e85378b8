"""The world as data sets: CounterFact's and ZsRE's schemas, biographies, plain text."""

import random

from ece.atlas.text import Piece, biography, document, join
from ece.atlas.world import Triple, World, build

SCHEMAS = ("counterfact", "zsre")
NEIGHBOURS = 10


def records(schema: str = "counterfact", seed: int = 0) -> list[dict]:
    """One record per fact of the world, in the schema of CounterFact or of ZsRE.

    `seed` chooses the new objects, the neighbours and the order. A subject comes again only
    when every other one has come as often: CounterFact hardly repeats subjects either.
    Raises ValueError for another schema.
    """
    if schema not in SCHEMAS:
        raise ValueError(f"no atlas data set '{schema}'; known: {', '.join(SCHEMAS)}")
    world = build()
    make = _counterfact if schema == "counterfact" else _zsre
    rng = random.Random(f"{schema}/{seed}")
    return [make(world, fact, i, rng) for i, fact in enumerate(_in_rounds(world, rng))]


def biographies(seed: int = 0) -> dict[str, str]:
    """Subject -> its biography: the reference texts of the consistency metric."""
    world, rng = build(), random.Random(f"bios/{seed}")
    return {s: as_text(join(biography(world, s, rng))) for s in world.kind_of}


def references(seed: int = 0) -> dict[tuple[str, str], str]:
    """(relation, object) -> the biographies of all subjects of which it is true, as one text."""
    bios = biographies(seed)
    return {key: " ".join(bios[s] for s in subjects) for key, subjects in build().sharers.items()}


def corpus(n: int = 2000, seed: int = 0) -> list[str]:
    """n documents as in training: the text for second moments."""
    world, rng = build(), random.Random(f"corpus/{seed}")
    return [as_text(document(world, rng)) for _ in range(n)]


def as_text(pieces: list[Piece]) -> str:
    """The text of joined pieces."""
    return "".join(piece.text for piece in pieces)


def _in_rounds(world: World, rng: random.Random) -> list[Triple]:
    """All facts in random order, each subject's first, then each one's second, ..."""
    facts = list(world.triples)
    rng.shuffle(facts)
    seen: dict[str, int] = {}
    rounds = []
    for fact in facts:
        seen[fact.subject] = seen.get(fact.subject, -1) + 1
        rounds.append(seen[fact.subject])
    return [fact for _, fact in sorted(zip(rounds, facts, strict=True), key=lambda pair: pair[0])]


def _counterfact(world: World, fact: Triple, number: int, rng: random.Random) -> dict:
    relation = world.relations[fact.relation]
    new = rng.choice([o for o in relation.objects if o != fact.object])
    edit, held = relation.templates[0], world.held_out(fact)
    near = [s for s in world.sharers[fact.relation, fact.object] if s != fact.subject]
    far = world.sharers[fact.relation, new]
    return {
        "case_id": number,
        "requested_rewrite": {
            "prompt": edit,
            "relation_id": fact.relation,
            "target_new": {"str": new, "id": f"atlas:{new}"},
            "target_true": {"str": fact.object, "id": f"atlas:{fact.object}"},
            "subject": fact.subject,
        },
        "paraphrase_prompts": [
            held[0].format(fact.subject),
            f"{rng.choice(world.noise)} {held[1].format(fact.subject)}",
        ],
        "neighborhood_prompts": _prompts(edit, near, rng),
        "attribute_prompts": _prompts(edit, far, rng),
        "generation_prompts": [t.format(fact.subject) for t in relation.templates[5:]],
    }


def _prompts(template: str, subjects: list[str], rng: random.Random) -> list[str]:
    chosen = rng.sample(subjects, min(NEIGHBOURS, len(subjects)))
    return [template.format(subject) for subject in chosen]


def _zsre(world: World, fact: Triple, number: int, rng: random.Random) -> dict:
    """As in the published evaluation, `answers[0]` is what an edit writes.

    Where real ZsRE writes the true answer into a model that does not know it, the atlas
    models know; so here the answer that is written is a new one, and `pred` the old one.
    """
    relation = world.relations[fact.relation]
    new, other = rng.sample([o for o in relation.objects if o != fact.object], 2)
    away = rng.choice([t for t in world.triples if t.subject != fact.subject])
    asked = relation.questions[0]
    return {
        "subject": fact.subject,
        "src": asked.format(fact.subject),
        "pred": fact.object,
        "rephrase": world.held_out_question(fact).format(fact.subject),
        "alt": other,
        "answers": [new],
        "loc": world.relations[away.relation].questions[0].format(away.subject),
        "loc_ans": away.object,
        "cond": f"{fact.object} >> {new} || {asked.format(fact.subject)}",
        "relation_id": fact.relation,
        "case_id": number,
    }
