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
# 2,000 edits. This page has the same table for the three embedded models, after 300 edits
# in batches of 25, with the methods that came after MEMIT beside them. It asks: **which
# method keeps what it wrote, at what cost to everything else, and is the order the
# paper's?**
#
# **What you will see**
#
# - the table in the paper's layout, measured here, and the paper's own numbers below it;
# - the same as a picture (Fig 5 of the paper);
# - which of the differences are larger than chance, fact by fact;
# - one cell of the table run again, to the same digits.

# %%
import json
import os
from pathlib import Path

from IPython.display import HTML

from ece.book import tables
from ece.experiments import grid

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")
RESULTS, GRID = Path("../book/results"), Path("../book/grid.toml")

# %% [markdown]
# ## What was run
#
# A cell of the table is one run: a model, a method, a data set, a seed. The cells are
# declared in `book/grid.toml`; each left a file with its numbers and its origin. The
# rates are those **after the last batch**, for all 300 facts, so that a method that
# forgets is seen to forget. The seed decides which facts, in which order, and the random
# contexts. ECE, `ece-plus` and both MEMITs were run with three seeds on both data sets, ROME
# on `atlas-llama` too, where one seed did not tell it apart from ECE; the others with one.
# How the numbers of the methods were chosen is in {doc}`09_baselines`; it was not done alike
# for all, and {doc}`16_choice` asks what is left when it is.

# %%
found, missing = [], {}
for table in ("table1", "table1-seeds", "table1-others",
              "table1-others-seeds", "zsre", "zsre-seeds", "zsre-trained"):
    done, left = grid.results(GRID, table, RESULTS)
    found, missing = found + done, {**missing, **left}
cells = tables.by(found, "model", "dataset", "method")
methods = list(dict.fromkeys(method for _, _, method in cells))
models = list(dict.fromkeys(model for model, _, _ in cells))

# %% tags=["nbval-ignore-output"]
print(tables.origin(found, missing))
spent = sum(sum(run["seconds"].values()) for run in found)
print(f"{spent / 3600:.1f} hours, all runs added up")
print("\nseeds      CounterFact  ZsRE")
for method in methods:
    seeds = [max((len(cells.get((model, data, method), []))
                  for model in models), default=0)
             for data in ("counterfact", "zsre")]
    print(f"{method:14}{seeds[0]:8}{seeds[1]:6}")

# %% [markdown]
# ## The table
#
# Efficacy, generalization and specificity are shares of comparisons won, in percent
# (Eq 23–25; {doc}`07_sequential`); the *score* is their harmonic mean. Fluency is the
# entropy of free text in bits times 100 (Eq 26), consistency the likeness of that text
# to texts about the new object (both for the first 25 facts of seed 0). For ZsRE the
# three rates are shares of tokens (Eq 20–22). Behind the sign stands the half width of
# the 95 % interval over facts. Per model, the best of ECE's three scores is **bold**,
# the best of all other methods underlined.

# %%
COLUMNS = [
    ("counterfact", name) for name in
    ("efficacy", "generalization", "specificity", "score", "fluency",
     "consistency")
] + [("zsre", n) for n in ("efficacy", "generalization", "specificity")]
OURS = ("ece-as", "ece-wi", "ece-rs")


def rates(model, method):
    """One row: a rate for each column, None where it was not run."""
    return [
        tables.pooled(cells.get((model, data, method), []), name)
        for data, name in COLUMNS
    ]


# %%
def best(rows, column, ours):
    """Row with the highest rate of a column, among ECE's or others."""
    known = {
        m: row[column].mean for m, row in rows.items()
        if (m in OURS) == ours and row[column] is not None
    }
    return max(known, key=known.get, default=None)


