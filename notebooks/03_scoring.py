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
# # Scoring neurons
#
# MEMIT writes to every neuron of a layer. {cite:t}`zhang2025ece` object:
#
# > Once key layers are identified, all neurons within them are treated equally
# > during editing, overlooking the fact that different types of knowledge are
# > encoded in distinct patterns.
# >
# > — the paper, Section 3.1
#
# So the first step of ECE is a choice of neurons. Which of them carry a fact, how
# many are enough, and do the three scorers agree?
#
# **What was found**
#
# - For a fact, activation (AS) and residual sensitivity (RS) need some 215 of
#   1,024 neurons of the last edit layer (the median) for 99 % of the score (RS 590 at layer 0, which is
#   edited too), and choose nearly the same ones: the length of
#   a neuron's column, in which they differ, varies little.
# - Weight importance (WI) does not look at the fact. It gives every fact the same
#   set, of nearly all neurons, and at equal numbers of neurons its sets leave
#   much more of the MLP's output missing.
# - A batch has one set, and it grows with the batch: to 640 neurons for 100 facts.
# - In the first edit layer the neurons that an edit will write to are known before it is made; those of
#   later layers depend on what the earlier ones wrote.

# %% tags=["hide-input"]
import os

import matplotlib.pyplot as plt
import torch

import ece
from ece import atlas, engine, presets
from ece.book import plots
from ece.data import load_facts
from ece.objective import mix

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")
facts = (load_facts("counterfact", 100, path=DATA) if DATA
         else atlas.facts("counterfact", 100))
plots.style()

# %% [markdown]
# A neuron is an entry of the key $k$ and a column of $W$. The previous
# chapter, {doc}`02_ffn_memory`, has shown how keys are read; here they are taken
# for a batch of facts, at the last edit layer.

# %%
model, tokenizer = ece.load(MODEL, DEVICE)
config = presets.configure(MODEL, "ece-rs")
state = ece.new_state(model, tokenizer, config)
reader = engine.reader(
    model, tokenizer, facts, state.contexts, config.max_tokens
)


# %%
def keys(layer):
    return mix(reader.read(layer, layer)[0])


site = ece.sites(model, config.layers)[-1]
K, W = keys(site.layer), site.weight
print(f"{len(K)} facts, {K.shape[1]} neurons")

# %% [markdown]
# ## Three scores
#
# The **activation score** measures how strongly the neuron fires,
#
# $$
# AS_i = |a_i(x_j)| \tag{5}
# $$
#
# **weight importance** how strong its outgoing weights are,
#
# $$
# WI_i = |W_{ij}| \tag{6}
# $$
#
# and **residual sensitivity** how much it contributes to the residual stream:
#
# $$
# RS_i = a_k^l\, (W_\text{out}^l)_k \tag{7}
# $$
#
# The equations leave room. Eq 6 has an index $j$ that the left side lacks: one
# number per neuron needs a sum over it. Eq 7 as printed is a vector, and signed,
# while a share of a total needs numbers that are not negative. The readings
# of this book are $|k_{ij}|$, $\sum_m |W_{mj}|$ and
# $|k_{ij}|\,\lVert W_{:j}\rVert_2$; {doc}`../book/deviations` gives the reasons.
# By hand, for one fact, against `ece.scoring`:

# %%
from ece.scoring import scores

k = K[0].double()
by_hand = {
    "activation": k.abs(),
    "weight": W.double().abs().sum(0),
    "residual": (W.double() * k).norm(dim=0),  # |k_j W_j| per neuron
}

# %%
Q = {name: scores(name, K, W) for name in by_hand}
for name, expected in by_hand.items():
    torch.testing.assert_close(
        Q[name][0], expected,
        msg=f"{name}: the wrong axis of W? a neuron is a column",
    )
print("three scores agree, each", tuple(Q["residual"].shape))

