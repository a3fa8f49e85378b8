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
# # Table 1: every method, both data sets
#
# The paper's main table compares ECE with fine-tuning, MEND, ROME, MEMIT and SERAC, after
# 2,000 edits. This page has such a table for a real model, after 500 edits in batches of 100, and
# the whole one for the three embedded models, after 300 edits in batches of 25, with the
# methods that came after MEMIT beside them. It asks: **which
# method keeps what it wrote, at what cost to everything else, and is the order the
# paper's?**
#
# **What was found** (score after the last edit, over the seeds that both methods have)
#
# - ECE comes first, as in the paper, only on CounterFact in our own world, and only against the
#   paper's own baselines. It has $p$ of 0.99, 0.99 and 0.95 there, chosen for these models: with the
#   paper's 0.8 it is behind MEMIT on `atlas-gptj` ({doc}`13_threshold`).
# - On SmolLM2-135M, a real model, ECE's three scorers have 77.8 to 78.6 %. MEMIT has 80.4, MEMIT with
#   a history 81.7, AlphaEdit 82.1 and our `ece-plus` 83.0 (means over three seeds). At every
#   seed `ece-plus` is ahead of AlphaEdit, by 0.1 to 2.1 points, AlphaEdit of MEMIT with a history, by 0.4, and each of ECE's three is behind
#   plain MEMIT, by 1.0 to 2.9. So the
#   paper's choice of neurons and its anchors, taken together, do not pay there in quality
#   ({doc}`14_parts` takes them one by one). PRUNE has 80.5, BLUE 80.3, RECT 78.8,
#   ROME 70.6, fine-tuning 63.9 (FT-M) and 47.0 (FT-L), SERAC 62.2 and MEND 51.4, one seed each. Neighbours suffer most
#   from MEND, FT-M and ROME.
# - SERAC that was trained on the wordings of the test (`serac-seen`) has 83.3 there, the most of all (one seed, at
#   which `ece-plus` has 82.4). The 21 points above SERAC's 62.2 are what it has been shown, not what it can do.
# - Looking the edit up instead of writing it (the retrieval baseline) has 81.8: at one
#   seed it is ahead of AlphaEdit and of MEMIT with a history, at two behind both. The new answer is the model's first on 97 % of the
#   edited prompts (MEMIT with a history: 82 %); neighbours have 66.6 % (69.5 %). No weight changes, but a query in
#   scope is three times as long, 20 tokens more, and its threshold has to be searched: with the first guess it had 71.4.
# - On the embedded models, CounterFact, each method with its preset's settings: the best of ECE's three
#   scorers is ahead of every baseline of the paper on all three models, on `atlas-llama` of ROME
#   by less than a point. (After an equal search the two are even there: {doc}`16_choice`.)
# - That holds for SERAC that has not seen the wordings of the test. SERAC trained on them is ahead
#   of ECE by 2.4 and 5.5 points on two models.
# - MEMIT with a history, which is ECE without its choice of neurons and without anchors, is
#   ahead of ECE on all three, by 0.4 to 2.3 points. `ece-plus`, our own setting, is even with it.
# - ZsRE: ECE is behind SERAC by 6.6 to 16.5 points (one seed), behind MEMIT with a history on all three
#   models, and on `atlas-llama` behind ROME and MEMIT too.
#

# %% tags=["hide-input"]
import os
import tempfile

import matplotlib.pyplot as plt
import pandas as pd

import ece
from ece.baselines.retrieval import ENTRY
from ece.book import plots, tables
from ece.data import world
from ece.experiments import grid
from ece.experiments.runner import run
from ece.experiments.spec import Settings
from ece.facts import encode

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")

plots.style()


# %% [markdown]
# ## On a real model
#
# SmolLM2-135M, 500 records of CounterFact in batches of 100, rates after the last batch. The
# weight of the old knowledge was chosen for each method by four runs on the same facts,
# which are set aside. *Top-1* is the share of edited prompts on which every token of the new
# answer is the model's first choice. {doc}`17_real_model` has the search, the gaps at equal seeds
# and what a fact costs. The last column is a cost of every query, not of the edit: the tokens that
# the model reads more where a query is in the scope of an edit. (The records of the run do not come
# with this book, so it is counted on 100 facts of countries and cities, whose prompts have 10
# tokens.)

# %% tags=["hide-input"]
def mean_length(texts):
    return sum(len(encode(tokenizer, text)) for text in texts) / len(texts)


