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
# # Baselines: the methods ECE is compared with
#
# The paper compares ECE with fine-tuning, MEND, ROME, MEMIT and SERAC; since then AlphaEdit,
# BLUE, RECT and PRUNE are the usual comparison. All of them are here, and all run on any
# of the three families. **What is each method's idea, in one equation, and what does one
# edit by it look like?**
#
# **What was found**
#
# - One fact is no test: ROME, MEMIT and the four methods made from it all write it and
#   leave the neighbour alone.
# - Fine-tuning writes the prompt (FT-L not half of it), hardly the paraphrase, and loses the
#   neighbour. Its
#   change is no longer than ROME's, but made without regard to old keys.
# - With one batch of one fact `ece-rs` is the weakest of the editor's methods: 81 % at the prompt
#   and 54 at the paraphrase, where MEMIT has 96 and 77.
# - MEND and SERAC are trained for only a few steps here and do not yet write the fact.
#   {doc}`10_table1` has all methods in full.
# - Retrieval costs nothing when a fact is edited, and pays with every query: a prompt in scope is
#   four times as long.

# %% tags=["hide-input"]
import os

import matplotlib.pyplot as plt
import torch

import ece
from ece import atlas, engine, presets
from ece.book import plots
from ece.data import load_facts

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")
facts = (load_facts("counterfact", 300, path=DATA) if DATA
         else atlas.facts("counterfact", 300))
fact, others = facts[0], facts[4:]
plots.style()

# %%
model, tokenizer = ece.load(MODEL, DEVICE)
start = {n: p.detach().clone() for n, p in model.named_parameters()}
print(f"{fact.text} ...\n  today {fact.true!r}, to become {fact.target!r}")

# %% [markdown]
# ## Two kinds of rivals
#
# ROME, MEMIT and MEMIT's children are **strategies** of this book's editor: a short
# class each in `ece.baselines` that says how to solve, how to spread the residual over
# layers, what to do with an update before it is written, and from which weights values come.
#
# Fine-tuning, MEND and SERAC are a few functions each. `edit(task, facts)` reads a model and
# returns **new values of the parameters that change**, nothing else; `train` learns
# something ahead, on facts that are never edited; `view` gives the model to be used,
# where that is not the model itself. `ece.baselines.sequence` puts the new
# values in place: a batch is written whole or not at all, and a killed sequence goes on
# where it was.
#
# Every method below edits the same fact. We compare the probability of the new object
# after the edited prompt and after a paraphrase, and of the old object after a
# neighbour's prompt, where it should stay.

# %%
from ece.evaluation.teacher_forcing import score_answers

PROMPTS = {
    "the prompt": (fact.text, fact.target),
    "a paraphrase": (fact.paraphrases[0], fact.target),
    "a neighbour": (fact.neighbours[0], fact.true),
}


# %%
def measured(model):
    """Probability (per token) of the wanted answer to each prompt."""
    nll = score_answers(model, tokenizer, list(PROMPTS.values())).nll
    return [float(p) for p in torch.tensor(nll).neg().exp()]


# %%
before, after = measured(model), {}
print(dict(zip(PROMPTS, (f"{p:.3f}" for p in before))))


def moved():
    """Length of the change of all weights, relative to the weights."""
    now = dict(model.named_parameters())
    gaps = (float((now[n] - w).norm()) for n, w in start.items())
    change = sum(gap**2 for gap in gaps)
    whole = sum(float(w.norm()) ** 2 for w in start.values())
    return (change / whole) ** 0.5


# %%
def put_back():
    for name, value in model.named_parameters():
        value.data.copy_(start[name])


