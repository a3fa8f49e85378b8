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
# result is called `ece-plus` throughout the book. It is not the paper's method, and stands
# in the tables as a row of its own.
#
# **What you will see**
#
# - what an update does to facts that were not edited, and which of them it hits;
# - why a second moment over *all* tokens protects the wrong keys;
# - a second moment over the ends of names, and how little its share matters;
# - when a descent should stop;
# - what happens to a subject that is edited again, and the mend;
# - what the setting gains, and where it gains nothing.

# %%
import os
from pathlib import Path

import ece
from ece import atlas
from ece.book import tables
from ece.data.loading import load_facts
from ece.experiments import grid

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")
RESULTS, GRID = Path("../book/results"), Path("../book/grid.toml")

model, tokenizer = ece.load(MODEL, DEVICE)
facts = load_facts("counterfact", 50, path=DATA)
config = ece.configure(MODEL, "ece-plus")
layer = config.layers[-1]
stats = ece.second_moment(
    model, tokenizer, atlas.corpus(400), config.layers
)

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
from textwrap import fill

from ece.facts import ends_of_names

text = atlas.corpus(1, seed=3)[0]
pairs = ends_of_names(tokenizer, text)[:40]
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
# keys of subjects that are *not* edited, one value for each subject. A high value: a change
# along this key is dear, so the solve avoids it.

# %%
import torch

from ece.engine.keys import keys_and_states, mix, subject_rows

others = load_facts("counterfact", 400, path=DATA)[200:]
rows = subject_rows(tokenizer, others, ("{}",))
keys, _ = keys_and_states(model, rows, 200, layer, layer, 16384)
K = mix(keys, "bare").double().cpu()
K = K / K.norm(dim=1, keepdim=True)


def energy(C):
    """k C k for each key, C scaled to trace 1."""
    C = C.cpu() / C.trace().cpu()
    return ((K @ C) * K).sum(1)


price = {
    "all tokens": energy(stats.moments[layer]),
    "ends of names": energy(stats.ends[layer]),
}

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt

from ece.book import plots

plots.style()
figure, ax = plt.subplots()
for (name, line), shade in zip(price.items(), (plots.GREY, plots.RED)):
    ax.hist((1e3 * line).tolist(), bins=30, alpha=0.6, color=shade,
            label=name)
ax.set(xlabel="price of a change along a subject's key, $10^{-3}$",
       ylabel="subjects")
ax.legend()
plt.show()
ratio = float(price["ends of names"].mean() / price["all tokens"].mean())
print(f"with ends of names {ratio:.2f} times as high")

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

# %%
def runs_of(*wanted):
    found, missing = [], {}
    for table in wanted:
        done, left = grid.results(GRID, table, RESULTS)
        found, missing = found + done, {**missing, **left}
    return found, missing


found, missing = runs_of("plus-names", "plus-stop", "table1")
plus = [r for r in found if r["method"] == "ece-plus"]
models = list(dict.fromkeys(r["model"] for r in plus))


def along(name, model, runs=None):
    """Setting -> rates, over runs that differ from the preset in it."""
    base = ece.configure(model, "ece-plus")
    line = {}
    for run in plus if runs is None else runs:
        own = run["provenance"]["settings"]
        rest = {"names": base.names, "stop": base.stop} | {name: own[name]}
        if run["model"] == model and all(own[k] == rest[k] for k in rest):
            line[own[name]] = run["after"]
    return dict(sorted(line.items()))


# %% tags=["nbval-ignore-output"]
print(tables.origin(found, missing))

# %% tags=["nbval-ignore-output"]
KINDS = {"efficacy": "o", "specificity": "D", "score": "s"}


def panel(name, log=False):
    rows = max(1, len(models))
    figure, axes = plt.subplots(
        rows, 1, figsize=(4.6, 2.6 * rows), sharex=True, squeeze=False
    )
    for model, ax in zip(models, axes[:, 0]):
        line = along(name, model)
        for (kind, mark), shade in zip(
            KINDS.items(), (plots.BLUE, plots.GREEN, plots.RED)
        ):
            ax.plot(list(line), [r[kind] for r in line.values()],
                    mark + "-", color=shade, label=kind)
        ax.set(title=model, ylabel="%")
        if log:
            ax.set_xscale("log")
    axes[-1, 0].set(xlabel=name)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3)
    plt.show()