_, tokenizer = ece.load("smollm2-135m")
some = world.facts("counterfact", 100)
prompt_length = mean_length([fact.text for fact in some])
longer = {"retrieval": mean_length(
    [ENTRY.format(fact.text, fact.target) for fact in some])}

# %% tags=["hide-input"]
REAL = ["main", "main-others", "main-leaders", "main-trained"]
real, unrun = grid.results("../book/grid-real.toml", REAL, "../results")
real_after = real.cells().query("when == 'after'")
real_rates = tables.by_method(real).sort_values(
    "score", ascending=False)
SHOWN = {"efficacy": "efficacy", "generalization": "generalization",
         "specificity": "specificity", "score": "score",
         "efficacy_top1": "top-1", "seeds": "seeds"}
shown = real_rates[list(SHOWN)].rename(columns=SHOWN)
shown["tokens more"] = [longer.get(name, 0.0) for name in shown.index]
tables.table(shown, "SmolLM2-135M after 500 edits, mean over the seeds, "
             "%; and tokens more to read")

# %% [markdown]
# The leaders are within three points of each other, and one method's seeds differ by up to 2.3. `ece-plus` is ahead of AlphaEdit
# and AlphaEdit of MEMIT with a history at each seed, both by little; the rest of their order is open. That the
# paper's three are behind MEMIT with a history is not: each is, at every seed. ROME needed no search: $\lambda$ cancels in its solve. {doc}`11_edits`
# goes on to two thousand edits. Retrieval's threshold and FT-M's rate are the best of six on the facts set aside. MEND was trained for 400 steps, SERAC for
# 600 (scope) and 600 (answers), both on the other records and without a search: more may come of them. After MEND's edits no new answer
# is the model's first choice; SERAC's scope lets more than half of the other wordings pass it by: 42 %
# have the new answer. Trained on the wordings that the test asks for (`serac-seen`), it is 84 %, at the same specificity.
# So a table has to say on which wordings SERAC was trained.
#
# The paper's Fig 5 draws such a table as radar plots. A radar's area depends on the order of
# its axes, so here every method has a line instead: a rate is a point, and a
# method is good where all its points are far to the right.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Fig 5 for SmolLM2-135M: three rates of each method after 500 edits, mean over its seeds; the row `unedited` is the model before.", "name": "fig-table1-real"}, "image": {"alt": "A row of three dots for each method, from serac-seen and ece-plus at the top to the unedited model at the bottom. Efficacy is above 90 percent for most methods, specificity near 70 for all but a few; generalization falls from 88 at the top to 32 with FT-L; that of FT-M, MEND and SERAC is between 42 and 57."}}
points = real_rates[[*SHOWN][:3]].rename_axis("method").reset_index()
(ax,) = plots.dots(points.melt("method", var_name="metric"), "value",
                   "method", shape="metric", by=None, height=4.6)
ax.set(xlim=(-3, 103), xlabel="%", title="")
plt.show()

# %% [markdown]
# ## On the embedded models

# %%
def cells_of(*names):
    """What was measured of the runs of these tables."""
    found, _ = grid.results("../book/grid.toml", names, "../results")
    return found.cells()


TABLE1 = ("table1", "table1-seeds", "table1-others", "table1-others-seeds",
          "zsre", "zsre-seeds", "zsre-trained")
cells = cells_of(*TABLE1)
MODELS, METHODS = list(cells.model.unique()), list(cells.method.unique())

# %% [markdown]
# ### What was run
#
# A cell of the table is one run: a model, a method, a data set, a seed. The rates are those
# **after the last batch**, for all 300 facts, so that a method that forgets is seen to forget.
# The seed decides which facts, in which order, and the random contexts. ECE, `ece-plus` and both
# MEMITs were run with three seeds on both data sets; ROME on `atlas-llama` with three on
# CounterFact, where one did not tell it apart from ECE; the others with one. How the numbers of
# the methods were chosen is in {doc}`09_baselines`; it was not done alike for all, and
# {doc}`16_choice` asks what is left when it is.
#
# ### The table
#
# Efficacy, generalization and specificity are shares of comparisons won, in percent
# (Eq 23–25; {doc}`07_sequential`); the *score* is their harmonic mean. Fluency is the
# entropy of free text in bits times 100 (Eq 26), consistency the likeness of that text
# to texts about the new object (both for the first 25 facts of seed 0). For ZsRE the
# three rates are shares of tokens (Eq 20–22). Behind the sign stands the half width of
# the 95 % interval over facts. Per model, the best of ECE's three scorers is **bold**,
# the best of all other methods underlined.

