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
# # Behind Table 1: what moves its numbers
#
# {doc}`10_table1` has a score for every method. This page looks behind five of its numbers, on the
# three embedded models: **how much of a score is the method, and how much is the way it was
# trained, set and measured?**
#
# **What was found**
#
# - What SERAC has read decides its rank. Training on the wordings of the test is worth 4.2 to 12.4
#   points of the score, all of them in generalization. With them it is ahead of ECE on two
#   models, without them on none.
# - On ZsRE ECE pays for its anchors on all three models (0.7 to 3.2 points) and for its choice of
#   neurons ($p$ of 0.95 to 0.99) on two (2.2 and 2.8).
# - On `atlas-llama` ECE is behind ROME with the paper's schedule and ahead with that of its
#   preset, which is worth 1.2 to 1.5 points. ROME was not tuned in this way.
# - A method can lose its edits or harm its neighbours. MEMIT loses 3 to 20 points of its efficacy
#   by the end, with a history 2 at most; ROME loses less than a point and, of the methods that solve for
#   an update (all but fine-tuning, MEND and SERAC), harms neighbours most.
# - At 300 edits 14 % of a fact's neighbours have been edited themselves, and rightly changed.
#   Without these neighbours, the specificity of these methods is 1 to 5 points higher. ECE's lead on the
#   paper's baselines shrinks (to 0.0 to 1.4 points, before 0.8 to 2.0). It is still behind
#   the later methods, and behind SERAC that has read the wordings on the third model, too.

# %% tags=["hide-input"]
import pandas as pd

from ece import atlas
from ece.book import tables
from ece.experiments import grid

KINDS = ["efficacy", "generalization", "specificity"]
OURS = ["ece-as", "ece-wi", "ece-rs"]
PEERS = ["memit-history", "alphaedit", "blue", "rect", "prune"]
PAPER = ["ft-l", "ft-w", "mend", "rome", "memit", "serac"]


def cells_of(*names):
    """What was measured of the runs of these tables."""
    found, _ = grid.results("../book/grid.toml", names, "../results")
    return found.cells()


# %% tags=["hide-input"]
TABLE1 = ("table1", "table1-seeds", "table1-others", "table1-others-seeds",
          "zsre", "zsre-seeds", "zsre-trained")
cells = cells_of(*TABLE1)
METHODS = list(cells.method.unique())


def by_seed(metric="score", when="after"):
    """A rate by model, data set and seed, a column for each method."""
    part = cells[(cells.metric == metric) & (cells.when == when)]
    return part.pivot(index=["model", "dataset", "seed"],
                      columns="method", values="value")[METHODS]


def against(metric):
    """The best of ECE's scorers minus every other method, equal seeds."""
    found = {}
    for model, own in by_seed(metric).xs("counterfact", level=1).groupby(
            "model"):
        top = own[OURS].mean().idxmax()
        rest = own.drop(columns=[m for m in OURS if m != top])
        found[model] = tables.gaps(rest.droplevel(0), top)["mean"]
    return pd.DataFrame(found)


# %% [markdown]
# ## Two rows of SERAC
#
# SERAC's scope classifier and its small answering model are trained on facts of the same
# world that are never edited. For `serac` the prompts were their own and those
# that free text starts from. `serac-seen` was trained on their paraphrases too, as its authors
# train on rephrasings. But the facts of a relation share the wordings of their paraphrases,
# here as in CounterFact, so it has learned **in the very wordings in which the test
# asks** how well an edit generalizes. No other method is shown these. What that is
# worth, in points, `serac-seen` minus `serac`:

# %% tags=["hide-input"]
seen = pd.DataFrame({
    metric: by_seed(metric).eval("`serac-seen` - serac")
    for metric in (*KINDS[1:], "score")}).dropna().droplevel([1, 2])
tables.table(seen.map("{:+.1f}".format), "What the wordings are worth")

