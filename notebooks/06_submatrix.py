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
# # The sub-matrix update: writing values into chosen columns
#
# The values say what the model's state should become. The last step changes
# weights so that it does: a least-squares problem with a closed solution, as in
# MEMIT {cite:p}`meng2023memit`, but only over the columns of the chosen neurons (Eq
# 14 and 19). This page asks **whether the closed form really is the best update
# that leaves all other columns alone**, and what that restriction costs.
#
# **What was found**
#
# - Yes: plain gradient descent on Eq 19 reaches the closed form, and on the chosen
#   columns the slope of the objective is zero there.
# - Columns that were not chosen stay exactly as they were. With 59 % of the columns the
#   objective is 0.059 of $\lVert R \rVert^2$, with all of them 0.052: by this measure
#   choosing neurons costs a little and can gain nothing.
# - With all neurons chosen the update is MEMIT's.
# - The history protects earlier batches: with it a second batch changes the outputs for the first
#   batch's keys by 0.01 of the length of its own residual, without it by 0.27, and it misses
#   hardly more of its own goal.
# - Three layers share the residual, and 4 % of it is left at the end.

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
facts = (load_facts("counterfact", 40, path=DATA) if DATA
         else atlas.facts("counterfact", 40))
plots.style()

# %%
model, tokenizer = ece.load(MODEL, DEVICE)
config = presets.configure(MODEL, "ece-rs")
now, later = facts[:20], facts[20:]
texts = atlas.corpus(400)
stats = ece.second_moment(model, tokenizer, texts, config.layers)
state = ece.new_state(model, tokenizer, config)

# %% [markdown]
# ## The pieces
#
# Twenty facts are written at once. From {doc}`05_two_step` come their values $z_i$,
# from {doc}`03_scoring` the mask $\mathcal{I}$ of neurons chosen for the
# batch. We look at the last edit layer first, as if it were the only one.

# %%
from ece.objective import mix
from ece.scoring import batch_set, scores

layer = config.layers[-1]
values = ece.compute_values(model, tokenizer, now, state, config)


# %%
def read(facts):
    """Keys [edit, ff] and states [edit, model] at the last layer."""
    reader = engine.reader(
        model, tokenizer, facts, state.contexts, config.max_tokens
    )
    keys, states, _ = reader.read(layer, layer)
    return mix(keys), states


# %%
def pieces(facts, values):
    """Keys [edit, ff] and residuals [model, edit] at the last layer."""
    keys, states = read(facts)
    return keys.double(), (values.z - states).T.double()


# %%
W = ece.sites(model, (layer,))[0].weight
K, R = pieces(now, values)
C0 = stats.moments[layer].to(K)
C0 = C0 + config.ridge * C0.diagonal().mean() * torch.eye(len(C0)).to(C0)
mask = batch_set(scores(config.scorer, K, W), config.p)
print(f"W {list(W.shape)}  K {list(K.shape)}  R {list(R.shape)}")
print(f"{int(mask.sum())} of {len(mask)} neurons chosen")

# %% [markdown]
# (The fourth line adds the *ridge* of {doc}`02_ffn_memory`: neurons that the text
# hardly ever drives have no weight in the second moment, and the ridge keeps
# their columns small. It is zero in the presets of the paper's models.)

# %% [markdown]
# ## What is minimised
#
# The paper states the problem for the chosen part $\hat\Delta$ of the update:
#
# \begin{equation*}
# \begin{aligned}
# \hat\Delta = \arg\min_{\hat\Delta} \bigl(
#   &\lVert (W + \hat\Delta) K_1 - V_1 \rVert^2 \\
#   + &\lVert (W + \hat\Delta) K_0 - V_0 \rVert^2 \bigr)
# \end{aligned} \tag{19}
# \end{equation*}
#
# The first term wants the new facts, the second the old ones. Since
# $W K_0 = V_0$, the second is $\lVert \hat\Delta \hat K_0 \rVert^2$: what
# the update does to old keys. And since $V_1 - W K_1$ is the residual $R$, the
# first is $\lVert \hat\Delta \hat K_1 - R \rVert^2$. The solution is
#
# \begin{equation*}
# \begin{aligned}
# \hat\Delta^* &= \hat R \hat K_1^\top \hat C^{-1} \\
# \hat C &= \hat K_0 \hat K_0^\top + \hat K_1 \hat K_1^\top
# \end{aligned} \tag{14}
# \end{equation*}
#
# with hats for the rows and columns in $\mathcal{I}$, and $K_0 K_0^\top$
# replaced by $\lambda\,\mathbb{E}[k k^\top]$. In code a fact is a *row* of
# `K`, so the transposes change places:

