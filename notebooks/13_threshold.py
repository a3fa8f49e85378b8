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
# # The threshold $p$: Fig 7
#
# ECE changes only the neurons that carry a share $p$ of the total score (Eq 8). The
# paper sets $p = 0.8$ and varies it in Fig 7; the settings published with it say $p = 1$
# for two of the three scores on two of the three models, which switches the choice
# off. **What does the threshold do, and is less more?**
#
# **What you will see**
#
# - how many neurons a share $p$ keeps, for each score;
# - quality against $p$, $p = 1$ included, on three models;
# - what a part of the neurons can and cannot reach.

# %%
import os
from pathlib import Path

from ece.book import tables
from ece.experiments import grid

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")
RESULTS, GRID = Path("../book/results"), Path("../book/grid.toml")

found, missing = [], {}
for table in ("threshold", "threshold-others"):
    done, left = grid.results(GRID, table, RESULTS)
    found, missing = found + done, {**missing, **left}
runs = {(r["model"], r["method"], r["provenance"]["settings"]["p"]): r
        for r in found}
models = list(dict.fromkeys(model for model, _, _ in runs))
methods = list(dict.fromkeys(method for _, method, _ in runs))
shares = sorted({p for _, _, p in runs})

# %% tags=["nbval-ignore-output"]
print(tables.origin(found, missing))

# %% [markdown]
# ## From a share of the score to a number of neurons
#
# Eq 8 keeps the smallest set $\mathcal I$ with
#
# $$
# \sum_{i \in \mathcal I} s_i \;\ge\; p \sum_i s_i .
# $$
#
# How many neurons that is depends on how uneven the scores are. Even scores, as WI's,
# keep a share of neurons near $p$; AS and RS are uneven, since a neuron that is silent for a
# fact scores next to nothing, and keep far fewer.

# %%
import ece
from ece.data.loading import load_facts
from ece.engine.keys import keys_and_states, mix, subject_rows
from ece.scoring import batch_set, scores

facts = load_facts("counterfact", 25, path=DATA)
model, tokenizer = ece.load(MODEL, DEVICE)
layer = ece.configure(MODEL, "ece-rs").layers[-1]
W = ece.sites(model, (layer,))[0].weight
keys, _ = keys_and_states(
    model, subject_rows(tokenizer, facts, ("{}",)), 25, layer, layer, 4096
)
K = mix(keys, "bare")

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt

from ece.book import plots

plots.style()
SCORERS = {"ece-as": "activation", "ece-wi": "weight",
           "ece-rs": "residual"}
grid_of_p = [0.05 * i for i in range(1, 20)] + [0.99, 1.0]
kept = {
    m: [int(batch_set(scores(s, K, W), p).sum()) for p in grid_of_p]
    for m, s in SCORERS.items()
}
figure, ax = plt.subplots()
for method, line in kept.items():
    ax.plot(grid_of_p, [100 * n / W.shape[1] for n in line],
            color=plots.colour(method), label=method)
ax.plot([0, 1], [0, 100], ":", color=plots.GREY, label="even scores")
ax.set(xlabel="p", ylabel=f"neurons of layer {layer} kept, %")
ax.legend()
plt.show()

# %% [markdown]
# The set here is that of a batch of 25 facts together, as the solve uses it; one fact alone
# keeps fewer.
#
# ## Quality against $p$
#
# Two hundred facts in batches of 25, after the last batch. The right end, $p = 1$, is the
# same method without a choice of neurons.

# %% tags=["nbval-ignore-output"]
def over_p(name):
    rows = max(1, len(models))
    figure, axes = plt.subplots(
        rows, 1, figsize=(4.6, 2.8 * rows), sharex=True, squeeze=False
    )
    for model, ax in zip(models, axes[:, 0]):
        for method in methods:
            known = [p for p in shares if (model, method, p) in runs]
            line = [runs[model, method, p]["after"][name] for p in known]
            ax.plot(known, line, "o-", label=method,
                    color=plots.colour(method))
        ax.set(title=model, ylabel=f"{name}, %")
    axes[-1, 0].set(xlabel="p")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3)
    plt.show()


