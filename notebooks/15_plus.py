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
# # ece-plus: a setting of our own, derived
#
# The pages before took ECE apart and found that its history does most of the work. This one
# goes the other way: **which settings of the same editor would we choose, and why?** The
# result is called `ece-plus`. It is not the paper's method, and stands
# in the tables as a row of its own. On the embedded models, which this page is about, it keeps the history and leaves out the choice of neurons
# and the shared phase; a descent stops when it is done; half of $C_0$ is taken at the ends of
# names; and a subject that is edited again gets its value from the present weights. (On
# SmolLM2 it starts from a learned vector, {doc}`18_six_steps`, keeps the rest of the edited prompts as it is,
# {doc}`17_real_model`, and does not use the names.)
#
# **What was found**
#
# - The last of these is what counts (one model, one seed). After 1,200 edits, many of them on subjects edited before,
#   `ece-plus` has a score of 77 on `atlas-gpt2`; with all values from the original weights
#   it has 60. Nothing in this is special to `ece-plus`: the same change lifts MEMIT with a
#   history from 59 to 79 and `ece-rs` from 59 to 78.
# - Over 300 edits, where no subject comes twice, `ece-plus` and MEMIT with a history are even on
#   all three models. `ece-plus` is ahead of MEMIT and ROME at every seed, and of ECE's three
#   scorers too.
# - Half of $C_0$ at the ends of names makes no clear difference: it moves the score by 0.6
#   points or less. All of it there costs 1 to 20 points.

# %% tags=["hide-input"]
import os
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch

import ece
from ece import atlas, presets
from ece.baselines.ece_plus import ends_of_names
from ece.book import plots, tables
from ece.data import load_facts
from ece.experiments import grid

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")

plots.style()


# %%
def after(*names):
    """Runs of these tables, and what was measured at their ends."""
    found, _ = grid.results("../book/grid.toml", names, "../results")
    return found.runs, found.cells().query("when == 'after'")


def facts_of(count=None):
    """The first facts, of the world of the embedded models or of DATA."""
    return (load_facts("counterfact", count, path=DATA) if DATA
            else atlas.facts("counterfact", count))


# %%
model, tokenizer = ece.load(MODEL, DEVICE)
facts = facts_of(50)
config = presets.configure(MODEL, "ece-plus")
strategy = presets.strategy(MODEL, "ece-plus")
layer = config.layers[-1]
texts = atlas.corpus(400)
everywhere = ece.second_moment(model, tokenizer, texts, config.layers)
at_ends = ece.second_moment(
    model, tokenizer, texts, config.layers, select=ends_of_names)

# %% [markdown]
# ## Whom an update hits
#
# An update $\Delta$ changes what a layer gives for *any* key $k$ by $\Delta k$. Eq 4 keeps
# this small on average over the keys of a text,
#
# $$
# \lambda\, \mathbb{E}\,\lVert \Delta k \rVert^2
#   = \lambda \operatorname{tr}\!\big(\Delta\, C_0\, \Delta^\top\big),
# $$
#
# and most tokens of a text are not where facts are read. Specificity asks about other
# *subjects*: its keys are those at the last tokens of names. So what has to stay small is the
# average over these.

# %%
from ece.facts import encode

text = atlas.corpus(1, seed=3)[0]
ends = ends_of_names(tokenizer, text)
pairs = list(zip(encode(tokenizer, text), ends))[:40]
marked = "".join(
    tokenizer.decode([t]) + ("|" if end else "") for t, end in pairs
)
print(fill(marked, tables.WIDTH))

# %% [markdown]
# The bars mark the tokens that end a name: the last of one or more capitalised words. That
# takes in words at the beginning of sentences, which does no harm, and needs no list of
# subjects, so that it works on any text with capital letters.
#
# How do the two second moments differ? Below, the energy $k^\top C\, k$ that each gives to the
# keys of subjects that are *not* edited, one value for each subject. Where it is high, the
# objective penalises changes along this key, and the solve avoids them.

# %%
from ece.engine import reader

others = facts_of(400)[200:]
keys, _, _ = reader(model, tokenizer, others, ("{}",), 16384).read(
    layer, layer)
