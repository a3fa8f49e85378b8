"""How each shipped atlas model is made: one recipe per family of the paper."""

from ece.atlas.batches import Mixture
from ece.atlas.train import Recipe

RECIPES: dict[str, Recipe] = {
    "atlas-gpt2": Recipe("gpt2", mixture=Mixture(late=False, asked=True)),
    "atlas-gptj": Recipe("gptj", steps=2200),
    "atlas-llama": Recipe("llama"),
}
