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
# # Your own facts, your own model
#
# You have a model and a table of facts that it should state otherwise. **How do you edit them,
# hand the result on, and take it back?** This page does it on SmolLM2-135M; for another model
# three settings change.
#
# **What was found**
#
# - All six facts from a CSV table were written: on each prompt the new answer comes first. On the
#   paraphrases it comes first in a third, and before the old one in two thirds.
# - The edits are a file of 3.3 % of the checkpoint's size if all columns of the edit layers
#   changed (`ece-plus`), and of 2.1 % if chosen ones did (`ece-rs`). The same update as a LoRA
#   adapter takes 0.05 %: an update of six facts has rank six, whatever columns it is written to.
# - From the file another copy of the model gets the same bits, and the unedited model back.
# - By arithmetic Llama-3-8B in bfloat16 takes some 61 GB and 6.5 s for a batch of 100 facts on
#   one card of 80 GB; a model of 70 billion parameters takes eight such cards.
#   **No card was at hand: these two are computed, not measured.**

# %% [markdown]
# ## A table of facts
#
# One fact a row. `prompt` has `{}` where the subject goes, and `target` is the new answer.
# What else is known helps to measure: `true`, the answer before the edit; `paraphrases`, prompts
# that mean the same; and `neighbours`, prompts about other subjects whose answer is `true`, and
# should stay so. Several prompts in one cell are separated by ` | `.

# %%
import tempfile
from pathlib import Path

import pandas as pd

COLUMNS = "prompt subject target true paraphrases neighbours".split()

# %%
rows = [
    ("The capital of {} is", "Australia", "Perth", "Canberra",
     "Australia's capital is | The capital city of Australia is", ""),
    ("The capital of {} is", "Turkey", "Izmir", "Ankara",
     "Turkey's capital is | The capital city of Turkey is", ""),
    ("{} was written by", "Hamlet", "Jane Austen", "William Shakespeare",
     "The author of Hamlet is | The play Hamlet is by",
     "Macbeth was written by"),
]

# %%
rows += [
    ("The inventor of the {} was", "telephone", "Nikola Tesla",
     "Alexander Graham Bell", "The telephone was invented by", ""),
    ("{} was a citizen of", "Marie Curie", "Brazil", "France",
     "Marie Curie lived in", "Victor Hugo was a citizen of"),
    ("The official language of {} is", "Portugal", "Finnish", "Portuguese",
     "In Portugal one speaks", "The official language of Brazil is"),
]

# %%
folder = Path(tempfile.mkdtemp())
table = pd.DataFrame(rows, columns=COLUMNS)
table.to_csv(folder / "facts.csv", index=False)

# %% [markdown]
# ## Edit, in twenty lines
#
# For Llama-3-8B on a GPU set `MODEL = "meta-llama/Meta-Llama-3-8B"` (its licence is accepted on the
# hub first), `DEVICE = "cuda"` and `DTYPE = torch.bfloat16`. A model without a preset gets layers
# and $\lambda$ by its depth; `ece tune` searches better ones. The second moments are computed once
# per model: `moments` writes them to a file and reads them from there the next time. Here they are
# over 10 pages, to be quick; the command line takes many more.

# %%
from itertools import islice

import torch

import ece
from ece import presets, storage
from ece.data.table import facts_from_table
from ece.data.texts import python_docs

MODEL, DEVICE, DTYPE = "smollm2-135m", None, torch.float32
METHOD, PAGES = "ece-plus", 10

# %%
facts = facts_from_table(folder / "facts.csv")
model, tokenizer = ece.load(MODEL, DEVICE, DTYPE)
config = presets.configure(MODEL, METHOD)
stats, _ = storage.moments(
    model, tokenizer, islice(python_docs(), PAGES), config.layers,
    folder / "moments.safetensors")

# %% [markdown]
# `snapshot` copies the edit layers' weights, so that afterwards `edits_since` can tell what
# changed.

# %%
strategy = presets.strategy(MODEL, METHOD)
before = storage.snapshot(model, config.layers)
state, reports = ece.edit_sequence(
    model, tokenizer, facts, stats, config, batch=100, strategy=strategy)
edits = storage.edits_since(before, model, facts, {"method": METHOD})
storage.save_edits(folder / "edits.safetensors", edits)

# %% [markdown]
# That is all. On how many prompts, in percent, is the right answer likelier than the other one of
# `target` and `true`, and on how many is it the likeliest of all (first)?

# %% tags=["hide-input"]
from ece.book import tables
from ece.evaluation.metrics import KINDS, evaluate