# %% [markdown]
# ## Fine-tuning: FT-L, FT-W, FT-M
#
# The oldest idea: gradient steps on the new facts, in one layer's down-projection $W$ only.
#
# $$
# \min_W\; -\tfrac1n \sum_i \log P_W(o_i \mid x_i)
# \quad\text{with}\quad
# \lVert W - W_\text{before} \rVert_\infty \le \epsilon
# $$
#
# is **FT-L** {cite:p}`zhu2020modifying`: each weight stays in a ball around its value when the
# batch began. **FT-W** has a decay in place of the ball. Both, as published, score every token
# of an answer at the prompt's last token; **FT-M** scores each token in its place.
# (The paper's names for them are mixed up: {doc}`../book/deviations`.)

# %%
from ece.baselines import BASELINES, Task
from ece.baselines.sequence import edit_one


# %%
def by_baseline(name, trained=None, **settings):
    """Edit the fact by a baseline, measure, put the weights back."""
    numbers = presets.numbers(MODEL, name, **settings)
    task = Task(model, tokenizer, numbers, trained or {})
    edit_one(BASELINES[name], task, [fact])
    view = BASELINES[name].view
    after[name] = measured(model if view is None else view(task, [fact]))
    after[name].append(moved())
    put_back()
    return numbers


# %%
for name in ("ft-l", "ft-w", "ft-m"):
    numbers = by_baseline(name)
    print(f"{name}: goal={numbers.goal} ball={numbers.ball} "
          f"decay={numbers.decay}")

# %% tags=["hide-input"]
def bars(names):
    """Before in grey, then each method, for the three prompts."""
    figure, ax = plt.subplots(figsize=(5.8, 1.8 + 0.4 * len(names)))
    height = 0.8 / (len(names) + 1)
    rows = torch.arange(len(PROMPTS), dtype=torch.float)
    lines = {"before": before, **{n: after[n] for n in names}}
    for i, (name, line) in enumerate(lines.items()):
        ax.barh(rows - 0.4 + (i + 0.5) * height,
                [100 * p for p in line[:3]], height=height, label=name,
                color=plots.colour("pre" if i == 0 else name))
    ax.set_yticks(rows, list(PROMPTS))
    ax.invert_yaxis()
    ax.set(xlabel="probability of the wanted answer, %", xlim=(0, 100))
    figure.legend(loc="outside lower center", ncols=3)
    plt.show()


# %% tags=["hide-input"] mystnb={"figure": {"caption": "One fact by fine-tuning: the probability of the wanted answer, the new object for the prompt and the paraphrase, the old one for the neighbour.", "name": "fig-baselines-ft"}, "image": {"alt": "Three groups of bars. The prompt: from 0 before to less than half with FT-L and nearly all with FT-W and FT-M. The paraphrase: a fifth at most. The neighbour: from nine in ten before to a third or much less."}}
bars(["ft-l", "ft-w", "ft-m"])

# %% [markdown]
# ## MEND: a network that rewrites gradients
#
# A gradient of one token is a rank-one matrix, $\nabla_W L = \sum_t \delta_t u_t^\top$. MEND
# {cite:p}`mitchell2022mend` trains a network $g$ that maps the two factors to better ones,
#
# $$
# \tilde W = W - \alpha \sum_t \tilde\delta_t \tilde u_t^\top,
# \qquad (\tilde u_t, \tilde\delta_t) = g(u_t, \delta_t),
# $$
#
# so that on *other* facts the new answer comes out and unrelated prompts stay as they
# are. An edit is then one backward pass. Training takes minutes, so here it has only
# a few steps; the tables use the full number.

# %%
def learn(name, **settings):
    """Train on facts that are not edited here."""
    numbers = presets.numbers(MODEL, name, **settings)
    task = Task(model, tokenizer, numbers, {})
    return BASELINES[name].train(task, others)


mend = learn("mend", steps=60)
by_baseline("mend", mend, steps=60)
print("trained numbers:", sum(w.numel() for w in mend.values()))