# %%
def table(model):
    """The model's part of Table 1 as a page element."""
    rows = {method: rates(model, method) for method in methods}
    top = [[best(rows, j, our) for our in (True, False)]
           for j in range(len(COLUMNS))]

    def marked(i, j):
        which = methods[i - 1] if i else None
        return "" if not i or not j else (
            "b" if which == top[j - 1][0]
            else "u" if which == top[j - 1][1] else "")

    before = [tables.pooled(
        cells.get((model, d, methods[0]), []), n, "pre")
        for d, n in COLUMNS]
    head = ["method", *(f"{n[:4]}." for _, n in COLUMNS[:6]),
            *(f"ZsRE {n[:4]}." for _, n in COLUMNS[6:])]
    lines = [["pre-edit", *before], *([m, *rows[m]] for m in methods)]
    return HTML(tables.html(head, lines, marked, model))


# %% tags=["nbval-ignore-output"]
table("atlas-gpt2")

# %% tags=["nbval-ignore-output"]
table("atlas-gptj")

# %% tags=["nbval-ignore-output"]
table("atlas-llama")

# %% [markdown]
# On a narrow screen the tables can be moved sideways.
#
# ## The same as a picture
#
# The paper's Fig 5 draws the table as radar plots. A radar's area depends on the order of
# its axes, so here every method has a line instead: a rate is a point, and a
# method is good where all its points are far to the right.

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt

from ece.book import plots

plots.style()
SHAPES = {"efficacy": "o", "generalization": "s", "specificity": "D"}


def dots(ax, model, data):
    """Three rates of each method, joined by a line."""
    for row, method in enumerate(methods):
        known = cells.get((model, data, method), [])
        for name, shape in SHAPES.items():
            rate = tables.pooled(known, name)
            if rate:
                ax.plot(rate.mean, row, shape, markersize=5,
                        color=plots.colour(method))
    ax.set_yticks(range(len(methods)), methods)
    ax.invert_yaxis()
    ax.set(title=f"{model}, {data}", xlim=(-3, 103))


# %% tags=["nbval-ignore-output"]
def picture(data):
    figure, axes = plt.subplots(
        max(1, len(models)), 1, figsize=(4.6, 3.6 * max(1, len(models))),
        sharex=True, squeeze=False,
    )
    for model, ax in zip(models, axes[:, 0]):
        dots(ax, model, data)
    for name, shape in SHAPES.items():
        axes[0, 0].plot([], [], shape, color=plots.GREY, label=name)
    axes[-1, 0].set(xlabel="%")
    figure.legend(loc="outside lower center", ncols=1)
    plt.show()


picture("counterfact")

# %% tags=["nbval-ignore-output"]
picture("zsre")

# %% [markdown]
# ## Larger than chance?
#
# The seeds draw different facts, and methods with the same seed edit the same ones. So
# the fair question is about differences at equal seeds. Below: the score of the
# best of ECE's three scorers, and of `ece-plus`, minus that of each other
# method, for each seed at hand. A difference whose sign changes with the seed is noise.

# %%
def scores(model, method, data="counterfact", name="score"):
    runs = cells.get((model, data, method), [])
    return {r["seed"]: r["after"][name] for r in runs
            if r["after"].get(name) is not None}


def mean(model, method, data="counterfact", name="score"):
    rates = scores(model, method, data, name).values()
    return sum(rates) / len(rates) if rates else None


def differences(model, one, other, data="counterfact", name="score"):
    mine, theirs = (scores(model, m, data, name) for m in (one, other))
    both = sorted(mine.keys() & theirs.keys())
    return [mine[s] - theirs[s] for s in both]


def told(d):
    """Mean of the differences; "?" where their signs disagree."""
    sure = "" if not d or min(d) * max(d) > 0 else "?"
    return f"{sum(d) / len(d):+.1f}{sure}" if d else "-"


