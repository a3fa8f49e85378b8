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
# A comparison of methods is one of their settings, too. In {doc}`10_table1` those of ECE
# had been searched for on each model, those of most baselines on one, and some choices were
# made after a table had been seen. So its order could be that of the effort spent. This page
# asks again: **if ECE and its rivals are searched alike, and then asked about facts that
# nobody has looked at, who is ahead?**
#
# **What you will see**
#
# - the rule, fixed before the fresh facts were run;
# - the search: every setting that was tried, and the one it chose;
# - all of them on fresh facts, and the differences seed by seed;
# - what this does not settle.

# %%
import os
from pathlib import Path

from ece.book import tables
from ece.experiments import grid
from ece.experiments.results import read_result

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")
RESULTS, GRID = Path("../book/results"), Path("../book/grid.toml")

# %% [markdown]
# ## The rule
#
# 1. ECE (with the score AS), ROME and MEMIT, the paper's editors that come near one another,
#    are searched in rounds, each from the best so far: first twelve settings of the stop of
#    the descent and of what matters most for the method (ECE's schedule, MEMIT's $\lambda$,
#    ROME's layer); then the layers of ECE and MEMIT, and ROME's decay and learning
#    rate; at last the learning rate of the other two. That is 21 or 22 runs each on each
#    model, one of which may repeat another. SERAC, trained without and with the test's
#    wordings (`serac-seen`, {doc}`10_table1`), gets four thresholds. MEND and fine-tuning,
#    far behind with their presets, are not searched.
# 2. The facts of the search are those of seed 3. The highest score is chosen, of equal
#    ones the first. WI and RS take over what was found for AS; the best of
#    the three at seed 3 speaks for ECE.
# 3. The chosen settings run on the facts of seeds 5 to 9 (SERAC, which trains anew for every
#    seed, on 5 to 7). ECE is called ahead of another method if it is at *every* seed,
#    behind if it is behind at every seed, and else even.
#
# The cells are in `book/grid.toml`, in the tables called `choice` and `fresh`. Before them
# nobody had run these methods on the facts of seeds 5 to 9. Not all of it was planned at the
# start: the rounds after the first were added when ROME's layers turned out to matter; a
# search of fine-tuning's learning rates was declared and dropped for want of time; and
# `serac-seen` got thresholds of its own after it had run on fresh facts with those found for
# `serac`, which did not suit it (those six runs were thrown away).

# %%
def known(*names):
    """Settings and results of the cells of these tables, if run."""
    cells = grid.cells(GRID, names).items()
    return [(s, read_result(RESULTS / f"{name}.json"))
            for name, s in cells if grid.done(name, s, RESULTS)]


SEARCH = ("choice-ece", "choice-rome", "choice-memit",
          "choice-memit-gpt2", "choice-layers", "choice-decay",
          "choice-rate", "choice-serac")
FRESH = ("fresh", "fresh-serac", "fresh-peers")
tried = {}
for settings, result in known(*SEARCH):
    key = settings.model, settings.method
    tried.setdefault(key, []).append((settings.config, result))

# %% tags=["nbval-ignore-output"]
found, missing = [], {}
for table in (*SEARCH, "choice-scorers", *FRESH):
    done, left = grid.results(GRID, table, RESULTS)
    found, missing = found + done, {**missing, **left}
print(tables.origin(found, missing))

# %% [markdown]
# ## The search
#
# Every dot is a setting, the ring the one chosen. How far the dots of a method spread is
# what a careless choice would cost it.

# %%
def best(runs):
    """Setting and result of the highest score; of equal ones the first."""
    return max(runs, key=lambda run: run[1]["after"]["score"])


chosen = {key: best(runs) for key, runs in tried.items()}
models = list(dict.fromkeys(model for model, _ in chosen))
NEAR = ("ece-as", "rome", "memit", "serac", "serac-seen")

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt

from ece.book import plots

plots.style()
figure, axes = plt.subplots(len(models), 1, sharex=True, squeeze=False,
                            figsize=(4.6, 2.4 * len(models)))
for model, ax in zip(models, axes[:, 0]):
    for row, method in enumerate(NEAR):
        runs = tried.get((model, method), [])
        for config, result in runs:
            first = config == chosen[model, method][0]
            ax.plot(result["after"]["score"], row, "o", alpha=0.7,
                    color=plots.colour(method), markersize=5,
                    markeredgecolor="none")
            if first:
                ax.plot(result["after"]["score"], row, "o", mfc="none",
                        color=plots.BLACK, markersize=11)
    ax.set_yticks(range(len(NEAR)), NEAR)
    ax.set(title=model, ylim=(len(NEAR) - 0.5, -0.5))
axes[-1, 0].set(xlabel="score at seed 3, %")
plt.show()


