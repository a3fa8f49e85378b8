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
# # Where edits land
#
# ECE's promise is that an edit can be explained: the neurons it writes to are chosen by what
# they do for the fact, and facts that use the same neurons are grouped. **What do these sets
# show on a real model, and what does an edit do to its surroundings?**
#
# **What was found** (SmolLM2-135M, facts about countries and cities)
#
# - A subject that is the **first token of its text** must not be edited as it is worded: one such fact in a batch ("Australia is
#   a country ...") breaks the others, as all texts share that token's state. With a word before it, it does no harm. The package warns.
# - The sets know the **subject**, hardly the relation. At $p = 0.3$ the sets of two facts about one
#   subject overlap by four tenths (intersection over union); those of two facts with one relation by about a tenth, barely
#   more than two facts that have only the kind of subject in common. The paper groups facts
#   because like facts should use like neurons; here as many clusters as subjects find the
#   subjects (in part), and as many as relations find neither, only the kind of subject a little.
# - Activation and residual sensitivity choose nearly the same sets (overlap 0.96). Weight
#   importance agrees with either no better than chance.
# - At the preset's $p$ a batch of 20 facts takes two thirds of all neurons or more: an update is not
#   confined to a small place.
# - Later batches disturb earlier edits. A neighbour suffers more, the more its key
#   resembles an edited one. The link is loose: rank correlations between a sixth and a half
#   in three draws of facts, in one of them too weak to tell ({doc}`../book/run-log`). Whom an edit hurts has to be measured.
# - After 60 edits the last matrix has moved by more than a third of its norm.

# %% tags=["hide-input"]
import os
from dataclasses import replace
from itertools import islice

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score

import ece
from ece import engine, presets
from ece.book import plots, tables
from ece.clustering import jaccard, k_medoids
from ece.data import python_docs, world
from ece.evaluation.teacher_forcing import score_answers
from ece.objective import mix
from ece.scoring import fact_sets, scores

MODEL = os.environ.get("ECE_MODEL") or "smollm2-135m"
DEVICE = os.environ.get("ECE_DEVICE")
plots.style()

# %% [markdown]
# ## One fact on the map
#
# The model is SmolLM2-135M, the facts are those of {doc}`17_real_model`: countries and cities,
# from packages, without a network. For each fact the keys $k$ are read at the last token of
# the subject, at each layer that edits are written to.

# %%
model, tokenizer = ece.load(MODEL, DEVICE)
config = presets.configure(
    MODEL, "ece-rs", contexts=0, passes="bfloat16")
drawn = world.facts("counterfact", 120, 0)
first = {}
for fact in drawn:
    first.setdefault(fact.relation, fact)


# %%
def keys(facts):
    """The key of each fact at each edit layer, in one walk."""
    found, reader = {}, engine.reader(
        model, tokenizer, facts, ("{}",), config.max_tokens)
    for layer in config.layers:
        K, _, reader = reader.read(layer, layer)
        found[layer] = mix(K)
    return found


# %%
def chosen(K, scorer="residual", p=config.p):
    """The neurons of each fact at each layer, by Eq 8."""
    return {site.layer: fact_sets(
        scores(scorer, K[site.layer], site.weight), p).cpu()
        for site in ece.sites(model, config.layers)}


# %% tags=["hide-input"] mystnb={"figure": {"caption": "Neurons that hold 30 % of the residual score of one fact, by layer. Dark: chosen for the second fact too, which has another subject and the same relation.", "name": "fig-places-map"}, "image": {"alt": "Five rows of ticks, one row for each layer from 4 to 8; a minority of the ticks of each row is dark."}}
one = first["capital"]
two = next(fact for fact in drawn
           if fact.relation == one.relation and fact is not one)
figure, ax = plt.subplots(figsize=(5.8, 3.0))
for layer, (A, B) in chosen(keys([one, two]), p=0.3).items():
    for mask, colour in ((A & ~B, plots.SKY), (A & B, plots.BLACK)):
        at = mask.nonzero()[:, 0]
        ax.vlines(at, layer - 0.38, layer + 0.38, color=colour, lw=0.8)