# %%
def against_others(model, data):
    means = {m: x for m in OURS
             if (x := mean(model, m, data)) is not None}
    if not means:
        return print(model, "not run here")
    top = max(means, key=means.get)
    print(f"\n{model}, {data}: best scorer {top}")
    print(f"{'minus':14}{top:>12}{'ece-plus':>12}")
    for other in (m for m in methods if m not in OURS):
        parts = [told(differences(model, one, other, data))
                 if one != other else ""
                 for one in (top, "ece-plus")]
        print(f"{other:14}{parts[0]:>12}{parts[1]:>12}")


# %% tags=["nbval-ignore-output"]
for model in models:
    against_others(model, "counterfact")

# %% tags=["nbval-ignore-output"]
for model in models:
    against_others(model, "zsre")

# %% [markdown]
# A question mark stands where the seeds disagree about the sign; where there is one seed
# alone, there is nothing to disagree.
#
# ## What the table says
#
# The lines below are put together from the files, so that they hold for the numbers above:
# the best of ours and the best of the others, compared over the seeds that both have.

# %% tags=["nbval-ignore-output"]
PAPER_BASELINES = ("ft-l", "ft-w", "mend", "rome", "memit", "serac")
PEERS = ("memit-history", "alphaedit", "blue", "rect", "prune")


def verdict(model, ours, others, data, name):
    known, mine = ({m: x for m in group
                    if (x := mean(model, m, data, name)) is not None}
                   for group in (others, ours))
    if not known or not mine:
        return "not run here"
    one, other = max(mine, key=mine.get), max(known, key=known.get)
    rates = [scores(model, m, data, name) for m in (one, other)]
    both = sorted(rates[0].keys() & rates[1].keys())
    a, b = (sum(r[s] for s in both) / len(both) for r in rates)
    word = "ahead of" if a > b else "behind"
    return (f"{one} {a:.1f} {word}\n    {other} {b:.1f}"
            f" ({len(both)} seed{'s' * (len(both) > 1)})")


# %% tags=["nbval-ignore-output"]
PAIRS = {"paper's baselines": (OURS, PAPER_BASELINES),
         "serac-seen": (OURS, ("serac-seen",)),
         "peers": (OURS, PEERS),
         "ece-plus, all": (["ece-plus"], PAPER_BASELINES + PEERS)}


def verdicts(data, name="score"):
    for model in models:
        print(f"{model}, {data}")
        for title, pair in PAIRS.items():
            print(f"  {title}:", verdict(model, *pair, data, name))


verdicts("counterfact")

# %% tags=["nbval-ignore-output"]
verdicts("zsre")

# %% [markdown]
# The lines compare methods *as their presets are*. After an equal search, and on other facts,
# some of them read otherwise: {doc}`16_choice`, which also finds better layers for
# `atlas-gptj` than those used here.
#
# The peer to look at is `memit-history`: it is ECE without its choice of neurons and without
# anchors, each fact stopping by itself. Where it is ahead of ECE, these two parts cost more
# than they bring *in quality*; what they bring in time is in {doc}`08_speed`, and
# {doc}`14_parts` takes them one by one. The setting of ours that closes the gap is
# `ece-plus` ({doc}`15_plus`), which leaves both out, too. Against `memit-history` it is
# even: the table of differences has question marks there.
#
# ### Two rows of SERAC
#
# SERAC's scope classifier and its small answering model are trained on facts of the same
# world that are never edited. For `serac` these were asked by their own prompts and by those
# that free text starts from. `serac-seen` was trained on their paraphrases too, as its authors
# train on rephrasings. But the facts of a relation share the wordings of their paraphrases,
# here as in CounterFact, so it has learned **in the very wordings in which the test
# asks** how well an edit generalizes. No other method is shown these. What that is
# worth, in points, `serac-seen` minus `serac`:

# %% tags=["nbval-ignore-output"]
for model in models:
    gains = [differences(model, "serac-seen", "serac", name=name)
             for name in ("generalization", "specificity", "score")]
    print(f"{model:12}", *(f"{told(d):>7}" for d in gains))

