"""Free text: seeded, batched, and drawn as the protocol says, whatever the checkpoint says."""

import pytest
import torch
from transformers import GenerationConfig

from conftest import build
from ece.errors import DataError
from ece.evaluation.generation import answer, generate, plain_sampling
from ece.facts import encode

PROMPTS = ["It is cold in", "Mira Velan lives in", "Ilo", "It is cold in Oslo, says"]


def test_text_repeats_with_its_seed_and_leaves_the_generator_alone(model, tokenizer):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one = generate(model, tokenizer, PROMPTS, 30)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one == generate(model, tokenizer, PROMPTS, 30)
    assert one != generate(model, tokenizer, PROMPTS, 30, seed=1)
    assert all(text.startswith(prompt) for text, prompt in zip(one, PROMPTS, strict=True))


def test_the_likeliest_text_is_that_of_plain_forwards(model, tokenizer):
    """With one candidate there is no chance: token by token without a cache."""
    for prompt, text in zip(PROMPTS, generate(model, tokenizer, PROMPTS, 24, top_k=1), strict=True):
        ids = encode(tokenizer, prompt)
        while len(ids) < 24:
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            if tokenizer.eos_token_id is not None:
                logits[tokenizer.eos_token_id] = -torch.inf
            ids.append(int(logits.argmax()))
        assert text == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_prompt_as_long_as_the_room_comes_back(model, tokenizer):
    assert generate(model, tokenizer, PROMPTS[:1], 2) == PROMPTS[:1]


OWN = [
    {"do_sample": True, "temperature": 0.6, "top_p": 0.9},  # as Llama-3's
    {"do_sample": True, "temperature": 3.0, "top_k": 1, "min_p": 0.2, "typical_p": 0.5},
    {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2, "suppress_tokens": [5, 7, 9, 11]},
    {"num_beams": 3, "max_new_tokens": 3, "min_new_tokens": 2, "use_cache": False},
]


@pytest.mark.parametrize("own", OWN)
def test_the_checkpoints_sampling_takes_no_part(family, tokenizers, own):
    plain, other = build(family), build(family)
    other.generation_config = GenerationConfig(**own)
    texts = generate(other, tokenizers[family], PROMPTS, 30)
    assert texts == generate(plain, tokenizers[family], PROMPTS, 30)
    assert other.generation_config == GenerationConfig(**own), "it is as it was"


def test_the_generation_config_comes_back_after_an_error(model):
    own = model.generation_config
    with pytest.raises(KeyError), plain_sampling(model):
        assert model.generation_config is not own
        raise KeyError
    assert model.generation_config is own


def test_unusable_prompts_are_named(model, tokenizer):
    room = model.config.max_position_embeddings
    with pytest.raises(DataError, match=f"'Ilo Ilo.* has .* 0 more.* 1 to {room}: shorten"):
        generate(model, tokenizer, ["Ilo", "Ilo " * room], 2 * room)
    with pytest.raises(DataError, match=f"'Ilo' has . tokens and gets {room} more"):
        answer(model, tokenizer, ["Ilo"], room)
    with pytest.raises(DataError, match="prompts are 'It is cold'; give a list of texts"):
        generate(model, tokenizer, "It is cold")
