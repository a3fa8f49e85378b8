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
# # The MLP as a memory
#
# To change what a model says by changing a matrix, one needs a view of that
# matrix in which "what it says" has a place. The view of
# {cite:t}`zhang2025ece`, taken over from ROME {cite:p}`meng2022rome` and MEMIT
# {cite:p}`meng2023memit`, is old: a matrix is an *associative memory*
# {cite:p}`kohonen1972correlation` that answers a key with a value. This chapter
# asks how far that view goes: what is a key, what is a value, how is a new pair
# written, and what does it do to the pairs that are there already?
#
# **What was found**
#
# - The key of a fact is the key of its *subject*: two prompts that begin with the same
#   subject have the same key, whatever they ask after it. Random text before the subject changes it little
#   (mean cosine 0.97); keys of two subjects have a mean cosine of 0.11, some of much
#   more.
# - The update of Eq 4 is three lines of algebra. Its setting $\lambda$ trades the new
#   facts against ordinary text, and no value of it spares the old at no cost.
# - As it stands, Eq 4 writes huge columns to neurons that are nearly silent, more than
#   10,000 times as long as any in the model. A small ridge, which the paper does not
#   have, prevents that.
# - A single fact is an update of rank one in each layer.

# %% tags=["hide-input"]
import os
import warnings

import matplotlib.pyplot as plt
import torch

import ece
from ece import atlas, presets
from ece.book import plots
from ece.data import load_facts

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")
facts = (load_facts("counterfact", 60, path=DATA) if DATA
         else atlas.facts("counterfact", 60))
plots.style()

# %% [markdown]
# ## A matrix that remembers
#
# An MLP block computes the activations of its hidden neurons and sends them
# through a matrix $W$ into the residual stream. Read column by column, the
# output is a sum over neurons, each contributing its column as strongly as it
# fires {cite:p}`geva2021memories`:
#
# $$
# v = W k = \sum_j k_j\, W_{:j}
# $$
#
# The activations $k$ are the *key*, the output $v$ is the *value*. A toy makes the
# idea plain. Four random pairs are written into an empty matrix as a sum of outer
# products; if the keys are orthonormal, each key brings back its own value.

# %%
draw = torch.Generator().manual_seed(0)
toy_keys = torch.linalg.qr(torch.randn(16, 4, generator=draw)).Q
toy_values = torch.randn(8, 4, generator=draw)
memory = toy_values @ toy_keys.T  # one column per pair

torch.testing.assert_close(
    memory @ toy_keys, toy_values,
    msg="keys are columns here, as in the paper: is a transpose missing?",
)
print("every value was recalled exactly")

# %% [markdown]
# With keys that are *not* orthogonal the memory mixes values up. That is all that
# can go wrong with an associative memory, and all that the rest of the chapter is
# about. We load the model and MEMIT's settings for it: numbers (`configure`), and what
# MEMIT does differently from ECE (`strategy`).

# %%
model, tokenizer = ece.load(MODEL, DEVICE)
config = presets.configure(MODEL, "memit")
memit = presets.strategy(MODEL, "memit")
state = ece.new_state(model, tokenizer, config, memit)

site = ece.sites(model, config.layers)[-1]
W = site.weight
print(f"edit layers {config.layers}; W is {tuple(W.shape)}: [model, ff]")

# %% [markdown]
# `ece.sites` hands out $W$ with one orientation, a neuron is a column, however
# the checkpoint stores it.
#
# ## Keys
#
# > The process begins by identifying the activation output from the last subject
# > token $S$ at the $l$-th FFN layer, which serves as the key $k_i^l$.
# >
# > — the paper, Section 2
#
# Which token that is, the tokenizer's character offsets decide.

# %%
from ece.facts import decode, encode, locate

fact = facts[0]
ids = encode(tokenizer, fact.text)
last = locate(tokenizer, fact.prompt, fact.subject)[1]
shown = [decode(tokenizer, [i]).strip() for i in ids]
shown[last] = f"[{shown[last]}]"
print(" | ".join(shown))

# %% [markdown]
# The key is what enters $W$ at the marked token. `capture` collects the inputs of
# the down-projections while the model runs.

# %%
from ece.hooks import capture


def key(text, position):
    row = torch.tensor([encode(tokenizer, text)]).to(W.device)
    with capture([site]) as found:
        model(row)
    return found[site.layer][0, position]


