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
# Can one new fact be written into a language model, without training it again and
# without upsetting its neighbours? This page does it once, with the method of
# {cite:t}`zhang2025ece`, on a small model that comes with the book.
#
# **What was found**
#
# - Nine lines write a fact. The model then states it, in other words too, and all ten
#   neighbours, subjects with the same old answer, keep theirs.
# - The edit changed some columns of three matrices: 15 to 72 % of the neurons in three
#   layers, and nothing else.
# - `undo` gives back every weight bit for bit.
#
# Three optional variables say where the chapter runs: the model, the device, and
# a file of CounterFact records. Without them it is an embedded model on the CPU.

# %% tags=["hide-input"]
import os

import matplotlib.pyplot as plt
import numpy as np
import torch

import ece
from ece import atlas, presets
from ece.book import plots
from ece.data import load_facts
from ece.evaluation.generation import generate

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")
facts = (load_facts("counterfact", path=DATA) if DATA
         else atlas.facts("counterfact"))
given = facts[0]
plots.style()


# %% tags=["hide-input"]
def show(*prompts):
    """Let the model go on to the end of the sentence, greedily."""
    texts = generate(model, tokenizer, prompts, tokens=24, top_k=1)
    for prompt, text in zip(prompts, texts):
        print(prompt + text.removeprefix(prompt).split(".")[0])


# %% [markdown]
# ## The edit
#
# A *fact* is a prompt with a place for its subject, the subject, and the new answer.
# `given` is the first record of the embedded world; `ece.Fact("The capital of {} is",
# "France", "Lyon")` would be a fact of your own. `configure` takes the numbers of a model
# and a method: "ece-rs" chooses neurons by residual sensitivity (Eq 7). The *second
# moment* of the model's keys stands for what it knew before (Eq 4); it is computed once
# per model, from any text of the kind it was trained on.
#
# Nine lines write the fact; `show`, before and after them, has the model go on from the
# edited prompt and from a neighbour's.

# %%
fact = ece.Fact(given.prompt, given.subject, given.target)
model, tokenizer = ece.load(MODEL, DEVICE)
show(fact.text, given.neighbours[0])

config = presets.configure(MODEL, "ece-rs")
texts = atlas.corpus(800)
stats = ece.second_moment(model, tokenizer, texts, config.layers)
state = ece.new_state(model, tokenizer, config)
edited, report = ece.edit_batch(
    model, tokenizer, [fact], stats, state, config
)
print("\nafter the edit:")
show(fact.text, given.neighbours[0])

# %% [markdown]
# The edited prompt has the new answer, its neighbour the old one. To edit is to turn a
# model $f_\theta$ into one, $f_{\theta'}$, that gives the new answer $y_i^e$ inside the
# scope of the edit and the old one outside it:
#
# \begin{equation*}
# f_{\theta'}(x_i) = \begin{cases}
#   y_i^e & x_i \in I_\text{edit} \\
#   f_\theta(x_i) & x_i \in O_\text{edit}
# \end{cases} \tag{1}
# \end{equation*}
#
# In the scope are other wordings of the same fact. None of them was given to the edit:

# %%
show(*given.paraphrases, *given.generation[:2])

# %% [markdown]
# ```{admonition} On a hub model
# :class: note
# `make book MODEL=gpt2-xl DATA=counterfact.json` runs the same cells. Put some
# thousand lines of Wikipedia into `texts` then: sentences of the embedded world
# are a poor sample of what a large model knows.
# ```
#
# ## How sure is it?
#
# A text shows only the likeliest words. Here are the probabilities of a few answers
# to both prompts: the new one, the old one, and others that would fit.

# %%
from ece.evaluation.teacher_forcing import score_answers

others = {f.true for f in facts if f.relation == given.relation}
others = sorted(others - {given.true, given.target})[:3]
answers = [given.target, given.true, *others]
prompts = (given.text, given.neighbours[0])


def probabilities():
    """Of each answer to each prompt: [prompt, answer]."""
    pairs = [(prompt, answer) for prompt in prompts for answer in answers]
    nll = score_answers(model, tokenizer, pairs).nll
    return np.exp(-nll).reshape(len(prompts), -1)