# %%
def by_hand(mask):
    chosen = mask.nonzero()[:, 0]
    k = K[:, chosen]
    C = config.lam * C0[chosen][:, chosen] + k.T @ k
    out = torch.zeros_like(W, dtype=torch.double)
    out[:, chosen] = torch.linalg.solve(C, (R @ k).T).T  # C is symmetric
    return out


# %%
from ece.solver import Knowledge, solve


def solved(mask, R=R, K=K, history=None):
    """Eq 14 by the package."""
    return solve(R, K, Knowledge(C0, mask, history), config.lam).delta


# %%
Delta = solved(mask)
gap = (by_hand(mask) - Delta).norm() / Delta.norm()
torch.testing.assert_close(
    float(gap), 0.0, rtol=0, atol=1e-4,
    msg="is lambda on the mean, and C cut to rows AND columns of I?",
)
written = Delta.norm(dim=0) > 0
print("exactly the chosen columns:", torch.equal(written, mask))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Norm of the update's columns: exactly zero where nothing was chosen.", "name": "fig-submatrix-columns"}, "image": {"alt": "Vertical green lines over 1,024 neurons, a few of them tall, and grey dots on the zero line where a neuron was not chosen."}}
figure, ax = plt.subplots()
norms, neuron = Delta.norm(dim=0).cpu(), torch.arange(Delta.shape[1])
ax.vlines(neuron[mask.cpu()], 0, norms[mask.cpu()], color=plots.GREEN,
          linewidth=1, label="chosen")
ax.plot(neuron[~mask.cpu()], norms[~mask.cpu()], ".", color=plots.GREY,
        markersize=3, label="not chosen")
ax.set(xlabel="neuron", ylabel="norm of its column of $\\Delta$",
       ylim=(0, None))
ax.legend()
plt.show()

# %% [markdown]
# Grey dots lie at zero: exactly zero, not small, as these columns were never part of
# the system. Among the chosen ones a few carry most of the update.
#
# ## The same by brute force
#
# A closed form is easy to get wrong by a transpose. So we minimise Eq 19 itself: all
# of $\Delta$ is free to move, an explicit $K_0$ stands for the old knowledge,
# and after each step of plain gradient descent the columns outside
# $\mathcal{I}$ are put back to zero. On a small problem this converges:

# %%
draw = torch.Generator().manual_seed(0)


def sample(*shape):
    return torch.randn(*shape, generator=draw, dtype=torch.double)


toy_W, toy_K0, toy_K = sample(6, 12), sample(60, 12), sample(4, 12)
toy_V = sample(6, 4)
toy_mask = torch.arange(12) % 3 > 0
old = Knowledge(toy_K0.T @ toy_K0 / 60, toy_mask)
closed = solve(toy_V - toy_W @ toy_K.T, toy_K, old, lam=60.0).delta

# %%
step = torch.zeros(6, 12, dtype=torch.double, requires_grad=True)
gaps = []
for _ in range(200):
    new = ((toy_W + step) @ toy_K.T - toy_V).square().sum()
    before = (step @ toy_K0.T).square().sum()
    (slope,) = torch.autograd.grad(new + before, step)
    with torch.no_grad():
        step -= 0.003 * slope * toy_mask
        gaps.append(float((step - closed).norm() / closed.norm()))

# %%
torch.testing.assert_close(
    step.detach(), closed,
    msg="lambda times the mean over tokens must be the sum over tokens",
)
print(f"closer than one millionth: {gaps[-1] < 1e-6}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Distance of the descent to the closed form, on the small problem.", "name": "fig-submatrix-descent"}, "image": {"alt": "A straight line falling on a logarithmic axis, by many orders of magnitude within 200 steps."}}
figure, ax = plt.subplots()
ax.semilogy(gaps, color=plots.BLUE)
ax.set(xlabel="gradient step", ylabel="distance to the closed form")
plt.show()

# %% [markdown]
# Descent arrives where the formula says. The real problem has too many directions
# of very different steepness for that, but it is convex, so one look at the
# slope is enough: at the minimum it must be zero on the chosen columns. On
# the others it need not be. They would like to move, but may not.

# %%
def objective(delta):
    """Eq 19 with lambda E[kk^T] for the old keys."""
    new = (delta @ K.T - R).square().sum()
    old = config.lam * (delta @ C0 * delta).sum()
    return new + old


# %%
def slope_at(delta):
    leaf = delta.clone().requires_grad_()
    return torch.autograd.grad(objective(leaf), leaf)[0].norm(dim=0)


at_zero, at_minimum = slope_at(torch.zeros_like(Delta)), slope_at(Delta)
for name, where in (("chosen", mask), ("other", ~mask)):
    ratio = at_minimum[where].norm() / at_zero[where].norm()
    print(f"slope left, {name} columns: {100 * ratio:6.2f} % of the start")