# %% tags=["hide-input"]
OURS = ["ece-as", "ece-wi", "ece-rs"]
KINDS = ["efficacy", "generalization", "specificity"]
COLUMNS = {"counterfact": [*KINDS, "score", "fluency", "consistency"],
           "zsre": [*KINDS, "score"]}
before = cells.query("when == 'pre' and method == 'ece-as'").assign(
    method="pre-edit")
ends = pd.concat([before, cells.query("when == 'after'")])
pooled = tables.pooled(ends, "model", "method", "dataset", "metric")


# %% tags=["hide-input"]
def best(rates):
    """Where a column has its highest rate."""
    return rates.eq(rates.max()) & rates.notna()


def table(model, dataset):
    """A part of Table 1."""
    found = pooled.loc[model].xs(dataset, level="dataset")
    rates = found.value.unstack("metric")[COLUMNS[dataset]]
    shown = found.apply(tables.interval, axis=1).unstack("metric")
    rows = [m for m in ("pre-edit", *METHODS) if m in rates.index]
    rates, shown = (part.loc[rows, COLUMNS[dataset]]
                    for part in (rates, shown))
    others = best(rates.drop(["pre-edit", *OURS])).reindex(
        rows, fill_value=False)
    mine = best(rates.loc[OURS]).reindex(rows, fill_value=False)
    return tables.table(shown, f"{model}, {dataset}", bold=mine,
                        underlined=others)


# %% tags=["hide-input"]
table("atlas-gpt2", "counterfact")

# %% tags=["hide-input"]
table("atlas-gptj", "counterfact")

# %% tags=["hide-input"]
table("atlas-llama", "counterfact")

# %% tags=["hide-input"]
table("atlas-gpt2", "zsre")

# %% tags=["hide-input"]
table("atlas-gptj", "zsre")

# %% tags=["hide-input"]
table("atlas-llama", "zsre")

# %% [markdown]
# On a narrow screen the tables can be moved sideways.
#
# ### The same as a picture
#
# The paper's Fig 5 for the embedded models, drawn as above.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Table 1 as a picture, CounterFact: three rates of each method after 300 edits.", "name": "fig-table1-counterfact"}, "image": {"alt": "Dot plots, a row for each of 17 methods with three dots each, one panel for each model. The dots of ECE, ece-plus and memit-history lie between 87 and 100 percent; those of fine-tuning and MEND are spread out to the left, most of them below 80."}}
def picture(dataset):
    found = pooled.xs(dataset, level="dataset").reset_index()
    found = found[found.metric.isin(KINDS) & (found.method != "pre-edit")]
    found = found.sort_values(["model", "method"], kind="stable", key=(
        lambda names: names.map([*MODELS, *METHODS].index)))
    axes = plots.dots(found, "value", "method", shape="metric",
                      height=4.4, columns=3)
    axes[-1].set(xlim=(-3, 103), xlabel="%")
    plt.show()


picture("counterfact")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The same for ZsRE.", "name": "fig-table1-zsre"}, "image": {"alt": "Dot plots as before. Efficacy and generalization of ECE, ece-plus and memit-history lie above 89 percent and their specificity between 55 and 82; SERAC's three dots lie above 83 percent."}}
picture("zsre")

# %% [markdown]
# ## Larger than chance?
#
# The seeds draw different facts, and methods with the same seed edit the same ones. So
# the fair question is about differences at equal seeds. Below: the score of the
# best of ECE's three scorers (picked on these very facts, which favours ECE; {doc}`16_choice` picks it
# on others), and of `ece-plus`, minus that of each other
# method, for each seed at hand. A question mark: the seeds disagree about the sign, so the
# difference is noise. Where there is one seed alone, there is nothing to disagree.

# %%
def by_seed(metric="score", when="after"):
    """A rate by model, data set and seed, a column for each method."""
    part = cells[(cells.metric == metric) & (cells.when == when)]
    return part.pivot(index=["model", "dataset", "seed"],
                      columns="method", values="value")[METHODS]


scores = by_seed()
tops = (scores[OURS].groupby(["model", "dataset"]).mean()
        .idxmax(axis=1).unstack("dataset"))


