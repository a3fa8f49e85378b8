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
# {cite:t}`zhang2025ece`, on SmolLM2-135M: a pretrained model of 30 blocks that needs no GPU.
#
# **What was found**
#
# - Nine lines write a fact. The model then says it. In both other wordings the new answer is
#   likelier than the old one, and in one of them it is the likeliest of all.
# - All ten neighbours, subjects with the same old answer, still have it likelier than the new
#   one, and it is the model's first choice for 6 of them, as before. But it is less sure: for
#   the neighbour shown below, the old answer falls from 0.60 to 0.26.
# - The edit changed some columns of five matrices, 39 to 41 % of the neurons there, and
#   nothing else. `undo` gives back every weight bit for bit.
#
# Three optional environment variables say where the chapter runs: the model, the device, and a
# file of CounterFact records. The facts without them come from packages that list countries,
# cities and languages.

# %% tags=["hide-input"]
import os
from itertools import islice

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import ece
from ece import atlas, presets
from ece.book import plots, tables
from ece.data import load_facts, python_docs, world
from ece.evaluation.generation import generate
from ece.evaluation.metrics import evaluate, known
from ece.evaluation.teacher_forcing import score_answers

MODEL = os.environ.get("ECE_MODEL") or "smollm2-135m"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")
plots.style()


# %% tags=["hide-input"]
def show(*prompts):
    """Let the model go on to the end of the sentence, greedily."""
    texts = generate(model, tokenizer, prompts, tokens=32, top_k=1)
    for prompt, text in zip(prompts, texts):
        print(prompt + text.removeprefix(prompt).split(".")[0])


# %% [markdown]
# ## A fact that the model knows
#
# An edit changes something only where the model knew something. So take the first fact about
# a city's country whose answer the model gives by itself.

# %%
model, tokenizer = ece.load(MODEL, DEVICE)
facts = (load_facts("counterfact", 120, path=DATA) if DATA
         else world.facts("counterfact", 120))
if MODEL.startswith("atlas") and not DATA:  # these know their own world
    facts = atlas.facts("counterfact", 120)
stated = known(model, tokenizer, facts)
given = next((fact for fact in stated if fact.relation == "city_country"),
             stated[0])
print(f"{len(stated)} of {len(facts)} facts are stated; one of them:\n")
show(given.text, given.neighbours[0])

# %% [markdown]
# ## The edit
#
# A *fact* is a prompt with a place for its subject, the subject, and the new answer;
# `ece.Fact("The capital of {} is", "France", "Lyon")` would be one of your own. `configure`
# takes the numbers of a model and a method: "ece-rs" chooses neurons by residual sensitivity
# (Eq 7); without `contexts` the prompt is edited as it stands, and not behind random text. The
# *second moment* of the model's keys stands for what it knew before (Eq 4). It is computed
# once per model from some text, here from Python's own documentation, which every machine has.

# %%
fact = ece.Fact(given.prompt, given.subject, given.target)
config = presets.configure(MODEL, "ece-rs", contexts=0)
texts = islice(python_docs(), 12)
stats = ece.second_moment(model, tokenizer, texts, config.layers)
state = ece.new_state(model, tokenizer, config)
edited, report = ece.edit_batch(
    model, tokenizer, [fact], stats, state, config
)
show(given.text, given.neighbours[0])

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
show(*given.paraphrases)

# %% [markdown]
# ```{admonition} On a hub model
# :class: note
# `make book MODEL=gpt2-xl DATA=counterfact.json` runs the same cells. Put some
# thousand lines of Wikipedia into `texts` then: documentation is a poor sample of what a
# large model knows.
# ```
#
# ## How sure is it?
#
# A text shows only the likeliest words. Here are the probabilities of a few answers
# to both prompts: the new one, the old one, and others that would fit.

# %%
others = {f.true for f in facts if f.relation == given.relation}
others = sorted(others - {given.true, given.target})[:3]
answers = [given.target, given.true, *others]
prompts = (given.text, given.neighbours[0])


def probabilities():
    """Of each answer to each prompt: [prompt, answer]."""
    pairs = [(prompt, answer) for prompt in prompts for answer in answers]
    nll = score_answers(model, tokenizer, pairs).nll
    return np.exp(-nll).reshape(len(prompts), -1)


# %%
after = probabilities()
ece.undo(model, edited)
before = probabilities()
unedited_rates = evaluate(model, tokenizer, [given])
edited, report = ece.edit_batch(
    model, tokenizer, [fact], stats, state, config
)

# %% tags=["hide-input"]
places = "edited", "neighbour"
tables.table(pd.DataFrame({
    place: [f"{a:.2f} → {b:.2f}" for a, b in zip(old, new)]
    for place, old, new in zip(places, before, after)}, answers),
    "Probability of an answer, before → after the edit")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Probability of five answers before and after the edit: to the edited prompt (above) and to a neighbour's (below).", "name": "fig-quickstart-answers"}, "image": {"alt": "Two panels of horizontal bars. Above, the edited prompt: the old answer falls from 0.86 to 0 and the new one rises from 0 to 0.99. Below, the neighbour: the old answer falls from 0.60 to 0.26, and no other of the five gains."}}
figure, axes = plt.subplots(2, 1, figsize=(5.8, 6.4), sharex=True)
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
# ({doc}`02_ffn_memory`). The next cell counts all neighbours, and the other wordings: is the
# one answer likelier than the other, and is it the likeliest of all?

# %%
rates = evaluate(model, tokenizer, [given])
ASKED = {"new answer, edited": (rates, "efficacy"),
         "new answer, reworded": (rates, "generalization"),
         "old answer, neighbours": (rates, "specificity"),
         "the same before": (unedited_rates, "specificity")}
shares = {name: [100 * getattr(own, kind + end)[0]
                 for end in ("", "_top1")]
          for name, (own, kind) in ASKED.items()}
tables.table(pd.DataFrame(shares, ["likelier", "first choice"]).T,
             "Share of the prompts, %", 0)

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
# With another fact the same lines may drag neighbours along: {doc}`17_real_model` shows one,
# and counts over hundreds.
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


# %%
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
# **Where to go next.** {doc}`01_atlas` shows a small world of which everything is known, and
# on which the method's parts can be seen at work. {doc}`02_ffn_memory` explains the update
# itself, {doc}`03_scoring` the choice of neurons. {doc}`17_real_model` edits this page's model
# five hundred times.
#
# The last cell asserts what the page has claimed.

# %%
assert exact, "undo must restore every weight bit for bit"
assert sum(written) == len(config.layers), "one tensor per edit layer"
assert after[0, 0] > before[0, 0], "the new answer gained"
assert np.array_equal(probabilities(), before), "the old answers return"

# %% tags=["hide-input"]
if MODEL == "smollm2-135m" and not DATA:
    found = [rates.efficacy, rates.generalization, rates.specificity]
    assert np.all(found == np.ones((3, 1))) and len(config.layers) == 5
    shares = [round(100 * n / width) for n in report.neurons.values()]
    assert (min(shares), max(shares)) == (39, 41)
    firsts = [round(10 * r.specificity_top1[0])
              for r in (unedited_rates, rates)]
    assert firsts == [6, 6] and rates.generalization_top1 == 0.5
    falls = [round(float(p[1, 1]), 2) for p in (before, after)]
    assert falls == [0.60, 0.26]
    assert model.config.num_hidden_layers == 30