# %% [markdown]
# ## What the restriction costs
#
# Fewer columns can never make the minimum lower. With a larger $p$ the sets of Eq 8
# grow, each containing the one before, and the objective of Eq 19 must fall. It has
# two parts: how much of the residual is not reached, and how much old keys are
# disturbed.

# %%
shares = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]
shares = sorted({*shares, config.p})
score = scores(config.scorer, K, W)
masks = [batch_set(score, p) for p in shares]
updates = [solved(mask) for mask in masks]
size = float(R.square().sum())
total = [float(objective(d)) / size for d in updates]
missed = [float((d @ K.T - R).square().sum()) / size for d in updates]
columns = [int(mask.sum()) for mask in masks]
at = shares.index(config.p)
print(f"at p = {config.p}: {columns[at] / columns[-1]:.0%} of the columns")
print(f"objective {total[at]:.3f}, with all columns {total[-1]:.3f}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The minimum of Eq 19 and its two parts against the number of columns written; the dashed line is the preset's threshold.", "name": "fig-submatrix-cost"}, "image": {"alt": "Three lines over the number of columns. The objective and the part not reached fall, steeply at first; the disturbance of old keys rises to a peak, then falls, and is nearly all of the objective with all columns."}}
figure, ax = plt.subplots()
ax.plot(columns, total, "o-", color=plots.BLACK, label="objective")
ax.plot(columns, missed, "o-", color=plots.BLUE, label="not reached")
ax.plot(columns, np.subtract(total, missed), "o-", color=plots.ORANGE,
        label="old keys disturbed")
ax.axvline(columns[at], color=plots.GREY, linestyle="--", linewidth=1)
ax.set(xlabel="columns written", ylabel="share of $\\|R\\|^2$",
       ylim=(0, None))
ax.legend()
plt.show()

# %% [markdown]
# How far the objective still falls beyond the threshold (dashed) is what the
# selection gives up. By the measure of Eq 19 it is always a loss. It could be a gain
# only in what the equation does not see: $\lambda\,\mathbb{E}[k k^\top]$ is an
# estimate of what matters, and columns that are not touched cannot do harm that it
# overlooks. {doc}`14_parts` measures whether they do.
#
# ## All neurons: MEMIT
#
# With every column chosen, Eq 14 is Eq 4, and nothing of ECE is left in the solve.
# `memit` in this book is the same editor with everything selected:

# %%
everything = torch.ones_like(mask)
full = solved(everything)
memit = by_hand(everything)
error = (full - memit).norm() / full.norm()
torch.testing.assert_close(updates[-1], full, rtol=0, atol=0)
print(f"p = 1 equals Eq 4: {bool(error < 1e-3)}")

# %% [markdown]
# ```{admonition} Which residual?
# :class: note
# The paper writes $\hat R = V_1 - \hat W \hat K_1$, with the chosen columns of
# $W$ only. The book uses all of $W$. The next cell shows why.
# ```

# %%
reached = W.double() @ K.T
hat = (reached + R) - W[:, mask].double() @ K[:, mask].T
literal = solved(mask, R=hat)
cost = [float(objective(d)) / size for d in (Delta, literal)]
twice = (hat - R).norm() / reached.norm()
print(f"objective with all of W in the residual: {cost[0]:.5f}")
print(f"objective with the chosen columns only:  {cost[1]:.5f}")
print(f"share of the output that is wanted twice: {twice:.0%}")

# %% [markdown]
# With the hat, the chosen columns have to produce a second time what the
# others produce already. That is little where the others contribute little, but
# only the reading with all of $W$ solves Eq 19.
#
# ## History
#
# After a batch its facts are knowledge too. The paper: "newly edited knowledge
# becomes the reference knowledge for subsequent rounds, which requires updating
# $K_0 K_0^\top$". So the keys of earlier batches join the old ones,
#
# \begin{equation*}
# \begin{aligned}
# \hat C &= \lambda\,\mathbb{E}[k k^\top]_{\mathcal{II}} + H_{\mathcal{II}}
#   + \hat K_1 \hat K_1^\top \\
# H &= \sum_\text{earlier} k k^\top
# \end{aligned}
# \end{equation*}
#
# Note the units: a mean over tokens times $\lambda$, but a *sum* over edits.
# We write a second batch with and without $H$ and look at what it does to the
# keys of the first.

# %%
values_2 = ece.compute_values(model, tokenizer, later, state, config)
K2, R2 = pieces(later, values_2)
H = K.T @ K
mask_2 = batch_set(scores(config.scorer, K2, W), config.p)
ways = {"without history": solved(mask_2, R2, K2),
        "with history": solved(mask_2, R2, K2, H)}
parts = {"first batch, disturbed": (K, 0 * R),
         "own batch, missed": (K2, R2)}

