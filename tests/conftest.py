"""Three tiny random models, one per family of the paper, and a tokenizer made on the spot."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import multiprocessing
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from ece.config import Config
from ece.covariance import second_moment
from ece.facts import Fact

FAMILIES = ("gpt2", "gptj", "llama")
SUBJECTS = ("Mira Velan", "Tor Asken", "Ilo", "Bena Quist", "Ruan of Dell", "Ossia Marn")
CITIES = ("Paris", "Lyon", "New Harbour", "Oslo", "Port Kell", "Rome")
JOBS = ("baker", "night watchman", "weaver", "miller", "sea captain", "smith")
TEXTS = [
    f"{name} lives in {city}. The trade of {name}, all agree, is {job}. It is cold in {city}."
    for name in SUBJECTS
    for city in CITIES
    for job in JOBS
]


settings.register_profile("ece", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("ece")


def pytest_configure():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizers():
    """A byte-level BPE per family; the llama one adds a BOS, as Llama's does."""
    made = {}
    for name in FAMILIES:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<s>"],
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator(TEXTS, trainer)
        if name == "llama":
            tokenizer.post_processor = processors.Sequence(
                [
                    processors.ByteLevel(trim_offsets=False),
                    processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
                ]
            )
        made[name] = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    return made


def build(family: str, seed: int = 0, vocab: int = 320, room: int = 128):
    """A fresh random model: width 32, four blocks. Same seed, same bits."""
    torch.manual_seed(seed)
    shared = dict(vocab_size=vocab, initializer_range=0.15)
    old = dict(n_embd=32, n_layer=4, n_head=2, n_positions=room)
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**shared, **old))
    elif family == "gptj":
        model = GPTJForCausalLM(GPTJConfig(**shared, **old, rotary_dim=8))
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                **shared,
                hidden_size=32,
                intermediate_size=96,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=room,
            )
        )
    return model.eval().requires_grad_(False)


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def tokenizer(family, tokenizers):
    return tokenizers[family]


@pytest.fixture
def model(family):
    """A model of this test's own, free to be edited."""
    return build(family)


@pytest.fixture(scope="session")
def all_stats(tokenizers):
    """Second moments of the three unedited models, all layers."""
    return {
        name: second_moment(build(name), tokenizers[name], TEXTS[:60], (0, 1, 2))
        for name in FAMILIES
    }


@pytest.fixture
def stats(family, all_stats):
    return all_stats[family]


@pytest.fixture(scope="session")
def facts() -> list[Fact]:
    """Six facts of uneven lengths: subject first, in the middle, at the end."""
    prompts = ("{} lives in", "The trade of {}, all agree, is", "It is cold, says {}")
    return [
        Fact(prompts[i % 3], SUBJECTS[i], (CITIES + JOBS)[(5 * i) % 12], relation=f"r{i % 3}", id=i)
        for i in range(6)
    ]


@pytest.fixture(scope="session")
def config() -> Config:
    """Small but complete: every part of the method has something to do."""
    return Config(
        layers=(0, 1),
        lr=0.1,
        lr_unit="stream",
        lam=20.0,
        ridge=1e-3,
        clusters=2,
        steps=5,
        own_steps=2,
        contexts=2,
        context_tokens=4,
    )


@pytest.fixture
def untyped():
    """Switch the tests' own type checks off: what a user's wrong argument meets is the package."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def started(call, given: tuple, count: int):
    """Start processes from one that has made the imports, which take longer than their work."""
    families = [f"transformers.models.{name}.modeling_{name}" for name in FAMILIES]
    multiprocessing.set_forkserver_preload(["ece", "ece.storage", "ece.baselines", *families])
    return multiprocessing.start_processes(
        call, given, count, join=False, start_method="forkserver"
    )


def history(state, layer: int):
    """Sum k k^T over all edits so far; None without a history."""
    keys, folded = state.recent(layer), state.folded.get(layer)
    if keys is None:
        return folded
    recent = keys.double().T @ keys.double()
    return recent if folded is None else folded + recent


def weights(model) -> dict[str, torch.Tensor]:
    """Copy all of a model's weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, before: dict[str, torch.Tensor]) -> bool:
    """Whether every weight has the bits it had."""
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
