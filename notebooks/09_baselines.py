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
# BLUE, RECT and PRUNE have become the bar. All of them are here, and all run on any
# of the three families. **What is each method's idea, in one equation, and what does one
# edit by it look like?**
#
# **What you will see**
#
# - one calling convention for methods that change weights by gradient, by a trained
#   network, by least squares, or not at all;
# - each method's equation, its lines of code, and the same fact edited by it;
# - how far each moves the weights for that.

# %%
import os

import torch

import ece
from ece import atlas
from ece.data.loading import load_facts

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")

facts = load_facts("counterfact", 4, path=DATA)
others = load_facts("counterfact", 300, path=DATA)[4:]
model, tokenizer = ece.load(MODEL, DEVICE)
start = {n: p.detach().clone() for n, p in model.named_parameters()}
fact = facts[0]
print(f"{fact.text} ...\n  today {fact.true!r}, to become {fact.target!r}")

# %% [markdown]
# ## One convention
#
# A baseline is a few functions in `ece.baselines`. `edit(task, facts)` reads a model and
# returns **new values of the parameters that change**, nothing else; `train` learns
# something ahead, on facts that are never edited; `view` gives the model to be asked,
# where that is not the model itself. One short module, `ece.baselines.sequence`, puts the new
# values in place: a batch is written whole or not at all, a killed sequence goes on where
# it was. ROME, MEMIT and MEMIT's children are settings of the editor of this book and
# need none of this.
#
# Every method below edits the same fact. What we look at: the probability of the new and of
# the old object after the edited prompt and after a paraphrase, and the old object's
# after a neighbour's prompt, where it should stay.

# %%
from ece.evaluation.teacher_forcing import read

ASKED = {
    "the prompt": (fact.text, fact.target),
    "a paraphrase": (fact.paraphrases[0], fact.target),
    "a neighbour": (fact.neighbours[0], fact.true),
}


def asked(model):
    """Probability (per token) of the wanted answer to each question."""
    nll = read(model, tokenizer, list(ASKED.values())).nll
    return [float(p) for p in torch.tensor(nll).neg().exp()]


# %%
before, after = asked(model), {}
print(dict(zip(ASKED, (f"{p:.3f}" for p in before))))


def moved():
    """Length of the change of all weights, relative to the weights."""
    held = dict(model.named_parameters())
    gaps = (float((held[n] - w).norm()) for n, w in start.items())
    change = sum(gap**2 for gap in gaps)
    whole = sum(float(w.norm()) ** 2 for w in start.values())
    return (change / whole) ** 0.5


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
from ece.baselines import BASELINES, Task, numbers_of
from ece.baselines.sequence import Done, edit_one


def by_baseline(name, learned=None, **settings):
    """Edit the fact by a baseline, look, put the weights back."""
    numbers = numbers_of(MODEL, name, **settings)
    task = Task(model, tokenizer, numbers, learned or {})
    edit_one(BASELINES[name], task, [fact], Done())
    view = BASELINES[name].view
    after[name] = asked(model if view is None else view(task, [fact]))
    after[name].append(moved())
    put_back()
    return numbers


for name in ("ft-l", "ft-w", "ft-m"):
    numbers = by_baseline(name)
    print(f"{name}: goal={numbers.goal} ball={numbers.ball} "
          f"decay={numbers.decay}")

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt

from ece.book import plots

plots.style()


def bars(names):
    """Before in grey, then each method, for the three questions."""
    figure, ax = plt.subplots(figsize=(4.6, 1.6 + 0.35 * len(names)))
    height = 0.8 / (len(names) + 1)
    rows = torch.arange(len(ASKED), dtype=torch.float)
    lines = {"before": before, **{n: after[n] for n in names}}
    for i, (name, line) in enumerate(lines.items()):
        ax.barh(rows - 0.4 + (i + 0.5) * height,
                [100 * p for p in line[:3]], height=height, label=name,
                color=plots.colour("pre" if i == 0 else name))
    ax.set_yticks(rows, list(ASKED))
    ax.invert_yaxis()
    ax.set(xlabel="probability of the wanted answer, %", xlim=(0, 100))
    figure.legend(loc="outside lower center", ncols=3)
    plt.show()