k = key(fact.text, last)
print(f"the key has {len(k)} entries, as W has columns: {W.shape[1]}")

# %% [markdown]
# Nothing after the subject can reach its last token, because attention is causal.
# So two prompts that begin with the same subject have *the same key*, whatever
# their relation.

# %%
same = [f"{fact.subject} is a work of", f"{fact.subject} was made in"]
at = [locate(tokenizer, "{} x", fact.subject)[1]] * 2
pair = [key(text, place) for text, place in zip(same, at, strict=True)]
torch.testing.assert_close(
    *pair, msg="the two keys differ: was the position taken from the end?"
)
print("one subject, two questions, one key")

# %% [markdown]
# This is a limit of the method, and one that is easy to overlook: at one layer, a
# subject has one value for all its facts. A change of its genre has to leave
# room for its author in the *same* vector.
#
# What does move the key is the text *before* the subject. So a key is taken under
# a few random prefixes too (*contexts* in the code), and the book uses MEMIT's mixture: half the key of
# the bare prompt, half the mean over the prefixed ones.

# %%
from ece import engine
from ece.objective import mix

reader = engine.reader(
    model, tokenizer, facts, state.contexts, config.max_tokens
)
per_context, _, _ = reader.read(site.layer, site.layer)
K = mix(per_context)  # [edit, ff]
print(f"{len(state.contexts)} contexts, keys {tuple(K.shape)}")

# %% [markdown]
# Keys are good addresses if a subject keeps its key under different prefixes while
# different subjects have different keys. The cosine measures both.

# %%
unit = torch.nn.functional.normalize(per_context.float(), dim=2)
within = (unit[:, :1] * unit[:, 1:]).sum(2).flatten().cpu()
cosine = unit[:, 0] @ unit[:, 0].T
between = cosine[~torch.eye(len(facts), dtype=torch.bool)].cpu()
print(f"mean cosine, same subject: {within.mean():.2f}, "
      f"two subjects: {between.mean():.2f}")
above = (between > 0.5).double().mean()
print(f"pairs of subjects above 0.5: {above:.0%}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Cosines of keys: of one subject under two prefixes, and of two subjects. A subject keeps its key, and some pairs of subjects have similar ones.", "name": "fig-memory-cosines"}, "image": {"alt": "Two histograms of cosines. That of one subject under two prefixes stands close to 1; that of two subjects is wide, from below 0 to about 0.5, with few pairs beyond."}}
figure, ax = plt.subplots()
bins = torch.linspace(-0.2, 1, 49).tolist()
ax.hist(between, bins, density=True, color=plots.GREY, alpha=0.8,
        label="two subjects")
ax.hist(within, bins, density=True, color=plots.BLUE, alpha=0.7,
        label="same subject,\ntwo prefixes")
ax.set(xlabel="cosine of two keys", ylabel="density", yticks=[])
ax.legend(loc="upper center")
plt.show()

# %% [markdown]
# Prefixes change a key little. But keys of some pairs of subjects overlap, and this
# overlap is the channel through which an edit reaches what it should not.
#
# ## Values
#
# A value to write, $z_i$, is a state of the residual stream that makes the model
# say the new answer. It is found by gradient descent on a vector $\delta$ added
# at the subject's last token; the weights stay as they are. Here we only use the
# result; {doc}`01_atlas` says why that token, and the two-step descent of
# the paper has its own chapter, {doc}`05_two_step`.

# %%
count = 20
values = ece.compute_values(model, tokenizer, facts[:count], state, config)
print("mean probability of the new answer: "
      f"{values.before.mean():.2f} -> {values.after.mean():.2f}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Probability of the new answer while its value is sought; a thin line for each of 20 facts, the thick one is their mean.", "name": "fig-memory-values"}, "image": {"alt": "Lines of probability against gradient steps. Most rise from 0 to above 0.9 within five steps, a few later; the mean ends at 0.97."}}
figure, ax = plt.subplots()
ax.plot(values.losses.exp().reciprocal().cpu(), color=plots.SKY, lw=0.8)
ax.plot(values.losses.exp().reciprocal().mean(1).cpu(), color=plots.BLUE)
ax.set(xlabel="gradient step", ylabel="probability of the new answer",
       ylim=(0, 1.02))
