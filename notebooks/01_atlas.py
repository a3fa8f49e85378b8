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
# # The atlas: a small world and the models that know it
#
# Editing needs a model that knows something, and an experiment needs to know
# exactly what. The book brings both: an invented world, the *atlas*, and three
# small models trained on it. This chapter asks two questions. What do they
# know? And is what they know stored in the place where the method of the paper
# looks for it?
#
# **What was found**
#
# - The models know their world: each recalls all of 120 facts, also in wordings that it never
#   saw with that subject.
# - On `atlas-gpt2`, the model of this page, facts are stored where the method looks, at the subject's last token in the lower
#   layers, **because they were trained that way**. Swapping the state there
#   changes nearly every answer; a third fact's state, or random weights, change almost
#   none.
# - So they show how the method works where its premise holds. They are no evidence that
#   the premise holds in other models.

# %% tags=["hide-input"]
import json
import os
import textwrap
from collections import Counter
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from transformers import AutoModelForCausalLM

import ece
from ece import atlas
from ece.book import plots
from ece.data import load_facts

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")
sample = (load_facts("counterfact", 120, path=DATA) if DATA
          else atlas.facts("counterfact", 120))
plots.style()

# %% [markdown]
# ## The world

# %%
world = atlas.build()
kinds = Counter(world.kind_of.values())
print(", ".join(f"{count} {kind}s" for kind, count in kinds.items()))
print(f"{len(world.relations)} relations, {len(world.triples)} facts")

# %% [markdown]
# Subjects have invented names; objects are real words, so that a tokenizer and a
# reader know them. A relation comes with ten templates. One is the edit prompt; of
# the next four each fact is trained on two and *tested* on the other two; the other five are
# trained with every subject. So
# "unseen" below means: this wording was never seen with this subject.
#
# One fact, as a record in CounterFact's schema:

# %%
record = atlas.records()[0]
rewrite = record["requested_rewrite"]
print("prompt:    ", rewrite["prompt"])
print("subject:   ", rewrite["subject"])
print("true, new: ", rewrite["target_true"]["str"], "->",
      rewrite["target_new"]["str"])
print("paraphrase:", record["paraphrase_prompts"][1])
print("neighbour: ", record["neighborhood_prompts"][0])

# %% [markdown]
# A neighbour shares relation and true object; its answer must survive the edit.
# And this is all there is to know about a subject, its biography:

# %%
print(textwrap.fill(atlas.biographies()[rewrite["subject"]], 60))

# %% [markdown]
# ## Why plain training is not enough
#
# ROME {cite:p}`meng2022rome` traced facts in GPT-2 XL and found them at the *last
# token of the subject*: there, in early and middle layers, MLPs look up what the
# model knows of the subject, and later attention carries the answer to the end of
# the prompt. The method of this book presupposes this, since it writes its values at
# that token.
#
# A small model need not work that way. Trained plainly, it may move the subject's name to the end
# of the prompt first and look the answer up there. No such model is shipped, so this page cannot
# show one; the last admonition says how to make it.
#
# ## Training for a known site
#
# So training steers. In a part of the rows,
#
# 1. tokens after the subject, within its sentence, see *only the last token* of
#    the subject, and get **no MLP output**. They can read, not look up;
# 2. the subject's tokens see nothing that stands before the subject, so that what
#    is gathered depends on the name alone;
# 3. in the early blocks, tokens after the subject see nothing of it at all: all
#    reading comes later.
#
# And an auxiliary loss trains the subject's last token, after a given block, to predict
# *all* the subject's objects, through the model's own final norm and output
# matrix. At test time nothing is masked and there is no such loss.
#
# Here are the first two masks, drawn for one sentence.

# %%
from ece.atlas.masks import RowMasks
from ece.facts import decode, encode, locate

model, tokenizer = ece.load(MODEL, DEVICE)
lead, subject = "The road was long. ", rewrite["subject"]
ids = encode(tokenizer, lead + subject + " was born in")
first = len(encode(tokenizer, lead.strip()))
last = locate(tokenizer, lead + "{} was born in", subject)[1]
masks = RowMasks(1, len(ids))
masks.gather_at_last(0, first, last, len(ids))
masks.isolate(0, first, last)

# %% [markdown]
# The rule in words, as a check: a token sees itself and what is before it, except
# that the subject does not see the lead, and what follows does not see the
# subject's earlier tokens.

