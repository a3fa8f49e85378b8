"""Learn the tokenizers of the embedded models from the world's text: byte-level BPE."""

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ece.atlas.tasks import training_item, training_piece
from ece.atlas.text import document, statement
from ece.atlas.world import World
from ece.errors import ConfigError

END = "<|endoftext|>"


def build_tokenizer(world: World, vocabulary: int, bos: bool) -> PreTrainedTokenizerFast:
    """Learn `vocabulary` tokens; with `bos`, every text starts with `END`.

    Objects come out as single tokens, as most answers of CounterFact do in GPT-2's vocabulary.
    Raises `ConfigError` naming the objects that do not.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(world), trainer)
    if bos:
        first = processors.TemplateProcessing(
            single=f"{END} $A", special_tokens=[(END, tokenizer.token_to_id(END))]
        )
        spans = processors.ByteLevel(trim_offsets=False)
        tokenizer.post_processor = processors.Sequence([spans, first])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END
    )
    check_objects(world, fast)
    return fast


def _texts(world: World) -> list[str]:
    """State every fact once in its edit prompt, and add a sample of documents and tasks."""
    rng = random.Random(world.seed)
    facts = [
        statement(world.relations[t.relation].templates[0], t.subject, t.object).text
        for t in world.triples
    ]
    documents = ["".join(p.text for p in document(world, rng)) for _ in range(4000)]
    items = [training_piece(training_item(world, rng)).text for _ in range(1000)]
    return facts + documents + items


def check_objects(world: World, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise `ConfigError` naming the objects that are more than one token."""
    objects = {o for relation in world.relations.values() for o in relation.objects}
    split = [
        o for o in sorted(objects) if len(tokenizer.encode(f" {o}", add_special_tokens=False)) > 1
    ]
    if split:
        raise ConfigError(f"the vocabulary of {len(tokenizer)} splits the objects {split}; raise "
                          "'vocabulary' until each is one token")  # fmt: skip