over_p("score")

# %% tags=["nbval-ignore-output"]
over_p("efficacy")

# %% tags=["nbval-ignore-output"]
over_p("specificity")

# %% [markdown]
# In numbers, with the mean share of neurons written:

# %% tags=["nbval-ignore-output"]
KINDS = ("efficacy", "generalization", "specificity", "score")
for model_name in models:
    print(f"\n{model_name:12} kept", *(f"{k[:4]:>4}" for k in KINDS))
    for method in methods:
        for p in shares:
            if run := runs.get((model_name, method, p)):
                n = run["edit"]["neurons"].values()
                part = sum(n) / len(n) / W.shape[1]
                print(f"{method:6} {p:5.2f} {part:4.0%}",
                      *(f"{run['after'][k]:4.0f}" for k in KINDS))

# %% [markdown]
# Which $p$ is best for each score, and what does it gain over $p = 1$? With 200 facts
# a rate has a half width of one to three points, and the best of several is a little
# lucky, so only gains well above that mean something.

# %% tags=["nbval-ignore-output"]
for model_name in models:
    for method in methods:
        line = {p: runs[model_name, method, p]["after"]["score"]
                for p in shares if (model_name, method, p) in runs}
        if 1.0 in line:
            top = max(line, key=line.get)
            print(f"{model_name:11} {method} at p={top:4.2f} "
                  f"{line[top]:.1f} {line[top] - line[1.0]:+.1f}")

# %% [markdown]
# ## What a part of the neurons cannot reach
#
# The keys of a batch, cut down to $\mathcal I$, must still tell the facts apart. The fewer
# neurons, the smaller the part of a key that the update sees. Below: the share of the
# residual that one batch's update reaches, and its length relative to that with all
# neurons, when the same residuals are asked for.

# %%
import torch

from ece import atlas
from ece.solver import solve_update

stats = ece.second_moment(model, tokenizer, atlas.corpus(300), (layer,))
torch.manual_seed(0)
R = torch.randn(W.shape[0], 25, dtype=torch.double)


def length(p):
    """(norm of the update, share of R reached) with RS at p."""
    mask = batch_set(scores("residual", K, W), p)
    delta = solve_update(
        R, K, stats.moments[layer], None, mask, 60.0, ridge=1e-3
    )
    reached = delta @ K.double().T
    return float(delta.norm()), float((reached * R).sum() / R.norm() ** 2)


# %%
lengths = {p: length(p) for p in (0.5, 0.8, 0.95, 1.0)}
for p, (norm, reached) in lengths.items():
    print(f"p = {p:4.2f}: length {norm / lengths[1.0][0]:5.2f}, "
          f"reached {reached:4.0%}")

# %% [markdown]
# A smaller $p$ reaches less of what is asked for: that is its cost. Its update is shorter,
# too, since the last neurons to be chosen are those that hardly fire, and writing with them
# takes long columns. The gain is that columns outside $\mathcal I$ stay as they are, so facts
# that live there are safe. Which of the two is larger is a matter of the model, and the
# curves above are the answer for these.
#
# ## Summary
#
# - $p$ is a share of score, not of neurons; for AS and RS they differ widely.
# - $p = 1$ is in every figure, since part of the published settings use it.
# - Best values and gains are printed from the files, with a warning about luck.
#
# The last cell asserts what this page has claimed.

# %%
for line in kept.values():
    assert line == sorted(line) and line[-1] == W.shape[1]
assert kept["ece-as"][15] < kept["ece-wi"][15], "AS is less even"
reached = [lengths[p][1] for p in sorted(lengths)]
assert reached == sorted(reached), "more neurons reach more"
for run in found:
    assert run["facts"] == 200 and run["batch"] == 25
