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
# The embedded models of most other chapters were trained on a world of our own, in which facts
# sit where the method looks for them. SmolLM2-135M is a pretrained model with knowledge of
# the real world: a Llama of 30 blocks, small enough for two CPU cores. **Does what holds in
# our world hold there?**
#
# **What was found**
#
# - Edits also work on a real model. After 500 of them MEMIT with a history prefers the new answer
#   to the old one on 97 % of the prompts and 83 % of the paraphrases, and the true answer on 70 %
#   of the neighbours, where the unedited model does on 73 %.
# - A stricter count says less: every token of the new answer comes first on 82 % of the
#   prompts, and on 41 % of the paraphrases.
# - `ece-plus`, this book's own, is ahead of MEMIT with a history at all three seeds, by 0.6, 0.9 and 2.5 points. The new
#   answer comes first on 91 % of the prompts and on 46 % of the paraphrases, and values take 5.0 steps in place of 6.8.
#   What brings the score is one term of the solve: it keeps what a layer says at the *other* tokens of the edited
#   prompts. Without it `ece-plus` is behind at two seeds and level at the third.
# - The paper's two steps and chosen neurons (`ece-as`, `ece-wi`, `ece-rs`) are 2.2 to 4.5 points
#   lower in score, at all three seeds, and lower than plain MEMIT, too.
# - The history of earlier edits brings 0.9 to 1.6 points.
#
# One edit, made with less text, shows what a lost neighbour looks like.

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
GRID, RESULTS = "../book/grid-real.toml", "../results"
found, missing = grid.results(GRID, ["main"], RESULTS)
sought, unsearched = grid.results(
    GRID, ["tune", "tune-learned", "tune-layers", "tune-alphaedit"],
    RESULTS)
finer, undone = grid.results(
    GRID, ["tune-rival", "tune-plus", "tune-plus-rate",
           "tune-plus-stop"], RESULTS)
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
# languages (`ece.data.world`); nothing is downloaded. Of those, take one that the
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
texts = islice(python_docs(), 12)
stats = ece.second_moment(model, tokenizer, texts, config.layers)
state = ece.new_state(model, tokenizer, config)
state, report = ece.edit_batch(
    model, tokenizer, [fact], stats, state, config)
show(*prompts)

# %% [markdown]
# The new answer comes, in other words too. But the neighbour, which nobody touched, has lost its
# own: on a small model with moments over little text one fact is easily written too
# broadly. The way back is exact.

# %%
state = ece.undo(model, state)
show(fact.text, fact.neighbours[0])

# %% [markdown]
# ## Five hundred edits
#
# Records of CounterFact, 500 of them in five batches of 100, measured after
# the last batch: *efficacy* on the edited prompts, *generalization* on their paraphrases,
# *specificity* on neighbours, and the harmonic mean of the three as the *score*. *Top-1* asks for
# more: every token of the new answer is the model's first choice.
#
# - `memit` and `memit-history` have the values of MEMIT, without and with the keys of earlier
#   edits in the solve.
# - `ece-as`, `ece-wi` and `ece-rs` are the paper's method: neurons chosen by one of three
#   scorers, 20 steps for each cluster's anchor and 5 for each fact.
# - `ece-plus` is this book's own, not the paper's: here it is `memit-history` with values
#   that start from what earlier ones taught ({doc}`18_six_steps`), and with the rest of the edited
#   prompts kept (below).
#
# All of them have the learning rate as a share of the state ({doc}`18_six_steps`), and at most
# 25 steps; `memit` and what is made from it stop at an NLL of 0.05.

# %% tags=["hide-input"]
cells = found.cells().query("when == 'after'")
rates = tables.by_method(found)
TOP = ["efficacy_top1", "generalization_top1"]
shown = rates[[*RATES, *TOP, "seeds"]]
shown.columns = shown.columns.str.replace("_", " ")
tables.table(shown, "After 500 edits, mean over the seeds, %")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Score after 500 edits, one dot a seed; the bar is the mean.", "name": "fig-real-scores"}, "image": {"alt": "Rows of dots, one row for each method and one dot for each seed, that show the score after 500 edits of SmolLM2. The dots of ece-plus lie farthest right, then those of memit-history; those of the paper's three methods lie farthest left."}}
scores = tables.wide(cells, "method", "seed")
(ax,) = plots.dots(scores, "score", "method", bar=True, by=None,
                   height=2.8)
