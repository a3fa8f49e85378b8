"""SERAC's counterfactual model: reads an edit, then a question, and answers as the edit says.

The paper takes a small pretrained language model. Here it is a decoder of Llama's shape with two
or three narrow blocks, trained from nothing (section 3.2). Its token embeddings are not trained:
they are the base model's, centred, projected at random to the narrow width and normalised, and
serve as the output layer too. So a big vocabulary adds no trained weight (128k tokens at width
128 take 66 MB of frozen numbers), and copying works for tokens that training never showed.
"""

import random
from collections import defaultdict
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize
from transformers import LlamaConfig, LlamaForCausalLM

from ece.baselines.base import Task, Weights, wordings
from ece.facts import Fact, encode, pad, target_ids

ELSEWHERE = 0.5
"""Share of training edits whose object is drawn from all relations, not the fact's own."""


def network(task: Task) -> LlamaForCausalLM:
    """The untrained model, the same bits for the same seed; only its embeddings are final."""
    numbers, table = task.numbers, task.model.get_input_embeddings().weight.detach().float()
    shape = LlamaConfig(
        vocab_size=len(table),
        hidden_size=numbers.width,
        intermediate_size=3 * numbers.width,
        num_hidden_layers=numbers.blocks,
        num_attention_heads=numbers.width // 32,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(numbers.seed)
        made = LlamaForCausalLM(shape).eval().requires_grad_(False).to(table.device)
        plane = torch.randn(table.shape[1], numbers.width).to(table)
    made.get_input_embeddings().weight.copy_(normalize((table - table.mean(0)) @ plane, dim=-1))
    return made


def start(made: nn.Module) -> Weights:
    """The weights that are trained: all but the embeddings."""
    frozen = made.get_input_embeddings().weight
    return {name: value for name, value in made.named_parameters() if value is not frozen}


def entry(tokenizer, fact: Fact) -> list[int]:
    """An edit as the tokens that go before a question.

    Where the tokenizer adds a BOS, the question keeps its own and so is set apart.
    """
    return [*encode(tokenizer, fact.text), *target_ids(tokenizer, fact.target), *_stop(tokenizer)]


def loss(
    task: Task, made: nn.Module, facts: list[Fact]
) -> Callable[[Weights, torch.Generator], Tensor]:
    """What `fit` minimises: nats per token of the answer, and `numbers.text` times those of text.

    The edit names another object at each draw: it can be read from the edit only.
    """
    objects = _objects(facts)

    def answer_loss(weights: Weights, generator: torch.Generator) -> Tensor:
        draw = random.Random(int(torch.randint(2**31, (), generator=generator)))
        chosen = draw.sample(facts, min(task.numbers.batch, len(facts)))
        lessons = [_lesson(task, fact, objects, draw) for fact in chosen]
        ids, mask = (tensor.to(task.model.device) for tensor in pad([row for row, _ in lessons]))
        weigh = _weigh([weight for _, weight in lessons]).to(ids.device)
        keep = torch.zeros_like(mask)
        keep[:, :-1] = weigh[:, 1:] > 0
        inputs = dict(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep)
        out = functional_call(made, weights, kwargs=inputs).logits
        weigh = weigh[:, 1:][keep[:, :-1]]
        nats = cross_entropy(out, ids[:, 1:][keep[:, :-1]], reduction="none")
        return (nats * weigh).sum() / weigh.sum()

    return answer_loss


def _lesson(task: Task, fact: Fact, objects, draw: random.Random):
    """Tokens of edit, question, answer, and the fact in other words; the loss's weight of each."""
    tokenizer, text = task.tokenizer, task.numbers.text
    pool = objects[""] if draw.random() < ELSEWHERE else objects[fact.relation or fact.prompt]
    target = target_ids(tokenizer, draw.choice(pool))
    stop = _stop(tokenizer)
    known = wordings(fact, task.numbers.seen)
    asked = encode(tokenizer, draw.choice(known))
    again = target_ids(tokenizer, draw.choice(known))
    given = [*encode(tokenizer, fact.text), *target, *stop]
    tail = [*stop, *again, *target, *stop]
    row = [*given, *asked, *target, *tail]
    weights = [0.0] * (len(given) + 1) + [text] * (len(asked) - 1)
    return row, [*weights, *[1.0] * len(target), *[text] * len(tail)]


def _weigh(weights: list[list[float]]) -> Float[Tensor, "row token"]:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in weights], batch_first=True)


def _objects(facts: list[Fact]) -> dict[str, list[str]]:
    """Relation -> new objects of its facts; "" -> those of all."""
    found = defaultdict(set)
    for fact in facts:
        found[fact.relation or fact.prompt].add(fact.target)
        found[""].add(fact.target)
    return {relation: sorted(own) for relation, own in found.items()}


def _stop(tokenizer) -> list[int]:
    return list(tokenizer(".", add_special_tokens=False)["input_ids"])