panel("names")

# %% tags=["nbval-ignore-output"]
for model_name in models:
    print(f"\n{model_name} names effi gene spec score")
    for share, rates in along("names", model_name).items():
        print(f"{share:17.2f}", *(
            f"{rates[k]:4.1f}" for k in
            ("efficacy", "generalization", "specificity", "score")))

# %% [markdown]
# $\lambda$ is the same along a line. It and the share were chosen on another draw of
# facts (seed 3) than those of the tables (seeds 0 to 2). What does the preset's share
# gain over none, on the draw where it was chosen, and on that of the tables?

# %% tags=["nbval-ignore-output"]
choice, _ = runs_of("plus-choice")
for title, runs in (("chosen on", choice), ("tables", plus)):
    for model_name in models:
        line = along("names", model_name, runs)
        share = ece.configure(model_name, "ece-plus").names
        if 0.0 in line and share in line:
            gains = (line[share][k] - line[0.0][k]
                     for k in ("efficacy", "specificity", "score"))
            print(f"{title:10}{model_name:12}",
                  *(f"{gain:+4.1f}" for gain in gains))

# %% [markdown]
# The columns are efficacy, specificity, score. Differences of a few tenths are within the
# noise: the idea is right in principle and small in effect, on these models. All of
# the mass on names ($\nu = 1$) is worse.
#
# ## When to stop
#
# A fact leaves the descent once its NLL is below `stop`. Earlier is cheaper and leaves
# shorter updates, which do less harm; too early, and the answer is not safe once the
# least squares have taken their part. (The preset's 0.02 was not chosen on these facts; a
# larger value may be a better one.)

# %% tags=["nbval-ignore-output"]
panel("stop", log=True)

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
subjects = [f.subject for f in load_facts("counterfact", path=DATA)]
for edits in (300, 600, 900, 1200):
    some = subjects[:edits]
    again = 1 - len(set(some)) / len(some)
    print(f"{edits:5} edits: {again:4.0%} on a known subject")

# %% tags=["nbval-ignore-output"]
long, _ = runs_of("plus-again", "edits", "again")
SHOWN = {("ece-plus", "again"): plots.RED,
         ("ece-plus", "original"): plots.ORANGE,
         ("ece-plus", "current"): plots.SKY,
         ("memit-history", "original"): plots.PINK,
         ("memit-history", "again"): plots.BLUE,
         ("ece-rs", "original"): plots.GREY,
         ("ece-rs", "again"): plots.GREEN,
         ("rome", "current"): plots.PURPLE}

# %% tags=["nbval-ignore-output"]
ends = list(dict.fromkeys(r["model"] for r in long))
rows = max(1, len(ends))
figure, axes = plt.subplots(
    rows, 1, figsize=(4.6, 2.8 * rows), sharex=True, squeeze=False
)
for name, ax in zip(ends, axes[:, 0]):
    for run in (r for r in long if r["model"] == name):
        kind = run["provenance"]["settings"]["values_from"]
        if shade := SHOWN.get((run["method"], kind)):
            ax.plot([p["edited"] for p in run["points"]],
                    [p["score"] for p in run["points"]], "o-",
                    color=shade, label=f"{run['method']}, {kind}")
    ax.set(title=name, ylabel="score, %")
axes[-1, 0].set(xlabel="facts edited")
handles = axes[0, 0].get_legend_handles_labels()
figure.legend(*handles, loc="outside lower center", ncols=1)
plt.show()

# %% tags=["nbval-ignore-output"]
print("after the last edit: effi., spec., score")
for run in long:
    kind = run["provenance"]["settings"]["values_from"]
    if (run["method"], kind) in SHOWN:
        name = f"{run['model'].removeprefix('atlas-')} {run['method']}"
        last = run["after"]
        print(f"{name:19} {kind:8}", *(
            f"{last[k]:2.0f}" for k in
            ("efficacy", "specificity", "score")))