bars(["ft-l", "ft-w", "ft-m"])

# %% [markdown]
# The wanted answer is the new object for the prompt and the paraphrase, the old one for
# the neighbour.
#
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
def learn(name, steps, **settings):
    """Train on facts that are not edited here."""
    numbers = numbers_of(MODEL, name, steps=steps, **settings)
    task = Task(model, tokenizer, numbers, {})
    return BASELINES[name].train(task, others)


short = {"mend": 60}
mend = learn("mend", short["mend"])
by_baseline("mend", mend, steps=short["mend"])
print("learned numbers:", sum(w.numel() for w in mend.values()))

# %% [markdown]
# ## SERAC: a memory beside the model
#
# SERAC {cite:p}`mitchell2022serac` changes no weight. Edits go to a memory; a *scope
# classifier* compares each question $x$ with every entry, and where one is close enough,
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
serac = learn("serac", 150, scope_steps=150)
by_baseline("serac", serac, steps=150, scope_steps=150)
print("change of the weights:", after["serac"][3])

# %% tags=["nbval-ignore-output"]
bars(["mend", "serac"])

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
# In the editor this is `exact=True`, one layer, and a batch is written fact by fact
# (`single=True`). With several facts at once the same constraint gives EMMET.

# %%
layers = ece.configure(MODEL, "memit").layers
one = ece.configure(MODEL, "rome").layers
stats = ece.second_moment(
    model, tokenizer, atlas.corpus(400), tuple(sorted({*layers, *one}))
)


def by_editor(name, **settings):
    """Edit the fact by one of the editor's methods, look, put back."""
    config = ece.configure(MODEL, name, **settings)
    state = ece.new_state(model, tokenizer, config)
    state, report = ece.edit_batch(
        model, tokenizer, [fact], stats, state, config
    )
    after[name] = [*asked(model), moved()]
    ece.undo(model, state)
    return config, report


rome, report = by_editor("rome")
print("layer", rome.layers, "norm of the update",
      f"{report.norms[rome.layers[0]]:.2f}")

# %% [markdown]
# Is the constraint really met? The new weights applied to the key, less the old ones, must
# be the whole residual.

# %%
from ece.engine.keys import keys_and_states, mix, subject_rows

(layer,) = rome.layers
site = ece.sites(model, (layer,))[0]
state = ece.new_state(model, tokenizer, rome)
rows = subject_rows(tokenizer, [fact], state.contexts)
found, _ = keys_and_states(model, rows, 1, layer, layer, 4096)
key, old = mix(found, rome.keys)[0].double(), site.weight.clone()
values = ece.compute_values(model, tokenizer, [fact], state, rome)
state, _ = ece.edit_batch(
    model, tokenizer, [fact], stats, state, rome, values
)
miss = (site.weight - old).double() @ key - values.delta[0].double()
ece.undo(model, state)
print(f"missed by {float(miss.norm() / values.delta[0].norm()):.0e}")

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
# `memit-history` adds the sum over the keys of earlier batches to the bracket.
#
# ## AlphaEdit: where old keys are not
#
# AlphaEdit {cite:p}`fang2025alphaedit` keeps the update inside the null space of old knowledge: with
# $U$ the eigenvectors of $C_0$ whose eigenvalues are nearly zero,
#
# $$
# \Delta = R K U \big(U^\top (H + K^\top K) U + \lambda I\big)^{-1} U^\top ,
# $$
#
# so that $\Delta k \approx 0$ for every old key $k$. "Nearly" is a threshold, and it decides
# everything: too low and no room is left for edits.

# %%
by_editor("memit")
alpha, _ = by_editor("alphaedit")
for layer in alpha.layers:
    share = (torch.linalg.eigvalsh(stats.moments[layer])
             < alpha.null).double().mean()
    print(f"layer {layer}: {share:.0%} of directions count as null")

