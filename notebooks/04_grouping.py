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
# # Grouping facts: neuron sets, distances, anchors
#
# The expensive part of an edit is the search for its value, fact by fact. The
# paper's second idea is to share that search: facts that use the same neurons
# are put in one group, one of them, the *anchor*, goes ahead, and the others
# start where it arrived. This page builds the groups (Eq 9–10) and asks what the
# next page depends on: **do facts that use the same neurons have anything else in
# common?**
#
# **What was found**
#
# - Facts share more neurons than chance gives them (mean Jaccard distance 0.80, random
#   sets 0.89), but there are no clear groups: the mean silhouette is 0.04, and no number
#   of groups $K$ stands out.
# - Groups follow the kind of subject, loosely. They do not follow the new object, since
#   no key can know it: 1 % of the members want their anchor's new object.
# - A mean of sets is not a set, so this book takes k-medoids where the paper says
#   k-means; the medoid is the anchor of Eq 10.
# - Weight importance (WI) gives all facts the same set, so there groups come from
#   activations.

# %% tags=["hide-input"]
import os

import matplotlib.pyplot as plt
import numpy as np
import torch

import ece
from ece import atlas, engine, presets
from ece.book import plots
from ece.data import load_facts

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")
facts = (load_facts("counterfact", 200, path=DATA) if DATA
         else atlas.facts("counterfact", 200))
plots.style()

# %% [markdown]
# ## One set for each fact
#
# A fact's key $k_i$ is what enters $W_\text{out}$ at the last token of its
# subject. Scores (here RS, Eq 7) and the threshold $p$ (Eq 8) turn it into a set
# of neurons; {doc}`03_scoring` explains both. Sets are taken at the layer
# where the value will enter, the last edit layer.

# %%
from ece.objective import mix
from ece.scoring import fact_sets, scores

model, tokenizer = ece.load(MODEL, DEVICE)
config = presets.configure(MODEL, "ece-rs")
state = ece.new_state(model, tokenizer, config)
layer = config.layers[-1]
W = ece.sites(model, (layer,))[0].weight


# %%
def keys_of(facts):
    reader = engine.reader(
        model, tokenizer, facts, state.contexts, config.max_tokens
    )
    return mix(reader.read(layer, layer)[0])


K = keys_of(facts)
sets = fact_sets(scores(config.scorer, K, W), config.p).cpu()

# %%
sizes = sets.sum(1).double()
used = (sets.double().mean(0) > 0.5).sum()
print(f"{len(facts)} facts, {sets.shape[1]} neurons")
print(f"a set holds {sizes.mean():.0f} of them, "
      f"from {sizes.min():.0f} to {sizes.max():.0f}")
print(f"{used} neurons are in more than half of the sets")

# %% [markdown]
# ## How far apart are two sets?
#
# The Jaccard distance is the share of their union that two sets do *not* have in
# common:
#
# $$
# d_J(A, B) = 1 - \frac{|A \cap B|}{|A \cup B|}
# $$
#
# It is 0 for equal sets and 1 for sets without a common neuron. With sets as rows
# of zeros and ones, all intersections come out of one matrix product, which is
# how `ece.clustering.jaccard` does it. Here it is checked against Python's own sets:

# %%
from ece.clustering import jaccard

distance = jaccard(sets)
few = [set(row.nonzero()[:, 0].tolist()) for row in sets[:8]]
by_hand = torch.tensor(
    [[1 - len(a & b) / len(a | b) for b in few] for a in few],
    dtype=torch.double,
)
torch.testing.assert_close(
    distance[:8, :8], by_hand,
    msg="did you divide by the smaller set instead of the union?",
)

# %% [markdown]
# Numbers between 0 and 1 mean little without a comparison. Ours is sets of
# the same sizes, drawn at random: what would be left if facts had no neurons in
# common but by chance.