plt.show()

# %% [markdown]
# With the vectors in place the model gives the new answers, although no weight has
# changed. (A fact leaves the descent once its loss is below `stop`, and a vector may
# not grow beyond a multiple of the state it is added to.) What is left is to make the
# weights produce these vectors.
#
# ## The old knowledge
#
# The paper writes the update as a compromise between new pairs $(K_1, V_1)$ and
# old ones $(K_0, V_0)$, keys and values being columns:
#
# \begin{equation*}
# \begin{aligned}
# \Delta = \arg\min_{\Delta}\; & \lVert (W+\Delta)K_1 - V_1 \rVert^2 \\
# {}+{} & \lVert (W+\Delta)K_0 - V_0 \rVert^2
# \end{aligned} \tag{3}
# \end{equation*}
#
# Nobody has a list of a model's old keys. But the second term needs only their
# second moment: as $W K_0 = V_0$, it equals
# $\lVert \Delta K_0\rVert^2 = \operatorname{tr}(\Delta\, K_0 K_0^\top \Delta^\top)$.
# And $K_0 K_0^\top \approx \lambda\, \mathbb{E}[k k^\top]$ can be estimated from
# ordinary text, any token of it.

# %%
stats = ece.second_moment(
    model, tokenizer, atlas.corpus(800), config.layers
)
C0 = stats.moments[site.layer]
print(f"{stats.tokens} tokens, C0 is {tuple(C0.shape)}, {C0.dtype}")

# %% [markdown]
# The formula by hand, on one short text, against the function that the book uses:

# %%
text = atlas.corpus(1)[0]
row = torch.tensor([encode(tokenizer, text)]).to(W.device)
with capture([site]) as found:
    model(row)
keys = found[site.layer][0].double()
by_hand = sum(torch.outer(k, k) for k in keys) / len(keys)
of_one = ece.second_moment(model, tokenizer, [text], (site.layer,))
torch.testing.assert_close(
    of_one.moments[site.layer], by_hand, atol=1e-5, rtol=1e-5,
    msg="a mean over tokens: was the sum divided, and by all of them?",
)
print("second moment agrees")

# %% [markdown]
# Its eigenvalues say in which directions the old keys lie: along the first few
# they are long, along most they are short. An update that points into
# the short directions disturbs little.

# %%
spectrum = torch.linalg.eigvalsh(C0).flip(0).clamp_min(0).cpu()
half = int((spectrum.cumsum(0) < spectrum.sum() / 2).sum()) + 1
print(f"half of the keys' squared length lies in {half} of "
      f"{len(spectrum)} directions")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Eigenvalues of the second moment: old keys are long in few directions and short in most.", "name": "fig-memory-spectrum"}, "image": {"alt": "A line that falls on a logarithmic axis, steeply over the first directions, more slowly after them, and far below one millionth at the end."}}
figure, ax = plt.subplots()
ax.semilogy(range(1, len(spectrum) + 1), spectrum, color=plots.BLUE)
ax.set(xlabel="direction", ylabel="mean square of keys along it")
plt.show()

# %% [markdown]
# ## The update
#
# Setting the derivative of Eq 3 to zero gives
#
# \begin{equation*}
# \begin{aligned}
# \Delta &= R K_1^\top \left( \lambda C_0 + K_1 K_1^\top \right)^{-1} \\
# R &= V_1 - W K_1
# \end{aligned} \tag{4}
# \end{equation*}
#
# where $C_0 = \mathbb{E}[k k^\top]$. Here $R$ is the change $z_i - h_i$
# that each fact needs. In the code a fact is a row of $K$, so $K_1$ of the paper
# is `K1.T`.

# %%
from ece.solver import Knowledge, solve

toy = torch.randn(50, 6, generator=draw)
toy_C0 = toy.double().T @ toy.double() / len(toy)
toy_K = torch.randn(3, 6, generator=draw).double()
toy_R = torch.randn(4, 3, generator=draw).double()
system = 2.0 * toy_C0 + toy_K.T @ toy_K

# %%
by_hand = toy_R @ toy_K @ torch.linalg.inv(system)
known = Knowledge(toy_C0, toy_C0.diagonal() > 0)  # all six neurons
torch.testing.assert_close(
    solve(toy_R, toy_K, known, lam=2.0).delta, by_hand,
    msg="is the key transposed, or lambda on the wrong term?",
)
print("the update agrees")

