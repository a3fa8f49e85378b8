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
# # Sequential batch editing: many edits, one model
#
# One batch is easy. The paper is about what comes after: batch upon batch into the
# same weights, each of which may damage the ones before. This page runs the
# method as a whole and asks **which facts are still there at the end, and what the
# choice of neurons and the history have to do with it**.
#
# **What was found**
#
# - Over 200 edits in batches of 25 every method with a history still has nearly all of its
#   edits, on all three models. MEMIT, which has none, loses up to 12 of 100.
# - The best of ECE's three scorers is ahead of MEMIT, as in the paper: by 2.4 and 5.6 points on
#   two models, even on the third. It is not ahead of MEMIT *with a history* (-0.6, -1.3 and +0.2
#   points). The history makes the difference, not the choice of neurons.
# - In the live run of 64 facts the four differences tested are within the noise.
# - A run that was killed goes on to the same bits, and a sequence can be taken back.

# %% tags=["hide-input"]
import os
import tempfile
from dataclasses import fields, replace
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

import ece
from ece import atlas, presets
from ece.book import plots, tables
from ece.data import load_facts
from ece.presets import strategy

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")
facts = (load_facts("counterfact", 64, path=DATA) if DATA
         else atlas.facts("counterfact", 64))
texts = atlas.corpus(800)
plots.style()

# %% [markdown]
# ## Four settings, one function
#
# Let $N$ be all facts and $n$ the facts written at once. Appendix A of the paper
# distinguishes
#
# $$
# \theta' \leftarrow \arg\min_\theta \lVert f_\theta(x_i^e) - y_i^e \rVert
# \tag{15}
# $$
#
# *single* editing, one fact into a fresh model;
#
# $$
# \theta' \leftarrow \arg\min_\theta
#   \sum_{i=1}^{n} \lVert f_\theta(x_i^e) - y_i^e \rVert
# \tag{16}
# $$
#
# *batch* editing, $n$ facts at once;
#
# $$
# \theta' \leftarrow \arg\min_\theta
#   \sum_{i=1}^{N} \lVert f_\theta(x_i^e) - y_i^e \rVert
# \tag{17}
# $$
#
# *sequential* editing, one fact after the other, measured at the end; and
#
# $$
# \theta' \leftarrow \arg\min_\theta
#   \sum_{s=0}^{S} \sum_{i=s \times n}^{(s+1) \times n}
#   \lVert f_\theta(x_i^e) - y_i^e \rVert
# \tag{18}
# $$
#
# *sequential batch* editing; the paper's Eq 2 says the same. (As printed the sums count one batch
# and one fact per batch too many; here there are $S$ batches of $n$ facts.) All
# four are `edit_sequence` with different lists and batch sizes:
#
# | setting | facts given | `batch` |
# |---|---|---|
# | single, Eq 15 | one | 1 |
# | batch, Eq 16 | $n$ | $n$ |
# | sequential, Eq 17 | $N$ | 1 |
# | sequential batch, Eq 18 | $N$ | $n$ |

# %%
from ece.baselines.ece_plus import ends_of_names


# %%
def fresh(name=MODEL):
    """An unedited model, its tokenizer, and second moments by method."""
    model, tokenizer = ece.load(name, DEVICE)
    layers = presets.configure(name, "ece-rs").layers
    more = model, tokenizer, texts, layers
    stats = ece.second_moment(*more)
    ends = ece.second_moment(*more, select=ends_of_names)
    share = strategy(name, "ece-plus").names
    moments = dict.fromkeys(presets.METHODS, stats)
    moments["ece-plus"] = ece.blend(stats, ends, share)
    return model, tokenizer, moments


# %%
loaded = fresh()
model, tokenizer, moments = loaded

# %% [markdown]
# (`ece-plus`, the book's own setting, takes half of its $C_0$ over the ends of names:
# {doc}`15_plus`. All other methods have the same statistics.)

# %%
plus = strategy(MODEL, "ece-plus")
quick = presets.configure(MODEL, "ece-plus", own_steps=2, contexts=1)
four = {
    "single": (facts[:1], 1), "batch": (facts[:4], 4),
    "sequential": (facts[:4], 1), "sequential batch": (facts[:4], 2),
}
for name, (some, size) in four.items():
    state, reports = ece.edit_sequence(
        model, tokenizer, some, moments["ece-plus"], quick, size, plus
    )
    print(f"{name:17} facts per batch:", [len(r.facts) for r in reports])
    ece.undo(model, state, len(reports))

# %% [markdown]
# ## A sequence, live
#
# Eight batches of eight facts, in six ways. A method is a preset: settings of the editor
# (`configure`), and what it does differently from ECE (`strategy`). The table lists the
# settings in which they differ; the layers are the same. With eight facts a
# batch the preset's groups would be more than there are facts, so here a batch has two.