# %% [markdown]
# ## SERAC: a memory beside the model
#
# SERAC {cite:p}`mitchell2022serac` changes no weight. Edits go to a memory; a *scope
# classifier* compares each prompt $x$ with every entry, and where one is close enough,
# a small *counterfactual model* answers in place of the large one:
#
# $$
# f(x) =
# \begin{cases}
#   h_\psi(x, e^*) & \text{if } g_\phi(x, e^*) > \tau, \\
#   f_\theta(x)    & \text{otherwise,}
# \end{cases}
# \qquad e^* = \arg\max_e g_\phi(x, e) .
# $$
#
# Both parts are trained, on facts that are never edited. Here, too, for a few steps only.

# %%
short = dict(steps=150, scope_steps=150)
serac = learn("serac", **short)
by_baseline("serac", serac, **short)
print("change of the weights:", after["serac"][3])

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The same fact by MEND and SERAC after a short training.", "name": "fig-baselines-trained"}, "image": {"alt": "Three groups of bars. The prompt and the paraphrase stay at 0 with MEND and reach about a quarter with SERAC; the neighbour falls by a third with MEND and stays where it was with SERAC."}}
bars(["mend", "serac"])

# %% [markdown]
# ## Retrieval: the edit read before the prompt
#
# What a user would try first changes no weight either: find the edit whose prompt is most like
# the present one, by TF-IDF over words, and let the model read it first,
#
# > New fact: *the edit*.<br>Prompt:<br>*the prompt*
#
# This is in-context editing {cite:p}`zheng2023ike` without its demonstrations. Here it cannot
# work: the embedded models were never trained to take anything from a text that contradicts
# what they know. On a pretrained model it scores about as high as the best written edits, with a threshold that was searched ({doc}`10_table1`).

# %%
numbers = by_baseline("retrieval")
print(f"edits with a cosine above {numbers.threshold} are read; prompt, "
      "paraphrase and neighbour after:")
print([round(p, 2) for p in after["retrieval"][:3]])

# %% [markdown]
# Its cost comes with every query, not with the edit. A prompt in scope is longer by the edit's
# entry; every prompt, in scope or not, is compared with all edits (a sparse product, one row an
# edit):

# %%
from ece.baselines.retrieval import ENTRY
from ece.facts import encode

many = atlas.facts("counterfact", 100)
entries = [ENTRY.format(one.text, one.target) for one in many]
bare, more = (sum(len(encode(tokenizer, text)) for text in texts) / 100
              for texts in ([one.text for one in many], entries))
print(f"a prompt: {bare:.1f} tokens, in scope {more:.1f} more")

# %% [markdown]
# ## ROME: one fact, exactly
#
# ROME {cite:p}`meng2022rome` treats a down-projection as a memory with $W k = v$ and writes one
# pair, at the least cost for what the text needs:
#
# $$
# \min_\Delta \operatorname{tr}(\Delta C_0 \Delta^\top)
# \;\;\text{with}\;\; (W + \Delta)k_* = v_*
# \quad\Rightarrow\quad
# \Delta = \frac{(v_* - W k_*)\,(C_0^{-1} k_*)^\top}{k_*^\top C_0^{-1} k_*} .
# $$
#
# `ece.baselines.rome` solves this in one layer; several facts are written one after the other.

# %%
layers = {layer for name in ("memit", "rome")
          for layer in presets.configure(MODEL, name).layers}
texts = atlas.corpus(400)
stats = ece.second_moment(model, tokenizer, texts, tuple(sorted(layers)))


# %%
def by_editor(name, stats=stats, **settings):
    """Edit the fact by a strategy, measure, undo."""
    config = presets.configure(MODEL, name, **settings)
    strategy = presets.strategy(MODEL, name)
    unedited = strategy.remember(model, config)
    state = ece.new_state(model, tokenizer, config, strategy)
    state, report = ece.edit_batch(
        model, tokenizer, [fact], stats, state, config)
    with strategy.view(model, unedited) as used:
        after[name] = [*measured(used), moved()]
    ece.undo(model, state)
    return config, report


# %%
rome, report = by_editor("rome")
print("layer", rome.layers, "norm of the update",
      f"{report.norms[rome.layers[0]]:.2f}")

