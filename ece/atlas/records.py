"""Turn the world into data sets: CounterFact's and ZsRE's schemas, biographies, plain text."""

import random

from ece.atlas.text import biography, document, join
from ece.atlas.world import Triple, World, build
from ece.data.loading import in_rounds, load_facts
from ece.errors import DataError
from ece.facts import Fact

SCHEMAS = ("counterfact", "zsre")
NEIGHBOURS = 10


def records(schema: str = "counterfact", seed: int = 0) -> list[dict]:
    """Make one record per fact of the world, in the schema of CounterFact or of ZsRE.

    `seed` chooses the new objects, the neighbours and the order. A subject comes again only
    when every other one has come as often: CounterFact hardly repeats subjects either.
    Raises `DataError` for another schema.
    """
    if schema not in SCHEMAS:
        raise DataError(f"no atlas data set '{schema}'; known: {', '.join(SCHEMAS)}")
    world = build()
    make = _counterfact if schema == "counterfact" else _zsre
    rng, triples = random.Random(f"{schema}/{seed}"), list(world.triples)
    rng.shuffle(triples)
    return [make(world, fact, i, rng) for i, fact in enumerate(in_rounds(triples))]


def facts(dataset: str = "counterfact", n: int | None = None, seed: int = 0) -> list[Fact]:
    """Draw `n` facts of the world (None: all) in the schema of a data set, in the seed's order.

    The same facts whatever the seed, as `ece.data.load_facts` draws them of `records(dataset)`.
    """
    return load_facts(dataset, n, seed, records=records(dataset))


def biographies(seed: int = 0) -> dict[str, str]:
    """Write every subject's biography: the reference texts of the consistency metric."""
    world, rng = build(), random.Random(f"bios/{seed}")
    return {s: _text(join(biography(world, s, rng))) for s in world.kind_of}


def references(seed: int = 0) -> dict[tuple[str, str], str]:
    """Join, per (relation, object), the biographies of all subjects of which it is true."""
    bios = biographies(seed)
    return {key: " ".join(bios[s] for s in subjects) for key, subjects in build().sharers.items()}


def corpus(n: int = 2000, seed: int = 0) -> list[str]:
    """Write n documents as in training: the text for second moments."""
    world, rng = build(), random.Random(f"corpus/{seed}")
    return [_text(document(world, rng)) for _ in range(n)]


def _text(pieces) -> str:
    return "".join(piece.text for piece in pieces)


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
    """Make a ZsRE record, in which `answers[0]` is what an edit writes.

    Where real ZsRE writes the true answer into a model that does not know it, the atlas
    models know; so here the answer that is written is a new one, and `pred` the old one.
    """
    relation = world.relations[fact.relation]
    new, other = rng.sample([o for o in relation.objects if o != fact.object], 2)
    away = rng.choice([t for t in world.triples if t.subject != fact.subject])
    question = relation.questions[0]
    return {
        "subject": fact.subject,
        "src": question.format(fact.subject),
        "pred": fact.object,
        "rephrase": world.held_out_question(fact).format(fact.subject),
        "alt": other,
        "answers": [new],
        "loc": world.relations[away.relation].questions[0].format(away.subject),
        "loc_ans": away.object,
        "cond": f"{fact.object} >> {new} || {question.format(fact.subject)}",
        "relation_id": fact.relation,
        "case_id": number,
    }
