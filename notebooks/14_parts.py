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
# # The parts of ECE: what each one brings
#
# ECE differs from MEMIT in several things at once: a history of earlier edits, a choice of
# neurons, groups with a shared descent, and layers that the paper calls adaptive. The paper
# shows the whole against MEMIT. This page switches **one part at a time** and asks **which
# part brings the gain**.
#
# **What was found** (points of the score that a part adds to `ece-rs`, on `atlas-gpt2` and on
# `atlas-llama`)
#
# - The history of earlier edits: **+4.38 and +2.03**. That is more than the whole gain of
#   `ece-rs` over MEMIT (+2.35 and −0.07, {doc}`07_sequential`).
# - Descending on the group's anchor instead of the group's mean loss: +0.95 and −0.01.
# - The shared phase: +0.60 and +0.11. It is there for speed, so this is good news.
# - The choice of neurons: −0.44 and −0.21. It brings no gain.
# - Values from the original weights: +0.09 and +0.05.
# - Layers chosen by attribution, as many as the preset has, are the preset's on `atlas-gpt2`;
#   on `atlas-llama` those chosen cost 2 to 4 points.
#
# One seed and 200 facts: only the history stands above the noise. Parts below two points are not
# settled.

# %% tags=["hide-input"]
import os

import matplotlib.pyplot as plt
import pandas as pd

from ece.book import plots, tables
from ece.experiments import grid

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")

plots.style()
found, missing = grid.results("../book/grid.toml", [
    "parts", "parts-history", "parts-selection", "parts-shared",
    "parts-values", "parts-clusters", "parts-layers"], "../results")

# %% [markdown]
# ## One change at a time
#
# Every run is `ece-rs` as the preset has it, or with one setting changed:

# %%
BASE = "ece-rs as it is"
CHANGES = {
    "history": {False: "no history"},
    "p": {1.0: "all neurons"},
    "shared": {"zero": "no shared phase", "mean": "mean of the group"},
    "clusters": {1: "one group", 5: "5 groups", 20: "20 groups"},
    "values_from": {"current": "edited values"},
    "adaptive": {2: "2 chosen layers", 3: "3 chosen layers"},
}
parts = pd.Series(BASE, found.runs.index)

# %%
for setting, names in CHANGES.items():
    parts = found.runs[setting].map(names).fillna(parts)
runs = found.runs.assign(part=parts)[["run", "part"]]
cells = found.cells().drop(columns="part").query("when == 'after'")
cells = cells.merge(runs)
names = [BASE, *(n for own in CHANGES.values() for n in own.values())]
rates = tables.wide(cells, "model", "part", "seed", "clusters")
rates = rates.sort_values(["model", "part"], key=lambda column: (
    column.map(names.index) if column.name == "part" else column))
RATES = ["efficacy", "generalization", "specificity", "score"]

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Score of `ece-rs` with one part changed. Points left of the dotted line are changes that hurt: the part helps.", "name": "fig-parts"}, "image": {"alt": "Dot plots of the score, a row for each change, one panel for each model. On both models the dot of no history lies far left of the line, by 4 and 2 points; on atlas-llama so do those of chosen layers; the others lie within about 2 points of it."}}
axes = plots.dots(rates, "score", "part", height=3.8)
base = rates[rates.part == BASE].set_index("model").score
for ax in axes:
    ax.axvline(base[ax.get_title()], color=plots.GREY, linestyle=":")
axes[-1].set(xlabel="score after the last batch, %")
plt.show()

# %% tags=["hide-input"]
tables.table(rates.set_index(["model", "part"])[RATES],
             "Rates after 200 edits with one part changed, %")

# %% [markdown]
# ## What each part adds
#
# The score of ECE minus that without the part, at equal seeds: the part's contribution,
# with everything else in place. A tilde: less than a point either way.

# %% tags=["hide-input"]
PARTS = {"no history": "history", "all neurons": "selection",
         "no shared phase": "shared phase",
         "mean of the group": "anchor, not mean",
         "edited values": "original values"}
gain = pd.DataFrame({
    model: tables.gaps(own.pivot(index="seed", columns="part",
                                 values="score"), BASE)["mean"]
    for model, own in rates.groupby("model")
})
tables.table(gain.loc[list(PARTS)].rename(PARTS).map(
    lambda x: f"{x:+.2f}" + " ~" * (abs(x) < 1)
), "Points of the score that each part adds")

