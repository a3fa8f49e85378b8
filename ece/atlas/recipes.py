"""How each shipped atlas model is made: one recipe per family of the paper."""

from ece.atlas.batches import Mixture
from ece.atlas.train import Recipe

RECIPES: dict[str, Recipe] = {
    "atlas-gpt2": Recipe("gpt2", mixture=Mixture(late=False)),
    "atlas-gptj": Recipe("gptj", steps=1800),
    "atlas-llama": Recipe("llama", mixture=Mixture(late=False)),
}
"""GPT-J's blocks run attention and MLP side by side; only the late reading gives it a site as
sharp as the other two have without."""
