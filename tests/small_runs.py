"""Small records, a text and a checkpoint folder, with which a whole run takes a moment."""

import json

from conftest import CITIES, SUBJECTS, TEXTS, build

FAST = {"layers": (0, 1), "lam": 20.0, "steps": 3, "own_steps": 1, "clusters": 2, "contexts": 1}
QUICK: dict[str, dict] = {
    **{name: dict(steps=2, layers=(1,)) for name in ("ft-l", "ft-w", "ft-m")},
    "mend": dict(steps=2, rank=4),
    **{name: dict(steps=2, scope_steps=2, width=32, batch=2) for name in ("serac", "serac-seen")},
    "retrieval": {},
}
"""Settings with which a baseline is done in a moment."""


def records() -> list[dict]:
    """CounterFact records about the people that the test tokenizer knows."""
    return [
        {
            "case_id": 10 + i,
            "requested_rewrite": {
                "prompt": "{} lives in",
                "relation_id": "P1",
                "target_new": {"str": CITIES[i]},
                "target_true": {"str": CITIES[i - 1]},
                "subject": subject,
            },
            "paraphrase_prompts": [f"The home of {subject} is"],
            "neighborhood_prompts": [f"{SUBJECTS[i - 1]} lives in"],
            "generation_prompts": [f"{subject} is"],
        }
        for i, subject in enumerate(SUBJECTS)
    ]


def write_files(folder) -> dict[str, str]:
    """Write records and text; returns the settings that name them."""
    data, text = folder / "records.json", folder / "text.txt"
    data.write_text(json.dumps(records()))
    text.write_text("\n".join(["", *TEXTS[:12]]))
    return {"data": str(data), "stats_text": str(text)}


def write_model(folder, tokenizer) -> str:
    """Write a tiny GPT-2 under the name of a model that has a preset; returns its folder."""
    path = folder / "gpt2-xl"
    build("gpt2").save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def without_seconds(record: dict) -> dict:
    """What two equal runs have in common."""
    return {name: value for name, value in record.items() if name != "seconds"}