# %%
methods = "ece-as ece-wi ece-rs ece-plus memit memit-history".split()
batch, clusters = 8, 2


def setting(method, name=MODEL):
    """The settings of a method, with groups that fit small batches."""
    config = presets.configure(name, method)
    grouped = config.clusters is not None
    return replace(config, clusters=clusters) if grouped else config


# %%
ways = pd.DataFrame({
    method: {own.name: str(getattr(source, own.name))
             for source in (setting(method), strategy(MODEL, method))
             for own in fields(source)}
    for method in methods
}).drop("names")
ways = ways[ways.nunique(axis=1) > 1]
tables.table(ways.T, "Settings in which the methods differ")

# %% [markdown]
# Every rate is taken twice, because a long sequence can undo its own early edits and
# a measurement right after each batch would never see it: **at write**, each batch
# when it has just been written, and **after** the last batch, for all facts. The
# *score* is the harmonic mean of efficacy, generalization and specificity (Eq 23–25),
# which is low as soon as one of them is.

# %%
from ece.evaluation.metrics import evaluate, harmonic

torch.testing.assert_close(
    harmonic([100.0, 100.0, 25.0]), 3 / (1 / 100 + 1 / 100 + 1 / 25),
    msg="the harmonic, not the arithmetic mean",
)


# %%
def sequence(method, model, tokenizer, moments, name=MODEL, some=facts):
    """Edit in batches; scores at write, after, and the reports."""
    config, written = setting(method, name), []
    measure = partial(evaluate, model, tokenizer)
    new = ece.new_state(
        model, tokenizer, config, strategy(name, method), undo=8)
    state, reports = ece.edit_sequence(
        model, tokenizer, some, moments[method], config, batch, state=new,
        on_batch=lambda state, report, part: written.append(measure(part)))
    after = measure(some)
    ece.undo(model, state, len(reports))
    return written, after, reports


# %%
KINDS = ["efficacy", "generalization", "specificity", "score"]
pre = evaluate(model, tokenizer, facts)
runs = {method: sequence(method, *loaded) for method in methods}
after = {method: run[1].summary() for method, run in runs.items()}
rates = pd.DataFrame({"pre-edit": pre.summary(), **after}).T
tables.table(rates[KINDS], f"{len(facts)} facts, {batch} a batch: "
             "rates after the last batch, %")

# %% [markdown]
# "pre-edit" is the model before any edit: it prefers its old answers, as it should,
# so that efficacy is low and specificity high. With 64 facts the 95 % intervals are
# wide; 0.0 only says that all facts agree, not that it is certain:

# %%
halves = [f"{kind}_ci" for kind in KINDS[:3]]
tables.table(rates.loc[methods, halves].set_axis(KINDS[:3], axis=1),
             "Half widths of the 95 % intervals, points")

# %% [markdown]
# Batch by batch:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Score of each batch of eight facts, when it was written (above) and after the last batch (below).", "name": "fig-sequential-batches"}, "image": {"alt": "Two panels of six lines over the number of facts edited. At write all points lie between 97.5 and 100 percent. After the last batch the first one lies lowest, with MEMIT lower than with ECE and ece-plus, and with MEMIT and a history hardly at all. Most other points are near the top."}}
parts = [
    {"when": when, "method": method, "edited": (number + 1) * batch,
     "score": scores.summary()["score"]}
    for method, (written, whole, _) in runs.items()
    for number, at_write in enumerate(written)
    for when, scores in (
        ("at write", at_write),
        ("after the last batch",
         whole.part(number * batch, (number + 1) * batch)),
    )
]
parts = pd.DataFrame(parts)
parts = parts.sort_values("when", ascending=False, kind="stable")
axes = plots.lines(parts, "edited", "score", by="when", columns=0,
                   ylabel="score of the batch, %", height=3.4)
axes[-1].set(xlabel="facts edited when the batch was written")
for ax in axes:
    ax.set(ylim=(80, 101))
    plots.label_ends(ax)
plt.show()

# %% [markdown]
# Lines that sink to the right in the upper figure would be *model failure*: later
# batches no longer take. There is none. Points that are lower in the lower figure than
# in the upper one are *forgetting*: batches have been written over. Sixty-four facts
# are few for either; the full table below goes further.
#
# What did each method write to, and how many gradient passes did it take?

# %%
def effort(reports):
    """Share of the columns written in %, and gradient passes."""
    width = moments["memit"].moments[reports[0].layers[0]].shape[0]
    shares = [n / width for r in reports for n in r.neurons.values()]
    passes = sum(sum(r.steps) + sum(r.shared_steps) for r in reports)
    return {"columns, %": 100 * np.mean(shares), "passes": passes}


spent = pd.DataFrame({m: effort(run[2]) for m, run in runs.items()}).T
tables.table(spent, "Columns written, and passes of single facts", 0)

