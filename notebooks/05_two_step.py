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
# Before a fact can be written, one needs the state that its subject should have in
# the residual stream. That vector, the value $z_i$, is found by gradient
# descent, and nearly all of an edit's time goes there. The paper saves time by
# sharing: 20 of 25 steps are taken once per group, on the anchor, and only five by
# each fact (Eq 11–13). This page rebuilds both phases, counts the steps, and asks
# **whether the shared steps are worth more than no steps at all**.
#
# **What was found**
#
# - The shared vector $U$ pushes members towards the anchor's answer more than towards their own;
#   the old answer is still likelier than both. A member that needs a
#   different answer from its anchor has a loss of 8.5 nats at its anchor's $U$, and of 9.2 at
#   zero.
# - At equal numbers of gradient passes $U$ brings nothing: seven own steps from zero
#   reach a lower loss, and after writing, the two ways differ by less than the noise. At a
#   third of the learning rate the loss with $U$ is twice as high as without.
# - The passes saved, 280 in place of 1,000, are saved by taking fewer steps. To
#   stop a fact once it is done takes 187, without groups, and scores as well.

# %% tags=["hide-input"]
import os
from dataclasses import fields, replace

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
config = presets.configure(MODEL, "ece-rs", clusters=4)
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

from ece.facts import encode, locate, target_ids
from ece.hooks import add_at

one, layer = facts[0], config.layers[-1]
site = ece.sites(model, (layer,))[0]
answer = target_ids(tokenizer, one.target)


# %%
def log_p(text, prompt, delta, extra=()):
    """Log-probabilities after every token, with delta at the subject."""
    at = torch.tensor([locate(tokenizer, prompt, one.subject)[1]])
    ids = torch.tensor([encode(tokenizer, text) + list(extra)])
    with add_at(site, at.to(model.device), delta[None]):
        logits = model(ids.to(model.device), use_cache=False).logits
    return logits[0].float().log_softmax(-1)


# %%
bare = replace(config, contexts=0)
zero = torch.zeros(model.config.hidden_size, device=model.device)
usual = log_p(f"{one.subject} is a", "{} is a", zero)[-1].detach()


# %%
def loss_of(delta, norm):
    found = log_p(one.text, one.prompt, delta, answer[:-1])
    nll = -found[-len(answer):].gather(
        1, torch.tensor(answer, device=found.device)[:, None]
    ).mean()
    now = log_p(f"{one.subject} is a", "{} is a", delta)[-1]
    kl = kl_div(usual, now, reduction="sum", log_target=True)
    decay = config.weight_decay * delta.norm() / norm**2
    return nll + config.kl_factor * kl + decay


# %% [markdown]
# `prepare` turns facts into an objective: everything below the value and before
# the subject is run once and stored. `descend` then moves the values of all facts
# at once; each has its own Adam, so a fact moves as if it were alone. Five steps of
# it must be five steps of the loop above.

# %%
from ece.descent import descend

alone = engine.prepare(model, tokenizer, [one], ("{}",), bare, layer)
fast = descend(alone, bare, 5)

norm = alone.hidden.norm()
delta = zero.clone().requires_grad_()
adam = torch.optim.Adam([delta], lr=config.lr)

# %%
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

# %%
gap = (delta.detach() - fast.delta[0]).norm() / fast.delta[0].norm()
print(f"NLL before and after five steps: "
      f"{fast.losses[0, 0]:.2f} -> {fast.losses[-1, 0]:.2f}")
print(f"length of the value over that of h: "
      f"{fast.delta[0].norm() / norm:.2f}")
print(f"as the loop by hand, to 0.1 %: {bool(gap < 1e-3)}")

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

problem = engine.prepare(
    model, tokenizer, facts, state.contexts, config, layer
)
groups = groups_of(problem, site.weight, config)
common = config.steps - config.own_steps

first = descend(problem.take(groups.medoids), config, common)
U = first.delta[groups.labels]
second = descend(problem, config, config.own_steps, start=U)

