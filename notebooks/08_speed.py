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
# # Time: where it goes, and what saves it
#
# The second E of ECE stands for *efficient*: descending once per group of facts
# should cost less than once per fact (Table 2 of the paper). But most of the time that
# a published editor takes is not in the method at all. It is in running
# tokens and blocks that cannot change. This page counts both: **what does the engine
# save, what does the method save, and is the result still the same?**
#
# **What you will see**
#
# - how many operations one step needs, in the published loop and here;
# - that the fast path finds the same values as the slow one;
# - a measured table: each device added in turn, for all three models;
# - ECE against MEMIT with equal steps, with early stop, and without anchors;
# - the time of a batch against its size, and of an edit after thousands of others.

# %%
import json
import os
from dataclasses import replace
from pathlib import Path

import ece
from ece import atlas
from ece.data.loading import load_facts

MODEL = os.environ.get("ECE_MODEL") or "atlas-gpt2"
DEVICE = os.environ.get("ECE_DEVICE")
DATA = os.environ.get("ECE_DATA")

model, tokenizer = ece.load(MODEL, DEVICE)
facts = load_facts("counterfact", 8, path=DATA)

# %% [markdown]
# ## What one step has to compute
#
# A value enters the residual stream at the subject's last token, after block $\ell$.
# Everything in the blocks up to $\ell$ stays as it was. So does everything before
# that token in *any* block, since attention looks back only. And the loss reads
# the output matrix at the target's tokens and at the end of "{subject} is a",
# nowhere else. With $n$ tokens in a row, $m$ of them from the subject's last on, and
# $L$ blocks, a step needs about
#
# $$
# \frac{m}{n} \cdot \frac{L - \ell}{L}
# $$
#
# of what the published loop runs in the blocks, and less than that of the output
# matrix. `ece.bench.reference` is that loop, written down as plainly as it can be said; the
# tests compare everything on this page with it. PyTorch counts the operations of
# both.

# %%
from ece.bench.stages import STAGES, Bench, stage_row

layers = ece.configure(MODEL, "ece-rs").layers
stats = ece.second_moment(model, tokenizer, atlas.corpus(60), layers)
few = Bench(MODEL, model, tokenizer, facts, stats, random=True)
ways = {stage.name: stage for stage in STAGES}


def gflops(name, **settings):
    """Operations of one stage on the facts above, in 10^9."""
    stage = ways[name]
    stage = replace(stage, settings={**stage.settings, **settings})
    return stage_row(few, stage)["flops"] / 1e9


# %%
short = {"steps": 5, "own_steps": 1}
cost = {
    "published loop": gflops("naive", **short),
    "engine, one by one": gflops("cached", **short),
    "engine, all at once": gflops("memit", **short),
}
for name, work in cost.items():
    print(f"{name:20} {work:7.2f} GFLOP for {len(facts)} facts, 5 steps")

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt

from ece.book import plots

plots.style()
figure, ax = plt.subplots(figsize=(4.6, 2.2))
ax.barh(
    list(cost),
    list(cost.values()),
    color=[plots.GREY, plots.SKY, plots.BLUE],
)
ax.set(xlabel="operations for 5 steps, GFLOP")
ax.invert_yaxis()
plt.show()

# %% [markdown]
# *All at once* needs a few more operations than *one by one*: rows of one forward
# are padded to one length. It is faster all the same, since few large products
# keep a processor busier than many small ones.
#
# ## The same values
#
# Speed is worth something only if nothing else changes. One fact, five steps, in
# both ways:

# %%
import torch

from ece.bench import reference as naive
from ece.state import new_state

config = ece.configure(MODEL, "memit", stop=None, steps=5, own_steps=1)
state = new_state(model, tokenizer, config)
fast = ece.compute_values(model, tokenizer, facts[:1], state, config)
slow, losses = naive.descend(
    model,
    tokenizer,
    facts[:1],
    state.contexts,
    config,
    config.layers[-1],
    5,
    torch.zeros_like(fast.hidden[0]),
)
apart = (fast.delta[0] - slow).norm() / slow.norm()