# %%
def against_others(dataset):
    """The best scorer and ece-plus minus each other method."""
    columns = {}
    for model, top in tops[dataset].items():
        own = scores.loc[model, dataset]
        for one in (top, "ece-plus"):
            rest = own.drop(columns=[m for m in OURS if m != one])
            columns[model, one] = tables.signed(tables.gaps(rest, one))
    return pd.DataFrame(columns).reindex(
        [m for m in METHODS if m not in OURS]).dropna(how="all")


# %% tags=["hide-input"]
TITLE = "Best scorer and ece-plus minus each other method"
tables.table(against_others("counterfact"), f"{TITLE}, CounterFact")

# %% tags=["hide-input"]
tables.table(against_others("zsre"), f"{TITLE}, ZsRE")

# %% [markdown]
# ## What the table says
#
# The best of ours and the best of the others, compared over the seeds that both have. Peers are the
# later methods, and MEMIT with a history.

# %% tags=["hide-input"]
PAPER = ["ft-l", "ft-w", "mend", "rome", "memit", "serac"]
PEERS = ["memit-history", "alphaedit", "blue", "rect", "prune"]
PAIRS = {"the paper's baselines": (OURS, PAPER),
         "serac-seen": (OURS, ["serac-seen"]), "peers": (OURS, PEERS),
         "ece-plus, all but serac-seen": (["ece-plus"], PAPER + PEERS)}


def duel(own, mine, theirs):
    """The best of both, and their means over the seeds both have."""
    mean = own.mean().dropna()
    theirs = mean.reindex(theirs).dropna()
    if theirs.empty:
        return pd.Series({"other": "not run here"})
    pair = [mean[mine].idxmax(), theirs.idxmax()]
    rates = own[pair].dropna()
    one, other = rates.mean()
    return pd.Series({"ours": pair[0], "score": one,
                      "is": "ahead of" if one > other else "behind",
                      "other": pair[1], "its score": other,
                      "seeds": str(len(rates))})


# %% tags=["hide-input"]
def verdicts(dataset, rates=scores):
    """A row for each model and kind of rival."""
    found = pd.DataFrame({
        (model, kind): duel(rates.loc[model, dataset], *pair)
        for model in MODELS for kind, pair in PAIRS.items()}).T
    return found[["ours", "score", "is", "other", "its score", "seeds"]]


# %% tags=["hide-input"]
tables.table(verdicts("counterfact"),
             "Ahead or behind, CounterFact, score")

# %% tags=["hide-input"]
tables.table(verdicts("zsre"), "Ahead or behind, ZsRE, score")

# %% [markdown]
# The lines compare methods *as their presets are*. After an equal search, and on other facts,
# some of them read otherwise: {doc}`16_choice`, which also finds better layers for
# `atlas-gptj` than those used here.
#
# The peer to look at is `memit-history`: it is ECE without its choice of neurons and without
# anchors, each fact stopping by itself. Where it is ahead of ECE, these two parts cost more
# than they bring *in quality*; what they bring in time is in {doc}`08_speed`, and
# {doc}`14_parts` takes them one by one. The setting of ours that closes the gap is
# `ece-plus` ({doc}`15_plus`), which leaves both out, too.
#
# {doc}`10b_behind_table1` looks behind these numbers: what SERAC has read, why ECE is behind on
# ZsRE, what the schedule is worth, what each method forgets, and how neighbours are counted.

# %% [markdown]
# ## The paper's own numbers
#
# From the paper's Table 1, for its three models after 2,000 edits. They are printed here to
# be compared with in *order*, not in value: other models, other facts, and models of a few
# million parameters.

# %% tags=["hide-input"]
paper = pd.read_csv("../results/paper.csv").query("table == 'table1'")
paper["shown"] = paper.apply(tables.interval, axis=1)
printed = paper.pivot(index=["model", "method"], values="shown",
                      columns=["dataset", "metric"])
printed = printed.loc[paper.set_index(["model", "method"]).index.unique()]
tables.table(printed["counterfact"][[*KINDS, "fluency", "consistency"]],
             "The paper's Table 1, CounterFact")

# %% tags=["hide-input"]
tables.table(printed["zsre"][KINDS], "The paper's Table 1, ZsRE")

# %% [markdown]
# Two things help to read them. The published evaluation measures right after each batch,
# which cannot see forgetting, while the text says after all edits; and in the published
# settings ECE keeps a history of earlier edits while MEMIT does not ({doc}`07_sequential`
# separates the two, {doc}`14_parts` takes ECE apart). More in {doc}`../book/deviations`.
#
# ## A slice of the table, live
#
# The same on this very page, in small: four facts of the real world are written into SmolLM2 in two
# batches, by the paper's method and by its nearest rival. So few facts rank nothing; the run shows
# how a line of the table is made. The cache holds what both share: the second moments, here over little text, and
# the rates of the unedited model. Another processor may give other numbers.