ax.set(xlabel="neuron", ylabel="layer", yticks=config.layers)
plt.show()
print(f"{one.text} ...\n{two.text} ...")

# %% [markdown]
# A set at the preset's $p$ is much larger than that. How large, and do the three scores
# agree? The overlap is $|A \cap B| / |A \cup B|$; beside it stands what random sets of the
# same sizes would give.

# %% tags=["hide-input"]
def chance(A, B):
    """Overlap of random sets of the same sizes, roughly."""
    a, b = A.double().mean(-1), B.double().mean(-1)
    return a * b / (a + b - a * b)


SCORERS = {"AS": "activation", "WI": "weight", "RS": "residual"}
rows, K = [], keys(drawn)
by_score = {name: chosen(K, scorer) for name, scorer in SCORERS.items()}
for layer in config.layers:
    sets = {name: found[layer] for name, found in by_score.items()}
    row = {"neurons, " + n: s.sum(1).double().mean().item()
           for n, s in sets.items()}
    for a, b in (("AS", "RS"), ("AS", "WI"), ("RS", "WI")):
        A, B = sets[a], sets[b]
        both = (A & B).sum(1) / (A | B).sum(1)
        row[f"{a}, {b}"] = both.mean().item()
        row[f"{a}, {b} by chance"] = chance(A, B).mean().item()
    rows.append(row)
agree = pd.DataFrame(rows, [f"layer {n}" for n in config.layers]).T
tables.table(agree, f"Sets at p = {config.p}, mean of {len(drawn)} facts",
             digits=2)

# %% [markdown]
# ## Do neurons know the relation?
#
# The paper groups facts by their sets because facts of one kind should use the same
# neurons. That can be tested where nothing else differs: the same twelve countries, and the same
# twelve cities, each with four relations. If a set belongs to the relation, two subjects with the
# same relation overlap more than two subjects with different ones.

# %%
KINDS = {
    "country": ["continent", "capital", "currency", "language"],
    "city": ["city_country", "city_continent", "city_language",
             "city_currency"],
}
crossed, labels = [], []

# %%
for kind, relations in KINDS.items():
    pool = [f.subject for f in world.facts("counterfact", None, 0)
            if f.relation == relations[0]]
    for relation in relations:
        pattern = first[relation]
        for subject in pool[:12]:
            crossed.append(replace(pattern, subject=subject))
            labels.append((kind, relation, subject))
kind, relation, subject = np.array(labels).T
print(len(crossed), "facts;", crossed[0].text, "...")

# %% tags=["hide-input"]
def same(column):
    return column[:, None] == column[None]


PAIRS = {
    "same subject, other relation": same(subject) & ~same(relation),
    "same relation, other subject": same(relation) & ~same(subject),
    "same kind, else nothing":
        same(kind) & ~same(relation) & ~same(subject),
    "other kind": ~same(kind),
}
overlaps, by_layer = [], chosen(keys(crossed), p=0.3)
for layer, sets in by_layer.items():
    overlap = 1 - jaccard(sets).numpy()
    for name, pairs in PAIRS.items():
        overlaps += [(layer, name, overlap[pairs].mean())]
    random = chance(sets[:, None], sets[None]).numpy()
    off = ~np.eye(len(sets), dtype=bool)
    overlaps += [(layer, "random sets", random[off].mean())]
pairs_table = pd.DataFrame(overlaps, columns=["layer", "pair", "overlap"])
by_pair = pairs_table.pivot(index="pair", columns="layer",
                            values="overlap")
by_pair = by_pair.loc[[*PAIRS, "random sets"]]
tables.table(by_pair, "Overlap of two facts' sets, p = 0.3, by layer",
             digits=2)