# %%
lengths = {
    way: [float((delta @ key.T - want).norm() / R2.norm())
          for key, want in parts.values()]
    for way, delta in ways.items()
}
print("in units of the second batch's |R|:", *parts, sep="\n  ")
for way, row in lengths.items():
    print(f"{way:16}", *(f"{length:6.3f}" for length in row))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What the second batch does to the keys of the first, and to its own.", "name": "fig-submatrix-history"}, "image": {"alt": "Two pairs of bars. The first batch is disturbed by 0.27 without history and by 0.01 with it; the second batch misses the same small share of its own goal either way."}}
figure, ax = plt.subplots(figsize=(5.8, 3.0))
for shift, (way, row) in enumerate(lengths.items()):
    ax.barh(np.arange(2) + 0.4 * shift - 0.2, row, height=0.38,
            color=(plots.BLUE, plots.PINK)[shift], label=way)
ax.set_yticks(range(2), [n.replace(", ", ",\n") for n in parts])
ax.invert_yaxis()
ax.set(xlabel="in units of the second batch's $\\|R\\|$")
figure.legend(loc="outside upper center", ncols=2)
plt.show()

# %% [markdown]
# With the history, the second batch hardly disturbs the first one, and misses only a
# little more of its own goal. One batch is a small part of the matrix; over long
# sequences the term grows with every batch, while $\lambda$ stays.
#
# ## Several layers
#
# One layer need not do all. Following MEMIT, the edit layers are taken in order; each
# gets the residual that is *then* left, divided by the number of layers still to
# come, and keys are computed anew after each, since the layers above see other
# inputs now. `edit_batch` does it; taking its layers back one by one, last
# first, shows the residual after each.

# %%
from ece.state import restore

edited, report = ece.edit_batch(
    model, tokenizer, now, stats, state, config, values
)
batch = edited.batches[-1]


# %%
def left():
    """Mean distance to z, as a share of the distance before."""
    _, states = read(now)
    far = (values.z - values.hidden).norm(dim=1)
    return float(((values.z - states).norm(dim=1) / far).mean())


# %%
remaining = [left()]
for at in reversed(config.layers):
    restore(model, {at: batch.masks[at]}, {at: batch.before[at]})
    remaining.insert(0, left())
print("residual left:", *(f"{share:.2f}" for share in remaining))
for at in config.layers:
    print(f"layer {at}: {report.neurons[at]} columns, "
          f"norm of the update {report.norms[at]:.1f}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Residual left after each layer, beside what would be left if each layer met its share.", "name": "fig-submatrix-layers"}, "image": {"alt": "Two falling lines over the layers written. What is left falls layer by layer to nearly nothing, and lies a little above the line of layers that each meet their share."}}
count = len(config.layers)
goal = [1 - i / count for i in range(count + 1)]
names = ["none", *(f"to {at}" for at in config.layers)]
figure, ax = plt.subplots()
ax.plot(goal, "--", color=plots.GREY, label="if each met its share")
ax.plot(remaining, "o-", color=plots.BLUE, label="left")
ax.set_xticks(range(count + 1), names)
ax.set(xlabel="layers written", ylabel="residual left", ylim=(0, 1.1))
ax.legend()
plt.show()

# %% [markdown]
# Each layer falls short of its share, as the second term of Eq 19 restrains it, and
# the next takes on what is left. What remains at the end is the price of $\lambda$, and
# the reason why values are sought until the new answer has a high probability.
#
# ## Summary
#
# - Eq 14 is the exact minimum of Eq 19 under the rule that columns outside
#   $\mathcal{I}$ are zero: descent finds it, and the slope vanishes there.
# - Choosing neurons costs something by that measure, and writes fewer columns.
# - With all neurons it is MEMIT. The history adds the keys of earlier edits.
# - Layers share the residual; some of it remains.
#
# **Next:** {doc}`07_sequential` puts everything in a sequence of batches, beside MEMIT.
# The last cell asserts what this page has claimed.

# %% tags=["hide-input"]
assert (Delta[:, ~mask] == 0).all(), "outside: exactly zero"
assert gaps[-1] < 1e-6 < gaps[0], "descent reaches the closed form"
assert at_minimum[mask].norm() < 1e-4 * at_zero[mask].norm(), "minimum"
assert at_minimum[~mask].norm() > at_minimum[mask].norm()
falling = zip(total, total[1:])
assert all(a >= b - 1e-9 for a, b in falling), "more columns, lower"

# %% tags=["hide-input"]
assert error < 1e-3, "all columns: MEMIT"
assert cost[1] >= cost[0] - 1e-9, "the residual needs all of W"
first = [row[0] for row in lengths.values()]
assert abs(first[0] - 0.27) < 0.01, "without history"
assert abs(first[1] - 0.01) < 0.005, "history protects"
assert remaining[0] > remaining[-1] > 0, "layers close in on z"
assert abs(remaining[0] - 1) < 1e-3, "restored: the whole residual"