# %% [markdown]
# On the model itself the inverse has to be taken with care. Some neurons hardly ever fire, so the
# matrix has directions with next to no weight, and an exact solution fills them. Two safeguards
# of `ece.solver` deal with it, neither of them in the paper. If the factorisation cannot be
# trusted, a tiny *jitter* is added to the diagonal, and reported. And a *ridge*, a setting, adds
# a share of the mean diagonal of $\lambda C_0$ on purpose. The check is on the equation, since
# without them an inverse is no trustworthy judge.

# %%
K1 = K[:count].double()
R = values.delta.T.double()  # [model, edit]
everyone = torch.ones(K1.shape[1], dtype=torch.bool, device=K1.device)


def update(lam, ridge=config.ridge):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly singular: see below
        return solve(R, K1, Knowledge(C0, everyone), lam, ridge)


# %%
delta, jitter = update(config.lam)
old = config.lam * C0.to(K1)
one = torch.eye(len(old)).to(K1)
system = old + K1.T @ K1 + config.ridge * old.diagonal().mean() * one
system += jitter * system.diagonal().mean() * one
off = (delta @ system - R @ K1).norm() / (R @ K1).norm()
print(f"Delta is {tuple(delta.shape)}; Eq 4 holds: {bool(off < 1e-6)}")

# %%
with warnings.catch_warnings(record=True) as caught:
    plain, plain_jitter = solve(R, K1, Knowledge(C0, everyone), config.lam)
for warning in caught:
    print("without ridge:", str(warning.message).split(" (")[0])
print(f"jitter without ridge {plain_jitter:g}, with it {jitter:g}")
print(f"longest column: Eq 4 {plain.norm(dim=0).max():.0e}, with "
      f"ridge {delta.norm(dim=0).max():.0f}, "
      f"W {W.norm(dim=0).max():.1f}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Each neuron's column of the update against how strongly it fires in text. Without a ridge, nearly silent neurons get the longest columns.", "name": "fig-memory-ridge"}, "image": {"alt": "A scatter plot on logarithmic axes. Grey dots, Eq 4 as it stands, rise above 10,000 towards neurons that hardly fire; blue dots, with a ridge, stay below 100 and fall there instead."}}
fires = C0.diagonal().sqrt().cpu()
figure, ax = plt.subplots(figsize=(5.8, 3.9))
for D, hue, name in ((plain, plots.GREY, "Eq 4 as it stands"),
                     (delta, plots.BLUE, f"ridge {config.ridge:g}")):
    ax.loglog(fires, D.norm(dim=0).cpu(), ".", color=hue, markersize=3,
              label=name)
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2,
          markerscale=3)
ax.set(xlabel="how strongly the neuron fires in text (rms)",
       ylabel=r"norm of its column of $\Delta$")
plt.show()

# %% [markdown]
# Towards the left are neurons that are next to silent in text. Old keys do not use
# them, so writing there costs Eq 4 nothing, and without a ridge the edit rests on
# neurons that hardly ever fire. The measured rates need not suffer, since the test
# prompts do not use them either. The ridge makes such columns cost something; where
# the preset has none, both clouds are one. Choosing neurons leaves out many of them
# too, and the paper names them when it argues for that:
#
# > […] inactive or "dead" neurons consume capacity without contributing
# > meaningfully to the model's output. Editing both inactive and critical
# > neurons indiscriminately can reduce the precision of updates.
# >
# > — the paper, Section 3.1

# %% [markdown]
# `everyone` chooses all neurons, as MEMIT does; choosing among them is the
# subject of {doc}`03_scoring`. `Knowledge` has room for the keys of earlier batches
# too, of which there are none yet.
#
# ```{admonition} A mean and a sum
# :class: note
# $C_0$ is a mean over tokens while $K_1 K_1^\top$ is a sum over facts. So $\lambda$
# has a unit: it is the number of tokens of old text that the batch is weighed
# against. The paper's 15,000 and 20,000 are for large models and batches of 100; a
# preset for a small model has a small $\lambda$.
# ```
#
# ## What lambda does
#
# $\lambda$ is a dial between the two terms of Eq 3. We turn it, and measure on
# one side how much of $R$ is missed, on the other how far $\Delta$ moves keys that
# should stay: those of facts that were *not* edited, and those of ordinary text
# (the root mean square over tokens, straight from $C_0$).