# %% [markdown]
# The four tenths are a mean of two cases. Where both sentences begin with the subject, the model has
# not read the relation yet when the key is taken, so the sets are the *same*. That is one pair in
# twelve. In the others words stand before the subject, and the overlap is a third.
#
# Do clusters find the relations? Here are $K$-medoids of these sets, for $K$ = 2, 8 (the relations)
# and 24 (the subjects), against the relations, the subjects and the two kinds of subject. The
# adjusted Rand index is 1 where two partitions are the same, and 0 on average where one of them is random.

# %%
sets = torch.cat(list(by_layer.values()), 1)
found = {}
for k in (2, 8, 24):
    groups = k_medoids(jaccard(sets), k, seed=0).labels.numpy()
    found[f"K = {k}"] = {
        name: adjusted_rand_score(column, groups)
        for name, column in (("kind", kind), ("relation", relation),
                             ("subject", subject))
    }
rand = pd.DataFrame(found)
tables.table(rand, "Clusters against what is known of the facts", digits=2)

# %% [markdown]
# ## A subject that comes first
#
# Before anything is written: one kind of fact must not be written as it is worded. In many models
# the first token of a text, whatever it is, has nearly one and the same state, several times as long as any other;
# attention rests on it (an *attention sink*). Where the subject is that token, its key is the key of every
# text's beginning {cite:p}`yang2024collapse`.

# %%
import warnings
from textwrap import fill

from ece.facts import encode, locate
from ece.hooks import states_at


def comes_first(fact):
    """Whether the subject is the first token of its text."""
    return locate(tokenizer, fact.prompt, fact.subject)[1] == 0


# %%
begins = [fact for fact in drawn if comes_first(fact)] or drawn[:1]
others = [fact for fact in drawn if not comes_first(fact)]
rows = [encode(tokenizer, f.text) for f in begins[:1] + others[:5]]
states = states_at(model, rows, config.layers[-1])
unit = torch.nn.functional.normalize
alike = (unit(states[1:, 0], dim=1) @ unit(states[0, 0], dim=0)).min()
print(*(f"{x:.0f}" for x in states[0, :5].norm(dim=1)), "are the lengths",
      f"in '{begins[0].text}'; the first states of 5 other",
      f"texts resemble its first (cosine at least {alike:.3f})")

# %% [markdown]
# A batch of ten other facts, written by MEMIT with a history: without this one, with it, and with it behind a
# word that moves the subject away from the beginning.

# %%
stats = ece.second_moment(
    model, tokenizer, islice(python_docs(), 12), config.layers)
ten, first_one = others[:10], begins[0]
behind = replace(first_one, prompt="Note: " + first_one.prompt)
beside = [(text, f.true) for f in ten for text in f.neighbours[:1]]
usual = np.mean(score_answers(model, tokenizer, beside).nll)
rival = presets.configure(
    MODEL, "memit-history", layers=config.layers, contexts=0,
    passes="bfloat16")


# %%
def written(*more):
    """Score after a batch of ten facts and some more; take it back."""
    batch = [*ten, *more]
    texts = [(fact.text, fact.target) for fact in batch] + beside
    state = ece.new_state(model, tokenizer, rival)
    state, _ = ece.edit_batch(
        model, tokenizer, batch, stats, state, rival)
    nll = score_answers(model, tokenizer, texts).nll
    ece.undo(model, state)
    return {"the ten new answers": np.mean(nll[:10]),
            "the added fact's": nll[10] if more else np.nan,
            "change at neighbours": np.mean(nll[len(batch):]) - usual}


# %%
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    kinds = pd.DataFrame({
        "ten facts": written(),
        f"with '{first_one.subject} ...'": written(first_one),
        f"with 'Note: {behind.subject} ...'": written(behind)}).T
print(*(fill(str(found.message), 75) for found in warned[:1]))

# %% tags=["hide-input", "nbval-ignore-output"]
tables.table(kinds, "After one batch: NLL, nats per token", digits=2)

