"""Interchange tracing equals replacing a block's output by hand, one pair at a time."""

import pytest
import torch

from ece.evaluation.causal_tracing import swap
from ece.facts import Fact, encode, locate, target_ids
from ece.model import blocks


def answer(model, tokenizer, fact: Fact) -> int:
    return int(model(torch.tensor([encode(tokenizer, fact.text)])).logits[0, -1].argmax())


def place(tokenizer, fact: Fact, at: str) -> int:
    if at == "subject":
        return locate(tokenizer, fact.prompt, fact.subject)[1]
    return len(encode(tokenizer, fact.text)) - 1


def by_hand(model, tokenizer, one: Fact, two: Fact, layer: int, at: str) -> bool:
    """Run `two`, keep its block's output; run `one` with that state put in its place."""
    kept = []

    def keep(module, inputs, output):
        kept.append((output[0] if isinstance(output, tuple) else output).clone())

    def put(module, inputs, output):
        states = (output[0] if isinstance(output, tuple) else output).clone()
        states[0, place(tokenizer, one, at)] = kept[0][0, place(tokenizer, two, at)]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    block = blocks(model)[layer]
    handle = block.register_forward_hook(keep)
    answer(model, tokenizer, two)
    handle.remove()
    handle = block.register_forward_hook(put)
    said = answer(model, tokenizer, one)
    handle.remove()
    return said == target_ids(tokenizer, two.true)[0]


@pytest.mark.parametrize("at", ["subject", "last"])
def test_swap_equals_replacing_by_hand(model, tokenizer, facts, at):
    told = [Fact(f.prompt, f.subject, f.target, true=f.target, id=f.id) for f in facts]
    pairs = list(zip(told, told[1:], strict=False))
    shares = swap(model, tokenizer, pairs, at)
    for layer in range(len(blocks(model))):
        hits = [by_hand(model, tokenizer, a, b, layer, at) for a, b in pairs]
        assert shares[layer].item() == pytest.approx(sum(hits) / len(hits))


def test_an_unknown_site_is_refused(model, tokenizer, facts):
    with pytest.raises(ValueError, match="subject, last"):
        swap(model, tokenizer, [(facts[0], facts[1])], at="middle")
