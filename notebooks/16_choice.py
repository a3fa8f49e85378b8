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
# # An equal search, and fresh facts
#
# To compare methods is also to compare their settings. In {doc}`10_table1` those of ECE had been
# searched for on each model, those of most baselines on one, and some choices were made after a
# table had been seen. So its order could be that of the effort spent. This page asks again: **if
# ECE and its rivals are searched alike, and then measured on facts that nobody has looked at, who
# is ahead?**
#
# **What was found**
#
# - ECE is ahead of ROME and MEMIT at every fresh seed on `atlas-gpt2` (by 5.1 and 6.4 points of
#   the score) and `atlas-gptj` (1.7 and 3.4). On `atlas-llama` they are even: ECE's mean is
#   0.4 and 0.6 higher, but not at every seed.
# - SERAC trained without the test's wordings is behind on two models and even on `atlas-gpt2`.
#   Trained with them it is ahead of ECE on `atlas-gpt2` by 2.4 points and on `atlas-gptj` by 0.5,
#   behind on `atlas-llama`. With that SERAC, ECE does *not* beat every baseline of the paper.
# - MEMIT with a history and `ece-plus`, neither of them searched, are ahead of ECE at every
#   seed on two models; on `atlas-gpt2` the first is even with it and the second behind.
# - Between the worst and the best setting tried of one method lie 9 to 29 points; the grid is ours,
#   and a wider one would say more.

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
RATES = ["efficacy", "generalization", "specificity", "score"]


def after(*names):
    """The runs of these tables with their rates at the end, a row each."""
    found, _ = grid.results("../book/grid.toml", names, "../results")
    rates = tables.wide(found.cells().query("when == 'after'"), "run")
    return found.runs.merge(rates, on="run")


# %% [markdown]
# ## The rule
#
# 1. ECE (with the scorer AS), ROME and MEMIT, the paper's editors that come near one another, are
#    searched in rounds, each from the best so far: first twelve settings of the stop of the
#    descent and of what matters most for the method (ECE's schedule, MEMIT's $\lambda$, ROME's
#    layer); then the layers of ECE and MEMIT, and ROME's decay and learning rate; at last the
#    learning rate of the other two. That is 20 or 21 settings each on each model. SERAC, trained
#    without and with the test's wordings (`serac-seen`, {doc}`10_table1`), gets four thresholds.
#    MEND and fine-tuning, far behind with their presets, are not searched.
# 2. The facts of the search are those of seed 3. The highest score is chosen, of equal
#    ones the first. WI and RS take over what was found for AS; the best of
#    the three at seed 3 stands for ECE.
# 3. The chosen settings run on the facts of seeds 5 to 9 (SERAC, which trains anew for every
#    seed, on 5 to 7). ECE is called ahead of another method if it is at *every* seed,
#    behind if it is behind at every seed, and else even.
#
# The facts of seeds 5 to 9 had been seen by none of these methods before. What was planned and
# what was added on the way stands at the end of this page.
#
# ## The search
#
# Every dot is a setting, the ring the one chosen. How far the dots of a method spread is
# what a careless choice would cost it.

# %% tags=["hide-input"]
SEARCH = ("choice-ece", "choice-rome", "choice-memit",
          "choice-memit-gpt2", "choice-layers", "choice-decay",
          "choice-rate", "choice-serac")
NEAR = ["ece-as", "rome", "memit", "serac", "serac-seen"]
tried = after(*SEARCH)
tried["place"] = tried.method.map(NEAR.index)
tried = tried.sort_values(["model", "place"], kind="stable")
chosen = tried.loc[tried.groupby(["model", "method"]).score.idxmax()]
tried["chosen"] = tried.run.isin(chosen.run)
chosen = chosen.sort_values(["model", "place"])

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Score at seed 3 of every setting tried; a ring marks the chosen one.", "name": "fig-choice-search"}, "image": {"alt": "Dot plots of the score, a row for each of five methods, one panel for each model. Each row spreads over 9 to 29 points, with the ringed dot at its right end. ECE's ring lies right of ROME's and MEMIT's on atlas-gpt2 and atlas-gptj; on atlas-llama they are equal within two points."}}
axes = plots.dots(tried, "score", "method", ring="chosen", height=2.8)
axes[-1].set(xlabel="score at seed 3, %")
plt.show()

# %% tags=["hide-input"]
sides = ["model", "method"]
SEARCHED = {"ece-as": ["lr", "own_steps", "stop", "layers"],
            "rome": ["lr", "weight_decay", "stop", "layers"],
            "memit": ["lr", "lam", "stop", "layers"],
            "serac": ["threshold"], "serac-seen": ["threshold"]}


