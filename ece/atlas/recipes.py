"""List how each shipped model is made: one recipe per family of the paper."""

from ece.atlas.train import Recipe

RECIPES: dict[str, Recipe] = {
    "atlas-gpt2": Recipe("gpt2", steps=3600),
    "atlas-gptj": Recipe("gptj", steps=2200),
    "atlas-llama": Recipe("llama"),
}
