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
# **What was found**
#
# - On SmolLM2-135M (500 edits) the history adds 2.2 points to `ece-rs`. The two parts that give ECE its
#   name cost points: the choice of neurons 2.5, the shared phase 2.9. Without a shared phase `ece-rs` has
#   80.2, as plain MEMIT does; the anchor's start and the group mean's differ by 0.2.
# - On `atlas-gpt2` and `atlas-llama` (200 edits) the history of earlier edits brings **4.38 and 2.03**. That is
#   more than the whole gain of `ece-rs` over MEMIT (+2.35 and −0.07, {doc}`07_sequential`).
# - The other parts bring less than a point there: descending on the group's anchor instead of the group's mean
#   loss +0.95 and −0.01, the shared phase +0.60 and +0.11, the choice of neurons −0.44 and −0.21 (at the presets' $p$ of 0.99 and
#   0.95, which keep most of the score; the paper's 0.8 costs more, {doc}`13_threshold`), values from the
#   original weights +0.09 and +0.05.
# - On `atlas-gpt2` attribution chooses the preset's own layers; on `atlas-llama` the layers that it chooses
#   cost 2 to 4 points.
#
# One seed each: only differences of more than two points stand above the noise.

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
# ## On a real model
#
# SmolLM2-135M, 500 records of CounterFact in batches of 100, one seed. Each run is `ece-rs` with the
# settings that its search chose, but for one part; the last row is MEMIT with its own.

# %% tags=["hide-input"]
real, unrun = grid.results("../book/grid-real.toml", [
    "main", "real-parts", "real-history", "real-threshold"], "../results")
ours = real.runs.query("seed == 0 and method == 'ece-rs'")
history = ours.history.astype(bool)
WHOLE = (ours.shared == "anchor") & history & (ours.p == 0.8)
ROWS = {"as it is": WHOLE, "no history": ~history,
        "all neurons": ours.p == 1,
        "no shared phase": ours.shared == "zero",
        "mean of the group": ours.shared == "mean"}
after = tables.wide(real.cells().query("when == 'after'"), "run", "method")
after = after.set_index("run")
rows = {f"ece-rs, {name}": ours.run[own].item()
        for name, own in ROWS.items()}
plain = real.runs.query("seed == 0 and method == 'memit'").run.item()
real_parts = after.loc[[*rows.values(), plain]].set_axis([*rows, "memit"])
RATES = ["efficacy", "generalization", "specificity", "score"]
tables.table(real_parts[[*RATES, "efficacy_top1"]].rename(
    columns={"efficacy_top1": "top-1"}), "SmolLM2-135M after 500 edits, %")

# %% [markdown]
# The difference is largest in top-1: with an anchor's start and five steps of its own a fact's new
# answer often becomes likelier than the old one, but not the model's first. {doc}`18_six_steps` looks at starts more closely.
#
# ## One change at a time, on the embedded models
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

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Score of `ece-rs` with one part changed. Points left of the dotted line are changes that hurt: the part helps.", "name": "fig-parts"}, "image": {"alt": "Dot plots of the score, a row for each change, one panel for each model. On both models the dot of no history lies far left of the line, by 4 and 2 points; on atlas-llama so do those of chosen layers; the others lie within about 2 points of it."}}
axes = plots.dots(rates, "score", "part", height=4.4)
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
# is that it costs little: "no shared phase" takes the same own steps from $U = 0$: 5, on
# `atlas-llama` 15, which leaves the start little to do.
#
# ## How many groups
#
# $K$ is the number of descents of the shared phase, and its time. The paper does not
# give it.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Score against the number of groups in a batch of 25 facts.", "name": "fig-parts-groups"}, "image": {"alt": "Two nearly flat lines of the score for 1, 5, 10 and 20 groups: that of atlas-llama a little higher than that of atlas-gpt2."}}
grouped = rates[rates.part.isin([BASE, *CHANGES["clusters"].values()])]
[ax] = plots.lines(grouped, "clusters", "score", hue="model", by=None,
                   ylabel="score, %", columns=0)
ax.set(xlabel="groups in a batch of 25")
plots.label_ends(ax)
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
[ax] = plots.lines(by_layer, "layer", "share", by=None, columns=0,
                   ylabel="share of the score, %")
ax.axvspan(fixed[0] - 0.3, fixed[-1] + 0.3, color=plots.GREY, alpha=0.15)
ax.set(ylim=(0, None), xticks=by_layer.layer.unique())
plots.label_ends(ax)
plt.show()

# %% [markdown]
# The preset's layers were found by causal tracing
# ({doc}`01_atlas`). Attribution at the subject's last token measures how much a layer
# *does* there, not whether the answer depends on it, and the two need not agree. That is
# an old warning {cite:p}`hase2023localization`. The rows "chosen layers" of the table
# above say what it gives. (The setting is `--adaptive N`.)
#
# ## Take away
#
# - The history is the part to keep.
# - Choosing neurons and sharing a descent cost quality on the real model; what they save is on
#   {doc}`08_speed`.
#
# ## Where the numbers come from
#
# The tables of `book/grid.toml` whose names begin with `parts`, and `main`, `real-parts`, `real-history` and
# `real-threshold` of `book/grid-real.toml`.

# %%
print(tables.origin(found.runs, missing))
print(tables.origin(real.runs, unrun))

# %% [markdown]
# The last cells assert what this page has claimed.

# %% tags=["hide-input"]
claimed = {"no history": [4.38, 2.03], "edited values": [0.09, 0.05],
           "mean of the group": [0.95, -0.01],
           "no shared phase": [0.60, 0.11], "all neurons": [-0.44, -0.21]}
for part, points in claimed.items():
    assert gain.loc[part].round(2).tolist() == points, part
assert not rates.duplicated(["model", "part", "seed"]).any()
from ece import presets

NAMES = ("atlas-gpt2", "atlas-llama")
own = [presets.configure(name, "ece-rs") for name in NAMES]
assert [(c.p, c.own_steps) for c in own] == [(0.99, 5), (0.95, 15)]
layers = gain.loc[["2 chosen layers", "3 chosen layers"]]
assert layers["atlas-gpt2"]["3 chosen layers"] == 0
assert layers["atlas-llama"].between(2, 4).all()

# %% tags=["hide-input"]
whole, _ = grid.results("../book/grid.toml", ["sequential"], "../results")
whole = whole.cells().query("when == 'after' and metric == 'score'")
whole = whole.pivot_table("value", "model", "method")
ahead = (whole["ece-rs"] - whole["memit"]).round(2)
assert ahead[["atlas-gpt2", "atlas-llama"]].tolist() == [2.35, -0.07]

# %% tags=["hide-input"]
assert all(abs(sum(line) - 1) < 1e-6 for line in share.values())
assert len(chosen) == len(fixed) and list(chosen) == sorted(chosen)

# %% tags=["hide-input"]
own = real_parts.score
whole = own["ece-rs, as it is"]
adds = {name: round(whole - own[f"ece-rs, {name}"], 1) for name in ROWS}
assert adds == {"as it is": 0.0, "no history": 2.2, "all neurons": -2.5,
                "no shared phase": -2.9, "mean of the group": -0.2}
assert round(own["ece-rs, no shared phase"], 1) == 80.2
assert round(own["memit"], 1) == 80.2
top1 = real_parts.efficacy_top1
assert top1["ece-rs, as it is"] < top1["ece-rs, no shared phase"] - 10