# %%
others = K[count:].double()
size = R.norm(dim=0).mean()


def effects(lam):
    """In % of the mean change: new missed, others moved, text moved."""
    D, _ = update(lam)
    missed = (D @ K1.T - R).norm(dim=0).mean()
    moved = (D @ others.T).norm(dim=0).mean()
    text = torch.trace(D @ C0.to(D) @ D.T).sqrt()
    return [100 * float(length / size) for length in (missed, moved, text)]


# %%
lams = torch.logspace(-2, 6, 17).tolist()
curves = torch.tensor([effects(lam) for lam in lams]).T
names = ["new facts: missed", "other facts: moved", "any text: moved"]
print("lambda", " " * 15, *(f"{lam:>6g}" for lam in (1, config.lam, 1e4)))
for name, row in zip(names, zip(*map(effects, (1, config.lam, 1e4)))):
    print(f"{name:20} %", *(f"{value:6.1f}" for value in row))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What $\\lambda$ does: the share of the new facts that is missed, and how far other facts and ordinary text are moved, in % of the mean change.", "name": "fig-memory-lambda"}, "image": {"alt": "Three curves over lambda from 0.01 to a million. The share of new facts missed rises from near 0 to 100 percent; the movement of other facts and of text falls from its start to 0 over the same range."}}
figure, ax = plt.subplots(figsize=(5.8, 3.9))
looks = zip(curves, names, (plots.RED, plots.BLUE, plots.GREY),
            ("-", "--", ":"), strict=True)
for curve, name, hue, dash in looks:
    ax.semilogx(lams, curve, color=hue, linestyle=dash, label=name)
ax.axvline(config.lam, color=plots.BLACK, linewidth=1)
ax.text(config.lam, 101, "preset", ha="center", fontsize=9)
ax.set(xlabel=r"$\lambda$, tokens", ylabel="% of the mean change",
       ylim=(0, 100))
ax.legend(loc="center left", frameon=True, framealpha=1, edgecolor="w")
plt.show()

# %% [markdown]
# To the left the new facts are fitted exactly and the others are disturbed; to the
# right nothing is disturbed because nothing is learned. In between nothing is free:
# where the disturbance falls, the fit gets worse with it.
#
# Why are the curves flat on the left? There are more neurons than facts, so many
# updates fit exactly. Even a tiny $\lambda$ picks the one among them that moves
# ordinary text least, and that choice costs nothing.
#
# The dashed line, facts that were not edited, is not what $C_0$ protects: they are
# a small part of all tokens. Which answer the model gives in the end is another
# question; it depends on margins, and later chapters measure it.
#
# Each fact for itself: move the slider.

# %% tags=["hide-input"]
from ece.book.slider import slider

weights = lams[::2]


def fact_by_fact(lam):
    """In % of the mean change: new facts missed, other facts moved."""
    D, _ = update(lam)
    return [100 * (part.norm(dim=0) / size).sort().values.cpu()
            for part in (D @ K1.T - R, D @ others.T)]


# %% tags=["hide-input"]
def draw_facts(i):
    figure, ax = plt.subplots(figsize=(5.8, 3.4))
    hues, shapes = (plots.RED, plots.BLUE), ("o", "^")
    for part, hue, shape, name in zip(
            fact_by_fact(weights[i]), hues, shapes, names):
        ax.plot(torch.linspace(0, 1, len(part)), part, shape, color=hue,
                markersize=4, label=name)
    ax.set(ylim=(-4, 160), xticks=[], xlabel="facts, in order",
           ylabel="% of the mean change")
    ax.legend(loc="upper left")
    return figure


def describe(i):
    missed, moved = map(float, map(torch.mean, fact_by_fact(weights[i])))
    return (f"lambda {weights[i]:g}: new facts miss {missed:.1f} % of the "
            f"change on average, other facts move by {moved:.1f} %.")


labels = [f"{lam:g}" for lam in weights]
slider(draw_facts, labels, "λ =", describe, start=4)

# %% [markdown]
# ## One fact, MEMIT's way
#
# MEMIT makes two more choices. It writes over several layers, each
# taking an equal share of what is left ("spreading"); and keys are computed again
# after each, since the layers below have changed. `edit_batch` does all of it.

