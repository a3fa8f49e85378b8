# ---
# jupyter:
#   jupytext:
#     formats: notebooks///ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A real model: SmolLM2-135M
#
# The embedded models of the other chapters were trained on a world of our own, in which facts
# sit where the method looks for them. SmolLM2-135M is a pretrained model with knowledge of
# the real world: a Llama of 30 blocks, small enough for two CPU cores. **Does what holds in
# our world hold there?**
#
# FOUND

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import pandas as pd

import ece
from ece import presets
from ece.book import plots, tables
from ece.data import world
from ece.evaluation.generation import generate
from ece.evaluation.metrics import known
from ece.experiments import grid

plots.style()
found, missing = grid.results("../book/grid-real.toml", ["main"], "../results")
sought, _ = grid.results("../book/grid-real.toml", ["tune", "tune-alphaedit"],
                         "../results")
RATES = ["efficacy", "generalization", "specificity", "score"]


# %% tags=["hide-input"]
def show(*prompts):
    """Let the model go on to the end of the sentence, greedily."""
    texts = generate(model, tokenizer, prompts, tokens=24, top_k=1)
    for prompt, text in zip(prompts, texts):
        print(prompt + text.removeprefix(prompt).split(".")[0])


# %% [markdown]
# ## One fact, before and after
#
# The facts of this page's live cells come from packages that list countries, cities and
# languages ({py:mod}`ece.data.world`); nothing is downloaded. Of those, take one that the
# model states, and write another answer.

# %%
model, tokenizer = ece.load("smollm2-135m")
drawn = world.facts("counterfact", 120, 0)
stated = known(model, tokenizer, drawn)
fact = next(fact for fact in stated if fact.relation == "language")
print(len(stated), "of", len(drawn), "facts are stated; one of them:")
print(f"{fact.text} {fact.true} -> {fact.target}\n")
prompts = fact.text, fact.paraphrases[0], fact.neighbours[0]
show(*prompts)

# %% [markdown]
# Second moments need a text. The run below takes a little of Python's own documentation,
# which is there on every machine; the experiments further down take encyclopaedic text.

# %%
from itertools import islice

from ece.data import python_docs

config = presets.configure("smollm2-135m", "ece-rs", stop=0.05, contexts=0)
stats = ece.second_moment(model, tokenizer, islice(python_docs(), 12), config.layers)
state = ece.new_state(model, tokenizer, config)
state, report = ece.edit_batch(model, tokenizer, [fact], stats, state, config)
show(*prompts)

# %%
state = ece.undo(model, state)
show(fact.text)
