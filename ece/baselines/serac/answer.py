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
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize
from transformers import LlamaConfig, LlamaForCausalLM

from ece.baselines.base import Task, Weights, wordings
from ece.facts import Fact, encode, pad, target_ids

ELSEWHERE = 0.5
"""Share of training edits whose object is drawn from all relations, not the fact's own."""


def network(task: Task) -> LlamaForCausalLM:
    """Build the untrained model, the same bits for a seed; only its embeddings are final."""
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
    """List the weights that are trained: all but the embeddings."""
    frozen = made.get_input_embeddings().weight
    return {name: value for name, value in made.named_parameters() if value is not frozen}


def entry(tokenizer, fact: Fact) -> list[int]:
    """Write an edit as the tokens that go before a question.

    Where the tokenizer adds a BOS, the question has its own and so is set apart.
    """
    return [*encode(tokenizer, fact.text), *target_ids(tokenizer, fact.target), *_stop(tokenizer)]


def loss(
    task: Task, made: nn.Module, facts: list[Fact]
) -> Callable[[Weights, torch.Generator], Tensor]:
    """Build the loss: nats per token of the answer, and `numbers.text` times those of text.

    The edit names another object at each draw: it can be read from the edit only.
    """
    objects = _objects(facts)

    def answer_loss(weights: Weights, generator: torch.Generator) -> Tensor:
        draw = random.Random(int(torch.randint(2**31, (), generator=generator)))
        chosen = draw.sample(facts, min(task.numbers.batch, len(facts)))
        lessons = [_lesson(task, fact, objects, draw) for fact in chosen]
        ids, mask = (tensor.to(task.model.device) for tensor in pad([row for row, _ in lessons]))
        each = [torch.tensor(weight) for _, weight in lessons]
        weigh = nn.utils.rnn.pad_sequence(each, batch_first=True).to(ids.device)[:, 1:]
        keep = torch.zeros_like(mask)
        keep[:, :-1] = weigh > 0
        inputs = dict(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep)
        out = functional_call(made, weights, kwargs=inputs).logits
        weigh = weigh[keep[:, :-1]]
        nats = cross_entropy(out, ids[:, 1:][keep[:, :-1]], reduction="none")
        return (nats * weigh).sum() / weigh.sum()

    return answer_loss


def _lesson(task: Task, fact: Fact, objects: dict[str, list[str]], draw: random.Random):
    """Draw one row (edit, question, answer, the fact in other words) and its tokens' weights."""
    tokenizer, text = task.tokenizer, task.numbers.text
    pool = objects[""] if draw.random() < ELSEWHERE else objects[fact.relation or fact.prompt]
    target = target_ids(tokenizer, draw.choice(pool))
    stop, known = _stop(tokenizer), wordings(fact, task.numbers.seen)
    question = encode(tokenizer, draw.choice(known))
    again = target_ids(tokenizer, draw.choice(known))
    given = [*encode(tokenizer, fact.text), *target, *stop]
    tail = [*stop, *again, *target, *stop]
    row = [*given, *question, *target, *tail]
    weights = [0.0] * (len(given) + 1) + [text] * (len(question) - 1)
    return row, [*weights, *[1.0] * len(target), *[text] * len(tail)]


def _objects(facts: list[Fact]) -> dict[str, list[str]]:
    """Map each relation to the new objects of its facts, and "" to those of all."""
    found = defaultdict(set)
    for fact in facts:
        found[fact.relation or fact.prompt].add(fact.target)
        found[""].add(fact.target)
    return {relation: sorted(own) for relation, own in found.items()}


def _stop(tokenizer) -> list[int]:
    return list(tokenizer(".", add_special_tokens=False)["input_ids"])