raw = keys[:, 0].double()
K = raw / raw.norm(dim=1, keepdim=True)


# %%
def energy(stats):
    """k C k for each key, C scaled to trace 1."""
    C = stats.moments[layer].to(K)
    return ((K @ C) * K).sum(1).cpu() / C.trace().cpu()


price = pd.DataFrame({"all tokens": energy(everywhere).numpy(),
                      "ends of names": energy(at_ends).numpy()})
ratio = price["ends of names"].mean() / price["all tokens"].mean()
print(f"with ends of names {ratio:.2f} times as high")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What a change along the key of an unedited subject costs, under each of the two second moments.", "name": "fig-plus-energy"}, "image": {"alt": "Two histograms over 200 subjects. The one for ends of names lies to the right of the one for all tokens, with much overlap."}}
figure, ax = plt.subplots()
sns.histplot(1e3 * price, bins=30, ax=ax, alpha=0.6, linewidth=0,
             palette=[plots.GREY, plots.RED])
ax.set(xlabel="cost of a change along a subject's key, $10^{-3}$",
       ylabel="subjects")
plt.show()

# %% [markdown]
# ## Part of each
#
# Names alone are not enough: the text between them must survive too. `ece-plus` takes
#
# $$
# C_0^{(\nu)} = (1 - \nu)\, \mathbb{E}_\text{all}[k k^\top]
#   + \nu\, \mathbb{E}_\text{ends}[k k^\top] ,
# $$
#
# with the share $\nu$ called `names`. Three hundred facts in batches of 25, after the last
# batch, against $\nu$:

# %% tags=["hide-input"]
RATES = ["efficacy", "generalization", "specificity", "score"]


def along(setting, *names):
    """Rates of ece-plus, by model and by one setting."""
    cells = after(*names)[1].query("method == 'ece-plus'")
    found = tables.wide(cells, "model", setting)
    return found.sort_values(["model", setting], ignore_index=True)


def panel(frame, setting, xscale="linear"):
    long = frame.melt(["model", setting], RATES[:1] + RATES[2:],
                      "metric", "rate")
    axes = plots.lines(long, setting, "rate", hue="metric", height=3.0,
                       columns=0)
    axes[-1].set(xscale=xscale)
    for ax in axes:
        plots.label_ends(ax)


# %% tags=["hide-input"] mystnb={"figure": {"caption": "Rates of `ece-plus` after 300 edits against the share of $C_0$ that is taken at the ends of names.", "name": "fig-plus-names"}, "image": {"alt": "Line charts of efficacy, specificity and score against the share from 0 to 1, one for each model. The lines are flat up to 0.75 and fall at 1, steeply on atlas-gptj."}}
by_names = along("names", "plus-names", "table1")
panel(by_names, "names")
plt.show()

# %% tags=["hide-input"]
tables.table(by_names.set_index(["model", "names"])[RATES],
             "Rates by the share of ends of names, %")

# %% [markdown]
# $\lambda$ is the same along a line. It and the share were chosen on another draw of
# facts (seed 3) than those of the tables (seeds 0 to 2). What does the preset's share
# gain over none, on the draw where it was chosen, and on that of the tables?

# %% tags=["hide-input"]
draws = {"chosen on (seed 3)": along("names", "plus-choice"),
         "tables (seed 0)": by_names}
gains = pd.concat({
    draw: frame.set_index(["names", "model"])[RATES[:1] + RATES[2:]]
    for draw, frame in draws.items()}).swaplevel(0, 1)
gains = gains.loc[strategy.names] - gains.loc[0.0]
tables.table(gains.map("{:+.1f}".format),
             "What half of the mass on names adds, points")

# %% [markdown]
# Differences of a few tenths are within the noise: on these models the idea makes no clear
# difference. All of the mass on names ($\nu = 1$) is worse.
#
# ## When to stop
#
# A fact leaves the descent once its NLL is below `stop`. Earlier is cheaper and leaves
# shorter updates, which do less harm; too early, and the answer is not safe once the
# least squares have taken their part. (The preset's 0.02 was not chosen on these facts; a
# larger value may be a better one.)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Rates of `ece-plus` after 300 edits against the NLL at which a descent stops.", "name": "fig-plus-stop"}, "image": {"alt": "Line charts of efficacy, specificity and score against the stop, on a logarithmic axis, one for each model. Specificity rises slowly with the stop; efficacy falls a little at its end."}}
by_stop = along("stop", "plus-stop", "table1")
panel(by_stop, "stop", "log")
plt.show()