# %%
anchored = two_step(problem, site.weight, config)
torch.testing.assert_close(
    second.delta, anchored.delta,
    msg="phase 2 starts at U and needs a fresh Adam",
)
torch.testing.assert_close(anchored.z, problem.hidden + second.delta)
sizes = torch.bincount(groups.labels)
print("facts per group:", *sizes.tolist())

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Loss over the two phases: left of the dashed line the fact's anchor, right of it the fact itself.", "name": "fig-two-step-phases"}, "image": {"alt": "Lines of loss against gradient steps. On the left the anchors' losses fall to 0 within two steps. At the dashed line the losses jump up to a mean of about 8, and fall to 0.2 again in five steps."}}
path = torch.cat([first.losses[1:, groups.labels], second.losses])
figure, ax = plt.subplots()
plots.loss_phases(path.numpy(), path.mean(1).numpy(), common, ax)
ax.legend(loc="center left")
plt.show()

# %% [markdown]
# Left of the dashed line each fact is shown with its *anchor's* loss, which falls as
# it should. At the line the same $U$ is measured on the member's own answer, and
# the loss jumps up. The five own steps bring it down again. How high is that jump?

# %%
members = torch.ones(len(facts), dtype=torch.bool)
members[groups.medoids] = False
end_of_anchor = first.losses[-1].mean()
at_start = problem.nll[members].mean()
at_U = second.losses[0][members].mean()
print("NLL of the own new answer, nats per token")
print(f"anchors, after their 20 steps: {end_of_anchor:6.2f}")
print(f"members, at U = 0:             {at_start:6.2f}")
print(f"members, at their anchor's U:  {at_U:6.2f}")

# %% [markdown]
# If $U$ held what a group has in common, the last number would be well below the one
# before it. It is not: members begin phase 2 hardly better off than at zero.
#
# ## Where U points
#
# The anchor's search minimises the loss of the *anchor's* answer. So we look at three
# answers to the members' prompts: their old one, their own new one, and their
# anchor's. The same objective with other targets gives the probabilities.

# %%
@torch.no_grad()
def probability(answers, total):
    """Of each fact's answer, with values `total` in place: [edit]."""
    others = [replace(f, target=a) for f, a in zip(facts, answers)]
    other = engine.prepare(
        model, tokenizer, others, state.contexts, config, layer
    )
    nll = torch.zeros(len(facts), device=total.device)
    for part in other.parts:
        nll[part.facts], _ = part.losses(total[part.facts])
    return (-nll).exp()


# %%
of_anchor = [facts[i].target for i in groups.medoids[groups.labels]]
apart = torch.tensor(
    [a not in (f.target, f.true) for a, f in zip(of_anchor, facts)]
)
stages = {"U = 0": torch.zeros_like(U), "U": U, "U + δ": second.delta}
answers = {
    "old": [f.true for f in facts],
    "own new": [f.target for f in facts],
    "anchor's": of_anchor,
}

# %%
chance = {
    name: [float(probability(a, t)[apart].mean()) for t in stages.values()]
    for name, a in answers.items()
}
print("probability, %", *(f"{stage:>7}" for stage in stages))
for name, row in chance.items():
    print(f"{name:14}", *(f"{100 * value:7.0f}" for value in row))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Probability of three answers to the members' prompts: before, with the anchor's U in place, and after five own steps.", "name": "fig-two-step-answers"}, "image": {"alt": "Three groups of three bars. At U = 0 the old answer has 71 percent and the others none. At U the old answer has 31 percent, the anchor's 17, the member's own new answer 5. After the own steps the own new answer has 89."}}
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
# them. $U$ pushes the old answer down, but what rises on a prompt about somebody else is
# the *anchor's* answer; the answer that the member needs gains little.
#
# Does $U$ point roughly the right way all the same? Each fact's own full descent
# shows the way; the cosine between the two says how far $U$ goes along with it, and the
# $U$ of *other* groups are the comparison.

# %%
plain = descend(problem, config, config.steps)
between = torch.nn.functional.cosine_similarity(
    plain.delta[:, None], first.delta[None], dim=2
).cpu()
every = torch.arange(len(groups.medoids))
own = groups.labels[:, None] == every
with_own = between[own & members[:, None]]
with_other = between[~own & members[:, None]]
print("mean cosine with the fact's own descent:")
print(f"U of the own group {with_own.mean():.2f}, "
      f"of others {with_other.mean():.2f}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Cosine between a fact's own full descent and U, that of its group and those of other groups.", "name": "fig-two-step-cosine"}, "image": {"alt": "Two histograms that lie over each other, equally wide and centred near 0."}}
figure, ax = plt.subplots()
bins = np.linspace(-0.5, 1, 31)
ax.hist(with_other, bins, density=True, color=plots.GREY, alpha=0.7,
        label="U of other groups")