# %% [markdown]
# How are the scores distributed? Sorted, as shares of the total, and
# on logarithmic axes:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Scores of one fact's neurons, sorted. AS and RS fall early, WI stays nearly flat.", "name": "fig-scoring-ranks"}, "image": {"alt": "Three curves on logarithmic axes, share of the score against the neuron's rank. Those of AS and RS coincide and fall from near 0.1 steeply after rank 100; that of WI is nearly level, near one part in a thousand, over all ranks."}}
METHOD = {"activation": "ece-as", "weight": "ece-wi", "residual": "ece-rs"}
SHORT = {"activation": "AS", "weight": "WI", "residual": "RS"}
figure, ax = plt.subplots()
for name, Q_one in Q.items():
    share = Q_one[0] / Q_one[0].sum()
    ax.loglog(
        range(1, len(share) + 1), share.sort(descending=True).values.cpu(),
        color=plots.colour(METHOD[name]), label=SHORT[name],
        linestyle="--" if name == "residual" else "-",
    )
ax.set(xlabel="rank of the neuron", ylabel="share of the score",
       ylim=(1e-6, 1))
ax.legend()
plt.show()

# %% [markdown]
# A curve that falls early means that few neurons hold most of the score. AS and
# RS fall, because for one fact few neurons fire. WI is nearly flat: trained columns
# have much the same length. The two that fall look alike, since RS is AS times the length
# of the column, which varies little.
#
# ## From scores to a set
#
# Eq 8 takes the smallest set that holds a share $p$ of the total:
#
# \begin{equation*}
# \begin{aligned}
# \mathcal{I} &= \arg\min_{\mathcal{I}} |\mathcal{I}| \\
# \text{s.t.}\; & \sum_{j \in \mathcal{I}} Q_{ij} \ge p \sum_{j=1}^{N} Q_{ij}
# \end{aligned} \tag{8}
# \end{equation*}
#
# Sort, add up, stop as soon as the sum has reached the share.

# %%
from ece.scoring import select


def by_hand_set(score, p):
    order = score.argsort(descending=True, stable=True)
    total, chosen = 0.0, []
    for neuron in order.tolist():
        if chosen and total >= p * score.sum():
            break
        total += score[neuron]
        chosen.append(neuron)
    return sorted(chosen)


# %%
p = config.p
for name, Q_one in Q.items():
    found = select(Q_one[0], p).nonzero()[:, 0].tolist()
    assert found == by_hand_set(Q_one[0], p), f"{name}: off by one?"
    print(f"{SHORT[name]}: {len(found)} of {len(k)} neurons at p = {p}")

# %% [markdown]
# Edges matter in such a rule. One neuron may exceed the share
# alone; scores may tie; $p = 1$ must mean every neuron, although sums round.

# %%
toy = torch.tensor([0.1, 9.0, 0.1, 0.1])
print("one big neuron:", select(toy, 0.8).tolist())
print("all equal:     ", select(torch.ones(4), 0.5).tolist())
print("p = 1:         ", select(toy, 1.0).tolist())

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Eq 8 for one fact, by RS (above) and by WI (below): the smallest set whose scores add up to the share p.", "name": "fig-scoring-cut"}, "image": {"alt": "Two panels with the neurons in descending order of score. Above, RS: a steep hill, and the cumulative share reaches p after about 140 neurons. Below, WI: nearly level scores, and the share reaches p after almost all neurons."}}
figure, axes = plt.subplots(2, 1, figsize=(5.8, 6.9))
for ax, name in zip(axes, ("residual", "weight"), strict=True):
    ranked = Q[name][0].sort(descending=True).values.cpu()
    chosen = int(select(Q[name][0], p).sum())
    share = ranked.cumsum(0) / ranked.sum()
    plots.score_cut(ranked.numpy(), share.numpy(), chosen, p, ax)
    ax.set_title(SHORT[name])
plt.show()

# %% [markdown]
# The blue curve is the cumulative share; where it meets the dotted line, the
# dashed one cuts. For RS the cut comes early. For WI the curve is close to a
# straight line, so a share $p$ of the score takes not much less than a share $p$ of
# the neurons.
#
# ## How many, and how much they do
#
# The size of the set depends on $p$. To compare the scores at equal size: if only the
# chosen neurons contributed, how much of the MLP's output $Wk$ would be missing? The
# error is
# $\lVert Wk - W_{\mathcal I}\,k_{\mathcal I} \rVert / \lVert Wk \rVert$.

# %%
from ece.scoring import fact_sets

shares = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]
out = K @ W.T
size, error = {}, {}