# %% tags=["nbval-ignore-output"]
print(f"values differ by {apart:.1e} of their length")
print("losses, fast", [f"{x:.4f}" for x in fast.losses[:, 0].tolist()])
print("losses, slow", [f"{x:.4f}" for x in losses])

# %% [markdown]
# ## What was measured
#
# `make bench` runs each way of editing 100 facts in one process, on fresh
# weights, and writes a file with its origin. Of several runs of a stage the median
# counts. Files of different commits are of different engines: compare within a file. A
# stage adds one device to the one before:
#
# | stage | what it adds |
# |---|---|
# | `naive` | the published loop, one fact at a time, 25 steps |
# | `cached` | only what changes is run |
# | `memit` | all facts at once: MEMIT on this engine |
# | `memit-stop` | facts below a loss of 0.05 leave the batch |
# | `ece` | ECE-RS: 20 steps on anchors, 5 own steps; chosen neurons |
# | `ece-stop` | the same, and facts below 0.05 leave |
# | `own` | ECE-RS with 5 own steps from zero: no anchors |
# | `ece-plus` | the book's setting: no anchors, early stop, all neurons |
#
# ECE keeps the paper's schedule here on every model, also where a preset has another.

# %%
RESULTS = Path("../book/results")
files = {
    name: RESULTS / f"bench_{name}.json"
    for name in ("atlas-gpt2", "atlas-gptj", "atlas-llama")
}
measured = {
    name: json.loads(path.read_text())
    for name, path in files.items()
    if path.exists()
}


def show(record):
    """The stages of one file as a table."""
    print(f"{'':11}  total    x steps score")
    first = record["stages"][0]["total"]
    for row in record["stages"]:
        print(
            f"{row['stage']:11}{row['total']:6.1f}s"
            f"{first / row['total']:5.1f}{row['steps_per_fact']:6.1f}"
            f"{row['quality']['score']:6.1f}"
        )


# %%
for name, record in measured.items():
    runs = max(row.get("times_run", 1) for row in record["stages"])
    print(f"\n{name}, {record['facts']} facts in one batch")
    print(f"commit {record['provenance']['commit'][:7]}, "
          f"runs of a short stage: {runs}")
    show(record)

# %% [markdown]
# The first four stages as a waterfall: in grey what a device takes away from the stage above
# it, in colour what is left.

# %%
parts = {"values": plots.BLUE, "keys": plots.ORANGE, "solve": plots.GREEN}


def bars(ax, rows, waterfall):
    """Seconds of each stage, by part."""
    before = None
    for place, row in enumerate(rows):
        left, total = 0.0, row["total"]
        for part, colour in parts.items():
            ax.barh(place, row["seconds"][part], left=left, color=colour)
            left += row["seconds"][part]
        if waterfall and before:
            ax.barh(place, before - total, left=total, color="0.85")
        ax.text(total, place, f" {total:.1f} s", va="center")
        before = total
    ax.set_yticks(range(len(rows)), [row["stage"] for row in rows])
    ax.invert_yaxis()
    ax.margins(x=0.2)


# %%
def seconds(stages, waterfall=False):
    figure, axes = plt.subplots(
        len(measured), 1, figsize=(4.6, 2.3 * len(measured)),
        squeeze=False)
    for ax, (name, record) in zip(axes[:, 0], measured.items()):
        rows = [r for r in record["stages"] if r["stage"] in stages]
        bars(ax, rows, waterfall)
        ax.set(title=name, xlabel="seconds for one batch")
    marks = [plt.Rectangle((0, 0), 1, 1, color=c) for c in parts.values()]
    figure.legend(marks, parts, loc="outside lower center", ncols=3)
    plt.show()


# %% tags=["nbval-ignore-output"]
seconds(("naive", "cached", "memit", "ece"), waterfall=True)

# %% [markdown]
# And the ways that share the engine, at their own scale:

# %% tags=["nbval-ignore-output"]
seconds(("memit", "memit-stop", "ece", "ece-stop", "own", "ece-plus"))

# %% [markdown]
# Read the table with the last column. `score` is the harmonic mean of efficacy,
# generalization and specificity right after this one batch of 100 facts: a row that
# is faster and worse has not won anything.
#
# ### How close to the machine's limit
#
# The ceiling is the best rate of one large matrix product on the same device. What
# is missing to it is time in small operations, in memory and in Python.

# %%
for name, record in measured.items():
    top = record["ceiling_flops_per_second"]
    print(f"\n{name}: at most {top / 1e9:.0f} GFLOP/s")
    print(f"{'':8} GFLOP  GFLOP/s    %    MiB")
    for row in record["stages"]:
        if row["stage"] in ("naive", "cached", "memit", "ece"):
            peak = row["peak_bytes"]
            held = f"{peak / 2**20:7.0f}" if peak else "      -"
            print(
                f"{row['stage']:8}{row['flops'] / 1e9:6.0f}"
                f"{row['flops_per_second'] / 1e9:9.1f}"
                f"{100 * row['share_of_ceiling']:5.0f}{held}"
            )

# %% [markdown]
# On a CPU the peak is that of the whole process, Python and libraries included, and
# memory once asked for is kept; on a GPU it is what the tensors take.
#
# ## Engine or method?
#
# The total saving is a product. The engine's factor is `naive` over `memit`, with the
# same steps and the same values; it would serve any method of this kind. The method's
# is `memit` over `ece`: fewer steps, because a group shares most of them. And there
# is a third, which needs no groups: to stop a fact once it is done, or to take
# fewer steps from the start.

# %%
for name, record in measured.items():
    total = {row["stage"]: row["total"] for row in record["stages"]}
    print(f"{name}: engine {total['naive'] / total['memit']:.1f}x")
    print("  and on it, beside MEMIT's 25 steps,")
    for stage, what in {
        "ece": "anchors",
        "memit-stop": "early stop alone",
        "ece-stop": "anchors and early stop",
        "own": "five own steps, no anchors",
    }.items():
        print(f"  {total['memit'] / total[stage]:4.1f}x {what}")

# %% [markdown]
# ```{admonition} What the anchors save, and what saves more
# :class: important
# With a fixed number of steps, anchors save what the paper says they do. But a fact
# seldom needs 25 steps: with early stop MEMIT takes only a few, and a shared phase then
# has little left to save. Five own steps from zero cost about as much as anchors with
# early stop do. What each of them does to quality is in the last column above, for one
# batch, and in {doc}`05_two_step` and {doc}`14_parts` for more.
# ```
#
# ## Table 2, beside the paper's
#
# Seconds on different machines and models cannot be compared; what a method
# saves over MEMIT on the *same* machine can.

# %%
paper = json.loads((RESULTS / "paper.json").read_text())["table2"]["rows"]
pairs = {
    "atlas-gpt2": "gpt2-xl",
    "atlas-gptj": "gpt-j-6b",
    "atlas-llama": "llama-3-8b",
}
print("ECE (RS), times faster than MEMIT")
for name, big in pairs.items():
    said = paper["memit"][big] / paper["ece-rs"][big]
    record = measured.get(name)
    here = f"{record['ece_vs_memit']:.2f}" if record else "not run here"
    print(f"{big:10} {said:4.2f}, {name:11} {here}")

# %% [markdown]
# The paper's factors contain whatever its implementation did; its code for the
# groups was not published.
#
# ## Batches of all sizes

# %% tags=["nbval-ignore-output"]
figure, ax = plt.subplots(figsize=(4.6, 3.0))
record = next(iter(measured.values()))
for stage in ("memit", "ece"):
    rows = [row for row in record["batches"] if row["stage"] == stage]
    ax.plot(
        [row["batch"] for row in rows],
        [row["seconds"] / row["batch"] for row in rows],
        marker="o",
        label=stage,
        color=plots.colour("ece-rs" if stage == "ece" else stage),
    )