ax.hist(with_own, bins, density=True, color=plots.GREEN, alpha=0.7,
        label="U of the own group")
ax.set(xlabel="cosine with the fact's own descent", ylabel="density")
ax.legend()
plt.show()

# %% [markdown]
# $U$ is hardly closer to what its members need than the $U$ of any other group. Shared
# *neurons* do not make *answers* similar, as {doc}`04_grouping` led us to expect.
#
# ## Six ways to spend steps
#
# Is $U$ worth its steps all the same? One pass is one fact going forward and
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
# "anchor" is this book's reading of Eq 11, the anchor alone; "mean" takes the paper's words
# "the average loss" to mean the group. "zero" and "equal" are controls: they leave phase 1
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

# %%
settings = {n: replace(config, **own) for n, own in recipes.items()}
values = {
    name: ece.compute_values(model, tokenizer, facts, state, setting)
    for name, setting in settings.items()
}
torch.testing.assert_close(values["anchor"].delta, anchored.delta)

# %%
def passes(found):
    """Forward-backward passes of single facts, both phases."""
    shared = 0 if found.shared is None else int(found.shared.steps.sum())
    return int(found.steps.sum()) + shared


count = {name: passes(found) for name, found in values.items()}
B, groups_count = len(facts), len(groups.medoids)
assert count["anchor"] == common * groups_count + config.own_steps * B
assert count["mean"] == count["plain"] == config.steps * B
print(count)

# %% [markdown]
# The figure puts all of them on one axis: passes per fact, the shared ones included.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Mean loss of a fact against the gradient passes spent on it, shared ones included.", "name": "fig-two-step-passes"}, "image": {"alt": "Five falling lines of mean loss. Plain, stop and equal begin at 0 passes and fall from 9 to below 0.3 within seven; anchor begins at 2 passes, at a loss of 8, and ends beside equal at 7; mean begins at 20 passes."}}
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
# "anchor" begins later by what phase 1 has cost. The green and the red line end at the
# same number of passes: the difference in height is the value of $U$, and here it is
# negative. "mean" has spent 20 passes a fact before its first own step, so it saves
# nothing, whatever it reaches.
#
# How much the own steps can make up may depend on their length. With a third of
# the preset's learning rate:

# %%
slow = {
    name: two_step(
        problem, site.weight, replace(settings[name], lr=config.lr / 3)
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
    edited, _ = ece.edit_batch(
        model, tokenizer, facts, stats, state, settings[name], found
    )
    scores[name] = evaluate(model, tokenizer, facts)
    state = ece.undo(model, edited)

# %%
print("        pass  NLL   eff.  gen.  spec. score")
summary = {name: rates.summary() for name, rates in scores.items()}
for name, rates in summary.items():
    row = f"{name:7}{count[name]:5}{values[name].losses[-1].mean():5.1f}"
    kinds = ("efficacy", "generalization", "specificity", "score")
    print(row, *(f"{rates[kind]:5.1f}" for kind in kinds))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Score after writing, by way of spending steps; in brackets the passes per fact. More passes do not give a higher score.", "name": "fig-two-step-scores"}, "image": {"alt": "Six rows with one dot each, from stop with the fewest passes a fact to plain and mean with the most; all dots lie within two points of each other, and they do not rise with the passes."}}
figure, ax = plt.subplots(figsize=(5.8, 3.2))
ranked = sorted(summary, key=count.get)
for row, name in enumerate(ranked):
    ax.plot(summary[name]["score"], row, "o",
            color=looks.get(name, plots.BLACK))
ax.set(xlabel="score, %", xlim=(90, 100), ylim=(-0.6, len(ranked) - 0.4),
       yticks=range(len(ranked)))
ax.set_yticklabels([f"{n} ({count[n] / B:.0f})" for n in ranked])
plt.show()

# %%
def against(name, other):
    """Mean rate per fact, one way minus another, as a sentence."""
    each = [
        np.nanmean([r.efficacy, r.generalization, r.specificity], axis=0)
        for r in (scores[name], scores[other])
    ]
    gap = 100 * (each[0] - each[1])
    half = 1.96 * gap.std(ddof=1) / len(gap) ** 0.5
    word = "clear" if abs(gap.mean()) > half else "within the noise"
    return f"{name} - {other}: {gap.mean():+.1f} +- {half:.1f}, {word}"


# %%
print(against("anchor", "equal"))
print(against("anchor", "plain"))
print(against("stop", "plain"))
share = count["stop"] / count["plain"]
print(f"stop needs {share:.0%} of plain's passes")

# %% [markdown]
# Each line gives the mean of the three rates, fact by fact, one way minus the other, with
# a 95 % interval. The comparison to look at is "anchor" against "equal": the same
# number of passes, with and without $U$. Both "anchor" and "stop" are ahead of "plain": 25 steps
# for every fact cost its neighbours.
#
# ```{admonition} What this means, and what it does not
# :class: warning
# On the atlas models little speaks for the shared phase: facts that share neurons
# want different answers, and steps towards somebody else's answer have to be
# taken back. At the preset's learning rate five own steps nearly manage that, and the
# score does not suffer; at a third of it they do not. The saving over 25 steps for each
# fact is real, but it comes from taking *fewer steps*, which needs no anchors. The
# atlas models are
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
paper = presets.configure(MODEL, "ece-rs")
plus = presets.configure(MODEL, "ece-plus")
print(f"{'setting':10} {'ece-rs':>9} {'ece-plus':>9}")
for name in [field.name for field in fields(paper)]:
    pair = getattr(paper, name), getattr(plus, name)
    if pair[0] != pair[1]:
        print(f"{name:10}", *(f"{value!s:>9}" for value in pair))
print(presets.strategy(MODEL, "ece-plus"))

# %% [markdown]
# It has the history of Eq 14, as the paper does, but begins at $U = 0$, lets a
# fact leave the descent when its NLL is below `stop`, and writes all columns
# (what choosing costs is on the next page). Its strategy has three settings more:
# `values_from`, the weights that values come from, and `names`, the share of $C_0$ taken over
# the ends of names ({doc}`15_plus` derives both); and `prompts`, how firmly the rest of the
# edited prompts is kept as it is. `ece-plus` stands beside the paper's methods
# in this book, never in place of them. On SmolLM2 its preset is another: it starts from a
# learned vector ({doc}`18_six_steps`), keeps the rest of the prompts
# ({doc}`17_real_model`) and does not use the ends of names.
#
# ## Summary
#
# - A value is found by Adam on NLL + KL + decay with a clamp; all facts descend at
#   once, each as if alone.
# - Two steps cost $20K + 5B$ passes in place of $25B$. When the anchor hands $U$
#   over, the loss of its members jumps, because $U$ was found for the anchor's answer.
# - The fair control is not 25 steps but the *same number* of passes from $U = 0$. Against
#   it $U$ gains nothing here.
# - Early stopping saves passes where facts are easy, without a shared phase.
#
# **Next:** {doc}`06_submatrix` writes values to the weights. The last cell asserts
# what this page has claimed.

# %% tags=["hide-input"]
assert fast.losses[-1, 0] < fast.losses[0, 0], "descent descends"
assert at_U > 2 * end_of_anchor, "the loss jumps when U is handed over"
assert chance["anchor's"][1] > chance["anchor's"][0], "U: anchor's answer"
assert chance["anchor's"][1] > chance["own new"][1], "not the member's"
by_anchor = float(second.losses[0][apart].mean())
assert abs(by_anchor - 8.5) < 0.05, "the loss at the anchor's U"
assert abs(float(second.nll[apart].mean()) - 9.2) < 0.05, "and at zero"
assert chance["own new"][2] > chance["own new"][0], "own steps: own answer"
assert abs(with_own.mean() - with_other.mean()) < 0.3

# %% tags=["hide-input"]
if MODEL == "atlas-gpt2" and not DATA:
    ends = {name: v.losses[-1].mean() for name, v in values.items()}
    assert ends["equal"] < ends["anchor"], "U brings no lower loss"
    slow_ends = [slow[n].losses[-1].mean() for n in ("anchor", "equal")]
    assert slow_ends[0] > 1.9 * slow_ends[1], "even less with short steps"
    assert "noise" in against("anchor", "equal"), "nor a higher score"
assert count["equal"] == count["anchor"] < count["plain"]
assert count["stop"] <= count["plain"]
assert summary["plain"]["efficacy"] > 50
published = presets.configure("gpt-j-6b", "ece-rs")
assert (published.steps, published.own_steps) == (25, 5)