ax.set(xlabel="score, %", title="")
plt.show()

# %% [markdown]
# How far is each of the others behind MEMIT with a history, at equal seeds? "Ahead" means that
# `memit-history` has the higher score at every seed that both have.

# %% tags=["hide-input"]
by_seed = scores.pivot_table("score", "seed", "method", sort=False)
behind = tables.gaps(by_seed, "memit-history")
tables.table(behind, "Score of memit-history minus that of the other", 2)

# %% [markdown]
# ### Leaving the rest of the prompt as it is
#
# A solve keeps old knowledge by its keys (Eq 14): those of a text, in $\lambda C_0$, and those of
# earlier edits, in $H$. With a weight $w$ (`prompts`) `ece-plus` adds the keys $k_t$ at the tokens $t$ of
# the batch's own prompts, all but the subject's last and the first:
#
# $$
# \Delta = R K^T \Bigl(\lambda C_0 + H + K K^T + w \sum_t k_t k_t^T\Bigr)^{-1}
# $$
#
# Later batches keep them as a part of $H$. This is not in the paper. It takes about one more forward pass of the prompts for
# a batch, and no step of a descent.

# %%
strategy = presets.strategy("smollm2-135m", "ece-plus")
print(strategy)

# %% [markdown]
# Here is the same with $w = 0$ and $\lambda$ = 2,000, which its own search chose. The facts and the values
# are the same. *Unchanged* is the share of neighbours' prompts
# on which the edited model's first choice is still that of the unedited one.

# %% tags=["hide-input"]
plain_runs, unrun = grid.results(GRID, ["main-plain"], RESULTS)
plainly = plain_runs.cells().query("when == 'after'")
both = pd.concat([cells[cells.method.isin(["memit-history", "ece-plus"])],
                  plainly.assign(method="the same, w = 0")])
both = tables.wide(both, "seed", "method").set_index(["seed", "method"])
both = both.sort_index(level="seed", sort_remaining=False)
columns = ["score", "specificity", *TOP, "unchanged"]
shown = both[columns].rename("seed {}".format, level="seed")
shown.columns = shown.columns.str.replace("_", " ")
tables.table(shown, "After 500 edits, %")

# %% [markdown]
# `ece-plus` is ahead of MEMIT with a history at each seed: by 0.6, 0.9 and 2.5 points of the score, by 7 to 10
# points in first choices on the prompts, and by 5 to 6 on the paraphrases. Specificity is level. Without the prompts' keys its score
# is lower than MEMIT's by 0.8 and 1.2 points and level at the third seed, and the new answer comes first on 77 % of the prompts.
# The gain is not the learned start's: in the search below a zero start with kept prompts has the same score. The start saves steps,
# and with the prompts kept most of what it cost is gone; on the records of the run log the zero start still has more first choices
# at equal weights. For the lone edit at the top of this page the neighbour is lost all the same. In single batches of 100 facts of the
# real world, tried by hand ({doc}`../book/run-log`), it gained more than a point at three draws and lost half a point at the fourth; more
# new answers came first at all four.
#
# ### Why the prompts?
#
# The term came out of a search for a loss. With $w = 0$, `ece-plus` differs from `memit-history` in where a descent begins, and stops
# after 12 steps at the latest, not 25. The
# first batch begins at zero with both, as nothing has been learned yet, so it shows what the later ones
# do to it. After all 500 edits:

# %% tags=["hide-input"]
parts = pd.concat([found.batches(), plain_runs.batches().assign(
    method="plain")]).query("when == 'after' and metric == 'score'")
parts = parts.pivot_table("value", ["seed", "edited"], "method")
lost = parts["memit-history"] - parts["plain"]
lost = lost.unstack("edited").rename("seed {}".format)
lost.columns = [f"batch {edited // 100}" for edited in lost]
tables.table(lost, "Score of memit-history minus that of ece-plus, w = 0")

# %% [markdown]
# The first batch is 1.6 to 2.2 points lower at every seed. A check on records set aside says
# more (one run each, by hand, not stored; {doc}`../book/run-log`). There the first batch is equally good right
# after it is written, and falls further while the later ones are written. In the end the *state at the
# subject* still is as it should be: put there in the unedited model, it gives the new answer as well with
# either start. The edited model gives it worse, as the prompt's *other tokens* have changed, too. (The zero start gains from
# keeping them as well: the last table of the search.)
#
# ## What a fact costs
#
# Most of it is the descent. The table has its steps, averaged over the facts. (The seconds of these runs are no
# measure, as they shared their machine with others; {doc}`18_six_steps` and {doc}`08_speed` have
# some that can be compared.)