def setting(run):
    """What was searched, as the run had it."""
    return " ".join(f"{name}={str(run[name]).removesuffix('.0')}"
                    for name in SEARCHED[run.method])


spread = tried.groupby(sides, sort=False).score.agg(
    tried="size", worst="min", best="max")
spread["chosen"] = chosen.apply(setting, axis=1).to_numpy()
tables.table(spread, "The search at seed 3: how many settings, the worst "
             "and the best score, and the settings chosen")

# %% [markdown]
# Papers say little about how the layers were chosen, and they are chosen first. Here is that
# round alone; for ROME, which edits one layer, the best over its stops:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Score at seed 3 by the layers that are edited (from 0, the lowest).", "name": "fig-choice-layers"}, "image": {"alt": "Dot plots of the score, a row for each set of layers, one panel for each model. On atlas-gpt2 and atlas-llama layer 3 alone is far behind all other sets; on atlas-gptj ECE is best with all four layers, MEMIT with layer 3 alone, and ROME with layer 0."}}
layered = after("choice-layers", "choice-rome").groupby(
    [*sides, "layers"]).score.max().reset_index()
layered["size"] = layered.layers.str.len()
layered = layered.sort_values(["model", "size", "layers"])
axes = plots.dots(layered, "score", "layers", hue="method", columns=3)
axes[-1].set(xlabel="score at seed 3, %")
plt.show()

# %% [markdown]
# The presets edit layers 0,1,2 of `atlas-gpt2`, 1,2 of the other two, and ROME 2: the
# lower layers, where tracing sees the facts ({doc}`01_atlas`). Where a dot stands further
# to the right at other layers, the tables of this book were made with a worse choice.

# %% [markdown]
# ## Fresh facts
#
# Now every method has its chosen setting, and nothing is chosen any more. Two rows were
# not searched: `memit-history` and `ece-plus` have their presets, with ECE's layers where
# the search found others. First a check that what ran is what was chosen:

# %%
fresh = after("fresh", "fresh-serac", "fresh-peers")
near = fresh[fresh.method.isin(NEAR)]
near = near.assign(chosen=near.apply(setting, axis=1))
same = near.merge(spread.reset_index(), on=[*sides, "chosen"])
assert len(same) == len(near) == 3 * (3 * 5 + 2 * 3)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Score on fresh facts: a dot for each seed, a bar at their mean.", "name": "fig-choice-fresh"}, "image": {"alt": "Dot plots of the score at the fresh seeds, methods sorted by their mean, one panel for each model. The dots of a method lie close together. serac-seen leads on atlas-gpt2, ece-plus on atlas-gptj, memit-history on atlas-llama; ECE is second, fourth and third."}}
fresh["mean"] = fresh.groupby(sides).score.transform("mean")
fresh = fresh.sort_values(["model", "mean"], ascending=[True, False],
                          kind="stable")
axes = plots.dots(fresh, "score", "method", bar=True, height=3.7)
axes[-1].set(xlabel="score at fresh seeds, %")
plt.show()

# %% [markdown]
# The same as a table, with the measures the score is
# made of, averaged over the seeds that each method has (five or three):

# %% tags=["hide-input"]
means = fresh.groupby(sides, sort=False)[RATES].mean()
tables.table(means, "Rates on fresh facts, means over the seeds, %")

# %% [markdown]
# ## Ahead or behind?
#
# Facts differ from seed to seed, so methods are compared at equal seeds: the score of ECE,
# with the scorer that was best at seed 3, minus that of the other method, its mean and range.

# %% tags=["hide-input"]
ECE = ["ece-as", "ece-wi", "ece-rs"]
at_three = pd.concat([after("choice-scorers"), chosen])
at_three = at_three[at_three.method.isin(ECE)].set_index("method")
best_scorer = at_three.groupby("model").score.idxmax()


def compared(model, one):
    """`one` minus each other method outside ECE, in their order."""
    part = fresh[(fresh.model == model)
                 & ~fresh.method.isin(set(ECE) - {one})]
    scores = part.pivot(index="seed", columns="method", values="score")
    gaps = tables.gaps(scores, one)
    return gaps.loc[[m for m in part.method.unique() if m != one]]


# %% tags=["hide-input"]
gaps = pd.concat({m: compared(m, one) for m, one in best_scorer.items()})
numbers = ["mean", "low", "high"]
tables.table(gaps[numbers].map("{:+.1f}".format).join(gaps.verdict),
             "ECE minus each other method on fresh facts, points")