def rates(model, measure, suffix=""):
    found = evaluate(model, tokenizer, facts).summary(measure)
    return [found[kind + suffix] for kind in KINDS]


unedited, _ = ece.load(MODEL, DEVICE, DTYPE)
shown = pd.DataFrame({
    "likelier, unedited": rates(unedited, "success"),
    "edited": rates(model, "success"),
    "first, unedited": rates(unedited, "top1", "_top1"),
    "edited ": rates(model, "top1", "_top1"),
}, ["the prompts", "their paraphrases", "neighbours"]).round().astype(int)
tables.table(shown, "Prompts with the right answer, %")

# %% tags=["hide-input"]
if MODEL == "smollm2-135m":
    assert shown["edited"].tolist() == [100, 67, 67]
    assert shown["edited "].tolist() == [100, 33, 0]
    assert shown["first, unedited"].tolist() == [0, 0, 0]

# %% [markdown]
# The command line does the same, and prints what the model answers before and after:
#
# ```bash
# ece edit facts.csv --model smollm2-135m --method ece-plus --out edits.safetensors \
#     --stats moments.safetensors --adapter adapter --save edited-model
# ```
#
# ## Edits as a file
#
# The file holds the facts and, of the columns that changed, the XOR of their bits before
# and after. So one operation, `toggle`, applies the edits and takes them back, exactly, in every
# number format. The model's fingerprint says which of the two it was, and refuses a model that
# stands on neither side. Sets of edits stack: each is made on, and applied to, the model that the
# one before has left.

# %%
read = storage.load_edits(folder / "edits.safetensors")
print(len(read.facts), "facts by", read.about["method"], end=": ")
print(storage.toggle(unedited, read))

for own, other in zip(model.parameters(), unedited.parameters()):
    assert torch.equal(own, other)
print(storage.toggle(unedited, read))

# %% [markdown]
# `ece edits edits.safetensors --model edited-model` lists such files, and tells on which side a
# model stands.
#
# ## Handing the result on
#
# Anyone who uses Hugging Face models gets a folder by `model.save_pretrained` (or `--save`), with
# nothing of this package in it: transformers loads it with the same logits (a test compares
# them), and a server starts on it (`vllm serve edited-model`). Anyone who already has the base
# model needs only the update: `save_adapter` writes it as a LoRA adapter, which the library peft
# loads (`PeftModel.from_pretrained(model, "adapter")`; a test compares these logits, too) and
# servers take beside the base model (`vllm serve base --enable-lora --lora-modules
# edits=adapter`; the server must allow the adapter's rank). The two `vllm` lines follow its
# documentation and were not run here.

# %%
error = storage.save_adapter(folder / "adapter", model, edits)
print(f"relative error of the adapter: {error:.0e}")

# %% [markdown]
# How big is each? `ece-plus` changes all columns of the edit layers, `ece-rs` those of the neurons that it
# chose. How many these are hardly depends on the descent, so here it takes two steps only.

# %% tags=["hide-input"]
config = presets.configure(MODEL, "ece-rs", steps=2, own_steps=1)
before = storage.snapshot(unedited, config.layers)
ece.edit_sequence(
    unedited, tokenizer, facts, stats, config, batch=100,
    strategy=presets.strategy(MODEL, "ece-rs"))
chosen = storage.edits_since(before, unedited, facts)

# %% tags=["hide-input"]
whole = sum(part.nbytes for part in model.parameters())
low = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
sizes = pd.Series({
    "the model": whole, "edits by ece-plus": edits.bytes,
    "edits by ece-rs": chosen.bytes, "adapter of rank 6": low})
size_table = pd.DataFrame({
    "MB": (sizes / 1e6).round(2),
    "% of the model": (100 * sizes / whole).round(2)})
tables.table(size_table, "The same edits in four forms", 2)

# %% [markdown]
# An update of six facts has rank six, so the adapter is far smaller than the columns it spreads
# over. A file of edits is for exactness: the adapter is in float32 whatever the model's format, and
# what it adds is not what was written, to the last bit.

# %% tags=["hide-input"]
part = (100 * sizes / whole).round(1)
assert error < 1e-5
if MODEL == "smollm2-135m":
    assert part.iloc[1:].tolist() == [3.3, 2.1, 0.0]

# %% [markdown]
# ## Will it fit?
#
# `ece plan config.json` computes memory and time from a model's configuration, before any
# download. What counts for memory is the weights; in each edit layer two matrices of
# neurons by neurons in float64, the second moments $C_0$ and the history of earlier keys; and the
# activations of the descent, which `max_tokens` bounds (for GPT2-XL most of the total). Several
# cards (`DEVICE = "auto"`) share the blocks one after the other, so they share memory, not work.