# %%
draw = torch.Generator().manual_seed(0)
order = torch.rand(sets.shape, generator=draw).argsort(1).argsort(1)
chance = jaccard(order < sets.sum(1, keepdim=True))
pairs = torch.ones(len(sets), len(sets)).triu(1).bool()
between, by_chance = distance[pairs], chance[pairs]
print(f"mean distance of facts:       {between.mean():.2f}")
print(f"mean distance of random sets: {by_chance.mean():.2f}")
print(f"closest pair:                 {between.min():.2f}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Jaccard distances of all pairs of facts, and of random sets of the same sizes. Facts are closer than chance, without a gap between near and far.", "name": "fig-grouping-distances"}, "image": {"alt": "Two histograms of Jaccard distance. Random sets lie in a narrow band around 0.89; facts lie around 0.8 in a wider one, with a thin tail of facts much closer than that."}}
figure, ax = plt.subplots()
bins = np.linspace(0, 1, 81)
ax.hist(between, bins, color=plots.GREEN, alpha=0.7, label="facts")
ax.hist(by_chance, bins, color=plots.GREY, alpha=0.7, label="random sets")
ax.set(xlabel="Jaccard distance", ylabel="pairs of facts")
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# Two facts share more neurons than chance would give them, and most pairs still
# share few. There is no gap between pairs that belong together and pairs that do not;
# only the thin tail on the left, pairs of close sets, stands out.
#
# ## What a key cannot know
#
# What can a key hold at all? It is read at the last token of the subject, and the
# models are causal: what follows the subject has not been read yet. In a prompt like
# "{} plays the" the relation comes after it. Two facts about one subject, both in
# prompts that begin with the subject, must then have the same key, the same set, and
# distance 0.

# %%
from ece.facts import Fact

subject = facts[0].subject
two = [
    Fact("{} plays the", subject, "oboe"),
    Fact("{} was born in", subject, "Rome"),
    Fact("The mother tongue of {} is", subject, "Welsh"),
]
score = scores(config.scorer, keys_of(two), W)
same, other = jaccard(fact_sets(score, config.p))[0, 1:].tolist()
print(f"same subject, relation after it:  {same:.2f}")
print(f"same subject, relation before it: {other:.2f}")

# %% [markdown]
# So the sets tell *subjects* apart, and depend on the relation only where the prompt
# names it first. They cannot depend on the new object, which is not in the prompt at
# all.
#
# ## Why medoids
#
# The paper groups the sets by k-means under Jaccard distance:
#
# $$
# \arg \min_S \sum_{i=1}^{k} \sum_{x_j \in S_i} d_J(x_j, c_i) \tag{9}
# $$
#
# with $c_i$ the centroid of group $S_i$. In k-means a centroid is the mean of its
# members. But the mean of sets is not a set:

# %%
toy = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]).bool()
print("mean of three sets:", toy.double().mean(0).numpy().round(2))
print("their distances:   ", jaccard(toy)[0].numpy().round(2))

# %% [markdown]
# Is neuron 1 in a set that it belongs to by a third? The Jaccard distance has no
# answer, and rounding gives a set (neuron 0 alone) that no fact has. The way out
# is in the paper's next equation, which names the fact that stands for a group,
# the anchor: the member with the smallest summed distance to the others.
#
# $$
# x_\text{anc} = \arg\min_{x_j \in S_i} \sum_{x_k \in S_i} d_J(x_j, x_k) \tag{10}
# $$
#
# That is a *medoid*. If it is the centre in Eq 9 too, the objective is
# k-medoids {cite:p}`kaufman1990finding`, a centre is always a fact, and Eq 10
# needs no step of its own. `ece.clustering.k_medoids` assigns every fact to
# its nearest centre, moves each centre by Eq 10, and repeats until nothing moves.
# It starts several times from seeds far apart and keeps the cheapest result.
#
# For nine sets we can afford to try every choice of three anchors. First on sets
# with groups planted in them (three blocks of neurons, each set missing a few):

# %%
from itertools import combinations

from ece.clustering import k_medoids


def cheapest(distance, k=3):
    """Cost of the best k anchors, by trying all of them."""
    choices = combinations(range(len(distance)), k)
    return min(float(distance[:, c].min(1).values.sum()) for c in choices)


# %%
planted = torch.eye(3).repeat_interleave(20, 1).repeat_interleave(3, 0)
planted = (planted * (torch.rand(9, 60, generator=draw) < 0.8)).bool()
found = k_medoids(jaccard(planted), 3)
torch.testing.assert_close(
    found.cost, cheapest(jaccard(planted)),
    msg="a worse optimum: are emptied groups seeded anew?",
)
print("groups:", found.labels.tolist())

# %% [markdown]
# Then on the sets of nine facts. Like k-means, the search only promises that no
# single move makes things better, and where groups are not clear it may end
# somewhat above the best:

# %%
small = distance[:9, :9]
nine, least = k_medoids(small, 3).cost, cheapest(small)
print(f"cost of the anchors found: {nine:.3f}")
print(f"cost of the best anchors:  {least:.3f}")

# %% [markdown]
# ```{admonition} Where we depart from the paper
# :class: note
# The paper says "k-means"; here it is k-medoids. Everything is seeded, ties go to
# the lower index, and a group that loses its last fact is seeded anew.
# {doc}`../book/deviations` lists this with the other choices.
# ```
#
# ## The groups
#
# All facts at once, in as many groups as the preset has for a batch. Rows are
# ordered by group and, inside a group, by the distance to the anchor.