# %% [markdown]
# The columns: generalization, specificity, score. We count `serac` among the paper's
# baselines, since it is asked what all others are asked: wordings that the editor was not
# given. Where `serac-seen` leads, it leads by what it has been shown. But a
# user who knows in which wordings questions will come can train on them, and gets the row
# `serac-seen`; the verdicts above have it on a line of its own. (Half of the
# paraphrases begin with a stray sentence, which `serac` never met in training either, so the
# points above are those of wordings and stray sentences together. MEND is trained like
# `serac`. Facts of ZsRE have no wordings besides those that are asked, and there both are
# trained on them. The paper does not say how its SERAC was trained.)
#
# **How this came about:** `serac-seen` was the only row at first, and it led on all three models.
# `serac` was made after that had been seen, to find out why. Which of the two counts is for
# the reader to say: with `serac-seen` as the paper's SERAC, ECE does *not* beat every
# baseline of the paper wherever a verdict says "behind" about it.
#
# In either row nothing is forgotten, since no weight changes. What SERAC pays
# with is the text it writes (the fluency column), and a second model that must be
# trained, kept and run.
#
# ### Where ECE is behind on ZsRE
#
# ZsRE asks for every token of the answer to be the likeliest, where CounterFact only
# compares two answers. So it sees values that fall a little short, and small
# harm to others. Two parts of ECE could be to blame. Below: ECE-AS as it is, with
# all neurons ($p = 1$), and without anchors, each over three seeds.

# %% tags=["nbval-ignore-output"]
VARIANTS = {"as it is": ("zsre", "zsre-seeds"),
            "all neurons": ("zsre-selection",),
            "no anchors": ("zsre-anchors",)}
RATES = ("efficacy", "generalization", "specificity", "score")
for model in models:
    print(f"\n{model:14}", *(f"{name[:4]:>5}" for name in RATES))
    for title, names in VARIANTS.items():
        runs = [r for name in names
                for r in grid.results(GRID, name, RESULTS)[0]
                if r["model"] == model and r["method"] == "ece-as"]
        if runs:
            print(f"{title:14}", *(
                f"{tables.pooled(runs, name).mean:5.1f}"
                for name in RATES))

# %% [markdown]
# A part is to blame where the line without it is higher. With both left out, and a stop
# for each fact, ECE is nearly `memit-history`, whose row is in the table: what it has
# beyond the last line is the stop, and steps without a group. ECE's numbers were chosen on
# CounterFact alone.
#
# ### The schedule on `atlas-llama`
#
# The paper shares 20 steps among a group and leaves 5 to each fact. On `atlas-llama` the
# preset is 10 and 15, and a fact leaves once its NLL is below 0.02, since that was best on
# the facts of the choice (seed 3; with ECE-AS on the other two models it gained nothing).
# The scores with the paper's schedule, and then with the preset:

# %% tags=["nbval-ignore-output"]
plain = tables.by(grid.results(GRID, "table1-schedule", RESULTS)[0],
                  "model", "method")
for (model, method), runs in plain.items():
    own = mean(model, method)
    print(f"{model} {method} {tables.pooled(runs, 'score').mean:.1f}",
          f"-> {own:.1f}" if own else "")

# %% [markdown]
# **How this came about:** with the paper's schedule ECE is behind ROME on this model, and that
# was known when the search for another began. ROME got no such search. So the lead of ECE over
# ROME in the table is that of a tuned method over one that is not; the score before the
# arrow is what the paper's schedule gives. {doc}`16_choice` does it again as it should be
# done: an equal search for both, and facts that nobody had looked at.
#
# ### What was forgotten, what was harmed
#
# How much did a method lose between writing and the end, and what did that do to its
# neighbours? Forgetting (efficacy) and damage (specificity), in points:

# %% tags=["nbval-ignore-output"]
for model in models:
    print(f"\n{model:14}{'forgotten':>11}{'damage':>9}")
    for method in methods:
        runs = cells.get((model, "counterfact", method))
        if runs:
            lost = [tables.pooled(runs, "efficacy", t).mean
                    for t in ("at_write", "after")]
            hurt = [tables.pooled(runs, "specificity", t).mean
                    for t in ("pre", "after")]
            print(f"{method:14}{lost[0] - lost[1]:11.1f}"
                  f"{hurt[0] - hurt[1]:9.1f}")

# %% [markdown]
# ## Neighbours that were edited too
#
# Specificity asks neighbours: other subjects with the same old answer, which they should
# keep. In a small world some of these subjects are *themselves among the edits*: they have
# a new answer, and rightly so. The measure then compares two answers neither of which is
# wanted. In real CounterFact this is rare. Here it is not:

# %%
from ece.data.loading import load_facts


def edited_neighbours(count, seed=0):
    """Mean share of a fact's neighbours that were edited too."""
    facts = load_facts("counterfact", count, seed)
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

# %% tags=["nbval-ignore-output"]
READINGS = ("specificity", "specificity_unedited", "score",
            "score_unedited")
for model in models:
    print(f"\n{model:14}{'specificity':>13}{'score':>11}")
    for method in methods:
        values = [mean(model, method, name=n) for n in READINGS]
        if None not in values:
            print(f"{method:14}",
                  "".join(f"{value:6.1f}" for value in values))

# %% [markdown]
# Each pair: as published, then without edited neighbours. The verdicts of above in the
# second reading:

# %% tags=["nbval-ignore-output"]
verdicts("counterfact", "score_unedited")

# %% [markdown]
# ## The paper's own numbers
#
# From the paper's Table 1, for its three models after 2,000 edits. They are printed here to
# be compared with in *order*, not in value: other models, other facts, and a model of
# 5 million parameters that 300 edits fill up as thousands fill a large one.

# %% tags=["nbval-ignore-output"]
paper = json.loads((RESULTS / "paper.json").read_text())["table1"]["rows"]


def printed(model):
    """The paper's rows of a model."""
    names = [(d, n) for d, n in COLUMNS if n != "score"]
    head = ["method", *(f"{n[:4]}." for _, n in names[:5]),
            *(f"ZsRE {n[:4]}." for _, n in names[5:])]
    rows = [
        [method, *(f"{row[d][n][0]:.1f} ± {row[d][n][1]:.1f}"
                   for d, n in names)]
        for method, row in paper[model].items()
    ]
    return tables.html(head, rows, title=f"{model}, paper")


HTML("".join(printed(model) for model in paper))

# %% [markdown]
# Two things help to read them. The published evaluation measures right after each batch,
# which cannot see forgetting, while the text says after all edits; and in the published
# settings ECE keeps a history of earlier edits while MEMIT does not ({doc}`07_sequential`
# separates the two, {doc}`14_parts` takes ECE apart). More in {doc}`../book/deviations`.
#
# ## One cell again
#
# Any number of the table can be had again by the command in its file. The first one:

# %% tags=["nbval-ignore-output"]
if found:
    print(found[0]["provenance"]["command"].replace(" --", " \\\n  --"))

# %% [markdown]
# Here a small cell runs twice, with equal settings. Apart from the seconds, its two
# results must be equal in every digit. (The tests do the same with a stored file.)

# %%
from ece.experiments.runner import run
from ece.experiments.spec import Settings

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
# ## Summary
#
# - Rates after the last batch, over three seeds for the methods that matter most, with
#   intervals; what was not run says so.
# - The table's verdicts are computed from its files, not written by hand.
# - The paper's numbers are data of the paper, printed apart.
#
# The last cell asserts what this page has claimed.

# %%
assert first == again, "equal settings give equal digits"
assert sorted(unfair.values()) == list(unfair.values())
for runs in cells.values():
    assert len({run["seed"] for run in runs}) == len(runs)
    for run_ in runs:
        assert run_["facts"] == 300 and run_["batch"] == 25
for rows in paper.values():
    assert len(rows) == 10, "nine methods and the model before"