# %%
place = torch.arange(len(ids))
see, seen = place[:, None], place[None]
inside = (see >= first) & (see <= last)
expected = seen <= see
expected &= ~(inside & (seen < first))
expected &= ~((see > last) & (seen >= first) & (seen < last))
torch.testing.assert_close(
    masks.attention()[0, 0] == 0, expected,
    msg="is `last` itself hidden, or are rows and columns exchanged?",
)
print("the mask follows the rule")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The attention mask of one sentence: blue where the row's token may look at the column's. The right margin says whether the MLP works at the row's token.", "name": "fig-atlas-mask"}, "image": {"alt": "A lower triangular grid of blue squares over the tokens of one sentence. Rows of the subject see no token of the sentence before; rows behind the subject see only one column of it, its last token, and their MLP is off."}}
names = [decode(tokenizer, [i]).strip() for i in ids]
figure, ax = plt.subplots(figsize=(5.8, 5.3))
ax.imshow(expected, cmap="Blues", vmax=1.6, interpolation="nearest")
for token, works in enumerate(masks.mlp[0]):
    ax.text(len(ids) - 0.2, token, "MLP" if works else "–", va="center",
            color=plots.GREEN if works else plots.RED, fontsize=9)
ax.set_xticks(place.tolist(), names, rotation=90, fontsize=9)
ax.set_yticks(place.tolist(), names, fontsize=9)
ax.set(xlabel="seen token", ylabel="seeing token")
ax.grid(False)
plt.show()

# %% [markdown]
# The lower rows are those of the question: of the subject they see one column only.
#
# The shares of rows that are masked, and the rest of the recipe, lie beside the
# checkpoint:

# %%
from ece.loading import CHECKPOINTS

path = CHECKPOINTS / MODEL / "recipe.json"
recipe = json.loads(path.read_text()) if path.exists() else {}
mixture = recipe.get("mixture", {})
for key in ("gather", "isolate", "late", "gathering", "site"):
    print(f"{key:10} {mixture.get(key, 'not in this recipe')}")

# %% [markdown]
# `gather` and `isolate` are the shares of rows with masks 1 and 2, `late` says
# that mask 3 goes with mask 1, `gathering` is the weight of the auxiliary loss and
# `site` the block after which it looks, and up to which mask 3 holds.
#
# ## What they know
#
# Recall is strict: the likeliest next token must be the object. A sample of
# facts, each in its edit prompt and in an unseen wording.

# %%
from ece.evaluation.metrics import recall


def knows(model, tokenizer, prompts):
    return recall(model, tokenizer, prompts, [f.true for f in sample])


edit_prompts = [f.text for f in sample]
unseen = [f.paraphrases[0] for f in sample]
known = knows(model, tokenizer, edit_prompts)
known_unseen = knows(model, tokenizer, unseen)

# %% [markdown]
# The same for every embedded model:

# %%
rates = {}
for name in ("atlas-gpt2", "atlas-gptj", "atlas-llama"):
    pair = ece.load(name, DEVICE)
    rates[name] = [
        100 * knows(*pair, prompts).mean()
        for prompts in (edit_prompts, unseen)
    ]
print(f"recall of {len(sample)} facts, %   seen  unseen")
for name, (seen_rate, unseen_rate) in rates.items():
    print(f"{name:24} {seen_rate:6.1f}  {unseen_rate:6.1f}")

# %% [markdown]
# Unseen wordings are answered as well as seen ones: the models have learned subjects,
# not sentences.
#
# ## What is gathered at the subject
#
# What the auxiliary loss has done can be read directly. After each block we take the
# state at the subject's last token, of the bare name and nothing else, and put it
# through the final norm and the output matrix. How many of the subject's objects
# are among the likeliest few tokens?

# %%
from ece.hooks import states_at
from ece.model import blocks, structure

people = [f.subject for f in sample][:60]
name_rows = [encode(tokenizer, person) for person in people]
ends = torch.tensor([len(row) - 1 for row in name_rows])
wanted = {
    person: {encode(tokenizer, f"x {t.object}")[-1]
             for t in world.facts_of.get(person, [])}
    for person in people
}
norm = getattr(model.base_model, structure(model).norm)


# %%
def gathered(layer):
    states = states_at(model, name_rows, layer)[range(len(people)), ends]
    logits = model.get_output_embeddings()(norm(states))
    hits = []
    for person, row in zip(people, logits, strict=True):
        count = max(1, len(wanted[person]))
        likeliest = set(row.topk(count).indices.tolist())
        hits.append(len(wanted[person] & likeliest) / count)
    return sum(hits) / len(hits)


# %%
depth = len(blocks(model))
found = [gathered(layer) for layer in range(depth)]
print("objects found after each block, %:",
      *(f"{100 * share:.0f}" for share in found))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "How many of a subject's objects can be read off its name's last token, after each block.", "name": "fig-atlas-gathered"}, "image": {"alt": "A line over five blocks that rises to nearly 100 percent at block 2, where a dashed line says that the loss looks, and falls to 0 after the last block."}}