# %% [markdown]
# ## BLUE, RECT, PRUNE
#
# Three later changes to MEMIT, each a line in the editor:
#
# - **BLUE** {cite:p}`li2025blue` edits only the first and the last of the layers, each towards a
#   value of its own (`spread="boundary"`);
# - **RECT** {cite:p}`gu2024rect` keeps only the entries of an update that are largest relative to
#   their weight, $|\Delta_{ij} / W_{ij}|$ (`keep`);
# - **PRUNE** {cite:p}`ma2024prune` looks at the sum of all updates: its singular values above the
#   largest $\sigma_0$ of the unedited $W$ are pulled in,
#   $\sigma \to \sigma_0 + \log_b(\sigma / \sigma_0)$ (`restrain`).

# %%
for name in ("blue", "rect", "prune"):
    config, report = by_editor(name)
    extra = {k: getattr(config, k) for k in ("spread", "keep", "restrain")}
    print(f"{name}: {extra}")

# %% tags=["nbval-ignore-output"]
bars(["rome", "memit", "alphaedit", "blue", "rect", "prune"])

# %% [markdown]
# PRUNE's restraint is applied when the model is used, after a sequence; for one edit it
# has nothing to do, and its bars are MEMIT's.
#
# ## Side by side
#
# One edit says little about a method: nearly all can write one fact. It shows how they
# go about it. The last column is the length of the change, relative to all weights.

# %% tags=["nbval-ignore-output"]
by_editor("ece-rs", clusters=1)
by_editor("ece-plus")
print(" " * 10, "prompt  para.  neigh.   moved")
print(f"{'before':10}", *(f"{p:6.2f}" for p in before))
for name, line in after.items():
    print(f"{name:10}", *(f"{p:6.2f}" for p in line[:3]),
          f"{line[3]:8.5f}")

# %% tags=["nbval-ignore-output"]
figure, ax = plt.subplots(figsize=(4.6, 3.4))
for name, line in after.items():
    ax.plot(max(line[3], 1e-5), 100 * line[2], "o",
            color=plots.colour(name))
    ax.annotate(name, (max(line[3], 1e-5), 100 * line[2]), fontsize=8,
                xytext=(3, 3), textcoords="offset points")
ax.set(xscale="log", xlabel="change of the weights (SERAC: none)",
       ylabel="neighbour's answer, %")
plt.show()

# %% [markdown]
# What counts is what is left after hundreds of edits: {doc}`10_table1`.
#
# ## Numbers
#
# The settings of the baselines on GPT2-XL, GPT-J and Llama-3 are the published ones where
# there are any (`ece.config.OWN`, `ece.baselines.PRESETS`). For the embedded models they were
# chosen by a short search on `atlas-gpt2` alone (200 facts of seed 0, one of the seeds of the
# tables), and the other two models use the same numbers. ECE's own presets were searched for
# on all three. So a baseline that does badly on `atlas-gptj` or `atlas-llama` may only be
# badly tuned there; AlphaEdit and PRUNE, which surely were, have numbers of their own on
# `atlas-gptj` (seed 3). {doc}`16_choice` makes up for some of that: one search for ECE, ROME
# and MEMIT, which finds all three other layers on `atlas-gptj`, and a threshold for SERAC.
# MEND and SERAC were trained on the facts of the world that a run does not edit, for each
# model and data set, and in other wordings than the paraphrases that the tables ask
# (`seen=False`); {doc}`10_table1` shows what SERAC gains by those.
#
# ## Summary
#
# - Every method of the paper's tables, and four newer ones, under one convention.
# - ROME, MEMIT, AlphaEdit, BLUE, RECT, PRUNE are settings of one editor; fine-tuning, MEND and
#   SERAC are files of their own.
# - ROME meets its constraint exactly; SERAC touches no weight.
#
# The last cell asserts what this page has claimed.

# %%
assert after["serac"][3] == 0, "SERAC changes no weight"
assert float(miss.norm() / values.delta[0].norm()) < 1e-4
for name in ("rome", "memit", "ft-m"):
    assert after[name][0] > before[0], name
assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())
