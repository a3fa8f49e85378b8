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
# # Two-step descent: what does the anchor's head start buy?
#
# Before a fact can be written, somebody has to know what its subject should *look
# like* in the residual stream. That vector, the value $z_i$, is found by gradient
# descent, and nearly all of an edit's time goes there. The paper saves time by
# sharing: 20 of 25 steps are taken once per group, on the anchor, and only five by
# each fact (Eq 11–13). This page rebuilds both phases, counts the steps, and asks
# **whether the shared steps are worth more than no steps at all**.
#
# **What you will see**
#
# - the loss of a value, rebuilt by hand and compared with the package;
# - the loss of every fact over the two phases, and what happens in between;
# - where the shared vector $U$ points: to whose answer?
# - six ways to spend steps, compared at equal numbers of gradient passes, before
#   and after writing to the weights.

# %%
import os
from dataclasses import replace

import torch

import ece
from ece import atlas
from ece.data.loading import load_facts

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")

model, tokenizer = ece.load(MODEL, DEVICE)
facts = load_facts("counterfact", 40, path=DATA)
config = ece.configure(MODEL, "ece-rs", clusters=4)
state = ece.new_state(model, tokenizer, config)

# %% [markdown]
# Forty facts in four groups: a group of ten on average, so that sharing has
# something to share.
#
# ## The loss of a value
#
# The value enters at the last edit layer $L$, at the last token of the
# subject: the state $h_i^L$ there becomes $h_i^L + \delta$. The paper writes the
# search as
#
# $$
# \delta_i^* = \arg\min_{\delta} -\log \mathbb{P}_{G(h_i^L + \delta)}(y_i^e \mid x_i)
# $$
#
# and in its appendix C gives three more numbers, which MEMIT
# {cite:p}`meng2023memit` explains. The loss that is minimised is
#
# $$
# \overline{\text{NLL}}(y_i^e)
#   + c_\text{KL}\, \text{KL}_\text{"\{s\} is a"}
#   + c_\text{decay}\, \frac{\lVert\delta\rVert}{\lVert h_i\rVert^2}
# $$
#
# where the NLL is per token and averaged over random prefixes, and the KL divergence
# keeps what the model says after "{subject} is a". After each step, a value
# longer than `clamp` times $\lVert h_i \rVert$ is shortened to that length.
#
# Here it is for one fact and no prefixes, in the most literal way: the whole
# model, a hook, PyTorch's own Adam.

# %%
from torch.nn.functional import kl_div

from ece.facts import encode, subject_last, target_ids
from ece.hooks import add_at

one, layer = facts[0], config.layers[-1]
site = ece.sites(model, (layer,))[0]
answer = target_ids(tokenizer, one.target)


def log_p(text, prompt, delta, extra=()):
    """Log-probabilities after every token, with delta at the subject."""
    at = torch.tensor([subject_last(tokenizer, prompt, one.subject)])
    ids = torch.tensor([encode(tokenizer, text) + list(extra)])
    with add_at(site, at.to(model.device), delta[None]):
        logits = model(ids.to(model.device), use_cache=False).logits
    return logits[0].float().log_softmax(-1)


# %%
bare = replace(config, contexts=0)
zero = torch.zeros(model.config.hidden_size, device=model.device)
usual = log_p(f"{one.subject} is a", "{} is a", zero)[-1].detach()


def loss_of(delta, norm):
    told = log_p(one.text, one.prompt, delta, answer[:-1])
    nll = -told[-len(answer):].gather(
        1, torch.tensor(answer, device=told.device)[:, None]
    ).mean()
    now = log_p(f"{one.subject} is a", "{} is a", delta)[-1]
    kl = kl_div(usual, now, reduction="sum", log_target=True)
    decay = config.weight_decay * delta.norm() / norm**2
    return nll + config.kl_factor * kl + decay


# %% [markdown]
# `prepare` turns facts into a problem: everything below the value and before
# the subject is run once and kept. `descend` then moves the values of all facts
# at once; each has its own Adam, so a fact moves as if it were alone. Five steps of
# it must be five steps of the loop above.

# %%
from ece.descent import descend
from ece.engine.batching import prepare

alone = prepare(model, tokenizer, [one], ("{}",), bare, layer)
fast = descend(alone, bare, 5)