# %% [markdown]
# We count `serac` among the paper's baselines, since it is tested as all others are: in wordings
# that the editor was not given. Where `serac-seen` leads, it leads by what it has been shown. But
# a user who knows in which wordings questions will come can train on them, and gets the row
# `serac-seen`; the verdicts of {doc}`10_table1` have it on a line of its own. (Half of the
# paraphrases begin with a stray sentence, which `serac` never met in training either, so the
# points above are those of wordings and stray sentences together. MEND is trained like `serac`.
# Facts of ZsRE have no wordings besides those of the test, and there both are trained on them.
# The paper does not say how its SERAC was trained.)
#
# In either row nothing is forgotten, since no weight changes. What SERAC pays
# with is the text it writes (the fluency column), and a second model that must be
# trained, stored and run.
#
# ## Where ECE is behind on ZsRE
#
# ZsRE asks for every token of the answer to be the likeliest, where CounterFact only compares two
# answers. So it sees values that fall a little short, and small harm to others. Two parts of ECE
# could be to blame. Below: ECE-AS as it is, with all neurons ($p = 1$), and without anchors (from
# $U = 0$, only the fact's own steps), each over three seeds.

# %% tags=["hide-input"]
parts = pd.concat({
    "as it is": cells.query("dataset == 'zsre' and method == 'ece-as'"),
    "all neurons": cells_of("zsre-selection"),
    "no anchors": cells_of("zsre-anchors"),
}, names=["ece-as"]).query("when == 'after'").reset_index(level=0)
parts = tables.wide(parts, "model", "ece-as").sort_values(
    "model", kind="stable").set_index(["model", "ece-as"])
tables.table(parts[[*KINDS, "score"]], "ECE-AS on ZsRE, %")

# %% [markdown]
# A part is to blame where the line without it is higher: the anchors on all three models, the
# choice of neurons on two. With both left out, and a stop for each fact, ECE is nearly
# `memit-history`, whose row is in the tables of {doc}`10_table1`: what it has beyond the last
# line is the stop, and steps without a group. ECE's numbers were chosen on CounterFact alone.
#
# ## The schedule on `atlas-llama`
#
# The paper shares 20 steps among a group and leaves 5 to each fact. On `atlas-llama` the
# preset is 10 and 15, and a fact leaves once its NLL is below 0.02, since that was best on
# the facts of the choice (seed 3; with ECE-AS on the other two models it gained nothing).
# The scores with the paper's schedule, and with the preset:

# %% tags=["hide-input"]
plain = cells_of("table1-schedule").query(
    "when == 'after' and metric == 'score'")
plain = plain.groupby("method", sort=False).value.mean()
preset = by_seed().loc["atlas-llama", "counterfact"][plain.index].mean()
tables.table(pd.DataFrame({"the paper's": plain, "preset": preset}),
             "Score by schedule, atlas-llama, %")

# %% [markdown]
# With the paper's schedule ECE is behind ROME on this model, and ROME was not tuned in this way. So
# the lead of ECE over ROME in the table is that of a tuned method over one that is not.
# {doc}`16_choice` does it again as it should be
# done: an equal search for both, and facts that nobody had looked at.
#
# ## What was forgotten, what was harmed
#
# How much did a method lose between writing and the end, and what did that do to its
# neighbours? Forgetting (efficacy) and damage (specificity), in points:

# %% tags=["hide-input"]
LOSSES = {"forgotten": ("efficacy", "at_write"),
          "damage": ("specificity", "pre")}
lost = pd.DataFrame({name: (by_seed(metric, when) - by_seed(metric))
                     .xs("counterfact", level=1).groupby("model").mean()
                     .stack() for name, (metric, when) in LOSSES.items()})
tables.table(lost.unstack("model").swaplevel(axis=1)
             .sort_index(axis=1, ascending=[True, False]).loc[METHODS],
             "Forgotten and damaged, points")


# %% [markdown]
# ## Neighbours that were edited too
#
# Specificity asks neighbours: other subjects with the same old answer, which they should
# keep. In a small world some of these subjects are *themselves among the edits*: they have
# a new answer, and rightly so. The measure then compares two answers neither of which is
# wanted. In real CounterFact this is rare. Here it is not:

# %%
def edited_neighbours(count, seed=0):
    """Mean share of a fact's neighbours that were edited too."""
    facts = atlas.facts("counterfact", count, seed)
    edited = {fact.text for fact in facts}
    shares = [sum(n in edited for n in f.neighbours) / len(f.neighbours)
              for f in facts if f.neighbours]
    return sum(shares) / len(shares)