after = probabilities()
ece.undo(model, edited)
before = probabilities()
edited, report = ece.edit_batch(
    model, tokenizer, [fact], stats, state, config
)
print(" " * 12, *(f"{answer:>10}" for answer in answers))
for where, old, new in zip(("edited", "neighbour"), before, after):
    row = (f"{a:4.2f}->{b:4.2f}" for a, b in zip(old, new))
    print(f"{where:12}", *row)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Probability of five answers before and after the edit: to the edited prompt (above) and to a neighbour's (below).", "name": "fig-quickstart-answers"}, "image": {"alt": "Two panels of horizontal bars. Above, the edited prompt: the old answer falls from about 0.9 to 0 and the new one rises from 0 to most of the probability. Below, the neighbour: the old answer stays where it was."}}
figure, axes = plt.subplots(2, 1, figsize=(4.6, 5.6), sharex=True)
for ax, prompt, old, new in zip(axes, prompts, before, after):
    plots.answers(answers, old, new, ax)
    ax.set_title(f"{prompt} ...", fontsize=10)
axes[0].set_xlabel("")
axes[0].legend(loc="center right")
axes[1].get_legend().remove()
plt.show()

# %% [markdown]
# Where the neighbour's bars differ, that is the price of the edit: the two subjects' keys
# are not orthogonal, so what is written for one reaches the other
# ({doc}`02_ffn_memory`). The next cell counts all neighbours, and the other wordings.

# %%
from ece.evaluation.metrics import evaluate

rates = evaluate(model, tokenizer, [given])
print(f"edited prompt:  {rates.efficacy[0]:.0%} have the new answer")
print(f"other wordings: {rates.generalization[0]:.0%} have the new answer")
print(f"neighbours:     {rates.specificity[0]:.0%} of "
      f"{len(given.neighbours)} have the old answer")

# %% [markdown]
# The report says where the edit went: in each edit layer only the chosen neurons
# were written to, the other columns of the matrix are as they were.

# %%
width = ece.sites(model)[0].weight.shape[1]
for layer, count in report.neurons.items():
    print(f"layer {layer}: {count} of {width} neurons")
losses = np.array([report.loss_before[0], report.loss_after[0]])
print("probability of the new answer while its value was sought: "
      "{:.3f} -> {:.3f}".format(*np.exp(-losses)))

# %% [markdown]
# ```{admonition} One fact is no measurement
# :class: warning
# This fact is the first of the list, it was not chosen for its result. With another fact the
# same settings may be too strong and drag neighbours along: $\lambda$ is weighed against the
# number of facts ({doc}`02_ffn_memory`), and what suits a batch can be too much for
# one. Rates over many facts are in the chapters that measure.
# ```
#
# ## The way back
#
# The state carries the old columns of each batch, so `undo` needs no second copy of the
# model. Here one is loaded, to compare with.

# %%
unedited, _ = ece.load(MODEL, DEVICE)


def changed():
    """Per tensor of the model, whether it differs from the unedited."""
    pairs = zip(unedited.parameters(), model.parameters(), strict=True)
    return [not torch.equal(old, now) for old, now in pairs]


written = changed()
ece.undo(model, edited)
exact = not any(changed())
print(f"{sum(written)} of {len(written)} tensors were changed")
print(f"all bits as before the edit: {exact}")
show(fact.text)

# %% [markdown]
# One tensor was changed in each edit layer: its down-projection.
#
# ## Summary
#
# - One call edits (`edit_batch`), one call takes it back (`undo`); the state is a
#   value that is passed in and returned. `ece.storage.save_state` and `load_state` save it
#   and bring it back.
# - A single fact is a batch of one. Many facts at once, one after the other, or
#   in batches one after the other: {doc}`07_sequential`.
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
assert sum(written) == len(config.layers), "one tensor per edit layer"
assert after[0, 0] > before[0, 0], "the new answer gained"
assert np.array_equal(probabilities(), before), "the old answers return"
if MODEL == "atlas-gpt2" and not DATA:
    found = [rates.efficacy, rates.generalization, rates.specificity]
    assert np.all(found == np.ones((3, 1))), "and no neighbour is lost"