# %% [markdown]
# One such fact breaks all ten, and their neighbours with them. In batches of 20 it was the same at all four draws that had one or two
# of them, and not at the two without ({doc}`../book/run-log`; ECE's fixed steps suffer less). It is no rare case: the
# countries and cities that one tries first, from France to Paris, are one token. Behind a
# word it is a fact like any other. As the editor cannot know which wording a user wants, it
# warns and leaves the choice to them. Random prefixes (`contexts`) are not enough: half of the key is still that of
# the bare prompt. The rest of this page leaves such facts out.
#
# ## What an update does to its surroundings
#
# Now three batches of 20 facts are written, with the chosen neurons and clusters of the
# preset. After each batch every fact edited so far is scored again, and so are two
# neighbours of each fact: the same sentence about other subjects (two of the 120 are edited facts
# themselves).
# Descent and clusters amplify rounding, so another processor gives other numbers from here on;
# what the page claims is asserted in its last cell, wherever it runs.

# %%
facts = [fact for fact in others if len(fact.neighbours) > 1][:60]
near = [(text, f.true) for f in facts for text in f.neighbours[:2]]
pairs = [(fact.text, fact.target) for fact in facts] + near
state = ece.new_state(model, tokenizer, config)


def weights():
    return {site.layer: site.weight.detach().clone()
            for site in ece.sites(model, config.layers)}


# %%
nll = [score_answers(model, tokenizer, pairs).nll]
W, reports = [weights()], []
for start in range(0, 60, 20):
    state, report = ece.edit_batch(
        model, tokenizer, facts[start:start + 20], stats, state, config)
    nll.append(score_answers(model, tokenizer, pairs).nll)
    W.append(weights())
    reports.append(report)
edited, beside = np.split(np.array(nll), [60], axis=1)

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Mean negative log-likelihood of the new answers, nats per token: a row for each batch of 20 facts, a column for each state of the model. Each batch is disturbed by those written after it.", "name": "fig-places-batches"}, "image": {"alt": "A table of three rows and four columns of colours: high values before a batch is written, low ones when it has just been written, somewhat higher ones after later batches."}}
by_batch = edited.reshape(4, 3, 20).mean(2).T
figure, ax = plt.subplots(figsize=(5.8, 2.5))
sns.heatmap(by_batch, annot=True, fmt=".2f", cmap="viridis_r", ax=ax,
            cbar=False)
ax.set(xlabel="batches written", ylabel="facts of batch",
       yticklabels=range(1, 4))
plt.show()

# %% [markdown]
# Where did the first batch go? Its clusters, each by its anchor, and the neurons that it wrote:

# %% tags=["hide-input", "nbval-ignore-output"]
report, texts = reports[0], {fact.id: fact for fact in facts}
members = pd.Series(report.labels, [f.relation for f in facts[:20]])
by_cluster = pd.DataFrame([
    {"anchor": texts[anchor].text, "facts": int((members == k).sum()),
     "relations": members.index[members == k].nunique()}
    for k, anchor in enumerate(report.anchors)])
tables.table(by_cluster.set_index("anchor"),
             "Clusters of the first batch of 20 facts", 0)

# %% tags=["hide-input", "nbval-ignore-output"]
written = pd.Series(report.neurons, name="neurons").rename_axis("layer")
of = ece.sites(model, config.layers)[0].weight.shape[1]
tables.table(written.to_frame().assign(share=100 * written / of),
             f"Neurons that the batch wrote, of {of:,}; share in %", 0)

# %% [markdown]
# Batch by batch, fact by fact: the new answer of each edited fact, and the true answer of the
# neighbours, which should not move.

# %% tags=["hide-input", "nbval-ignore-output"]
from ece.book.slider import slider