# %%
before = {s.layer: s.weight.clone() for s in ece.sites(model)}
edited, report = ece.edit_batch(
    model, tokenizer, facts[:1], stats, state, config
)
change = {
    s.layer: (s.weight - before[s.layer]).double().cpu()
    for s in ece.sites(model)
}
touched = [layer for layer, D in change.items() if D.any()]
print(f"layers written: {touched}, of {len(before)}")

# %% [markdown]
# With one fact $K_1$ is one column, so Eq 4 is an outer product: every layer's
# change has rank one. One direction in the space of keys is answered
# by one direction of the residual stream, and the picture shows both.

# %%
D = change[touched[-1]]
left, strength, right = torch.linalg.svd(D, full_matrices=False)
share = strength[0] ** 2 / (strength**2).sum()
print(f"share of the change that is of rank one: {share:.4f}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The change of the last edit layer for one fact: its direction in the space of keys, and in the residual stream.", "name": "fig-memory-rank-one"}, "image": {"alt": "Two line plots of absolute values. Above, over neurons: a few tall peaks and many small ones. Below, over residual components: values of like size throughout."}}
figure, axes = plt.subplots(2, 1, figsize=(5.8, 4.8))
axes[0].plot(right[0].abs(), color=plots.BLUE, lw=0.8)
axes[0].set(xlabel="neuron", ylabel="key side")
axes[1].plot(left[:, 0].abs(), color=plots.RED, lw=0.8)
axes[1].set(xlabel="residual component", ylabel="value side")
plt.show()

# %% [markdown]
# A few neurons carry much of the key side and very many carry a little. MEMIT
# writes to all of them. Whether the many little ones matter is the question from
# which the next chapter sets out. The rates of this fact, before and after:

# %%
from ece.evaluation.metrics import evaluate

now = evaluate(model, tokenizer, facts[:1]).summary()
ece.undo(model, edited)
was = evaluate(model, tokenizer, facts[:1]).summary()
for name in ("efficacy", "generalization", "specificity"):
    print(f"{name:15} {was[name]:5.0f} % -> {now[name]:5.0f} %")

# %% [markdown]
# These are percentages over the few prompts of one fact: an illustration, not a
# measurement.
#
# ## Summary
#
# - An MLP answers a key (its neurons' activations) with a value (its output). The
#   key of a fact is read at the subject's last token, and belongs to the subject:
#   the relation does not enter.
# - Keys of different subjects overlap, so what is written for one reaches others,
#   weakly.
# - Eq 3 balances new pairs against old ones, Eq 4 solves it in closed form, and of
#   the old keys it needs the second moment $C_0$ only.
# - A larger $\lambda$ disturbs less and learns less.
# - With all neurons to choose from, Eq 4 writes most to those that are nearly silent;
#   a ridge, which the paper does not have, prevents that.
# - MEMIT is this update with all neurons, spread over a few layers.
#
# **Next:** {doc}`03_scoring` asks which neurons carry a fact. What a sequence of
# batches adds to the old knowledge comes in {doc}`07_sequential`.
#
# The last cell asserts what the page has claimed.

# %% tags=["hide-input"]
assert within.mean() > between.mean() + 0.2, "a subject keeps its key"
assert (values.after > values.before).float().mean() > 0.9
assert off < 1e-6, "the update solves Eq 4, with ridge and jitter"
assert delta.norm() <= 1.01 * plain.norm(), "a ridge shortens the update"
if MODEL == "atlas-gpt2" and not DATA:
    longest = plain.norm(dim=0).max() / W.norm(dim=0).max()
    assert longest > 1e4, "columns of nearly silent neurons"

# %% tags=["hide-input"]
# In percent; the jitter may differ from one lambda to the next.
assert (curves[0].diff() > -2).all(), "the fit falls as lambda grows"
assert (curves[2].diff() < 2).all(), "the disturbance of text falls too"
assert curves[0, 0] < 5 and curves[2, -1] < curves[2, 0] / 5
assert touched == list(config.layers), "only the edit layers are written"
assert share > 0.99, "one fact is an update of rank one"
assert all(
    torch.equal(s.weight, before[s.layer]) for s in ece.sites(model)
), "undo must restore the weights"