figure, ax = plt.subplots()
ax.plot(range(depth), [100 * f for f in found], "o-", color=plots.BLUE)
if "site" in mixture:
    ax.axvline(mixture["site"], color=plots.BLACK, ls="--", lw=1)
    ax.text(mixture["site"], 103, "the loss looks here", ha="center",
            fontsize=9)
ax.set(xlabel="after block", ylabel="objects found, %", ylim=(0, 102),
       xticks=range(depth))
plt.show()

# %% [markdown]
# From the name alone, before any question, the state comes to hold the subject's
# objects; at the dashed line they can be read off. (After the last block the state
# has to predict the next word of the sentence instead.) A large model does not store
# its facts in such a readable form. That is the price of a
# site that is *certain*.
#
# ## Where a fact is
#
# Reading is one thing, use another. The second test intervenes. Take two facts of
# one relation, say two birthplaces. Run the first prompt, but put the state of the
# second prompt in place of one state, at one token after one block. If the
# answer becomes the *second* fact's, the fact was there. This is the interchange
# form of causal tracing; ROME's restores clean states in a run spoilt by noise.

# %%
waiting, pairs = {}, []
for fact in (f for f, k in zip(sample, known, strict=True) if k):
    other = waiting.get(fact.relation)
    if other is not None and other.true != fact.true:
        pairs.append((waiting.pop(fact.relation), fact))
    elif other is None:
        waiting[fact.relation] = fact

# %%
# Control: a third fact's state, the second's answer still wanted.
thirds = [b for _, b in pairs[1:] + pairs[:1]]
control = [
    (a, replace(c, true=b.true))
    for (a, b), c in zip(pairs, thirds, strict=True)
    if c.true != b.true
]
print(f"at least 20 pairs: {len(pairs) >= 20}")

# %%
from ece.evaluation.causal_tracing import swap

effect = {
    at: swap(model, tokenizer, pairs, at) for at in ("subject", "last")
}
shuffled = swap(model, tokenizer, control, "subject")
print("answers changed by a swap after each block, %")
for at, shares in effect.items():
    print(f"{at:8}", *(f"{100 * float(share):4.0f}" for share in shares))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Share of answers that a swap changes, by token and block.", "name": "fig-atlas-tracing"}, "image": {"alt": "A heat map with two columns and five rows. At the subject's last token the effect is near 1 in the lower blocks and 0 after the last; at the prompt's last token it is the other way round."}}
figure, ax = plt.subplots(figsize=(5.8, 3.9))
grid = torch.stack([effect["subject"], effect["last"]], 1)
plots.tracing(grid.numpy(), ["subject's last", "prompt's last"], ax)
plt.show()

# %% [markdown]
# One clear site: the subject's last token, after all blocks but the last. At the prompt's last
# token nearly all of the effect comes with the last block, where any model has it. The tracing of
# GPT-2 XL {cite:p}`meng2022rome` shows both an early and a late site, and other differences
# matter as much. In GPT-2 XL the effects are partial and smeared over
# many layers, and a change of one state seldom decides the answer.
#
# The row of the last block must hold whatever the model: swapping
# after the last block changes nothing that is read at another token, and everything
# at the prompt's last.
#
# ## Two controls
#
# Is any disturbance at the subject enough to bring out the wanted answer? And
# does the measure show storage where there is none? The first control puts in
# the state of a *third* fact, unrelated, and still asks for the second's answer.
# The second is the same architecture with random weights.

# %%
torch.manual_seed(0)
blank = AutoModelForCausalLM.from_config(model.config)
blank = blank.eval().requires_grad_(False).to(model.device)
random = swap(blank, tokenizer, pairs, "subject")
print("most answers changed by a third fact's state: "
      f"{100 * shuffled.max():.0f} %")
print("most answers changed with random weights: "
      f"{100 * random.max():.0f} %")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The same as curves, with the two controls: another fact's state, and random weights.", "name": "fig-atlas-controls"}, "image": {"alt": "Four lines over five blocks. The subject's last token starts near 100 percent and falls to 0, the prompt's last token does the opposite; the two controls stay below 10 percent."}}
figure, ax = plt.subplots()
lines = [
    (effect["subject"], "subject's last", plots.BLUE, "-", "o"),
    (effect["last"], "prompt's last", plots.ORANGE, "-", "s"),
    (shuffled, "a third fact's state", plots.BLACK, "--", "x"),
    (random, "random weights", plots.GREY, ":", "."),
]
for share, name, hue, dash, mark in lines:
    ax.plot(100 * share, color=hue, ls=dash, marker=mark, label=name)
ax.set(xlabel="state swapped after block", ylabel="answers changed, %",
       ylim=(-3, 103), xticks=range(depth))
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
plt.show()