def draw_state(done):
    figure, axes = plt.subplots(2, 1, figsize=(5.8, 5.1), sharex=True)
    for ax, rows, hue, title in zip(
            axes, (edited, beside), (plots.RED, plots.BLUE),
            ("edited facts: new answer", "neighbours: true answer")):
        x = np.linspace(0, 60, rows.shape[1], endpoint=False)
        ax.plot(x, np.exp(-rows[0]), ".", color=plots.GREY, markersize=4)
        ax.plot(x, np.exp(-rows[done]), ".", color=hue, markersize=6)
        ax.axvspan(0, 20 * done, color=hue, alpha=0.08, lw=0)
        ax.set(title=title, ylim=(-0.03, 1.03), xlim=(-1, 60),
               ylabel="probability")
    axes[1].set(xlabel="facts in the order of editing (grey: unedited)")
    return figure


# %% tags=["hide-input", "nbval-ignore-output"]
def describe(done):
    new, true = (np.exp(-rows[done]).mean() for rows in (edited, beside))
    return (f"{done} batches written: the new answers of all 60 facts "
            f"have a mean probability of {new:.2f}, the neighbours' "
            f"true answers {true:.2f}.")


labels = [f"{n} of 3" for n in range(4)]
slider(draw_state, labels, "batches written:", describe)

# %% [markdown]
# ### Which neighbours suffer?
#
# The solve sends the key of an edited fact to a new value, and any other key goes
# along as far as it resembles that one. So a neighbour should suffer more, the more its key
# resembles one that was edited. Does it? *Resemblance* is here the largest cosine between the
# neighbour's key and the edited keys at the last edit layer, before any edit. The *push* is the
# length of $\Delta k$, what all updates together add to that layer's output.

# %%
update = {n: W[-1][n] - W[0][n] for n in config.layers}
for _ in reports:
    state = ece.undo(model, state)
ends = [fact.prompt.split("{}") for fact in facts for _ in range(2)]
like = [i for i, (head, tail) in enumerate(ends)
        if near[i][0].startswith(head) and near[i][0].endswith(tail)]
others = [replace(facts[i // 2], subject=near[i][0].removeprefix(
    ends[i][0]).removesuffix(ends[i][1])) for i in like]
layer = config.layers[-1]
K_edited, K_near = keys(facts)[layer], keys(others)[layer]

# %% tags=["nbval-ignore-output"]
surroundings = pd.DataFrame({
    "change": (beside[-1] - beside[0])[like],
    "resemblance": (unit(K_near) @ unit(K_edited).T).max(1).values.cpu(),
    "push": (K_near @ update[layer].T).norm(dim=1).cpu(),
})
ranks = {
    name: spearmanr(surroundings[name], surroundings.change)
    for name in ("resemblance", "push")}
for name, (rho, p_value) in ranks.items():
    print(f"{name}: rank correlation {rho:+.2f}, p = {p_value:.3f}")
print(f"{len(like)} neighbours, mean change "
      f"{surroundings.change.mean():+.2f} nats")

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Neighbours: how far the negative log-likelihood of their true answer moved, against the resemblance of their key to an edited one.", "name": "fig-places-near"}, "image": {"alt": "A cloud of points around zero and a line that rises from left to right; at the right end, near a cosine of one, every point is above zero."}}
figure, ax = plt.subplots(figsize=(5.8, 3.4))
sns.regplot(surroundings, x="resemblance", y="change", ax=ax,
            color=plots.BLUE, scatter_kws={"s": 18})
ax.axhline(0, color=plots.GREY, lw=1)
ax.set(xlabel="resemblance of the keys (cosine)",
       ylabel="change of NLL, nats")
plt.show()

# %% [markdown]
# The edits one by one, those first whose neighbours lost most of their probability: before and
# after all three batches.

# %% tags=["hide-input", "nbval-ignore-output"]
kept = np.exp(-beside[[0, -1]]).reshape(2, 60, 2)
worst = (kept[0] - kept[1]).max(1).argsort()[::-1][:9]