norm = alone.hidden.norm()
delta = zero.clone().requires_grad_()
adam = torch.optim.Adam([delta], lr=config.lr)
for _ in range(5):
    adam.zero_grad()
    loss_of(delta, norm).backward()
    adam.step()
    with torch.no_grad():
        delta *= (config.clamp * norm / delta.norm()).clamp(max=1)
torch.testing.assert_close(
    delta.detach(), fast.delta[0], rtol=1e-2, atol=1e-2 * float(norm),
    msg="is the decay over the norm squared, the clamp after the step?",
)

# %% tags=["nbval-ignore-output"]
gap = (delta.detach() - fast.delta[0]).norm() / fast.delta[0].norm()
print(f"NLL before and after five steps: "
      f"{fast.losses[0, 0]:.2f} -> {fast.losses[-1, 0]:.2f}")
print(f"length of the value over that of h: "
      f"{fast.delta[0].norm() / norm:.2f}")
print(f"relative gap to the loop by hand: {gap:.0e}")

# %% [markdown]
# ## Phase 1: the anchor goes ahead
#
# For each group $C_u$ with anchor $x_\text{anc}$ ({doc}`04_grouping`) the anchor
# takes the first 20 of 25 steps, alone:
#
# \begin{equation*}
# \begin{aligned}
# U_u = \arg\min_{\delta}\, &{-\log}\,
#   \mathbb{P}_{G(h_\text{anc}^L + \delta)} \\
#   &(y_\text{anc}^e \mid x_\text{anc})
# \end{aligned} \tag{11}
# \end{equation*}
#
# ## Phase 2: every fact from there
#
# Each fact starts where its anchor stopped and takes five steps on its own loss,
#
# \begin{equation*}
# \begin{aligned}
# \delta_i^* = \arg\min_{\delta_i}\, &{-\log}\,
#   \mathbb{P}_{G(h_i^L + U_u + \delta_i)} \\
#   &(y_i^e \mid x_i), \quad i \in C_u
# \end{aligned} \tag{12}
# \end{equation*}
#
# and the two parts together are its value:
#
# $$
# z_i = h_i^L + U_u + \delta_i^* \tag{13}
# $$
#
# Clamp and decay act on the sum $U_u + \delta_i$, which is what will be written.

# %%
from ece.descent import groups_of, two_step

problem = prepare(model, tokenizer, facts, state.contexts, config, layer)
groups = groups_of(problem, site.weight, config)
common = config.steps - config.own_steps

first = descend(problem.take(groups.medoids), config, common)
U = first.delta[groups.labels]
second = descend(problem, config, config.own_steps, start=U)

anchored = two_step(problem, site.weight, config)
torch.testing.assert_close(
    second.delta, anchored.delta,
    msg="phase 2 starts at U and needs a fresh Adam",
)
torch.testing.assert_close(anchored.z, problem.hidden + second.delta)

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt
import numpy as np

from ece.book import plots

plots.style()
path = torch.cat([first.losses[1:, groups.labels], second.losses])
figure, ax = plt.subplots()
plots.loss_phases(path.numpy(), path.mean(1).numpy(), common, ax)
plt.show()

# %% [markdown]
# Left of the dashed line each fact is shown with its *anchor's* loss, which falls as
# it should. At the line the vector changes hands: the same $U$ is now
# measured on the member's own answer, and the loss jumps up. The five own steps
# bring it down again. The question is how high that jump is.

# %%
members = torch.ones(len(facts), dtype=torch.bool)
members[groups.medoids] = False
end_of_anchor = first.losses[-1].mean()
at_start = problem.nll[members].mean()
at_U = second.losses[0][members].mean()

# %% tags=["nbval-ignore-output"]
print("NLL of the own new answer, nats per token")
print(f"anchors, after their 20 steps: {end_of_anchor:6.2f}")
print(f"members, at U = 0:             {at_start:6.2f}")
print(f"members, at their anchor's U:  {at_U:6.2f}")

# %% [markdown]
# If $U$ held what a group has in common, the last number would be well below
# the one before it. Where it is as high or higher, members begin phase 2 no
# better off than at zero.
#
# ## Where U points
#
# The anchor's search minimises the loss of the *anchor's* answer. So we ask
# the members' prompts for three answers: their old one, their own new one, and their
# anchor's. The same problem with other targets gives the probabilities.