# %%
for name, Q_all in Q.items():
    sets = [fact_sets(Q_all, share) for share in shares]
    size[name] = [s.sum(1).float().mean().item() for s in sets]
    error[name] = [
        ((out - (K * s) @ W.T).norm(dim=1) / out.norm(dim=1)).mean().item()
        for s in sets
    ]
print("mean of all facts: neurons (part missing)")
for share in (0.5, 0.8, 0.95):
    at = shares.index(share)
    print(f"p = {share:4}: ", *(
        f"{SHORT[n]} {size[n][at]:4.0f} ({error[n][at]:.2f})" for n in Q))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The number of neurons chosen against p, and the part of the output that is missing against the number of neurons.", "name": "fig-scoring-size"}, "image": {"alt": "Two panels. Above, sets by AS and RS grow slowly up to p of 0.9 and then to all neurons, sets by WI grow in a straight line. Below, for the same number of neurons, AS and RS leave far less of the output missing than WI."}}
figure, axes = plt.subplots(2, 1, figsize=(5.8, 7.1))
for name in Q:
    look = dict(
        color=plots.colour(METHOD[name]), label=SHORT[name], marker="o",
        markersize=4, linestyle="--" if name == "residual" else "-",
    )
    axes[0].plot(shares, size[name], **look)
    axes[1].plot(size[name], error[name], **look)
axes[0].axvline(0.8, color=plots.BLACK, lw=1, ls=":", label="paper's p")
axes[0].axvline(p, color=plots.BLACK, lw=1, ls="--", label="preset's p")
axes[0].set(xlabel="p", ylabel="neurons chosen, mean", ylim=0)
axes[1].set(xlabel="neurons chosen, mean", ylabel="part of $Wk$ missing",
            ylim=(0, 1.05))
axes[0].legend()
plt.show()

# %% [markdown]
# For the same number of neurons, sets by AS or RS leave much less of the output
# missing than sets by WI, which include neurons that are silent for the fact at
# hand.
#
# Which neurons are these? Each dot below is a neuron that RS chooses for a fact. The
# columns are the neurons that any of twelve facts chooses at $p = 0.5$, in the order of
# how many facts choose them; move the slider to ask for more of the score.

# %% tags=["hide-input"]
from ece.book.slider import slider

few = 12
half = fact_sets(Q["residual"][:few], 0.5)
columns = half.sum(0).argsort(descending=True, stable=True)
columns = columns[:int(half.any(0).sum())].cpu()


def draw_map(i):
    chosen = fact_sets(Q["residual"][:few], shares[i]).cpu()[:, columns]
    figure, ax = plt.subplots(figsize=(5.8, 3.2))
    fact, neuron = chosen.nonzero().T
    ax.plot(neuron, fact, ".", color=plots.GREEN, markersize=3)
    ax.set(xlim=(-1, len(columns)), ylim=(few - 0.5, -0.5), yticks=[],
           xlabel="neuron", ylabel="fact")
    ax.grid(False)
    return figure


# %% tags=["hide-input"]
def describe(i):
    sets = fact_sets(Q["residual"][:few], shares[i])
    each, all_facts = sets.sum(1).float().mean(), int(sets.any(0).sum())
    return (f"p = {shares[i]}: {each:.0f} neurons a fact, "
            f"{all_facts} in all twelve together.")


slider(draw_map, list(map(str, shares)), "p =", describe, start=4)

# %% [markdown]
# ```{admonition} Which p was used?
# :class: note
# Appendix C says $p = 0.8$ for all models. The settings files published for WI
# and RS on GPT-J and Llama-3 say 1.0, where Eq 8 selects every neuron and
# ECE's choice does nothing. The presets of the paper's models have 0.8 here; each
# embedded model has a value of its own, the one printed above and used on this page.
# ```
#
# ## WI does not look at the fact
#
# Eq 6 has no input in it. So every row of its score is the same row, every fact
# gets the same set, and the Jaccard distance between any two facts is 0. (Where
# facts are *grouped* by their sets, this book therefore uses the AS sets for WI.)

# %%
rows_alike = {
    name: bool((Q_all == Q_all[0]).all()) for name, Q_all in Q.items()
}
for name, alike in rows_alike.items():
    print(f"{SHORT[name]}: rows {'identical' if alike else 'differ'}")