def three(n):
    """The fact and its neighbours: text, answer, probability twice."""
    rows = [(facts[n].text, facts[n].target, *np.exp(-edited[[0, -1], n]))]
    for i in (2 * n, 2 * n + 1):
        rows.append((near[i][0], near[i][1], *np.exp(-beside[[0, -1], i])))
    return rows


# %% tags=["hide-input", "nbval-ignore-output"]
def draw_one(i):
    figure, axes = plt.subplots(3, 1, figsize=(5.8, 4.1), sharex=True)
    for ax, (text, answer, before, now), hue in zip(
            axes, three(worst[i]), (plots.RED, plots.BLUE, plots.BLUE)):
        shades = [hue, plots.GREY]
        ax.barh(["after", "before"], [now, before], color=shades)
        ax.set(xlim=(0, 1))
        ax.set_title(f"{text} … {answer}", fontsize=9, loc="left")
    axes[-1].set(xlabel="probability of the answer, per token")
    return figure


def describe(i):
    parts = (f"“{text} {answer}” from {before:.2f} to {now:.2f}"
             for text, answer, before, now in three(worst[i]))
    return "; ".join(parts) + "."


slider(draw_one, [facts[n].subject for n in worst], "edited:", describe)

# %% [markdown]
# It does, but loosely: most of what happens to a neighbour is not in the angle of its
# key at this layer. So a set of neurons says where an edit *writes*; whom it will hurt has to be
# measured.
#
# ## How the weights grow
#
# Each batch adds to the same matrices.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"caption": "Change of each layer's matrix against the unedited one, as a share of its norm.", "name": "fig-places-norms"}, "image": {"alt": "Five rising lines, one for each layer, the later layers above the earlier ones."}}
growth = pd.DataFrame([
    {"layer": str(layer), "edits": 20 * done,
     "change": 100 * ((now[layer] - W[0][layer]).norm()
                      / W[0][layer].norm()).item()}
    for done, now in enumerate(W) for layer in config.layers])
[ax] = plots.lines(growth, "edits", "change", hue="layer", by=None,
                   columns=5, ylabel="change of the matrix, %")
plt.show()

# %% [markdown]
# ## Take away
#
# - A set of neurons names the subject of a fact; it does not explain the relation.
# - Neighbours whose key nearly equals an edited one suffered; of the others the cosine told little: score
#   the neighbours.

# %% [markdown]
# The last cell asserts what this page has claimed.

# %% tags=["hide-input"]
own, relation_alone, kind_alone, other, random = (
    by_pair.loc[name].mean() for name in by_pair.index)
assert 0.35 < own < 0.45 and own > 4 * relation_alone
assert kind_alone < relation_alone <= 0.12
assert relation_alone < 1.2 * kind_alone and random < other < kind_alone
assert agree.loc["AS, RS"].min() > 0.95
assert (agree.loc["RS, WI"] - agree.loc["RS, WI by chance"]).max() < 0.03
assert rand.loc["subject", "K = 24"] > 0.5

# %% tags=["hide-input"]
assert rand.loc["relation"].max() < 0.2
width = ece.sites(model, config.layers)[0].weight.shape[1]
for report in reports:
    share = np.mean(list(report.neurons.values())) / width
    assert 0.6 < share < 0.75, share
assert by_batch[0, 3] > by_batch[0, 1] and by_batch[1, 3] > by_batch[1, 2]
rho, p_value = ranks["resemblance"]
assert 0 < rho < 0.5 and p_value < 0.05, (rho, p_value)
alone, broken, harmless = kinds["the ten new answers"]
assert broken > 10 * alone and harmless < 2 * alone
assert kinds["change at neighbours"].idxmax() == kinds.index[1]
assert warned and alike > 0.95
assert states[0, 0].norm() > 4 * states[0, 1:5].norm(dim=1).max()
of_facts = {fact.text for fact in facts}
assert sum(text in of_facts for text, _ in near) == 2
assert 100 / 3 < growth.query("edits == 60").change.max() < 45