# %%
from ece.engine.loss import log_probs, nll_of


@torch.no_grad()
def probability(answers, total):
    """Of each fact's `answers` with values `total` in place: [edit]."""
    asked = [replace(f, target=a) for f, a in zip(facts, answers)]
    other = prepare(model, tokenizer, asked, state.contexts, config, layer)
    nll = torch.zeros(len(facts), device=total.device)
    for chunk in other.chunks:
        told, _ = log_probs(chunk, total[chunk.facts])
        nll[chunk.facts] = nll_of(chunk, told)
    return (-nll).exp()


# %%
of_anchor = [facts[i].target for i in groups.medoids[groups.labels]]
apart = torch.tensor(
    [a not in (f.target, f.true) for a, f in zip(of_anchor, facts)]
)
stages = {"U = 0": torch.zeros_like(U), "U": U, "U + δ": second.delta}
asked = {
    "old": [f.true for f in facts],
    "own new": [f.target for f in facts],
    "anchor's": of_anchor,
}
chance = {
    name: [float(probability(a, t)[apart].mean()) for t in stages.values()]
    for name, a in asked.items()
}

# %% tags=["nbval-ignore-output"]
figure, ax = plt.subplots()
shades = (plots.GREY, plots.GREEN, plots.ORANGE)
for i, (name, shade) in enumerate(zip(chance, shades, strict=True)):
    ax.bar(np.arange(3) + 0.27 * (i - 1), 100 * np.array(chance[name]),
           width=0.25, color=shade, label=name)
ax.set_xticks(range(3), list(stages))
ax.set(ylabel="probability, %", ylim=(0, 100))
ax.legend(title="answer", loc="upper center")
plt.show()

# %% [markdown]
# Only members whose anchor wants another answer are counted, which is nearly all of
# them. In the middle group of bars, after the shared phase, the orange bar is
# the anchor's answer on a prompt about somebody else: that is what $U$ has
# brought. The green bar, the answer the member needs, has gained little or nothing.
# The one thing $U$ does for the member is to push the old answer down.
#
# One might still hope that $U$ points roughly the right way. Each fact's own full
# descent tells where it should go; the cosine between the two says how far $U$
# goes along, and the $U$ of *other* groups are the comparison.

# %%
plain = descend(problem, config, config.steps)
between = torch.nn.functional.cosine_similarity(
    plain.delta[:, None], first.delta[None], dim=2
).cpu()
every = torch.arange(len(groups.medoids))
own = groups.labels[:, None] == every
with_own = between[own & members[:, None]]
with_other = between[~own & members[:, None]]

# %% tags=["nbval-ignore-output"]
figure, ax = plt.subplots()
bins = np.linspace(-0.5, 1, 31)
ax.hist(with_other, bins, density=True, color=plots.GREY, alpha=0.7,
        label="U of other groups")
ax.hist(with_own, bins, density=True, color=plots.GREEN, alpha=0.7,
        label="U of the own group")
ax.set(xlabel="cosine with the fact's own descent", ylabel="density")
ax.legend()
plt.show()
print(f"own group: {with_own.mean():.2f}, others: {with_other.mean():.2f}")

# %% [markdown]
# What two values have in common, they have in common whatever the group: the
# two piles lie over each other. A group by shared *neurons* does not make its
# members' *answers* similar, as {doc}`04_grouping` led us to expect.
#
# ## Six ways to spend steps
#
# Now the comparison that matters. A step is counted when one fact goes forward and
# backward once; everything else is small beside it. For $B$ facts in $K$ groups:
#
# | name | phase 1 | phase 2 | passes |
# |---|---|---|---|
# | plain | | 25 each | $25B$ |
# | anchor | 20 on each anchor | 5 each | $20K + 5B$ |
# | mean | 20 on the group's mean loss | 5 each | $25B$ |
# | zero | none, $U = 0$ | 5 each | $5B$ |
# | equal | none, $U = 0$ | 7 each | $7B = 20K + 5B$ |
# | stop | none | up to 25 each | until NLL < 0.05 |
#
# "anchor" is the paper's reading of Eq 11, "mean" takes its words ("the average
# loss") in another way. "zero" and "equal" are controls: they leave phase 1
# out, the second at exactly the paper's price. "stop" lets each
# fact leave when it is done, as the published code does.