# %% [markdown]
# ## A subject that comes again
#
# The paper computes all values ahead, from the original weights (its appendix C.4). That is
# sound as long as no subject comes twice. But take two facts of one subject, say its
# home and its trade, edited in different batches. Both change the state $h$ at the
# same token. The first writes $z_1 = h + \delta_1$; the second, found on the original
# weights, aims at $z_2 = h + \delta_2$, a state *without* $\delta_1$, and least squares
# obey: the second edit takes the first one back. Found on the present weights it is
#
# $$
# z_2 = (h + \delta_1) + \delta_2 ,
# $$
#
# and both stand. Present weights for *every* fact have a price, though: a value
# found there also keeps the small errors that other edits have left behind, and these add up.
# So `ece-plus` has `values_from="again"`: present weights for subjects that an earlier
# batch has edited, original ones for all others. The long sequence of {doc}`11_edits` is
# where it matters: after some 600 edits nearly every subject comes again.

# %%
subjects = [fact.subject for fact in facts_of()]
for edits in (300, 600, 900, 1200):
    some = subjects[:edits]
    again = 1 - len(set(some)) / len(some)
    print(f"{edits:5} edits: {again:4.0%} on a known subject")

# %% tags=["hide-input"]
METHODS = ["ece-plus", "memit-history", "ece-rs", "rome"]
WEIGHTS = ["again", "original", "current"]
found, _ = grid.results("../book/grid.toml",
                        ["plus-again", "edits", "again"], "../results")
cells = found.batches(method=METHODS).query("when == 'so_far'")
long = tables.wide(cells, "model", "method", "values_from", "edited")
order = METHODS + WEIGHTS + list(long.model.unique())
long = long.sort_values(["model", "method", "values_from"],
                        key=lambda column: column.map(order.index))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Score of all facts so far, by method (colour) and by the weights that values come from (dashes).", "name": "fig-plus-again"}, "image": {"alt": "Line charts of the score over 1,200 edits, one for each model. On atlas-gpt2 the three lines with values from the original weights fall to 60 percent or less; those with again end between 77 and 79; ROME ends at 67. On atlas-llama ece-plus with again and ROME end at 82, the others below 60."}}
axes = plots.lines(long, "edited", "score", style="values_from",
                   ylabel="score, %")
axes[-1].set(xlabel="facts edited")
plt.show()

# %% tags=["hide-input"]
end = long[long.edited == 1200].set_index(
    ["model", "method", "values_from"])
tables.table(end[["efficacy", "specificity", "score"]],
             "After 1,200 edits, by the weights that values come from, %",
             0)

# %% [markdown]
# ROME, which finds each value on the present weights, keeps its efficacy for the same reason, and
# pays with its neighbours. The lines of `memit-history` and `ece-rs` with "again" show what the
# same setting does for them. Among the records of CounterFact in {doc}`11_edits` no subject comes
# twice, so there "again" and "original" are the same; in a knowledge base that is kept up to
# date, subjects come again all the time.
#
# ## What it gains
#
# Score after 300 edits, at equal seeds, minus that of `memit-history`, which has another $\lambda$,
# another stop and $\nu = 0$; and minus that of plain MEMIT and of each of ECE's
# three scorers. A question mark: the seeds disagree about the sign.

# %% tags=["hide-input"]
RIVALS = ["memit", "memit-history", "alphaedit", "blue", "rect", "rome",
          "ece-as", "ece-wi", "ece-rs"]
runs, cells = after("table1", "table1-seeds", "table1-others",
                    "table1-others-seeds")
scores = cells[cells.metric == "score"].pivot(
    index=["model", "seed"], columns="method", values="value")