# %% [markdown]
# ## Do the scores agree?
#
# For each fact the three sets are compared by $|A \cap B| / |A \cup B|$. Big sets
# overlap by chance alone, so the measure stands beside what random
# sets of the same sizes would give, roughly: with $a$ and $b$ as shares of
# all neurons, $ab / (a + b - ab)$.

# %%
sets = {name: fact_sets(Q_all, p) for name, Q_all in Q.items()}


def overlap(one, two):
    A, B = sets[one], sets[two]
    return ((A & B).sum(1) / (A | B).sum(1)).mean().item()


def by_chance(one, two):
    a, b = (sets[name].double().mean(1) for name in (one, two))
    return (a * b / (a + b - a * b)).mean().item()


# %%
pairs = [("activation", "residual"), ("activation", "weight"),
         ("residual", "weight")]
measured = [overlap(*pair) for pair in pairs]
chance = [by_chance(*pair) for pair in pairs]
print("overlap  measured  by chance")
for (one, two), *row in zip(pairs, measured, chance):
    print(f"{SHORT[one]}, {SHORT[two]}", *(f"{x:10.2f}" for x in row))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Overlap of the three scores' sets, beside what random sets of the same sizes would give.", "name": "fig-scoring-overlap"}, "image": {"alt": "Three pairs of bars. AS and RS overlap by more than 0.9, far more than by chance; AS with WI and RS with WI overlap by about 0.2, just as by chance."}}
figure, ax = plt.subplots(figsize=(5.8, 3.0))
at = torch.arange(3)
ax.barh(at - 0.2, measured, 0.38, color=plots.BLUE, label="measured")
ax.barh(at + 0.2, chance, 0.38, color=plots.GREY, label="by chance")
ax.set_yticks(at.tolist(), [f"{SHORT[a]}, {SHORT[b]}" for a, b in pairs])
ax.set(xlabel="overlap of the sets", xlim=(0, 1))
ax.invert_yaxis()
ax.legend()
plt.show()

# %% [markdown]
# AS and RS choose much the same neurons. WI agrees with either no better than chance
# does. So on this model, results of ECE with AS and with RS should be close. Whether
# the two agree as well on the paper's models, only a run of this page on those models
# can tell.
#
# ## One set for a batch
#
# The solve needs one set per layer, not one per fact.
#
# > […] we aggregate neuron scores across all batch samples. This allows for a
# > unified neuron identification based on cumulative influence contribution […]
# >
# > — the paper, Section 3.1
#
# The sum hides a choice: should a fact with a long key count more? Here every
# fact counts the same; its scores are divided by their sum first.

# %%
from ece.scoring import batch_set

Q_rs = Q["residual"]
expected = select((Q_rs / Q_rs.sum(1, keepdim=True)).sum(0), p)
assert torch.equal(batch_set(Q_rs, p), expected), "normalise per fact"

# %%
counts = [n for n in (1, 2, 5, 10, 20, 50, 100) if n <= len(K)]
grown = {
    name: [int(batch_set(Q_all[:n], p).sum()) for n in counts]
    for name, Q_all in Q.items()
}
union = [int(sets["residual"][:n].any(0).sum()) for n in counts]
print("facts     ", *(f"{n:5}" for n in counts))
for name, sizes in grown.items():
    print(f"{SHORT[name]}        ", *(f"{n:5}" for n in sizes))
print("RS, union ", *(f"{n:5}" for n in union))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Neurons chosen for a whole batch, against its size.", "name": "fig-scoring-batch"}, "image": {"alt": "Lines over 1 to 100 facts on a logarithmic axis. AS and RS rise to more than four times the neurons of a single fact, the union of the facts' own sets to six times; WI is level, at nearly all neurons."}}
figure, ax = plt.subplots()
for name, sizes in grown.items():
    ax.plot(counts, sizes, color=plots.colour(METHOD[name]), marker="o",
            markersize=4, label=SHORT[name],
            linestyle="--" if name == "residual" else "-")
ax.plot(counts, union, color=plots.BLACK, linewidth=1, linestyle=":",
        label="RS, union")
ax.set(xscale="log", xlabel="facts in the batch", ylabel="neurons chosen",
       ylim=(0, 1.35 * K.shape[1]))
ax.set_xticks(counts, [str(n) for n in counts])
ax.minorticks_off()
ax.legend(loc="upper left", ncols=2)
plt.show()