# %%
groups = k_medoids(distance, config.clusters, config.seed)
labels, anchors = groups.labels, groups.medoids
to_anchor = distance.gather(1, anchors[labels][:, None])[:, 0]
order = np.lexsort((to_anchor.numpy(), labels.numpy()))
place = np.argsort(order)
print("facts per group:", *torch.bincount(labels).tolist())

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Jaccard distances between all facts, ordered by group; stars are the anchors.", "name": "fig-grouping-matrix"}, "image": {"alt": "A square heat map of 200 by 200 distances, nearly uniform. White lines separate ten groups, whose blocks along the diagonal are only a little darker than the rest. A star stands at the first row of each block."}}
figure, ax = plt.subplots(figsize=(5.8, 4.4))
plots.jaccard_matrix(
    distance[order][:, order].numpy(), labels[order].numpy(),
    place[anchors.numpy()], ax,
)
plt.show()

# %% [markdown]
# If facts came in types with neurons of their own, dark squares would stand along the
# diagonal. There are none, only blocks a little darker than their surroundings.
# (Single dark cells are close pairs.) The *silhouette* puts a number on this: 1
# where a fact is far closer to its own group than to the next, 0 where it could
# as well be in either.

# %%
from sklearn.metrics import silhouette_samples


def silhouettes(distance, labels):
    return silhouette_samples(distance, labels, metric="precomputed")


# %%
inside = distance[labels[:, None] == labels[None]]
outside = distance[labels[:, None] != labels[None]]
width = silhouettes(distance, labels)
print(f"mean distance within groups:  {inside[inside > 0].mean():.3f}")
print(f"mean distance between groups: {outside.mean():.3f}")
print(f"mean silhouette:              {width.mean():.3f}")

# %% [markdown]
# ## What the groups hold
#
# The paper expects groups of *similar knowledge*. In the embedded world we
# know of every fact which relation it states, what kind of subject it is about,
# and both objects. Adjusted mutual information compares two partitions: 1 if they
# are the same, 0 if they agree no more than by chance. The last entry is the last token
# of the subject, where the key is read.

# %%
from sklearn.metrics import adjusted_mutual_info_score as agreement

from ece.facts import decode, locate

kind_of = atlas.build().kind_of
placed = [locate(tokenizer, f.prompt, f.subject) for f in facts]

# %%
features = {
    "kind of subject": [kind_of.get(f.subject, "?") for f in facts],
    "relation": [f.relation for f in facts],
    "old object": [f.true for f in facts],
    "new object": [f.target for f in facts],
    "last token": [decode(tokenizer, [ids[at]]) for ids, at in placed],
}

# %%
values = [agreement(list(x), labels.numpy()) for x in features.values()]
for name, value in zip(features, values, strict=True):
    print(f"{name:16} {value:5.2f}")