ax.set(
    xscale="log",
    yscale="log",
    xlabel="facts in the batch",
    ylabel="seconds per edit",
    title=record["model"],
)
ax.legend()
plt.show()

# %% [markdown]
# Two things make a batch cheaper per edit: what is done once for all (drawing on
# common prefixes, one factorisation), and larger products. Once the processor is busy
# the curve of MEMIT is flat. That of ECE goes on falling as long as the number of
# groups stays the same while the batch grows; its quality then has to be looked at,
# since the groups become coarser.
#
# ## After thousands of edits
#
# A session that edits on must not become slower. The state keeps the keys of the
# last few batches, so that they can be undone, and folds older ones into one
# matrix per layer.

# %% tags=["nbval-ignore-output"]
longest = max(
    (r["long"] for r in measured.values() if "long" in r),
    key=lambda run: len(run["rows"]),
)
rows = longest["rows"]
edits = [row["edits"] for row in rows]
figure, (top, below) = plt.subplots(2, 1, sharex=True, figsize=(4.6, 4.0))
top.plot(
    edits,
    [1000 * row["seconds_per_edit"] for row in rows],
    color=plots.GREEN,
)
top.set(ylabel="ms per edit", ylim=(0, None))
below.plot(edits, [row["bytes"] / 2**20 for row in rows], color=plots.BLUE)
below.set(ylabel="memory, MiB", xlabel="edits so far", ylim=(0, None))
plt.show()

# %%
for name, record in measured.items():
    if "long" in record:
        run = record["long"]
        edits = run["rows"][-1]["edits"]
        print(f"{name}, {edits} edits, {run['batch']} at a time:")
        print(f"  a batch then costs {run['ratio']:.2f} times")
        print("  what it did after the first")

# %% [markdown]
# Here a value takes a single step: the descent cannot know how many edits came before,
# and with less of it a growth of the rest would stand out more.
#
# The curve follows the machine's moods as well as the method. So for the numbers the same
# batch was run on the state after the first batch and on the last, in turn, eleven times
# each; the median of the ratios counts.
#
# ## The second moments
#
# $C_0$ is computed once per model, for all edit layers in one pass that stops at the
# last of them; rows are packed full, and a killed pass goes on where it was.

# %%
for name, record in measured.items():
    seen = record["statistics"]
    print(f"{name}: {seen['tokens_per_second']:.0f} tokens a second")

# %% [markdown]
# ## Full size
#
# The cost of a step does not depend on the weights' values, so that real shapes can
# be timed with random weights:

# %%
print(
    "python -m ece.bench.cli --device cuda \\\n"
    "  --dtype bfloat16 --naive-dtype float32 \\\n"
    "  --naive 4 --edits 0 \\\n"
    "  --shapes gpt2-xl,gpt-j-6b,llama-3-8b"
)
shapes = sorted(RESULTS.glob("bench_gpt*")) + sorted(
    RESULTS.glob("bench_llama*")
)
print("not run here" if not shapes else [path.name for path in shapes])

# %% [markdown]
# ## Summary
#
# - A descent step needs a small part of what the published loop runs, and gives the
#   same values.
# - Most of the time saved comes from the engine, and serves every method.
# - Anchors save time when the number of steps is fixed. Stopping early saves more,
#   and costs nothing.
# - The memory of a session does not grow with its edits. How the time of an edit did
#   is printed above; other work on the machine shows in it too.
#
# The last cell asserts what the page has claimed.

# %%
assert apart < 1e-2, "the fast path finds the slow path's values"
assert cost["published loop"] > 2 * cost["engine, all at once"]
for name, record in measured.items():
    total = {row["stage"]: row["total"] for row in record["stages"]}
    assert total["naive"] > 2 * total["memit"] > 2 * total["ece"], name
    assert total["memit-stop"] < total["memit"], "early stop saves time"
    assert record["provenance"]["command"].startswith(
        "python -m ece.bench.cli"
    )