# %% [markdown]
# Is the constraint really met? The new weights applied to the key, less the old ones, must
# be the whole residual.

# %%
from ece.objective import mix

(layer,) = rome.layers
site = ece.sites(model, (layer,))[0]
strategy = presets.strategy(MODEL, "rome")
state = ece.new_state(model, tokenizer, rome, strategy)
reader = engine.reader(model, tokenizer, [fact], state.contexts, 4096)
key = mix(reader.read(layer, layer)[0])[0].double()

# %%
old = site.weight.clone()
values = ece.compute_values(model, tokenizer, [fact], state, rome)
state, _ = ece.edit_batch(
    model, tokenizer, [fact], stats, state, rome, values
)
miss = (site.weight - old).double() @ key - values.delta[0].double()
ece.undo(model, state)
share = float(miss.norm() / values.delta[0].norm())
print(f"missed by less than a millionth: {share < 1e-6}")

# %% [markdown]
# ## MEMIT: many facts, nearly
#
# MEMIT {cite:p}`meng2023memit` drops the constraint. A batch is written by least squares (Eq 4), in
# several layers, each of which takes a part of the residual:
#
# $$
# \Delta = R K^\top (\lambda C_0 + K K^\top)^{-1} .
# $$
#
# `memit-history` adds $H$, the sum of $k k^\top$ over the keys of earlier batches, to the bracket.
#
# ## AlphaEdit: where old keys are not
#
# AlphaEdit {cite:p}`fang2025alphaedit` keeps the update inside the null space of old knowledge: with
# $U$ the eigenvectors of $C_0$ whose eigenvalues are nearly zero,
#
# $$
# \Delta = R K^\top U \big(U^\top (H + K K^\top) U + \lambda I\big)^{-1} U^\top ,
# $$
#
# so that $\Delta k \approx 0$ for every old key $k$. "Nearly" is a threshold, and it decides
# everything: too low and no room is left for edits.

# %%
by_editor("memit")
alpha, _ = by_editor("alphaedit")
null = presets.strategy(MODEL, "alphaedit").null
for layer in alpha.layers:
    eigenvalues = torch.linalg.eigvalsh(stats.moments[layer])
    part = (eigenvalues < null).double().mean()
    print(f"layer {layer}: {part:.0%} of directions count as null")

# %% [markdown]
# ## BLUE, RECT, PRUNE
#
# Three later changes to MEMIT, each a short strategy:
#
# - **BLUE** {cite:p}`li2025blue` edits only the first and the last of the layers, each towards a
#   value of its own;
# - **RECT** {cite:p}`gu2024rect` keeps only the entries of an update that are largest relative to
#   their weight, $|\Delta_{ij} / W_{ij}|$ (`keep`);
# - **PRUNE** {cite:p}`ma2024prune` looks at the sum of all updates: its singular values above the
#   largest $\sigma_0$ of the unedited $W$ are pulled in,
#   $\sigma \to \sigma_0 + \log_b(\sigma / \sigma_0)$ (`base`).

# %%
for name in ("blue", "rect", "prune"):
    _, report = by_editor(name)
    print(presets.strategy(MODEL, name))
    print("  layers written:", report.layers)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The same fact by ROME, MEMIT and the methods made from it.", "name": "fig-baselines-editor"}, "image": {"alt": "Three groups of bars. All six methods reach nearly all at the prompt and about four fifths at the paraphrase, and leave the neighbour where it was."}}
bars(["rome", "memit", "alphaedit", "blue", "rect", "prune"])

# %% [markdown]
# PRUNE's restraint is applied when the model is used, after a sequence; for one edit it
# has nothing to do, and its bars are MEMIT's.
#
# ## Side by side
#
# One edit says little about a method: nearly all can write one fact. It shows how they
# go about it. The last column is the length of the change, relative to all weights.
# (`ece-plus` takes half of its $C_0$ over the ends of names: {doc}`15_plus`.)