# %% [markdown]
# ROME, which finds each value on the present weights, keeps its efficacy for the same reason,
# and pays with its neighbours. Nothing in this is special to `ece-plus`: the lines of
# `memit-history` and `ece-rs` with "again" show what the same setting does for them. In real
# CounterFact few subjects come twice, so there the three settings should hardly differ; in a
# knowledge base that is kept up to date, subjects come again all the time.
#
# ## What it gains
#
# Score after 300 edits, at equal seeds, minus that of `memit-history`, which is `ece-plus`
# with another stop and $\nu = 0$; and minus that of plain MEMIT and of the best of ECE's
# three scorers. A question mark: the seeds disagree about the sign.

# %% tags=["nbval-ignore-output"]
every, _ = runs_of("table1", "table1-seeds", "table1-others",
                   "table1-others-seeds")
scores = {}
for run in every:
    own = scores.setdefault((run["model"], run["method"]), {})
    own[run["seed"]] = run["after"]["score"]


def gain(model, other):
    mine, theirs = scores.get((model, "ece-plus"), {}), scores.get(
        (model, other), {})
    d = [mine[s] - theirs[s] for s in sorted(mine.keys() & theirs.keys())]
    if not d:
        return "-"
    sure = "" if min(d) * max(d) > 0 else "?"
    return f"{sum(d) / len(d):+.1f}{sure}"


names = [m.removeprefix("atlas-") for m in models]
print(f"{'ece-plus minus':16}", *(f"{n:>7}" for n in names))
for other in ("memit", "memit-history", "alphaedit", "blue", "rect",
              "rome", "ece-as", "ece-wi", "ece-rs"):
    print(f"{other:16}", *(f"{gain(m, other):>7}" for m in models))

# %% [markdown]
# Where the difference to `memit-history` is a few tenths of a point or carries a question
# mark, nothing was gained: in a sequence this short, where no subject comes twice, both are
# MEMIT with a history. The gain of `ece-plus` is in the long sequence above, and there it
# comes from `values_from` alone: with "again", the other methods gain as much.
#
# ## Live
#
# Fifty facts at once, with and without names. The last column is the harm done to the keys
# of the 200 other subjects: the mean length of $\Delta k$ relative to that of $W k$, at
# the last edit layer.

# %%
from dataclasses import replace

from ece.evaluation.metrics import evaluate


def harm(**settings):
    """Scores of one batch, and how far other subjects' outputs move."""
    chosen = replace(config, **settings)
    site = ece.sites(model, (layer,))[0]
    state = ece.new_state(model, tokenizer, chosen)
    before = site.weight.clone()
    state, _ = ece.edit_batch(
        model, tokenizer, facts, stats, state, chosen
    )
    rates = evaluate(model, tokenizer, facts).summary()
    raw = keys[:, 0].double().to(before.device)
    moved = ((site.weight - before).double() @ raw.T).norm(dim=0)
    usual = (before.double() @ raw.T).norm(dim=0)
    ece.undo(model, state)
    return rates, float((moved / usual).mean())


live = {nu: harm(names=nu) for nu in (0.0, config.names)}

# %% tags=["nbval-ignore-output"]
for nu, (rates, moved) in live.items():
    print(f"{nu:4.2f}: effi. {rates['efficacy']:.0f}, "
          f"spec. {rates['specificity']:.1f}, moved {moved:.2f}")

# %% [markdown]
# ## Summary
#
# - Specificity is about the keys at the ends of names, and a mean over all tokens hardly
#   weighs them; `names` gives them a share of $C_0$. The gain is small.
# - A subject that is edited again needs a value from the present weights.
# - `ece-plus` is: history, all neurons, no shared phase, a descent that stops when it is
#   done, that share, and those values.
# - Its gains and its ties are printed from the files, seed by seed.
#
# The last cell asserts what this page has claimed.

# %%
assert ece.METHODS["ece-plus"]["names"] == config.names > 0
C = stats.moment(layer, 0.25)
mixed = 0.75 * stats.moments[layer] + 0.25 * stats.ends[layer]
torch.testing.assert_close(C, mixed)
if MODEL == "atlas-gpt2":
    assert ratio > 1, "names weigh the keys of subjects more"
    assert live[config.names][1] < live[0.0][1], "and shield them"
