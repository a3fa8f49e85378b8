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
# # Quickstart: one fact, written and taken back
#
# Can a language model be told one new fact, without training it again and
# without upsetting its neighbours? This page does it once, with the method of
# {cite:t}`zhang2025ece`, on a model that comes with the book. Later chapters
# open each step; here the whole way is nine lines.
#
# **What you will see**
#
# - a model, a fact and the settings, each made by one call;
# - the probabilities of the candidate answers before and after the edit, also
#   for a *neighbour*: another subject, with the same old answer, that must keep it;
# - `undo`, which gives back every weight bit for bit.

# %% [markdown]
# ## The edit
#
# To edit is to turn a model $f_\theta$ into one, $f_{\theta'}$, that gives the
# new answer $y_i^e$ inside the scope of the edit and the old one outside it:
#
# \begin{equation*}
# f_{\theta'}(x_i) = \begin{cases}
#   y_i^e & x_i \in I_\text{edit} \\
#   f_\theta(x_i) & x_i \in O_\text{edit}
# \end{cases} \tag{1}
# \end{equation*}
#
# Three optional variables say where the chapter runs: the model, the device, and
# a file of CounterFact records. Without them it is an embedded model on the CPU.

# %%
import os

import ece
from ece import atlas
from ece.data.loading import load_facts

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")

# %% [markdown]
# First what does not depend on the fact. `configure` takes the numbers of the
# model and of the method: "ece-rs" chooses neurons by residual sensitivity (Eq
# 7). The *second moment* of the model's keys says what it knew before (Eq 4);
# it is computed once per model, from any text of the kind it was trained on.

# %%
model, tokenizer = ece.load(MODEL, DEVICE)
config = ece.configure(MODEL, "ece-rs")
facts = load_facts("counterfact", path=DATA)
texts = atlas.corpus(800)
stats = ece.second_moment(model, tokenizer, texts, config.layers)
state = ece.new_state(model, tokenizer, config)

# %% [markdown]
# ```{admonition} On a hub model
# :class: note
# `make book MODEL=gpt2-xl DATA=counterfact.json` runs the same cells. Put some
# thousand lines of Wikipedia into `texts` then: sentences of the embedded world
# are a poor sample of what a large model knows.
# ```
#
# Now the fact. We take the first one that the model states correctly, with a
# neighbour that it states correctly too: only what is there can be changed,
# or damaged.

# %%
from ece.evaluation.metrics import recall


def known(fact):
    asked = [fact.text, *fact.neighbours[:1]]
    return recall(model, tokenizer, asked, [fact.true] * len(asked)).all()


fact = next(fact for fact in facts if fact.neighbours and known(fact))
print(f"{fact.text} ...   {fact.true}  ->  {fact.target}")
print(f"{fact.neighbours[0]} ...   {fact.true}, as before")

# %% [markdown]
# To look at the model from outside we ask both prompts, and read how likely each
# of a few answers is: the new one, the old one, and others that would fit.

# %%
import numpy as np

from ece.evaluation.teacher_forcing import read

others = {f.true for f in facts if f.relation == fact.relation}
others = sorted(others - {fact.true, fact.target})[:3]
answers = [fact.target, fact.true, *others]


def ask(prompt):
    asked = [(prompt, answer) for answer in answers]
    return np.exp(-read(model, tokenizer, asked)[0])


# %% [markdown]
# And the edit itself. We keep a copy of all weights, only to check `undo` later.

# %%
weights = [parameter.clone() for parameter in model.parameters()]
prompts = (fact.text, fact.neighbours[0])
before = [ask(prompt) for prompt in prompts]

edited, report = ece.edit_batch(
    model, tokenizer, [fact], stats, state, config
)
after = [ask(prompt) for prompt in prompts]

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt

from ece.book import plots

plots.style()
figure, axes = plt.subplots(2, 1, figsize=(4.6, 5.6), sharex=True)
for ax, prompt, old, new in zip(axes, prompts, before, after, strict=True):
    plots.answers(answers, old, new, ax)
    ax.set_title(f"{prompt} ...", fontsize=10)
axes[0].set_xlabel("")
axes[0].legend(loc="center right")
axes[1].get_legend().remove()
plt.show()

# %% [markdown]
# The upper panel is the edited prompt: probability should have moved to the new
# answer, the topmost pair of bars. The lower panel is the neighbour, where the
# two bars of a pair should be equally long. A difference there is the price of
# the edit: the two subjects' keys are not orthogonal, so what is written for one
# is heard by the other ({doc}`02_ffn_memory`). One neighbour is an anecdote; the
# next cell counts all of them, and the prompts in other words.

# %% tags=["nbval-ignore-output"]
from ece.evaluation.metrics import evaluate

rates = evaluate(model, tokenizer, [fact])
print(f"edited prompt:  {rates.efficacy[0]:.0%} say the new answer")
print(f"other wordings: {rates.generalization[0]:.0%} say the new answer")
print(f"neighbours:     {rates.specificity[0]:.0%} keep the old answer")

# %% [markdown]
# The report says where the edit went: in each edit layer only the chosen neurons
# were touched, the other columns of the matrix are as they were.

# %% tags=["nbval-ignore-output"]
width = ece.sites(model)[0].weight.shape[1]
for layer, count in report.neurons.items():
    print(f"layer {layer}: {count} of {width} neurons written")
print(f"probability of '{fact.target}' while looking for the value:")
print(f"{report.probability_before[0]:.3f} -> "
      f"{report.probability_after[0]:.3f}")

# %% [markdown]
# ```{admonition} One fact is no measurement
# :class: warning
# Where the count of neighbours above is well below 100 %, the edit was too strong
# for this fact: a setting that suits a batch ($\lambda$ is weighed against the
# number of facts, {doc}`02_ffn_memory`) can be too strong for one. The fact was
# not chosen for its result. Rates over many facts are in the chapters that measure.
# ```
#
# ## The way back
#
# Editing is worth little if it cannot be taken back. The state carries the old
# columns of each batch, so `undo` needs no second copy of the model.

# %%
import torch

changed = [
    not torch.equal(kept, now)
    for kept, now in zip(weights, model.parameters(), strict=True)
]
restored = ece.undo(model, edited)
exact = all(
    torch.equal(kept, now)
    for kept, now in zip(weights, model.parameters(), strict=True)
)
print(f"{sum(changed)} of {len(weights)} tensors were changed")
print(f"all bits as before the edit: {exact}")

# %% [markdown]
# The number of changed tensors is the number of edit layers: one down-projection
# each, nothing else.
#
# ## Summary
#
# - One call edits (`edit_batch`), one call takes it back (`undo`); the state is a
#   value that is passed in and returned.
# - A single fact is a batch of one. Many facts at once, one after the other, or
#   in batches one after the other use the same functions.
# - The edit wrote to a part of the columns of a few matrices. Which columns, and
#   why those, is the subject of the book.
#
# **Where to go next.** {doc}`01_atlas` shows the world that these models know and
# why they are fair subjects. {doc}`02_ffn_memory` explains the update itself,
# {doc}`03_scoring` the choice of neurons.
#
# The last cell asserts what the page has claimed.

# %%
assert exact, "undo must restore every weight bit for bit"
assert sum(changed) == len(config.layers), "one tensor per edit layer"
assert after[0][0] > before[0][0], "the new answer gained"
again = [ask(prompt) for prompt in prompts]
assert np.array_equal(again, before), "after undo the old answers return"