gap = {name: tables.gaps(own.droplevel("model"), "ece-plus").loc[RIVALS]
       for name, own in scores.groupby("model")}
tables.table(pd.DataFrame({n: tables.signed(g) for n, g in gap.items()}),
             "ece-plus minus each other, points of the score")

# %% [markdown]
# Where the difference to `memit-history` is a few tenths of a point or carries a question mark,
# nothing was gained: in a sequence this short, where no subject comes twice, both are MEMIT with
# a history. The gain of `ece-plus` is in the long sequence above, and there it comes from
# `values_from` alone: with "again", MEMIT with a history and `ece-rs` end above `ece-plus`.
#
# ## Live
#
# Fifty facts at once, with and without names. The last column is the harm done to the keys
# of the 200 other subjects: the mean length of $\Delta k$ relative to that of $W k$, at
# the last edit layer.

# %%
from ece.evaluation.metrics import evaluate

site = ece.sites(model, (layer,))[0]


# %%
def harm(share):
    """Scores of one batch, and how far other subjects' outputs move."""
    stats = ece.blend(everywhere, at_ends, share)
    state = ece.new_state(model, tokenizer, config, strategy)
    before = site.weight.clone()
    state, _ = ece.edit_batch(
        model, tokenizer, facts, stats, state, config)
    rates = evaluate(model, tokenizer, facts).summary()
    moved = ((site.weight - before).double() @ raw.T).norm(dim=0)
    usual = (before.double() @ raw.T).norm(dim=0)
    ece.undo(model, state)
    return rates, float((moved / usual).mean())


# %%
live = {nu: harm(nu) for nu in (0.0, strategy.names)}
for nu, (rates, moved) in live.items():
    print(f"{nu:4.2f}: effi. {rates['efficacy']:.0f}, "
          f"spec. {rates['specificity']:.1f}, moved {moved:.2f}")

# %% [markdown]
# ## Take away
#
# - Values from the present weights helped all three methods tried where subjects came again (one model,
#   one seed).
# - Where no subject does, `ece-plus` has nothing on MEMIT with a history on these models. On SmolLM2 it has:
#   keys of the edited prompts that stay as they are ({doc}`17_real_model`).
#
# ## Where the numbers come from
#
# The tables `plus-names`, `plus-stop`, `plus-choice`, `plus-again`, `again`, `edits` and those
# of {doc}`10_table1`. For the first three figures:

# %%
every, missing = grid.results(
    "../book/grid.toml", ["plus-names", "plus-stop", "table1"],
    "../results")
print(tables.origin(every.runs, missing))

# %% [markdown]
# The last cells assert what this page has claimed.

# %% tags=["hide-input"]
last = end.score.round().astype(int)["atlas-gpt2"]
assert last["ece-plus"][["again", "original"]].tolist() == [77, 60]
assert last["memit-history"][["again", "original"]].tolist() == [79, 59]
assert last["ece-rs"][["again", "original"]].tolist() == [78, 59]
verdicts = pd.DataFrame({name: g.verdict for name, g in gap.items()})
assert (verdicts.loc["memit-history"] == "even").all()
assert (verdicts.loc[["memit", "rome"]] == "ahead").all(axis=None)
ours = verdicts.loc[["ece-as", "ece-wi", "ece-rs"]].eq("ahead")
assert ours.all(axis=None)
assert gains.score.abs().max().round(1) == 0.6
by_share = by_names.pivot(index="model", columns="names", values="score")
cost = (by_share[0.0] - by_share[1.0]).round()
assert (cost.min(), cost.max()) == (1, 20)

# %% tags=["hide-input"]
assert strategy.names > 0 and config.stop == 0.02
assert set(every.runs.batch) == {25} and set(every.runs.facts) == {300}
mixed = ece.blend(everywhere, at_ends, 0.25).moments[layer]
parts = everywhere.moments[layer], at_ends.moments[layer]
torch.testing.assert_close(mixed, 0.75 * parts[0] + 0.25 * parts[1])
if MODEL == "atlas-gpt2":
    assert ratio > 1, "names weigh the keys of subjects more"
    assert live[strategy.names][1] < live[0.0][1], "and shield them"