# %%
extra = common * len(groups.medoids) // len(facts)
recipes = {
    "plain": dict(clusters=None),
    "anchor": dict(shared="anchor"),
    "mean": dict(shared="mean"),
    "zero": dict(shared="zero"),
    "equal": dict(shared="zero", own_steps=config.own_steps + extra),
    "stop": dict(clusters=None, stop=0.05),
}
values = {"plain": plain, "anchor": anchored}  # from above
for name in ("mean", "zero", "equal", "stop"):
    setting = replace(config, **recipes[name])
    values[name] = two_step(problem, site.weight, setting)

# %%
def passes(found):
    """Forward-backward passes of single facts, both phases."""
    shared = 0 if found.shared is None else int(found.shared.steps.sum())
    return int(found.steps.sum()) + shared


count = {name: passes(found) for name, found in values.items()}
B, groups_count = len(facts), len(groups.medoids)
assert count["anchor"] == common * groups_count + config.own_steps * B
assert count["mean"] == count["plain"] == config.steps * B
print({name: number for name, number in count.items() if name != "stop"})

# %% [markdown]
# The figure puts all of them on one axis: passes per fact, the shared ones included.

# %% tags=["nbval-ignore-output"]
def curve(found):
    """Passes per fact so far, and the mean NLL there (of phase 2)."""
    spent = (passes(found) - int(found.steps.sum())) / B
    taken = [
        float(found.steps.clamp(max=n).sum()) / B
        for n in range(len(found.losses))
    ]
    return spent + np.array(taken), found.losses.mean(1)


figure, ax = plt.subplots()
looks = {"plain": plots.BLUE, "stop": plots.SKY, "equal": plots.RED,
         "anchor": plots.GREEN, "mean": plots.ORANGE}
for name, shade in looks.items():
    ax.plot(*curve(values[name]), ".-", color=shade, label=name)
ax.set(xlabel="gradient passes per fact", ylabel="mean NLL, nats",
       ylim=(0, None))
ax.legend()
plt.show()

# %% [markdown]
# "anchor" sets out later by what phase 1 has cost, and from higher up, because it
# first has to leave the anchor's answer. Follow the green and the red line to where
# both end, at the same number of passes, and compare heights: that is the value of
# $U$. "mean" spends as much as "plain" before its first own step, so it
# saves nothing, whatever it reaches.
#
# How much the five own steps can make up depends on their length. With a third of
# the preset's learning rate:

# %% tags=["nbval-ignore-output"]
slow = {
    name: two_step(
        problem, site.weight,
        replace(config, lr=config.lr / 3, **recipes[name]),
    )
    for name in ("anchor", "equal")
}
for name, found in slow.items():
    print(f"{name:6}  NLL at the preset's rate "
          f"{values[name].losses[-1].mean():.2f}, "
          f"at a third {found.losses[-1].mean():.2f}")

# %% [markdown]
# ## After writing
#
# The loss is not what counts; the edited model is. Each set of values is written
# to the weights ({doc}`06_submatrix`) with equal settings, measured on prompt,
# paraphrases and neighbours, and taken back.

# %%
from ece.evaluation.metrics import evaluate

texts = atlas.corpus(400)
stats = ece.second_moment(model, tokenizer, texts, config.layers)
scores = {}
for name, found in values.items():
    setting = replace(config, **recipes[name])
    edited, _ = ece.edit_batch(
        model, tokenizer, facts, stats, state, setting, found
    )
    scores[name] = evaluate(model, tokenizer, facts)
    state = ece.undo(model, edited)

# %% tags=["nbval-ignore-output"]
print("        pass  NLL   eff.  gen.  spec. score")
summary = {name: rates.summary() for name, rates in scores.items()}
for name, rates in summary.items():
    row = f"{name:7}{count[name]:5}{values[name].losses[-1].mean():5.2f}"
    kinds = ("efficacy", "generalization", "specificity", "score")
    print(row, *(f"{rates[kind]:5.1f}" for kind in kinds))