# %% [markdown]
# Where `clusters` is None, `shared` and `own_steps` have no effect.
# MEMIT writes all columns; each fact descends alone, and stops at the NLL of its
# published code. The three variants of ECE differ from one another in the columns: the
# score that chooses them (AS and RS also in the groups). `ece-plus` writes all columns
# too, and has no shared phase. One comparison is clean: `memit` with `memit-history`, which
# differ in the history only. `ece-plus` differs from `memit-history` in $\lambda$, in $C_0$, in its
# number of steps and when they stop, and in the weights for subjects that come again
# ({doc}`15_plus`). The paper's 20 + 5 passes
# are fixed, and a descent that stops when it is done needs fewer, without any sharing.

# %%
def gap(one, other):
    """Mean rate after all edits, one minus other, paired by fact."""
    each = [
        np.nanmean([s.efficacy, s.generalization, s.specificity], axis=0)
        for s in (runs[one][1], runs[other][1])
    ]
    d = 100 * (each[0] - each[1])
    half = 1.96 * d.std(ddof=1) / len(d) ** 0.5
    word = "clear" if abs(d.mean()) > half else "within the noise"
    return f"{one} - {other}: {d.mean():+.1f} +- {half:.1f}, {word}"


# %%
pairs = [("memit-history", "memit"), ("ece-plus", "memit-history"),
         ("ece-plus", "ece-rs"), ("ece-rs", "memit")]
verdicts = [gap(*pair) for pair in pairs]
print(*verdicts, sep="\n")

# %% [markdown]
# The words at the end of the lines come from the interval of the paired difference.
#
# In the paper all three variants of ECE end far above MEMIT. In this short run they do
# not, and the earlier pages have shown the likely reasons: the shared phase brings values no closer to
# their goal ({doc}`05_two_step`), fewer columns reach less of it ({doc}`06_submatrix`),
# and WI chooses the same columns whatever the facts are. The paper's MEMIT also has no
# history, while ECE has one; `memit-history` is the peer that differs from ECE in the
# choice of neurons and in the values only.
#
# ## The full table
#
# Two hundred facts in batches of 25, for three models and six methods, take longer
# than a page should. They are the table `sequential` of `book/grid.toml`; each run was
# made by one command, like this one, and is stored in `results/`:

# %%
from ece.experiments import grid
from ece.experiments.spec import Settings

print(Settings(model="atlas-gpt2", method="ece-as").command()
      .replace(" --", " \\\n  --"))
found, missing = grid.results(
    "../book/grid.toml", "sequential", "../results"
)
cells = tables.wide(found.cells(), "when", "model", "method")

# %% tags=["hide-input"]
ended = cells[cells.when == "after"].set_index(["model", "method"])[KINDS]
for name, rows in ended.groupby("model", sort=False):
    before = cells[(cells.when == "pre") & (cells.model == name)]
    first = before[KINDS].iloc[:1].set_axis(["pre-edit"])
    whole = pd.concat([first, rows.droplevel("model")])
    display(tables.table(whole, f"{name}: 200 facts, 25 a batch, "
                         "rates after the last batch, %"))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Score of 200 facts when each batch was written, and after the last batch.", "name": "fig-sequential-table"}, "image": {"alt": "Three panels, one for each model, with a row for each of six methods and two markers in it. The markers of MEMIT are farthest apart and its final score is lowest, most of all on atlas-gptj at 90 percent; those of the others lie between 94 and 99 percent."}}
shown = cells[cells.when != "pre"].replace(
    {"when": {"at_write": "at write", "after": "after the last batch"}}
)
axes = plots.dots(shown, "score", "method", shape="when", columns=2)
axes[-1].set(xlabel="score, %")
plt.show()

# %% [markdown]
# The distance between the two markers is what the sequence has cost after writing:
# forgetting, and damage to neighbours. Points that stand close together do not differ:
# with 200 facts the half width of a rate is a few points.

# %%
end = found.cells().query("when == 'after'")
for kind, own in end.groupby("metric").ci:
    if kind in KINDS[:3]:
        print(f"{kind:15} half widths {own.min():.1f} to {own.max():.1f}")
score = ended.score.unstack()
ours = score.filter(like="ece-").drop(columns="ece-plus").max(axis=1)
rivals = ["memit", "memit-history", "ece-plus"]
tables.table(score[rivals].rsub(ours, axis=0),
             "Score: the best of ECE's AS, WI and RS minus others, points")