# %% [markdown]
# The more facts in a batch, the more neurons: facts differ in the neurons
# they use. The batch's set stays below the union of the facts' own sets, so a fact
# loses some neurons that it would have chosen alone. (It cannot be larger: the union holds a share $p$ of every
# fact's score, hence of their sum, and Eq 8 takes the smallest set that does.)
# The closer it comes to all neurons, the closer ECE is to MEMIT with a history.
#
# ## Where edits land
#
# This is what the paper's title calls explainable: before anything is written one
# can say where it will go. First, layer by layer, over the whole depth of
# the model: how many neurons does a fact need for a share $p$ of its RS?

# %%
needed = []
for place in ece.sites(model):
    score = scores("residual", keys(place.layer), place.weight)
    needed.append(fact_sets(score, p).sum(1).float().cpu())
needed = torch.stack(needed)  # [layer, edit]
print("layers edited by the preset:", config.layers)
print("median number of neurons, layer by layer:",
      *(f"{x:.0f}" for x in needed.median(1).values))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Neurons that a fact needs, layer by layer; shaded layers are those that the preset edits.", "name": "fig-scoring-layers"}, "image": {"alt": "A box for each of five layers, the middle half of 100 facts. The boxes of the first and the last layer lie at two to three times the neurons of the three between."}}
figure, ax = plt.subplots()
ax.boxplot(needed.T.numpy(), positions=range(len(needed)), widths=0.5,
           showfliers=False, medianprops=dict(color=plots.RED, lw=2))
for layer in config.layers:
    ax.axvspan(layer - 0.4, layer + 0.4, color=plots.SKY, alpha=0.25, lw=0)
ax.set(xlabel="layer", ylabel=f"neurons for {p:.0%} of RS", ylim=0)
plt.show()

# %% [markdown]
# A box spans the middle half of the facts. Layers differ: where the box is low, few
# neurons carry a fact. The preset also edits layer 0, where the box is highest.
#
# ```{admonition} Layers are not chosen here
# :class: note
# The paper speaks of layers being identified too, but states no rule, and its
# published code uses fixed ones. So do the presets.
# ```
#
# Next, one fact in one layer: its neurons, and how many facts of the batch
# chose each of them too.