# %% tags=["nbval-ignore-output"]
figure, ax = plt.subplots(figsize=(4.6, 2.8))
rows = [f"{name}, {count[name] / B:.0f}" for name in summary]
height = [rates["score"] for rates in summary.values()]
shades = [looks.get(name, plots.BLACK) for name in summary]
ax.barh(rows, height, color=shades)
for row, value in enumerate(height):
    ax.text(value + 1, row, f"{value:.1f}", va="center")
ax.invert_yaxis()
ax.set(xlabel="score, %", ylabel="passes per fact", xlim=(0, 115))
ax.grid(axis="y", visible=False)
plt.show()

# %% tags=["nbval-ignore-output"]
def against(name, other):
    """Mean rate per fact, one setting minus another, as a sentence."""
    each = [
        np.nanmean([r.efficacy, r.generalization, r.specificity], axis=0)
        for r in (scores[name], scores[other])
    ]
    gap = 100 * (each[0] - each[1])
    half = 1.96 * gap.std(ddof=1) / len(gap) ** 0.5
    word = "clear" if abs(gap.mean()) > half else "within the noise"
    return f"{name} - {other}: {gap.mean():+.1f} +- {half:.1f}, {word}"


print(against("anchor", "equal"))
print(against("anchor", "plain"))
print(against("stop", "plain"))
share = count["stop"] / count["plain"]
print(f"stop needs {share:.0%} of plain's passes")

# %% [markdown]
# A long bar and a small number is good. The lines above are written by the run: the
# mean of the three rates, fact by fact, one setting minus the other, with a 95 %
# interval. The comparison to look at is "anchor" against "equal": the same number
# of passes, with and without $U$.
#
# ```{admonition} What this means, and what it does not
# :class: warning
# On the atlas models little speaks for the shared phase: facts that share neurons
# want different answers, and steps towards somebody else's answer have to be
# taken back. With a high learning rate five own steps manage that, and the score
# hardly suffers; with a low one they do not. The saving over 25 steps for each fact is real, but it comes from taking
# *fewer steps*, which can be had without anchors. The atlas models are
# small, their facts are short, and their site of storage is known by construction; on
# a large model, where more of a value may be common to all ("say something else here"),
# $U$ may be worth more. The cells above run on any model.
# ```
#
# ## The book's own setting: ece-plus
#
# The paper's method keeps its readings under the names `ece-as`, `ece-wi` and
# `ece-rs`. Beside them the book carries a setting of its own, which the
# paper does not have, with what these pages found to work better:

# %%
print(ece.METHODS["ece-rs"])
print(ece.METHODS["ece-plus"])

# %% [markdown]
# It keeps the history of Eq 14, as the paper does, but begins at $U = 0$, lets a
# fact leave the descent when its NLL is below `stop`, and writes all columns
# (what choosing costs is on the next page). Its `names` is about the solve:
# {doc}`15_plus` derives it. Wherever `ece-plus` occurs in this book, it is this
# setting, and it stands beside the paper's, never in place of it.
#
# ## Summary
#
# - A value is found by Adam on NLL + KL + decay with a clamp; all facts descend at
#   once, each as if alone.
# - Two steps cost $20K + 5B$ passes in place of $25B$. When the anchor hands $U$
#   over, the loss of its members jumps, because $U$ leads to the anchor's answer.
# - The fair control is not 25 steps but the *same number* of passes from $U = 0$.
#   The table shows how that fell on this model.
# - Early stopping saves passes where facts are easy, without a shared phase.
#
# **Next:** {doc}`06_submatrix` writes values to the weights. The last cell asserts
# what this page has claimed.

# %%
assert fast.losses[-1, 0] < fast.losses[0, 0], "descent descends"
assert at_U > 2 * end_of_anchor, "the loss jumps when U is handed over"
assert chance["anchor's"][1] > chance["anchor's"][0], "U: anchor's answer"
assert chance["anchor's"][1] > chance["own new"][1], "not the member's"
assert chance["own new"][2] > chance["own new"][0], "own steps: own answer"
assert abs(with_own.mean() - with_other.mean()) < 0.3
assert count["equal"] == count["anchor"] < count["plain"]
assert count["stop"] <= count["plain"]
assert summary["plain"]["efficacy"] > 50