# %%
from ece.baselines.ece_plus import ends_of_names

ends = ece.second_moment(
    model, tokenizer, texts, tuple(sorted(layers)), select=ends_of_names
)
plus = presets.strategy(MODEL, "ece-plus")

# %%
by_editor("ece-rs", clusters=1)
by_editor("ece-plus", ece.blend(stats, ends, plus.names))
print(" " * 10, "prompt  para.  neigh.   moved")
print(f"{'before':10}", *(f"{p:6.2f}" for p in before))
for name, line in after.items():
    print(f"{name:10}", *(f"{p:6.2f}" for p in line[:3]),
          f"{line[3]:7.4f}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What one edit costs: the neighbour's answer against the length of the change.", "name": "fig-baselines-cost"}, "image": {"alt": "A scatter plot of coloured dots with a legend. SERAC and retrieval change no weight and the neighbour stays as it was. The editor's methods stand as high, over changes of a tenth to four tenths of the weights; the three kinds of fine-tuning at like changes stand lowest, MEND between."}}
figure, ax = plt.subplots(figsize=(5.8, 4.8))
for name, line in after.items():
    ax.plot(line[3], 100 * line[2], "o", color=plots.colour(name),
            label=name)
ax.set(xlabel="change of the weights, relative to their length",
       ylabel="neighbour's answer, %", ylim=(0, 100))
figure.legend(loc="outside lower center", ncols=4, handletextpad=0)
plt.show()

# %% [markdown]
# What counts is what is left after hundreds of edits: {doc}`10_table1`.
#
# ## Numbers
#
# The settings of the baselines on GPT2-XL, GPT-J and Llama-3 are the published ones where there
# are any (`ece/presets`, one file for each model). For the embedded models they were chosen by a
# short search on `atlas-gpt2` alone (facts of seed 0, one of the seeds of the tables), and
# the other two models use the same numbers. ECE's own presets were searched for on all three. So
# a baseline that does badly on `atlas-gptj` or `atlas-llama` may only be badly tuned there;
# AlphaEdit and PRUNE did so badly on `atlas-gptj` that they have settings of their own there
# (seed 3). {doc}`16_choice` makes up for some of that: one search for ECE, ROME and MEMIT, which
# finds better layers for each on `atlas-gptj`, and a threshold for SERAC. MEND and SERAC were
# trained on the facts of the world that a run does not edit, for each model and data set, and in
# other wordings than the paraphrases of the tables (`seen=False`); {doc}`10b_behind_table1` shows
# what SERAC gains by those.
#
# ## Summary
#
# - Every method of the paper's tables, four newer ones, and retrieval.
# - ROME, MEMIT, AlphaEdit, BLUE, RECT, PRUNE are strategies of one editor; fine-tuning, MEND,
#   SERAC and retrieval edit in ways of their own.
# - ROME meets its constraint exactly; SERAC and retrieval touch no weight.
#
# The last cell asserts what this page has claimed.

# %% tags=["hide-input"]
for name in ("serac", "retrieval"):
    assert after[name][3] == 0, "a memory changes no weight"
assert share < 1e-4, "ROME meets its constraint"
for name in ("rome", "memit", "ft-m"):
    assert after[name][0] > before[0], name

# %% tags=["hide-input"]
if MODEL == "atlas-gpt2" and not DATA:
    assert round((bare + more) / bare) == 4
    for name in ("rome", "memit", "alphaedit", "blue", "rect", "prune"):
        assert after[name][0] > 0.9 and after[name][2] > before[2] - 0.05
    for name in ("ft-l", "ft-w", "ft-m"):
        assert after[name][1] < 0.25 and after[name][2] < 0.4, "the cost"
    weak = [round(100 * p) for p in after["ece-rs"][:2]]
    assert weak == [81, 54], weak
    assert [round(100 * p) for p in after["memit"][:2]] == [96, 77]
assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())