# %%
RS = sets["residual"]
usage = RS.float().mean(0).cpu()  # share of facts that choose a neuron
mine = RS[0].cpu()
neuron = torch.arange(len(usage))
print(f"neurons of the first fact: {mine.sum()}, of them chosen")
print(f"  by more than half of the facts: {(usage[mine] > 0.5).sum()}")
print(f"  by less than a quarter:         {(usage[mine] < 0.25).sum()}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "How many facts of the batch choose each neuron; dots mark the neurons of the first fact.", "name": "fig-scoring-usage"}, "image": {"alt": "Thin vertical lines over 1,024 neurons, of 0 to 90 percent of the facts. The first fact's dots stand on lines of 15 to 90 percent."}}
figure, ax = plt.subplots(figsize=(5.8, 3.7))
ax.vlines(neuron, 0, 100 * usage, color=plots.GREY, lw=0.6,
          label="the batch")
ax.plot(neuron[mine], 100 * usage[mine], "o", color=plots.RED,
        markersize=3.5, label=facts[0].subject)
ax.set(xlabel=f"neuron of layer {site.layer}",
       ylabel="facts that chose it, %", ylim=0)
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
plt.show()

# %% [markdown]
# Writing to a neuron that many facts use reaches many subjects; hardly any neuron is
# the fact's own.
#
# What do they say? A neuron's column can be read with the model's own
# output matrix: the tokens whose logits it raises most {cite:p}`geva2021memories`.
# And the facts that chose it can be named.

# %%
from ece.facts import decode

print(f"{facts[0].text} ...  {facts[0].true}\n")
unembed = model.get_output_embeddings().weight
strongest = Q["residual"][0].argsort(descending=True, stable=True)[:4]

# %%
for j in strongest.tolist():
    raised = unembed @ (W[:, j] * K[0, j].sign()).to(unembed)
    top = raised.topk(4).indices.tolist()
    words = [decode(tokenizer, [t]).strip() for t in top]
    also = [f.subject for f, s in zip(facts[1:], RS[1:, j]) if s]
    part = Q["residual"][0, j] / Q["residual"][0].sum()
    print(f"neuron {j}: {part:.1%} of the fact's score")
    print("  raises:", ", ".join(words))
    print(f"  also used by {len(also)}:", ", ".join(also[:3]) or "-")

# %% [markdown]
# The neurons raise words of many kinds, and none raises the old answer. That is no failure: these
# are early layers, and much of what their neurons write is read by later layers rather than by
# the output matrix.
#
# Finally, the batch as the editor sees it. `edit_batch` reports the masks it used; the keys of
# later layers are taken after the earlier layers were written, so only the first can be predicted
# to the bit.

# %%
stats = ece.second_moment(
    model, tokenizer, atlas.corpus(400), config.layers
)
batch = facts[:20]
first = ece.sites(model, config.layers)[0]
predicted = batch_set(
    scores("residual", keys(first.layer)[:20], first.weight), p
)

# %%
done, report = ece.edit_batch(
    model, tokenizer, batch, stats, state, config
)
ece.undo(model, done)
same = predicted.cpu() == report.masks[first.layer]
agree = same.float().mean().item()
print(f"layer {first.layer}: {agree:.0%} of the neurons as predicted")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Where a batch of 20 facts was written: a green line is a neuron, white is left alone; the numbers count the lines.", "name": "fig-scoring-written"}, "image": {"alt": "Three rows of thin green lines over 1,024 neurons, one row for each edit layer. That of layer 0 is nearly full, those of layers 1 and 2 hold about two thirds as many lines."}}
figure, ax = plt.subplots(figsize=(5.8, 3.0))
for row, layer in enumerate(report.layers):
    where = report.masks[layer].nonzero()[:, 0]
    ax.plot(where, torch.full_like(where, row), "|", color=plots.GREEN,
            markersize=26, markeredgewidth=0.5)
names = [f"layer {n}\n{report.neurons[n]}" for n in report.layers]
ax.set_yticks(range(len(names)), names)
ax.set(xlabel="neuron", ylim=(-0.6, len(names) - 0.4),
       xlim=(0, K.shape[1]))
ax.grid(axis="y", visible=False)
plt.show()

# %% [markdown]
# ## Summary
#
# - Three scores per neuron: how it fires (AS), how it is wired (WI), what
#   it contributes (RS). Eq 8 keeps the smallest set with a share $p$ of the total.
# - AS and RS depend on the fact, need fewer neurons and choose much the same ones.
#   WI is the same for all facts and chooses more of them; per neuron it
#   explains less of the layer's output.
# - A batch has one set per layer, from scores normalised per fact. It grows with
#   the batch.
# - In the first edit layer, where an edit will land is known before it is made.
#   Whether choosing neurons makes edits *better* is another question: with all of them
#   the score on CounterFact is higher ({doc}`13_threshold`).
#
# The last cell asserts what the page has claimed.

# %% tags=["hide-input"]
assert rows_alike == dict(activation=False, weight=True, residual=False)
at_p = {name: size[name][shares.index(0.8)] for name in Q}
needed = {}
for name in ("activation", "residual"):
    of_score = Q[name].sort(descending=True).values.cumsum(1)
    counts = (of_score < 99 / 100 * of_score[:, -1:]).sum(1) + 1
    needed[name] = counts.median().item()
assert all(abs(count - 215) <= 3 for count in needed.values()), needed
assert at_p["residual"] < 0.7 * at_p["weight"], "RS needs fewer neurons"

# %% tags=["hide-input"]
assert at_p["activation"] < 0.7 * at_p["weight"], "and so does AS"
for name, sizes in size.items():
    assert sizes == sorted(sizes), f"{name}: sets grow with p"
    assert abs(sizes[-1] - K.shape[1]) < 1e-3, "p = 1 keeps every neuron"
budget = at_p["residual"]  # fewer than WI spends at this p
spent = [e for s, e in zip(size["weight"], error["weight"]) if s <= budget]
assert error["residual"][shares.index(0.8)] < min(spent or [1.0])
assert measured[0] > max(measured[1:]) + 0.1, "AS and RS agree most"
assert all(n <= u for n, u in zip(grown["residual"], union, strict=True))
assert agree == 1.0, "the first layer's set was predicted"