# %%
from textwrap import fill


def said(config):
    """A setting in a few short lines."""
    parts = []
    for name, value in config.items():
        layers = isinstance(value, tuple)
        told = "+".join(map(str, value)) if layers else f"{value:g}"
        parts.append(f"{name}={told}")
    return fill(" ".join(parts), 36, initial_indent="    ",
                subsequent_indent="    ", break_long_words=False)


# %% tags=["nbval-ignore-output"]
for model in models:
    print(f"\n{model}: score at seed 3")
    for method in NEAR:
        if runs := tried.get((model, method)):
            values = [r["after"]["score"] for _, r in runs]
            print(f"{method:10} {len(runs):2} tried, "
                  f"{min(values):.1f} to {max(values):.1f}")
            print(said(chosen[model, method][0]))

# %% [markdown]
# What an author chooses first and seldom says much about are the layers. Here is that round
# alone; for ROME, which edits one layer, the best over its stops:

# %% tags=["nbval-ignore-output"]
layered = {}
for settings, result in known("choice-layers", "choice-rome"):
    own = layered.setdefault((settings.model, settings.method), {})
    name = "+".join(map(str, settings.config["layers"]))
    own[name] = max(own.get(name, 0), result["after"]["score"])
sets = sorted({name for own in layered.values() for name in own},
              key=lambda name: (len(name), name))

# %% tags=["nbval-ignore-output"]
figure, axes = plt.subplots(len(models), 1, sharex=True, squeeze=False,
                            figsize=(4.6, 2.7 * len(models)))
for model, ax in zip(models, axes[:, 0]):
    for method in ("ece-as", "memit", "rome"):
        own = layered.get((model, method), {})
        ax.plot(own.values(), [sets.index(name) for name in own], "o",
                label=method, color=plots.colour(method), alpha=0.8)
    ax.set_yticks(range(len(sets)), sets)
    ax.set(title=model, ylabel="layers")
axes[-1, 0].set(xlabel="score at seed 3, %")
figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=3,
              loc="outside lower center")
plt.show()

# %% [markdown]
# The presets edit layers 0+1+2 of `atlas-gpt2`, 1+2 of the other two, and ROME 2: the
# lower layers, where tracing sees the facts ({doc}`01_atlas`). Where a dot stands further
# to the right at other layers, the tables of this book were made with a worse choice.

# %% [markdown]
# ## Fresh facts
#
# Now every method has its chosen setting, and nothing is chosen any more. Two rows were
# not searched: `memit-history` and `ece-plus` have their presets, with ECE's layers where
# the search found others. First a check that what ran is what was chosen:

# %%
fresh = {}
for settings, result in known(*FRESH):
    model, method = settings.model, settings.method
    wanted = chosen.get((model, method))
    assert not wanted or settings.config == wanted[0], settings
    fresh.setdefault((model, method), {})[settings.seed] = result["after"]

# %%
ECE = ("ece-as", "ece-wi", "ece-rs")
at_three = {}
for settings, result in known("choice-scorers"):
    at_three[settings.model, settings.method] = result["after"]["score"]
for model in models:
    at_three[model, "ece-as"] = (
        chosen[model, "ece-as"][1]["after"]["score"])
speaks = {model: max((m for m in ECE if (model, m) in at_three),
                     key=lambda m: at_three[model, m])
          for model in models}


# %% tags=["nbval-ignore-output"]
def mean(values):
    values = list(values)
    return sum(values) / len(values)


def ranked(model):
    """Method -> score at each seed, the highest mean first."""
    own = {m: {s: after["score"] for s, after in runs.items()}
           for (name, m), runs in fresh.items() if name == model}
    return dict(sorted(own.items(), key=lambda x: -mean(x[1].values())))


# %% tags=["nbval-ignore-output"]
figure, axes = plt.subplots(len(models), 1, sharex=True, squeeze=False,
                            figsize=(4.6, 3.2 * len(models)))
for model, ax in zip(models, axes[:, 0]):
    order = ranked(model)
    for row, (method, scores) in enumerate(order.items()):
        ax.plot(scores.values(), [row] * len(scores), "o", alpha=0.6,
                color=plots.colour(method))
        ax.plot(mean(scores.values()), row, "|", markersize=16,
                color=plots.BLACK)
    ax.set_yticks(range(len(order)), list(order))
    ax.set(title=model, ylim=(len(order) - 0.5, -0.5))
axes[-1, 0].set(xlabel="score at fresh seeds, %")
plt.show()

# %% [markdown]
# Dots are seeds, bars their mean. The same as a table, with the measures the score is
# made of, averaged over the seeds that each method has (five or three):