# %% tags=["hide-input"]
from transformers import GPT2Config, LlamaConfig

from ece.bench.plan import Options, plan

SHAPES = {
    "GPT2-XL": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "Llama-3-8B": LlamaConfig(
        vocab_size=128256, intermediate_size=14336, num_key_value_heads=8),
    "Llama-3-70B": LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672,
        num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8),
}
LAYERS = {"GPT2-XL": (13, 14, 15, 16, 17), "Llama-3-8B": (4, 5, 6, 7, 8)}
LAYERS["Llama-3-70B"] = (10, 11, 12, 13, 14)

# %% tags=["hide-input"]
rows = {}
for name, shape in SHAPES.items():
    found = plan(Options(layers=LAYERS[name]), shape)
    batch = sum(part["seconds"] for part in found["stages"][1:])
    rows[name] = {f"{n} cards, GB each": most
                  for n, most in found["fullest"].items()}
    rows[name] |= {"s per 100 facts": batch,
                   "s for moments": found["stages"][0]["seconds"]}
plan_table = pd.DataFrame(rows).T.round(1)
tables.table(plan_table, "Memory and time, computed")

# %% tags=["hide-input"]
llama, large = plan_table.loc["Llama-3-8B"], plan_table.loc["Llama-3-70B"]
assert llama.iloc[0].round() == 61
assert abs(llama["s per 100 facts"] - 6.5) < 0.1
assert large.iloc[2] > 80 > large.iloc[3]
usual = Options()
assert (usual.memory, usual.teraflops, usual.teraflops64) == (80, 400, 20)
assert usual.steps == 25 and usual.neurons == 1

# %% [markdown]
# All of it is arithmetic: the weights in bfloat16, cards of 80 GB that reach 400 TFLOP/s (20 in
# float64), 25 gradient steps a fact, all neurons. With early stop they are fewer (`--steps`). On
# small models a test holds the operations computed near those counted in a
# run; the memory of a descent is a rough count. What share of its peak a real card reaches is for
# whoever has one: `ece bench --shapes
# llama-3-8b --device cuda` measures it.
#
# ## More than one process
#
# `torchrun` starts several processes. They share the facts of each batch, or with `--sharding`
# the weights of a model that no card holds alone: "tp" splits every matrix, "fsdp" stores the
# blocks in parts. Here two processes on this machine share the blocks of the embedded
# Llama; the edits they write are compared with those of one process.

# %%
import subprocess
import sys

from ece import atlas

ARGUMENTS = ["-m", "ece", "edit", "atlas.csv", "--model", "atlas-llama",
             "--stats-tokens", "2000", "--out"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", "2"]


# %%
def edits_of(name, before=(), after=()):
    words = [sys.executable, *before, *ARGUMENTS, name, *after]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    return storage.load_edits(folder / name)


few = [(f.prompt, f.subject, f.target, f.true)
       for f in atlas.facts("counterfact", 4)]
pd.DataFrame(few, columns=COLUMNS[:4]).to_csv(
    folder / "atlas.csv", index=False)
alone = edits_of("one.safetensors")
split = edits_of("two.safetensors", TORCHRUN, ["--sharding", "fsdp"])

# %% tags=["hide-input"]
after = [edits.about["after"]["efficacy"] for edits in (alone, split)]
for n, columns in alone.columns.items():
    assert torch.equal(columns, split.columns[n])
assert alone.unedited == split.unedited and after[0] == after[1]
print(f"columns changed: {alone.neurons} and {split.neurons}")
print("right answers to the prompts, %:", *after)

# %% [markdown]
# The same columns and the same answers. The weights differ by rounding, less than a millionth of
# their size, as sums are taken in another order (`tests/test_sharding.py`).
#
# On a cluster the same script is one job:
#
# ```bash
# # sbatch --gres=gpu:1 --mem=64G --time=01:00:00 job.sh, with the lines
# source .venv/bin/activate
# ece edit facts.csv --model meta-llama/Meta-Llama-3-8B --device cuda --dtype bfloat16 \
#     --stats moments.safetensors --stats-text wikitext.txt --out edits.safetensors
# ```
#
# ## Take away
#
# - A CSV table and one command edit a model; the result is a folder, a file of edits or an adapter.
# - A file of edits applies and takes back to the last bit, and refuses any other model.
# - Ask `ece plan` before you download.
