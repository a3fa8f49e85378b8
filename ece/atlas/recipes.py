"""How each shipped atlas model is made: one recipe per family of the paper."""

from ece.atlas.train import Recipe

RECIPES: dict[str, Recipe] = {
    "atlas-gpt2": Recipe("gpt2"),
    "atlas-gptj": Recipe("gptj"),
    "atlas-llama": Recipe("llama"),
}