unfair = {n: edited_neighbours(n) for n in (100, 200, 300, 600, 1200)}
for count, share in unfair.items():
    print(f"{count:5} edits: {share:4.0%} of neighbours")

# %% [markdown]
# That share of the specificity says nothing about harm, and pulls it down for every method
# that writes well; a method whose edits do not take keeps it. Table 1 keeps the published
# measure. Newer runs also state the other reading, `specificity_unedited`, which leaves
# out the neighbours that the run edits, and the harmonic mean with it:

# %% tags=["hide-input"]
READINGS = ["specificity", "specificity_unedited", "score",
            "score_unedited"]
after = cells.query("when == 'after' and dataset == 'counterfact'")
both = tables.wide(after, "model", "method").sort_values(
    "model", kind="stable").set_index(["model", "method"])
tables.table(both[READINGS],
             "With all neighbours, and without edited ones, %")

# %% [markdown]
# The best of ECE's scorers minus the best of the others in both readings, in points:

# %% tags=["hide-input"]
KIND = {"the paper's baselines": PAPER, "serac-seen": ["serac-seen"],
        "peers": PEERS}
leads = pd.DataFrame({
    (kind, name): against(metric).reindex(names).min()
    for kind, names in KIND.items()
    for name, metric in (("all", "score"),
                         ("unedited", "score_unedited"))})
tables.table(leads.map("{:+.1f}".format), "ECE ahead (+) or behind (-)")

# %% [markdown]
# ## Take away
#
# - Ask what a trained method has read before you compare with it.
# - Measure after the last batch: what holds right after writing may be gone by then.
# - Leave out neighbours that were edited themselves, or say how many there are.
#
# ## Where the numbers come from
#
# The tables of `book/grid.toml` whose names begin with `table1` and `zsre`.

# %%
found, missing = grid.results("../book/grid.toml", TABLE1, "../results")
print(tables.origin(found.runs, missing))

# %% [markdown]
# The last cells assert what this page has claimed.

# %% tags=["hide-input"]
worth = seen.round(1)
assert (worth.score.min(), worth.score.max()) == (4.2, 12.4)
assert worth.specificity.abs().max() < 0.5
assert (leads["serac-seen", "all"] > 0).sum() == 1
assert (leads["the paper's baselines", "all"] > 0).all()
cost = parts.score.unstack()
cost = cost.sub(cost.pop("as it is"), axis=0).round(1)
anchors = cost["no anchors"]
assert (anchors.min(), anchors.max()) == (0.7, 3.2)
choice = sorted(cost["all neurons"])
assert choice[0] < 0 and choice[1:] == [2.2, 2.8]

# %% tags=["hide-input"]
gained = (preset - plain).round(1)
assert (gained.min(), gained.max()) == (1.2, 1.5)
rome = by_seed().loc[("atlas-llama", "counterfact"), "rome"].mean()
assert plain.max() < rome < preset.max()
drop = lost.forgotten.unstack("model")
assert drop.loc["memit"].round().sort_values().tolist() == [3, 9, 20]
assert drop.loc["memit-history"].max() < 2 and drop.loc["rome"].max() < 1
editors = [*OURS, *PEERS, "ece-plus", "memit", "rome"]
harm = lost.damage.unstack("model").loc[editors]
assert (harm.idxmax() == "rome").all()

# %% tags=["hide-input"]
from ece import presets

own = presets.configure("atlas-llama", "ece-rs")
assert (own.stop, own.steps, own.own_steps) == (0.02, 25, 15)
others = ("atlas-gpt2", "atlas-gptj")
shares = {presets.configure(n, "ece-rs").p for n in others}
assert shares == {0.99} and own.p == 0.95
assert sorted(unfair.values()) == list(unfair.values())
assert round(100 * unfair[300]) == 14
wider = both.eval("specificity_unedited - specificity").unstack("model")
wider = wider.loc[editors].round()
assert (wider.min(axis=None), wider.max(axis=None)) == (1, 5), wider
ends = leads.round(1).agg(["min", "max"])
assert ends["the paper's baselines"].T.to_numpy().tolist() == [
    [0.8, 2.0], [0.0, 1.4]]
assert (ends["peers"] < 0).all(axis=None)
assert (leads["serac-seen", "unedited"] < 0).all()