# %% [markdown]
# That scorer is AS on each model. On `atlas-llama` {doc}`10_table1` had ECE in front of ROME, by
# less than a point; after an equal search it is not ahead at every seed.
#
# ## What the search promised
#
# The highest of twenty scores is partly luck, which does not come again; here it cost little. Per method: the
# chosen setting's score at seed 3, and its mean on fresh facts.

# %% tags=["hide-input"]
promise = chosen.set_index(sides)[["score"]].join(
    means.score.rename("fresh"))
tables.table(promise.set_axis(["at seed 3", "on fresh facts"], axis=1),
             "Score of the chosen settings, %")

# %% [markdown]
# ## What this does not settle
#
# - *Even* means: not separated by these three or five seeds. It does not mean equal.
# - The rounds change one or two things at a time, so a good pair of settings can be missed.
#   ECE's $p$, its number of groups and the presets' $\lambda$ were chosen for ECE on these
#   models before, which the search leaves to it as an advantage.
# - MEND, fine-tuning, SERAC's training and the peers were not searched. What a search can do
#   for a method that looks far behind, MEMIT on `atlas-gptj` shows.
# - All this is CounterFact's three rates, 300 edits, in one small world. Which layers are
#   best will not carry over to a large model.
#
# ## Live, in small
#
# The same on the model of this page: two settings on a few facts, and the better of them
# on others. To search for *your* model, take more facts, and settings that matter to it.

# %%
from ece.experiments.runner import run
from ece.experiments.spec import Settings


def score(seed, **config):
    """Of a short run with these settings."""
    small = {"steps": 6, "own_steps": 2, "contexts": 1, "clusters": 2}
    return run(Settings(
        model=MODEL, method="ece-as", facts=8, batch=4, seed=seed,
        device=DEVICE, data=DATA, stats_tokens=3000,
        config=small | config,
    ))["after"]["score"]


# %%
rates = {lr: score(3, lr=lr) for lr in (1.0, 10.0)}
pick = max(rates, key=rates.get)
then = {lr: score(4, lr=lr) for lr in rates}

for lr, rate in rates.items():
    print(f"lr {lr:4.1f}: {rate:5.1f}, on fresh facts {then[lr]:5.1f}",
          "<- chosen" if lr == pick else "")

# %% [markdown]
# ## Take away
#
# - Search every method alike, on facts that the test does not see, or do not compare.
# - The settings of one method can differ by more than the best of ECE, ROME and MEMIT do.
#
# ## Where the numbers come from
#
# The tables `choice` and `fresh` of `book/grid.toml`. Not all of it was planned in advance:
# {doc}`../book/run-log` says what was added, dropped and run again.

# %%
found, missing = grid.results(
    "../book/grid.toml", [*SEARCH, "choice-scorers", "fresh",
                          "fresh-serac", "fresh-peers"], "../results")
print(tables.origin(found.runs, missing))

# %% [markdown]
# The last cells assert what this page has claimed.

# %%
verdicts = {m: compared(m, "ece-as") for m in best_scorer.index}
CLAIMED = {"rome": ["ahead", "ahead", "even"],
           "memit": ["ahead", "ahead", "even"],
           "serac": ["even", "ahead", "ahead"],
           "serac-seen": ["behind", "behind", "ahead"],
           "memit-history": ["even", "behind", "behind"],
           "ece-plus": ["ahead", "behind", "behind"]}

# %% tags=["hide-input"]
for other, words in CLAIMED.items():
    assert [v.verdict[other] for v in verdicts.values()] == words, other
assert (best_scorer == "ece-as").all()
points = pd.DataFrame({m: v["mean"].round(1) for m, v in
                       verdicts.items()})
assert points.loc["rome"].tolist() == [5.1, 1.7, 0.4]
assert points.loc["memit"].tolist() == [6.4, 3.4, 0.6]
assert points.loc["serac-seen"].tolist()[:2] == [-2.4, -0.5]
assert points.loc["serac", "atlas-gpt2"] > 0

# %% tags=["hide-input"]
assert (tried.seed == 3).all()
counts = spread.tried.unstack()[["ece-as", "rome", "memit"]]
assert counts.isin([20, 21]).all(axis=None)
lost = (spread.best - spread.worst).round()
assert (found.runs.query("seed > 3").facts == 300).all()
assert lost.min() == 9 and lost.max() == 29 and fresh.seed.min() == 5
