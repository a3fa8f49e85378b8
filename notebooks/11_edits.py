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
# # How many edits: Fig 3
#
# Every sequence ends somewhere: the weights hold only so much. The paper's Fig 3 follows
# ROME, MEMIT and ECE over the number of edits and finds that ECE stays where the others
# fall. This page follows seven methods on two models to 1,200 edits in batches of 100.
# **When does each method break, what breaks first, and how much of the model has been
# rewritten by then?**
#
# **What you will see**
#
# - what share of a model's facts and of its room an edit count means;
# - score, efficacy, generalization and specificity of *all facts so far* over the edits;
# - the point at which each method falls below a line;
# - the same curve live, in small.

# %%
import os
from pathlib import Path

from ece.book import tables
from ece.experiments import grid

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")
RESULTS, GRID = Path("../book/results"), Path("../book/grid.toml")

found, missing = grid.results(GRID, "edits", RESULTS)
runs = {(r["model"], r["method"]): r for r in found}
models = list(dict.fromkeys(model for model, _ in runs))
methods = list(dict.fromkeys(method for _, method in runs))

# %% tags=["nbval-ignore-output"]
print(tables.origin(found, missing))

# %% [markdown]
# ## How much is a thousand?
#
# The paper edits 2,000 facts into models that know millions. An embedded model knows a
# few thousand in all, and its edit layers have few neurons. Two ratios say how far a
# sequence goes: the share of the model's facts that it rewrites, and the number of
# edits per key dimension. With a layer of $d_\text{ff}$ neurons,
#
# $$
# \operatorname{rank}(K) \le \min(\text{edits},\, d_\text{ff}),
# $$
#
# so that beyond $d_\text{ff}$ edits the keys of a layer cannot even be independent,
# and the least squares of Eq 19 must give something up.

# %%
import ece
from ece.data.loading import load_facts

every = load_facts("counterfact")
model, tokenizer = ece.load(MODEL, DEVICE)
layers = ece.configure(MODEL, "ece-rs").layers
width = ece.sites(model, layers)[0].weight.shape[1]
print(f"{MODEL}: {len(every)} facts")
for edits in (100, 300, 600, 1200):
    print(f"{edits:5} edits: {edits / len(every):4.0%} of them, "
          f"{edits / width:.1f} a neuron")

# %% [markdown]
# ## The curves
#
# At each point *all* facts so far are measured, not only the last batch: a method that
# forgets its first hundred falls here.

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt

from ece.book import plots

plots.style()


# %%
def curves(name, models, methods, runs, lowest=0):
    """A rate over the edits, one panel for each model."""
    rows = max(1, len(models))
    figure, axes = plt.subplots(
        rows, 1, figsize=(4.6, 3.0 * rows), sharex=True, squeeze=False
    )
    for model, ax in zip(models, axes[:, 0]):
        for method in methods:
            if run := runs.get((model, method)):
                ends = [point["edited"] for point in run["points"]]
                line = [point[name] for point in run["points"]]
                ax.plot(ends, line, "o-", markersize=4, label=method,
                        color=plots.colour(method))
        ax.set(title=model, ylabel=f"{name}, %", ylim=(lowest, 102))
    axes[-1, 0].set(xlabel="facts edited")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2)
    plt.show()


# %% tags=["nbval-ignore-output"]
curves("score", models, methods, runs)

# %% [markdown]
# The score is one number for three questions. Which of them gives way?

# %% tags=["nbval-ignore-output"]
curves("efficacy", models, methods, runs)

# %% tags=["nbval-ignore-output"]
curves("specificity", models, methods, runs)

# %% [markdown]
# After many edits a neighbour has often been edited itself, and then rightly has a new
# answer ({doc}`10_table1` counts how often). The same without such neighbours:

# %% tags=["nbval-ignore-output"]
curves("specificity_unedited", models, methods, runs)