# %%
REAL_MODEL = os.environ.get("ECE_MODEL") or "smollm2-135m"
here = ({} if REAL_MODEL.startswith("atlas-") else
        {"data": "world", "stats_text": "python-docs"})
here |= {"data": DATA} if DATA else {}
lines = {}
with tempfile.TemporaryDirectory() as cache:
    for method in ("ece-rs", "memit-history"):
        done = run(Settings(
            model=REAL_MODEL, method=method, facts=4, batch=2,
            device=DEVICE, at_write=False, stats_tokens=1500, **here,
            config={"contexts": 0, "passes": "bfloat16"}), cache=cache)
        lines |= {"unedited": done["pre"], method: done["after"]}

# %% tags=["hide-input", "nbval-ignore-output"]
live = pd.DataFrame(lines).T[[n for n in SHOWN if n != "seeds"]]
tables.table(live.astype(float).rename(columns=SHOWN),
             f"{REAL_MODEL} after four edits, %", 0)

# %% [markdown]
# ## One cell again
#
# Any number of the table can be had again: the line of its run in `results/runs.jsonl` has all
# settings. Here a small cell runs twice, with equal settings. Apart from the seconds, its two
# results must be equal in every digit. (The tests do the same with a stored result.)

# %%
small = Settings(
    model=MODEL, method="ece-rs", facts=4, batch=2, data=DATA,
    device=DEVICE, stats_tokens=3000,
    config={"steps": 6, "own_steps": 2, "clusters": 2},
)
first, again = (
    {k: v for k, v in run(small).items() if k != "seconds"}
    for _ in range(2)
)
print("equal in every digit:", first == again)

# %% [markdown]
# ## Take away
#
# - Compare with MEMIT *with a history*: against it the choice of neurons and the anchors, together, do
#   not pay in quality.
# - The order of methods depends on the model and the data set; look at more than one.
# - Read the three rates, not the score alone: retrieval and ROME have other weaknesses than ECE.
#
# ## Where the numbers come from
#
# The tables of `book/grid.toml` whose names begin with `table1` and `zsre`. What was decided
# after a result had been seen is in {doc}`../book/run-log`.

# %%
found, missing = grid.results("../book/grid.toml", TABLE1, "../results")
print(tables.origin(found.runs, missing))
spent = pd.json_normalize(list(found.runs.seconds)).sum(axis=None)
print(f"{spent / 3600:.1f} hours, all runs added up")
print(found.runs.groupby(["method", "dataset"]).seed.nunique()
      .unstack(fill_value=0).loc[METHODS].to_string())

# %% [markdown]
# The last cells assert what this page has claimed.

# %% tags=["hide-input"]
found_cf = verdicts("counterfact")["is"].unstack()
assert (found_cf["the paper's baselines"] == "ahead of").all()
assert (found_cf["peers"] == "behind").all()
assert (verdicts("zsre")["is"].unstack()[["peers"]] == "behind").all(
    axis=None)
gap = pd.concat({m: tables.gaps(scores.loc[m, "counterfact"], top)
                 for m, top in tops["counterfact"].items()})["mean"]
seen_gap = gap.xs("serac-seen", level=1).round(1)
assert seen_gap.tolist()[:2] == [-2.4, -5.5] and 0 < gap[
    "atlas-llama", "rome"] < 1

# %% tags=["hide-input"]
history = gap.xs("memit-history", level=1).round(1)
assert history.between(-2.3, -0.4).all()
zsre = pd.concat({m: tables.gaps(scores.loc[m, "zsre"], top)
                  for m, top in tops["zsre"].items()})["mean"]
assert zsre.xs("serac", level=1).round().tolist() == [-16, -14, -7]
assert (zsre["atlas-llama"][["rome", "memit"]] < 0).all()
plus = against_others("counterfact").xs("ece-plus", axis=1, level=1)
assert plus.loc["memit-history"].str.endswith("?").all()