# %% [markdown]
# The first column is the paper's comparison, ECE with a history against MEMIT
# without. In the second both have one: what is left of the difference is due to the
# choice of neurons and the shared phase. Where the sign changes, the history has made
# the difference.
#
# ```{admonition} Beside the paper's table, not on top of it
# :class: warning
# These are three small models that were trained to store facts where the
# method looks for them, and 200 edits are a tenth of what they know. The paper's
# numbers come from GPT2-XL, GPT-J and Llama-3 with 2,000 edits. Orders of
# methods may be compared with care, values may not. For the large models:
# {doc}`../book/reproducing`.
# ```
#
# ## The other two families
#
# Two of the methods, `ece-rs` and `memit-history`, on a GPT-J and on a Llama, in small: one batch.

# %%
MODELS = ("atlas-gpt2", "atlas-gptj", "atlas-llama")
elsewhere = {}
for name in (n for n in MODELS if n != MODEL and MODEL in MODELS):
    ready = fresh(name)
    for method in ("ece-rs", "memit-history"):
        run = sequence(method, *ready, name, facts[:batch])
        elsewhere[name, method] = run[1].summary()
tables.table(pd.DataFrame(elsewhere, index=KINDS).T,
             f"{batch} facts, rates after the batch, %")

# %% [markdown]
# Nothing in these calls names a family. `ece.sites` finds the down-projections, and
# the presets hold only numbers.
#
# ## Killed and resumed
#
# A long run will be interrupted sooner or later. `ece.storage.run_sequence` edits as
# `edit_sequence` does and saves each batch before the next begins; the same call goes on
# where the last one stopped. We kill a run of three batches after the second.

# %%
from ece.storage import Folder, run_sequence


class Killed(Exception):
    """Stands for a power cut."""


def cut(state, report, part):
    if state.done == 2:
        raise Killed


# %%
short = facts[:12], moments["ece-plus"], quick, 4


def resumable(model, path, on_batch=None):
    with Folder(path) as folder:
        return run_sequence(
            model, tokenizer, *short, folder, plus, on_batch
        )


def weights(model):
    return [s.weight.clone() for s in ece.sites(model, quick.layers)]


# %%
model, _ = ece.load(MODEL, DEVICE)
original = weights(model)
straight, _ = ece.edit_sequence(model, tokenizer, *short, plus)
wanted = weights(model)

# %%
with tempfile.TemporaryDirectory() as path:
    broken, _ = ece.load(MODEL, DEVICE)
    try:
        resumable(broken, path, cut)
    except Killed:
        print("killed after batch 2")
    again, _ = ece.load(MODEL, DEVICE)
    resumed, reports = resumable(again, path)
same = all(map(torch.equal, weights(again), wanted))
print(f"{len(reports)} batches, bits as without the cut: {same}")

# %% [markdown]
# ## The way back
#
# The state is a stack of batches. `undo` takes the last ones off, columns and
# history alike, and editing can go on from there.

# %%
earlier = ece.undo(model, straight, 1)
redone, _ = ece.edit_batch(
    model, tokenizer, facts[8:12], short[1], earlier, quick
)
ece.undo(model, redone, 3)
back = all(map(torch.equal, weights(model), original))
print(f"{straight.done} -> {earlier.done} batches "
      f"-> {redone.done}, then all undone: {back}")

# %% [markdown]
# ## Summary
#
# - Single, batch, sequential and sequential batch editing are one function.
# - Rates are taken at write and after everything; only the second sees forgetting.
# - Methods differ in a handful of settings, so differences between them have a
#   cause that can be named: columns, values, or history.
# - A killed run resumes to the same bits, and a sequence can be taken back.
#
# ```{dropdown} Where the numbers of the full table come from
# All of them are in `results/`, made by the table `sequential` of `book/grid.toml`.
# ```

# %% tags=["hide-input"]
print(tables.origin(found.runs, missing))

# %% [markdown]
# The last cell asserts what this page has claimed.

# %% tags=["hide-input"]
assert all(len(run[2]) == len(facts) // batch for run in runs.values())
for method in ("ece-plus", "memit-history"):
    assert rates.efficacy[method] > rates.efficacy["pre-edit"] + 20
    assert rates.score[method] > rates.score["pre-edit"], "the whole gains"
share = spent["columns, %"]
assert share["memit"] == 100, "memit: all columns"
assert max(share[["ece-as", "ece-wi", "ece-rs"]]) < 100, "ece: some"
edits = ended.efficacy.unstack()
assert edits.drop(columns="memit").min(axis=None) > 95

# %% tags=["hide-input"]
assert edits.memit.min() < 90, "MEMIT loses edits"
ahead = ours - score.memit
assert ahead.round(1).tolist() == [2.4, 5.6, 0.2], "of MEMIT"
behind = (ours - score["memit-history"]).round(1)
assert behind.tolist() == [-0.6, -1.3, 0.2], "not with a history"
if MODEL == "atlas-gpt2" and not DATA:
    assert all("noise" in verdict for verdict in verdicts)
assert same, "a resumed run ends with the same bits"
assert back, "undo returns every bit"