# %% tags=["hide-input"]
runs = found.runs
edits = pd.json_normalize(list(runs.edit))
cost = pd.DataFrame({
    "shared, in all": edits.shared_steps, "a fact's own": edits.steps,
    "method": runs.method.to_numpy()})
cost = cost.groupby("method", sort=False).mean()
tables.table(cost, "Steps, mean over the seeds")

# %% [markdown]
# ## The search
#
# The weight $\lambda$ of the old knowledge was chosen by four runs for each method on the same 200
# facts, which are set aside: every tenth record by its id. Other layers were tried with
# `memit-history`, too. ($\lambda$ goes in steps of four, which is coarse, for all methods alike.)

# %% tags=["hide-input"]
tried = sought.cells().query("when == 'after' and metric == 'score'")
lams = tried[tried.layers == "4,5,6,7,8"]
shown = lams.pivot_table("value", "method", "lam", sort=False)
shown = shown.sort_index(axis=1)
tables.table(shown, "Score on the facts set aside, by λ, %")

# %% tags=["hide-input"]
windows = tried[(tried.method == "memit-history") & (tried.lam == 2000)]
windows = windows.set_index("layers")[["value"]]
windows.columns = ["score"]
tables.table(windows, "memit-history by its layers, λ = 2000, %")

# %% [markdown]
# `memit-history` and `ece-plus` without kept prompts had eleven runs each in this search: these, and rate and stop of the descent.
# `ece-plus` was also run from zero, and with a quarter of its second moments taken at ends of names. The presets
# have a rate (`lr`) of 0.7 and stop at 0.05. ({doc}`18_six_steps` has three more runs of `memit-history` on
# these facts, at other rates, which are not counted here.)

# %% tags=["hide-input"]
more = finer.cells().query("when == 'after'").fillna({"names": 0.0})
more = tables.wide(more, "method", "lr", "stop", "shared", "names")
more.shared = more.shared.where(more.method == "ece-plus", "zero")
more = more.rename(columns={"shared": "start", "efficacy_top1": "top-1"})
more["setting"] = [
    f"{run.start}, lr {run.lr}, stop {run.stop}"
    + f", names {run.names}" * (run.names > 0)
    for run in more.itertuples()]
table = more.set_index(["method", "setting"])[["score", "top-1"]]
tables.table(table, "On the facts set aside, λ = 2000, %")

# %% [markdown]
# Nothing is more than 0.7 above its preset (82.8 and 82.2), and generalization alone is known to ± 4 here, so both
# presets stayed. The best of `ece-plus` is the one without its learned start, which here is all but MEMIT with a history.
#
# Kept prompts were first tried on other records set aside ({doc}`../book/run-log`), where 0.3 and $\lambda$ = 1,000 were chosen, and then
# in six more runs on these facts (`ece-plus` has then had seventeen here, its rival eleven). All six are above everything in the
# table before. (The published rate is not in that table: with it, and more than twice the steps, MEMIT with a history has a score
# that lies among these six, {doc}`18_six_steps`.)

# %% tags=["hide-input"]
last, unseen = grid.results(
    GRID, ["tune-prompts", "tune-prompts-weight", "tune-prompts-zero"],
    RESULTS)
tries = last.cells().query("when == 'after'")
tries = tables.wide(tries, "shared", "prompts", "lam")
tries["setting"] = [
    f"{run.shared} start, prompts {run.prompts}, λ = {run.lam:.0f}"
    for run in tries.itertuples()]
tries = tries.set_index("setting").rename(
    columns={"efficacy_top1": "top-1"})[["score", "top-1"]]
tables.table(tries, "ece-plus with kept prompts, the facts set aside, %")

