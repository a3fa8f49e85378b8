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
# # The order of edits: like facts together, or spread?
#
# ECE groups the facts of one batch by the neurons they use. The same groups can order a whole
# sequence: all facts of a group in the same batch, or each group spread over all batches.
# An [analysis of AlphaEdit](https://github.com/chilli404/alphaedit-analysis) on Llama-3 (ten thousand edits,
# one seed) reports about twice the efficacy with like keys together. **Does the order of the same facts
# decide what is left of them?**
#
# **What was found** (1,000 edits in batches of 100, three seeds)
#
# - On SmolLM2-135M, with records of CounterFact, the order does not matter. Between the best and the worst of
#   three orders lie at most 0.4 points of the score, for MEMIT with a history and for AlphaEdit; other facts move it by up to 1.2.
# - In our own world it hardly matters: at most 2.8 points, about as much as between draws of facts.
#   Only for MEMIT with a history do all seeds agree there, and the two models disagree: like facts together
#   are better than spread by 1.1 to 1.5 points on `atlas-gpt2`, and worse by 0.9 to 1.1 on
#   `atlas-llama`.
# - Elsewhere the seeds disagree about the sign, or the difference is below half a point. Nothing here is near a factor of two.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import pandas as pd

from ece.book import plots, tables
from ece.experiments import grid

real, unrun = grid.results(
    "../book/grid-real.toml", ["order"], "../results")
found, missing = grid.results(
    "../book/grid.toml", ["order"], "../results")
after = pd.concat([real.cells(), found.cells()]).query("when == 'after'")
after = after.fillna({"order": "drawn"})  # the default of a run
rates = tables.wide(after, "model", "method", "order", "seed")
RATES = ["efficacy", "generalization", "specificity", "score"]
ORDERS = ["drawn", "together", "spread"]
plots.style()

# %% [markdown]
# ## The three orders
#
# A run draws 1,000 facts, records of CounterFact for SmolLM2 and facts of the invented world for the
# embedded models. Its groups are ECE's, for the whole sequence at
# once: as many as there are batches, by the neurons that RS chooses for each fact (Eq 8–10).
#
# - *drawn*: the order of the draw, as in every other run of this book;
# - *together*: one group after the other;
# - *spread*: each group spread evenly over the sequence.
#
# Every order has the same facts, and each is measured after the last batch. Here are the groups
# of a small draw from the invented world, and where its facts stand in each order:

# %%
import ece
from ece import atlas, presets
from ece.experiments.order import labels, schedule

model, tokenizer = ece.load("atlas-gpt2")
few = atlas.facts("counterfact", 40)
config = presets.configure("atlas-gpt2", "ece-rs")
groups = labels(model, tokenizer, few, config, 4)
for order in ORDERS:
    places = schedule(groups, order)
    print(f"{order:9}", *groups[places].tolist(), sep="")

# %% [markdown]
# A digit is the group of a fact.
#
# ## What is left after 1,000 edits

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Score of all 1,000 facts after the last batch, a dot for each seed and order of the same facts.", "name": "fig-order-score"}, "image": {"alt": "Dots of the score in three panels, two rows of methods for SmolLM2 and three for each embedded model. In each row the three markers lie among each other, within a few points, for SmolLM2 within two."}}
shown = rates.sort_values(["model", "method"], ascending=False)
axes = plots.dots(shown, "score", "method", shape="order", columns=3)
axes[-1].set(xlabel="score after 1,000 edits, %")
plt.show()

# %%
mean = rates.groupby(["model", "method", "order"], sort=False)[RATES]
table = mean.mean().unstack("order")["score"][ORDERS]
by_order = rates.pivot(index=["model", "method", "seed"],
                       columns="order", values="score")
gap = (by_order.together - by_order.spread).unstack("seed")
table["together - spread"] = gap.mean(axis=1)
table["lowest seed"] = gap.min(axis=1)
table["highest seed"] = gap.max(axis=1)
tables.table(table, "Score by order, mean over three seeds, %")

# %% [markdown]
# The scores of the embedded models are low for a reason of their own: many of a thousand facts are about subjects that
# were edited before ({doc}`11_edits`). The records for SmolLM2 have a thousand different subjects.
#
# ## Which rate moves?

# %% tags=["hide-input"]
each = rates.groupby(["model", "method", "order"], sort=False)[RATES[:3]]
tables.table(each.mean().unstack("order").swaplevel(axis=1).sort_index(
    axis=1, key=lambda level: level.map(
        {n: i for i, n in enumerate(ORDERS + RATES)})),
    "Rates by order, mean over three seeds, %")

# %% [markdown]
# ## Take away
#
# - One need not sort the edits of a sequence, in our own world or in SmolLM2-135M. Whether a large model with ten thousand
#   edits is different, as reported, is open: `--order` runs it.
#
# ## Where the numbers come from
#
# The tables `order` of `book/grid-real.toml` and of `book/grid.toml`.

# %%
print(tables.origin(real.runs, unrun))
print(tables.origin(found.runs, missing))

# %% [markdown]
# The last cell asserts what this page has claimed.

# %% tags=["hide-input"]
for part in (real.runs, found.runs):
    assert set(part.facts) == {1000} and set(part.batch) == {100}
assert mean.size().eq(3).all() and len(mean) == 24
spread = by_order.max(axis=1) - by_order.min(axis=1)
ours, small = spread.drop("smollm2-135m"), spread["smollm2-135m"]
draws = rates.groupby(["model", "method", "order"]).score.agg(
    lambda own: own.max() - own.min())
assert ours.max().round(1) == 2.8 < draws.drop("smollm2-135m").max()
assert small.max().round(1) == 0.4
assert draws["smollm2-135m"].max().round(1) == 1.2

# %% tags=["hide-input"]
history = gap.xs("memit-history", level="method").round(1)
ends = [history.loc[m].agg(["min", "max"]).tolist()
        for m in ("atlas-gpt2", "atlas-llama")]
assert ends == [[1.1, 1.5], [-1.1, -0.9]]
others = gap.drop("memit-history", level="method").drop("smollm2-135m")
assert ((others.min(axis=1) < 0) & (others.max(axis=1) > 0)).all()
assert gap.loc["smollm2-135m"].abs().max(axis=None) < 0.5