# %% [markdown]
# Efficacy falls when edits are forgotten or no longer take. Specificity falls when
# their neighbours are dragged along. `memit` has no history, and pays with its old edits:
# no term in its solve knows them. `rome` has none either, but finds each value on the
# present weights; it keeps its edits longer and pays with the neighbours. A method with a
# history shares the room between old and new.
#
# The bend between 600 and 800 has a cause of its own. A world has only so many
# subjects; up to there each fact is about a new one, and from there on subjects come a second
# time. A value found on the original weights then takes the first edit back.
# {doc}`15_plus` shows it and mends it.
#
# ## Where each method breaks
#
# The first of the measured points at which a rate is below 80 %. A dash: it never was.

# %% tags=["nbval-ignore-output"]
def breaking(run, name, line=80):
    """Edits at the first point below the line, None if there is none."""
    below = (p["edited"] for p in run["points"] if p[name] < line)
    return next(below, None)


KINDS = ("efficacy", "generalization", "specificity", "score")
for model in models:
    print(f"\n{model:14}", *(f"{kind[:4]:>5}" for kind in KINDS))
    for method in methods:
        if run := runs.get((model, method)):
            points = [breaking(run, kind) for kind in KINDS]
            print(f"{method:14}", *(f"{p or '-':>5}" for p in points))

# %% tags=["nbval-ignore-output"]
def at_points(name):
    """A rate of each method at the measured points."""
    for model in models:
        own = {m: runs[model, m]["points"] for m in methods
               if (model, m) in runs}
        print(f"\n{model}: {name} at\n  ",
              *(p["edited"] for p in next(iter(own.values()))))
        for method, points in own.items():
            line = "".join(f"{p[name]:3.0f}" for p in points)
            print(f"{method:14}", line)


at_points("score")

# %% [markdown]
# And with the specificity over unedited neighbours:

# %% tags=["nbval-ignore-output"]
at_points("score_unedited")

# %% [markdown]
# ## Forgetting, batch by batch
#
# Fig 3 of the paper cannot tell a fact that never took from one that was lost. Here each
# batch was measured twice, right when it was written and after the last one. The difference
# is what the batches behind it have cost.

# %% tags=["nbval-ignore-output"]
def forgetting(model, ax):
    for method in methods:
        if run := runs.get((model, method)):
            lost = [b["at_write"]["efficacy"] - b["after"]["efficacy"]
                    for b in run["batches"]]
            ends = [b["edited"] for b in run["batches"]]
            ax.plot(ends, lost, "o-", markersize=4, label=method,
                    color=plots.colour(method))
    ax.set(title=model, ylabel="efficacy lost, points")


rows = max(1, len(models))
figure, axes = plt.subplots(
    rows, 1, figsize=(4.6, 3.0 * rows), sharex=True, squeeze=False
)
for model_name, ax in zip(models, axes[:, 0]):
    forgetting(model_name, ax)
axes[-1, 0].set(xlabel="edits when the batch was written")
handles = axes[0, 0].get_legend_handles_labels()
figure.legend(*handles, loc="outside lower center", ncols=2)
plt.show()

# %% [markdown]
# ## Live, in small
#
# The same with 24 facts and the settings of this page's model: `points` asks for a
# measurement of all facts so far.

# %%
from ece.experiments.runner import run as run_cell
from ece.experiments.spec import Settings

live = run_cell(Settings(
    model=MODEL, method="ece-plus", facts=24, batch=8, device=DEVICE,
    data=DATA, points=(8, 16, 24), stats_tokens=5000,
    config={"own_steps": 5, "steps": 5, "contexts": 2},
))

# %% tags=["nbval-ignore-output"]
for point in live["points"]:
    print(f"{point['edited']:2}:", *(
        f"{kind[:4]} {point[kind]:.0f}" for kind in KINDS))

# %% [markdown]
# ## Summary
#
# - An edit count means little without the model: the share of its facts, and edits per
#   neuron, say how far a sequence goes.
# - All facts so far are measured at each point; the table of breaking points and the
#   curves come from the files alone.
# - What is lost can be told from what never took.
#
# The last cell asserts what this page has claimed.

# %%
assert [p["edited"] for p in live["points"]] == [8, 16, 24]
assert live["points"][-1]["efficacy"] == live["after"]["efficacy"]
for run in found:
    last = run["points"][-1]
    assert last["edited"] == run["facts"]
    assert all(last[kind] == run["after"][kind] for kind in KINDS)