# %% tags=["nbval-ignore-output"]
KINDS = ("efficacy", "generalization", "specificity", "score")
for model in models:
    print(f"\n{model:14}", *(f"{kind[:4]:>5}" for kind in KINDS))
    for method in ranked(model):
        runs = fresh[model, method].values()
        print(f"{method:14}", *(f"{mean(r[k] for r in runs):5.1f}"
                                for k in KINDS))


# %% [markdown]
# ## Ahead or behind?
#
# Facts differ from seed to seed, so methods are compared at equal seeds: the score of ECE's
# speaker minus that of the other method, its mean and range.

# %%
def compared(model, one, other):
    """Differences at the seeds both have, and what they say."""
    a, b = (ranked(model).get(m, {}) for m in (one, other))
    gaps = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    if not gaps:
        return "not run here"
    word = ("ahead" if min(gaps) > 0 else
            "behind" if max(gaps) < 0 else "even")
    return (f"{mean(gaps):+5.1f} ({min(gaps):+.1f} to {max(gaps):+.1f})"
            f" {word}")


# %% tags=["nbval-ignore-output"]
for model in models:
    print(f"\n{model}: {speaks[model]} minus")
    for other in ranked(model):
        if other not in ECE:
            told = compared(model, speaks[model], other)
            print(f"{other:14}{told}")

# %% [markdown]
# ROME and MEMIT, searched like ECE, are behind it at every seed on `atlas-gpt2` and
# `atlas-gptj`. On `atlas-llama` all three do so well that they cannot be told apart by the
# rule: ECE has the highest mean, but not at every seed. There {doc}`10_table1` had ECE in
# front, and that was the effort spent on it as much as the method.
#
# SERAC that has not seen the test's wordings is behind on two models and even on
# `atlas-gpt2`, with the lower mean. SERAC that has seen them is ahead on `atlas-gpt2`, even on
# `atlas-gptj`, behind on `atlas-llama`. So with that SERAC, ECE does *not* beat every
# baseline of the paper.
#
# ## What the search promised
#
# The highest of twenty scores is partly luck, and luck does not come again. Per method: the
# chosen setting's score at seed 3, then its mean on fresh facts.

# %% tags=["nbval-ignore-output"]
for model in models:
    print(f"\n{model}")
    for method in NEAR:
        runs = fresh.get((model, method))
        if runs:
            then = mean(after["score"] for after in runs.values())
            now = chosen[model, method][1]["after"]["score"]
            print(f"{method:14} {now:.1f} -> {then:.1f}")

# %% [markdown]
# ## What this does not settle
#
# - *Even* means: not told apart by these three or five seeds. It does not mean equal.
# - The rounds change one or two things at a time, so a good pair of settings can be missed.
#   ECE's $p$, its number of groups and the presets' $\lambda$ were chosen for ECE on these
#   models before, which the search leaves to it as an advantage.
# - MEND, fine-tuning, SERAC's training and the peers were not searched. What a search can do
#   for a method that looks far behind, MEMIT on `atlas-gptj` shows. The peers are ahead of
#   ECE wherever the lines above say so, even without one.
# - All this is CounterFact's three rates, 300 edits, in one small world. Which layers are
#   best will not carry over to a large model; that one has to look for them will.
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


rates = {lr: score(3, lr=lr) for lr in (1.0, 10.0)}
pick = max(rates, key=rates.get)
then = {lr: score(4, lr=lr) for lr in rates}

# %% tags=["nbval-ignore-output"]
for lr, rate in rates.items():
    print(f"lr {lr:4.1f}: {rate:5.1f}, on fresh facts {then[lr]:5.1f}",
          "<- chosen" if lr == pick else "")

# %% [markdown]
# ## Summary
#
# - ROME and MEMIT got as many settings as ECE, and what was chosen met facts that nobody
#   had looked at.
# - A wrong choice of layers cost these three more than any other that was searched.
# - ECE has a higher mean than ROME, MEMIT and SERAC on each model, but not always at every
#   seed; SERAC trained in the test's wordings is ahead of it on `atlas-gpt2`.
#
# The last cell asserts what this page has claimed.

# %%
for (model, method), runs in tried.items():
    assert {result["seed"] for _, result in runs} == {3}
    assert chosen[model, method] in runs
    if method in ("ece-as", "rome", "memit"):
        assert len(runs) in (21, 22)
for runs in fresh.values():
    assert min(runs) >= 5, "fresh facts are those of seeds 5 and more"
CLAIMED = {"rome": ("ahead", "ahead", "even"),
           "memit": ("ahead", "ahead", "even"),
           "serac": ("even", "ahead", "ahead"),
           "serac-seen": ("behind", "even", "ahead")}
for other, words in CLAIMED.items():
    for model, word in zip(models, words):
        told = compared(model, "ece-as", other)
        assert told.endswith(word)
        assert other == "serac-seen" or float(told.split()[0]) > 0