# %% tags=["hide-input"]
real_score = real_rates.score.round(1)
ours = real_score[["ece-rs", "ece-as", "ece-wi"]]
assert (ours.min(), ours.max()) == (77.8, 78.6)
LEADERS = ["memit", "memit-history", "alphaedit", "ece-plus"]
assert real_score[LEADERS].tolist() == [80.4, 81.7, 82.1, 83.0]
assert real_score.drop("serac-seen").max() == 83.0
wording = real_rates.generalization.round().drop("unedited")
assert (wording.idxmin(), wording.min(), wording.max()) == ("ft-l", 32, 88)
assert wording[["ft-m", "mend", "serac"]].between(42, 57).all()
assert real_score[["blue", "rome"]].tolist() == [80.3, 70.6]
assert real_score[["ft-m", "ft-l"]].tolist() == [63.9, 47.0]
assert real_score[["serac", "mend"]].tolist() == [62.2, 51.4]
assert real_rates.efficacy_top1["mend"] == 0
assert real_rates.generalization["serac"] < 50
SEEDS = {"blue": 1, "rome": 1, "ft-m": 1, "ft-l": 1, "ece-as": 3,
         "ece-wi": 3, "ece-rs": 3, "alphaedit": 3, "retrieval": 3}
assert real_rates.seeds[list(SEEDS)].to_dict() == SEEDS
each = tables.wide(real_after, "method", "seed").pivot_table(
    "score", "seed", "method")
short = tables.gaps(each, "memit").loc[list(ours.index), ["low", "high"]]
assert (short.low.min().round(1), short.high.max().round(1)) == (1.0, 2.9)

# %% tags=["hide-input"]
written = real_rates.drop("retrieval").specificity
assert set(written.nsmallest(3).index) == {"mend", "rome", "ft-m"}
looked_up = real_rates.loc["retrieval"]
assert real_score["retrieval"] == 81.8
assert looked_up.efficacy_top1.round() == 97
assert looked_up.specificity.round(1) == 66.6
assert round(prompt_length) == 10 and round(longer["retrieval"]) == 20
written = real_rates.loc["memit-history"]
assert (written.efficacy_top1.round(), written.specificity.round(1)) == (
    82, 69.5)
lead = tables.gaps(each, "memit-history").loc["alphaedit"]
assert lead[["low", "high"]].round(1).tolist() == [-0.4, -0.4]
lead = tables.gaps(each, "ece-plus").loc["alphaedit", ["low", "high"]]
assert lead.round(1).tolist() == [0.1, 2.1]
over = each[["memit-history", "alphaedit"]].rsub(each.retrieval, axis=0)
assert (over > 0).all(axis=1).sum() == 1
assert (over < 0).all(axis=1).sum() == 2

# %% tags=["hide-input"]
guessed, _ = grid.results(
    "../book/grid-real.toml", ["retrieval-unsearched"], "../results")
assert tables.by_method(guessed).score["retrieval"].round(1) == 71.4
tried, _ = grid.results("../book/grid-real.toml", [
    "tune-ft", "tune-ft-m", "tune-retrieval", "tune-retrieval-lower"],
    "../results")
assert tried.runs.groupby("method").size().to_dict() == {
    "ft-m": 6, "retrieval": 6}

# %% tags=["hide-input"]
spread = tables.wide(real_after, "method", "seed").groupby("method").score
assert (spread.max() - spread.min()).max().round(1) == 2.3
TRAINED = ["mend", "serac", "serac-seen"]
trained = real.runs.set_index("method").settings[TRAINED]
assert [trained[name]["config"]["steps"] for name in trained.index] == [
    400, 600, 600]
assert {trained[name]["config"]["scope_steps"]
        for name in TRAINED[1:]} == {600}
shown_it = real_rates.loc["serac-seen"]
assert real_score.idxmax() == "serac-seen" and shown_it.seeds == 1
assert shown_it.score.round(1) == 83.3
assert each.loc[0, "ece-plus"].round(1) == 82.4
assert round(shown_it.score - real_rates.score["serac"]) == 21
both = real_rates.loc[TRAINED[1:]]
assert both.generalization.round().tolist() == [42, 84]
assert both.specificity.round().tolist() == [73, 73]

# %% tags=["hide-input"]
assert (live.efficacy.drop("unedited") > live.efficacy["unedited"]).all()
assert first == again, "equal settings give equal digits"
shares = found.runs[found.runs.method.isin(OURS)]
assert shares.groupby("model").p.unique().str[0].tolist() == [
    0.99, 0.99, 0.95]
assert not found.runs.duplicated(
    ["model", "dataset", "method", "seed"]).any()
assert (found.runs[["facts", "batch"]] == [300, 25]).all(axis=None)
assert (paper.groupby("model").method.nunique() == 10).all()