# %% [markdown]
# Contributions do not add up to the whole: each is taken with all other parts in place. A
# negative one means that ECE would be better without that part, here, on these
# facts. The shared phase is there for speed ({doc}`08_speed`), so what it has to show
# is that it costs little: "no shared phase" takes the same five own steps from $U = 0$.
#
# ## How many groups
#
# $K$ is the number of descents of the shared phase, and its time. The paper does not
# give it.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Score against the number of groups in a batch of 25 facts.", "name": "fig-parts-groups"}, "image": {"alt": "Two nearly flat lines of the score for 1, 5, 10 and 20 groups: atlas-gpt2 near 95.5 percent, atlas-llama near 97.8."}}
grouped = rates[rates.part.isin([BASE, *CHANGES["clusters"].values()])]
[ax] = plots.lines(grouped, "clusters", "score", hue="model", by=None,
                   ylabel="score, %")
ax.set(xlabel="groups in a batch of 25")
plt.show()

# %% [markdown]
# With 25 groups every fact would be its own anchor: that is plain descent.
#
# ## Layers by attribution
#
# Section 3.1 of the paper says that ECE finds the layers as well as the neurons, without a
# rule; the published code has them fixed. The simplest rule that fits the text takes
# the layers with the largest share of the score,
#
# $$
# m_\ell = \frac1n \sum_i
#   \frac{\sum_j Q^{\ell}_{ij}}{\sum_{\ell'} \sum_j Q^{\ell'}_{ij}} ,
# $$
#
# with $Q^\ell_{ij}$ the score of neuron $j$ in layer $\ell$ for fact $i$.

# %%
import ece
from ece import atlas, presets
from ece.data import load_facts
from ece.evaluation.layer_attribution import chosen_layers, layer_shares

facts = (load_facts("counterfact", 50, path=DATA) if DATA
         else atlas.facts("counterfact", 50))

# %%
model, tokenizer = ece.load(MODEL, DEVICE)
fixed = presets.configure(MODEL, "ece-rs").layers
share = {
    scorer: layer_shares(model, tokenizer, facts, scorer).tolist()
    for scorer in ("activation", "weight", "residual")
}
chosen = chosen_layers(model, tokenizer, facts, "residual", len(fixed))
print("fixed:", fixed, "by attribution:", chosen)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Share of the score that each layer has, at the subject's last token. The band marks the layers of the preset.", "name": "fig-parts-layers"}, "image": {"alt": "Three lines of the share of the score by layer, for activation, weight and residual scores, with a grey band over the preset's layers, 0 to 2. Activation and residual scores have half of it at layer 0; weight scores are spread evenly."}}
METHOD = {"activation": "ece-as", "weight": "ece-wi",
          "residual": "ece-rs"}
by_layer = pd.DataFrame(share).mul(100).rename(columns=METHOD)
by_layer = by_layer.rename_axis("layer").reset_index().melt(
    "layer", var_name="method", value_name="share")
[ax] = plots.lines(by_layer, "layer", "share", by=None, columns=3,
                   ylabel="share of the score, %")
ax.axvspan(fixed[0] - 0.3, fixed[-1] + 0.3, color=plots.GREY, alpha=0.15)
ax.set(ylim=(0, None), xticks=by_layer.layer.unique())
plt.show()

# %% [markdown]
# The preset's layers were found by causal tracing
# ({doc}`01_atlas`). Attribution at the subject's last token measures how much a layer
# *does* there, not whether the answer depends on it, and the two need not agree. That is
# an old warning {cite:p}`hase2023localization`. The rows "chosen layers" of the table
# above say what it gives. (The setting is `--adaptive N`.)
#
# ## Where the numbers come from
#
# The tables of `book/grid.toml` whose names begin with `parts`.

# %%
print(tables.origin(found.runs, missing))

# %% [markdown]
# The last cells assert what this page has claimed.

# %%
claimed = {"no history": [4.38, 2.03], "edited values": [0.09, 0.05],
           "mean of the group": [0.95, -0.01],
           "no shared phase": [0.60, 0.11], "all neurons": [-0.44, -0.21]}
for part, points in claimed.items():
    assert gain.loc[part].round(2).tolist() == points, part
assert not rates.duplicated(["model", "part", "seed"]).any()
layers = gain.loc[["2 chosen layers", "3 chosen layers"]]
assert layers["atlas-gpt2"]["3 chosen layers"] == 0
assert layers["atlas-llama"].between(2, 4).all()

# %%
whole, _ = grid.results("../book/grid.toml", ["sequential"], "../results")
whole = whole.cells().query("when == 'after' and metric == 'score'")
whole = whole.pivot_table("value", "model", "method")
ahead = (whole["ece-rs"] - whole["memit"]).round(2)
assert ahead[["atlas-gpt2", "atlas-llama"]].tolist() == [2.35, -0.07]

# %%
assert all(abs(sum(line) - 1) < 1e-6 for line in share.values())
assert len(chosen) == len(fixed) and list(chosen) == sorted(chosen)
