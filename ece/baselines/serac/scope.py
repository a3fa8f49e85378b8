"""SERAC's scope classifier: whether a text is about an edit (Mitchell et al. 2022, section 3.1).

The paper fine-tunes a BERT. No second pretrained encoder is at hand here, and none is needed:
texts are read from the frozen base model's own states after a middle layer, and what is trained
is how they are pooled, projected and compared. Edit and text are embedded apart (the paper's
"embed" variant), so that a memory of thousands of edits costs one product of matrices per text.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import layer_norm, normalize, softplus

from ece.baselines.base import Task, Weights, wordings
from ece.engine.grouping import by_length
from ece.facts import Fact, encode, pad
from ece.hooks import states_at
from ece.model import blocks

BATCH_TOKENS = 4096
"""Bound on rows * tokens that are embedded together."""
ANSWERED = 0.3
"""Share of training texts that have an answer's tokens attached."""


def statement(fact: Fact) -> str:
    """Write the text by which an edit stands in the memory: prompt and new object."""
    return f"{fact.text} {fact.target}"


def start(task: Task) -> Weights:
    """Make untrained weights: `query` `[head, d]`, `project` `[head, d, width]`, scale and bias."""
    numbers, weight = task.numbers, task.model.get_input_embeddings().weight
    draw = torch.Generator().manual_seed(numbers.seed)
    size = weight.shape[1]
    shapes = {"query": (numbers.heads, size), "project": (numbers.heads, size, numbers.scope_width)}
    made = {name: torch.randn(shape, generator=draw) / size**0.5 for name, shape in shapes.items()}
    made |= {"scale": torch.tensor(20.0), "bias": torch.tensor(-10.0)}
    return {name: value.to(weight.device) for name, value in made.items()}


def embed(task: Task, weights: Weights, rows: list[list[int]]) -> Float[Tensor, "row width"]:
    """Turn rows of tokens into unit vectors; each head pools the states with its own attention."""
    layer = int(task.numbers.depth * (len(blocks(task.model)) - 1))
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for chunk in by_length([len(row) for row in rows], BATCH_TOKENS):
        some = [rows[i] for i in chunk]
        states = states_at(task.model, some, layer).float()
        mask = pad(some)[1].to(states.device)
        for i, vector in zip(chunk, _pool(weights, states, mask), strict=True):
            found[i] = vector
    return torch.stack(found)


def _pool(
    weights: Weights, states: Float[Tensor, "row token d"], mask: Bool[Tensor, "row token"]
) -> Float[Tensor, "row width"]:
    """Norms differ much between tokens (a BOS has a huge one), so every state is normalised."""
    states = layer_norm(states, states.shape[-1:])
    attention = (states @ weights["query"].T).masked_fill(~mask[..., None], -torch.inf)
    pooled = torch.einsum("rth,rtd->rhd", attention.softmax(1), states)
    return normalize(torch.einsum("rhd,hdw->rw", pooled, weights["project"]), dim=-1)


def logits(
    weights: Weights, entries: Float[Tensor, "edit width"], rows: Float[Tensor, "row width"]
) -> Float[Tensor, "edit row"]:
    """Compute log odds that a row is in the scope of an edit; scale and bias are learned."""
    return weights["scale"] * entries @ rows.T + weights["bias"]


def loss(task: Task, facts: list[Fact]) -> Callable[[Weights, torch.Generator], Tensor]:
    """Build the loss: the binary cross-entropy of texts in and out of scope.

    As the view goes by the best entry, a text out of scope pays for all entries at once.
    """
    twins = _twins(facts)

    def scope_loss(weights: Weights, generator: torch.Generator) -> Tensor:
        draw = random.Random(int(torch.randint(2**31, (), generator=generator)))
        chosen = draw.sample(facts, min(task.numbers.batch, len(facts)))
        drawn = _texts(chosen, facts, twins, task.numbers.seen, draw)
        texts, names = zip(*drawn, strict=True)
        stated = [statement(fact) for fact in chosen]
        vectors = embed(task, weights, [encode(task.tokenizer, t) for t in (*stated, *texts)])
        odds = logits(weights, vectors[: len(chosen)], vectors[len(chosen) :])
        means = [[fact.text == name for name in names] for fact in chosen]
        inside = torch.tensor(means, device=odds.device)
        wrong = odds.masked_fill(inside, -torch.inf).logsumexp(0)
        return softplus(-odds[inside]).mean() + softplus(wrong).mean()

    return scope_loss


def _twins(facts: list[Fact]) -> dict[str, list[str]]:
    """Map each subject to others that share a word with it: the hardest to tell apart."""
    holders = defaultdict(set)
    for fact in facts:
        for word in fact.subject.split():
            holders[word].add(fact.subject)

    def near(subject: str) -> set[str]:
        return set().union(*(holders[word] for word in subject.split())) - {subject}

    return {fact.subject: sorted(near(fact.subject)) for fact in facts}


def _texts(
    chosen: list[Fact], facts: list[Fact], twins: dict, seen: bool, draw: random.Random
) -> Iterator[tuple[str, str]]:
    """Draw (text, edit prompt that means the same), in and out of the scope of each fact.

    Out of it: a neighbour, the fact's wording about another subject, the subject in the prompt
    of another fact. Some texts have an answer attached.
    """
    for fact in chosen:
        known = wordings(fact, seen)
        found = [(draw.choice(known), fact.text)]
        if fact.neighbours:
            found.append((draw.choice(fact.neighbours),) * 2)
        near = twins[fact.subject] if draw.random() < 0.5 else ()
        other = draw.choice(near) if near else draw.choice(facts).subject
        wording = draw.choice(known)
        if fact.subject in wording:
            swapped = wording.replace(fact.subject, other)
            found.append((swapped, fact.prompt.replace("{}", other)))
        away = draw.choice(facts).prompt.replace("{}", fact.subject)
        found.append((away, away))
        for text, name in found:
            answer = draw.choice((fact.target, fact.true or fact.target))
            yield (f"{text} {answer}" if draw.random() < ANSWERED else text), name