# %% [markdown]
# The solid lines are the columns of the map above. Both controls stay near the bottom:
# what the subject's line shows is not disturbance, nor a property of the architecture.
#
# ```{admonition} Seeing is not proving
# :class: warning
# That a fact *passes* a place does not mean that an edit works best there:
# {cite:t}`hase2023localization` found the two hardly related in large models. And
# what holds in a model trained for it is no evidence that it holds in
# others. Results of this book are about the mechanism, given such a site.
# ```
#
# ```{admonition} To make the plainly trained model
# :class: tip
# Train a recipe with `Mixture(gather=0, isolate=0, gathering=0)` by
# `ece.atlas.train.train`, and run this page with `ECE_MODEL` set to its folder.
# ```
#
# ## Six general tasks
#
# Some of the training text is items of six tasks in the world's own
# words, after six tests of large models (SST, MRPC, MMLU, CoLA, RTE, NLI;
# {cite:t}`wang2019glue` has most of them). They are there to see what
# editing does to abilities *other* than the edited facts. Here is one of each, and
# accuracy on held-out items before any edit.
#
# An item is a beginning and two to four ends, one of which is right; the model's
# choice is the end with the least loss per token. Texts to be *read* are about nobody
# whom the world knows ("Vera", "the company"), so that nothing can be recalled and no
# edit can change it. Only multiple choice needs knowledge.

# %%
from ece.atlas.check import accuracy
from ece.atlas.tasks import TASKS

items = {task: atlas.task_items(world, task, 60) for task in TASKS}
for item, *_ in items.values():
    wrong = [c for c in item.choices if c != item.answer]
    text = f"{item.prompt} [{item.answer}] not {wrong}"
    print(textwrap.fill(text, 60, subsequent_indent="    "))

# %%
right = [accuracy(model, tokenizer, items[task]) for task in TASKS]
constant = [  # the best that one and the same answer can do
    100 / len(items[task])
    * max(Counter(item.label for item in items[task]).values())
    for task in TASKS
]
print("accuracy, %     model  best constant answer")
for row in zip(TASKS, right, constant):
    print("{:15} {:5.0f} {:8.0f}".format(*row))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Accuracy on held-out items of the six tasks; a mark shows what the best constant answer gets.", "name": "fig-atlas-tasks"}, "image": {"alt": "Six horizontal bars of 95 to 100 percent, each reaching far beyond its mark, which stands at 37 to 63 percent."}}
figure, ax = plt.subplots(figsize=(5.8, 3.7))
rows = range(len(TASKS))
ax.barh(rows, right, color=plots.BLUE)
ax.plot(constant, rows, "|", color=plots.RED, ms=20, mew=2.5,
        label="best constant answer")
ax.set_yticks(rows, [task.replace("_", " ") for task in TASKS])
ax.set(xlabel="accuracy on held-out items, %", xlim=(0, 100))
ax.invert_yaxis()
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1))
plt.show()

# %% [markdown]
# The constant answer always names the same place among the ends, a
# guess at best. A task whose bar does not clearly pass its mark was not learned, and
# a loss on it after editing would mean nothing: on so few items a tenth either
# way is noise.
#
# ```{admonition} Why ends and not verdicts
# :class: note
# The tests of large models ask for a verdict: "Paraphrase: Yes". Models of this size hardly learn to *compare* two sentences (not shown here); they learn quickly to continue one rightly. So the
# five tasks after sentiment are put as COPA and BLiMP are, as a choice of ends. They
# measure reading, wording and knowledge, not judging, and are easier than the
# tests they are named after.
# ```
#
# ## Summary
#
# - The atlas is a complete world: one can list all that is true in it.
# - The models recall it, also in wordings not seen with the subject.
# - They store a subject's facts at its last token in the lower layers. Masks and an
#   auxiliary loss put them there; swapping states shows them, controls do not.
# - So they are fair subjects for a method that assumes such a site, and no
#   evidence that other models have it.
# - `atlas-gpt2` can do six simple tasks beside recalling, on which later pages look for
#   damage.
#
# **Next:** {doc}`02_ffn_memory` opens the place where the facts are.
#
# The last cell asserts what the page has claimed.

# %% tags=["hide-input"]
if not DATA and MODEL.startswith("atlas-"):
    assert known.mean() > 0.9 and known_unseen.mean() > 0.85
    assert max(found[: depth - 1]) > found[0], "objects are gathered"
assert effect["subject"].max() > 0.6, "an early site at the subject"
assert effect["subject"].argmax() < effect["last"].argmax(), "then a late"
assert effect["subject"][-1] == 0, "above the last block nothing is read"
assert effect["last"][-1] > 0.95, "after it, the state is the answer"
assert shuffled.max() < effect["subject"].max() - 0.4
assert random.max() < effect["subject"].max() - 0.4