mates = np.array([f.target for f in facts])
shared = mates == mates[anchors.numpy()][labels.numpy()]
share = (shared.sum() - len(anchors)) / (len(facts) - len(anchors))
print(f"members that want their anchor's object: {share:.0%}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "How well the groups agree with what is known of the facts (adjusted mutual information; 1 would be equality).", "name": "fig-grouping-agreement"}, "image": {"alt": "Five horizontal bars: kind of subject 0.28, relation 0.15, old object, new object and last token about 0.05 each."}}
figure, ax = plt.subplots(figsize=(5.8, 2.8))
ax.barh(list(features), values, color=plots.GREEN)
ax.axvline(0, color=plots.BLACK, linewidth=1)
ax.invert_yaxis()
ax.set(xlabel="agreement with the groups (AMI)", xlim=(-0.1, 1))
plt.show()

# %% [markdown]
# What agreement there is, is mostly with the kind of subject. The relation comes along with
# it, because a relation belongs to one kind of subject. The old object and the last token
# hardly show, and nor does the *new* object, which had to be so: it is not in the prompt, so
# no set of neurons can hold it. Yet
# it is the new object that the anchor's search moves towards, and nearly every member
# of its group wants another one. Whether starting from the anchor helps in spite of
# that is measured in {doc}`05_two_step`.
#
# ```{admonition} How far this reaches
# :class: warning
# The embedded models were trained to look facts up at the subject's last token, in
# a world of invented names. A large model may have neurons for
# cities or for languages that these do not have. The causal part of the argument
# holds for any model: a key knows nothing that comes after its token.
# ```
#
# ## How many groups?
#
# The paper gives no $K$. More groups always cost less in Eq 9, as with
# any clustering; with as many groups as facts the cost is 0 and nothing is
# shared. A good $K$ would show as a bend in the cost or a peak of the silhouette.
# Random sets are again the comparison.

# %%
ks = [2, 5, 10, 20, 40, 80, 160]
curve = {"facts": distance, "random sets": chance}
found = {n: [k_medoids(d, k) for k in ks] for n, d in curve.items()}
cost = {n: [g.cost / len(facts) for g in found[n]] for n in curve}
silhouette = {
    n: [float(silhouettes(curve[n], g.labels).mean()) for g in found[n]]
    for n in curve
}
print("K                     ", *(f"{k:5}" for k in ks))
for name in curve:
    for what, row in (("distance", cost), ("silhouette", silhouette)):
        print(f"{name:11} {what:10}", *(f"{x:5.2f}" for x in row[name]))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Mean distance to the anchor, and mean silhouette, against the number of groups K. Neither has a bend or a peak worth the name.", "name": "fig-grouping-number"}, "image": {"alt": "Two panels over K from 2 to 160 on a logarithmic axis. Above, the distance to the anchor falls steadily, for facts and for random sets. Below, both silhouettes stay near 0."}}
figure, axes = plt.subplots(2, 1, figsize=(5.8, 5.3), sharex=True)
for name, colour in (("facts", plots.GREEN), ("random sets", plots.GREY)):
    axes[0].plot(ks, cost[name], "o-", color=colour, label=name)
    axes[1].plot(ks, silhouette[name], "o-", color=colour)
axes[0].set(ylabel="distance to\nthe anchor", ylim=(0, 1))
axes[0].legend()
axes[1].set(ylabel="mean silhouette", xlabel="groups K", xscale="log",
            ylim=(-0.1, 1))
axes[1].set_xticks(ks, ks)
axes[1].minorticks_off()
plt.show()

# %% [markdown]
# Neither curve offers a $K$: the cost falls without a bend, and the silhouette
# stays low. So $K$ is not a property of these facts but a budget: each
# group costs one descent of phase 1. `clusters` in the presets is such a budget.
#
# ## A score that looks at no fact
#
# WI (Eq 6) rates a neuron by its weights alone. Every fact then gets the same
# set, every distance is 0, and there is nothing to group:

# %%
blind = fact_sets(scores("weight", K, W), config.p).cpu()
flat = jaccard(blind)
alone = k_medoids(flat, config.clusters)
print(f"largest distance: {flat.abs().max():.1f}")
print(f"groups: {len(alone.medoids)} of {config.clusters}")

# %% [markdown]
# One group with an arbitrary anchor cannot be what is meant. The book's rule: where
# the score is blind to the fact, groups come from the activation sets (AS, Eq 5),
# while the *update* still uses the WI neurons. `ece.descent.groups_of` holds it.

# %%
from dataclasses import replace

from ece.descent import groups_of

problem = engine.prepare(
    model, tokenizer, facts[:20], state.contexts, config, layer
)
by_wi = groups_of(problem, W, replace(config, scorer="weight"))
by_as = groups_of(problem, W, replace(config, scorer="activation"))
print(f"WI and AS give equal groups: {by_wi.cost == by_as.cost}")

# %% [markdown]
# ## Summary
#
# - A fact's neurons are a set; Jaccard distance compares sets; medoids are
#   centres that are facts, and the anchor of Eq 10 is one by definition.
# - The sets are closer to one another than chance, but do not fall apart into
#   clear groups: the silhouette is low at every $K$.
# - Groups follow the kind of subject, loosely. They cannot follow the new object, and
#   the relation only where the prompt names it before the subject.
# - WI gives one set for all facts, so groups come from AS there.
#
# **Next:** {doc}`05_two_step` lets each anchor go ahead, and measures what its
# members gain. The last cell asserts what this page has claimed.

# %% tags=["hide-input"]
zeros = torch.zeros(len(sets), dtype=torch.double)
torch.testing.assert_close(distance.diagonal(), zeros)
assert between.mean() < by_chance.mean(), "facts are closer than chance"
assert same == 0, "the relation after the subject cannot move the key"
for c, anchor in enumerate(anchors):
    members = (labels == c).nonzero()[:, 0]
    sums = distance[members][:, members].sum(1)
    assert sums.min() == sums[members == anchor], "Eq 10"

# %% tags=["hide-input"]
assert least <= nine + 1e-9, "nothing is cheaper than the cheapest"
assert torch.equal(labels[anchors], torch.arange(len(anchors)))
assert all(a > b for a, b in zip(cost["facts"], cost["facts"][1:]))
assert width.mean() < 0.5, "no clear groups"
assert len(alone.medoids) == 1 and flat.abs().max() == 0
assert torch.equal(by_wi.labels, by_as.labels)