# %% [markdown]
# ## Take away
#
# - The first thing to try on a model of your own is MEMIT with a history, with a learning rate that is a
#   share of the state's length, and with the rest of the prompts kept: `ece-plus` with `prompts`.
# - Count top-1 beside likelihoods: it says how much less a user will see.
# - Look at the neighbours of each edit.
#
# ## Where the numbers come from
#
# The tables `main`, `main-plain`, `tune`, `tune-learned`, `tune-layers`, `tune-alphaedit`, `tune-rival`, `tune-plus`,
# `tune-plus-rate`, `tune-plus-stop`, `tune-prompts`, `tune-prompts-weight` and `tune-prompts-zero` of `book/grid-real.toml`. The rivals in full are in
# {doc}`10_table1`.

# %%
print(tables.origin(found.runs, missing))
print(tables.origin(sought.runs, unsearched))
print(tables.origin(finer.runs, undone))
print(tables.origin(plain_runs.runs, unrun))
print(tables.origin(last.runs, unseen))

# %% [markdown]
# The last cell asserts what this page has claimed.

# %% tags=["hide-input"]
of = rates.round().astype(float)
history = of.loc["memit-history", [*RATES[:3], *TOP]]
assert history.tolist() == [97, 83, 70, 82, 41]
assert of.specificity["unedited"] == 73
gap, ends = behind.round(1), ["low", "high"]
paper = gap.loc[["ece-as", "ece-wi", "ece-rs"], ends]
assert (paper.low.min(), paper.high.max()) == (2.2, 4.5)

# %% tags=["hide-input"]
assert (rates.seeds.drop("unedited") == 3).all()
plain = tables.gaps(by_seed, "memit").verdict
assert (plain[["ece-as", "ece-wi", "ece-rs"]] == "ahead").all()
assert gap.loc["ece-plus", ends].tolist() == [-2.5, -0.6]
assert lost["batch 1"].round(1).agg(["min", "max"]).tolist() == [1.6, 2.2]
assert gap.loc["memit", ends].tolist() == [0.9, 1.6]
assert behind.verdict["ece-plus"] == "behind"
assert (behind.verdict.drop("ece-plus") == "ahead").all()
assert len(by_seed) == 3
assert cost["a fact's own"].round(1)["memit-history"] == 6.8
own = cost["a fact's own"]
saved = own["memit-history"] - own["ece-plus"]
assert saved.round(1) == 1.7
assert model.config.num_hidden_layers == 30

# %% tags=["hide-input"]
pair = ["ece-plus", "memit-history"]
preset = shown.loc[pair, 2000.0]
assert preset.round(1).tolist() == [82.2, 82.8]
number = tried.method.value_counts() + more.method.value_counts()
assert (number[pair] == 11).all()
best = more.loc[more.groupby("method").score.idxmax()]
best = best.set_index("method")
assert best.start["ece-plus"] == "zero"
assert (best.score[pair] - preset).max().round(1) == 0.7
sure = finer.cells().query("when == 'after'").set_index("metric").ci
assert sure["generalization"].round().agg(["min", "max"]).eq(4).all()
assert [config.steps - config.own_steps, config.own_steps] == [20, 5]
plus, rival = (presets.configure("smollm2-135m", name) for name in pair)
assert (plus.own_steps, rival.steps, rival.clusters) == (12, 25, None)

# %% tags=["hide-input"]
ours, rival, without = (both.xs(name, level="method") for name in (
    "ece-plus", "memit-history", "the same, w = 0"))
ahead, lag = ours - rival, (rival - without).score.sort_values()
assert ahead.score.round(1).tolist() == [0.6, 0.9, 2.5]
assert ahead.efficacy_top1.round().agg(["min", "max"]).tolist() == [7, 10]
further = ahead.generalization_top1.round()
assert further.agg(["min", "max"]).tolist() == [5, 6]
assert ours[TOP].mean().round().tolist() == [91, 46]
assert ahead.specificity.abs().mean() < 1 and (ahead.unchanged > 2).all()
assert lag.round(1).tolist() == [-0.1, 0.8, 1.2]
assert without.efficacy_top1.mean().round() == 77
assert sorted(plain_runs.runs.edit.str["steps"]) == sorted(
    runs.edit[runs.method == "ece-plus"].str["steps"])

# %% tags=["hide-input"]
assert len(tries) + number["ece-plus"] == 17
assert len(tries) == 6 and tries.score.min() > more.score.max()
assert tries["top-1"].min() > more["top-1"].max()
zero, learned = (tries.score[f"{start} start, prompts 0.3, λ = 1000"]
                 for start in ("zero", "learned"))
assert abs(zero - learned) < 0.1
assert strategy.prompts == 0.3
