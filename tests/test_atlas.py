"""The embedded world: what is held out stays out, masks mask, training resumes exactly."""

import json
import random
from dataclasses import asdict, replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from ece.atlas.batches import Batches, Mixture
from ece.atlas.masks import HIDDEN, RowMasks, attention_masked, mlp_masked
from ece.atlas.recipes import RECIPES
from ece.atlas.records import biographies, corpus, records
from ece.atlas.tasks import TASKS, held_out, training_item, training_piece
from ece.atlas.text import document
from ece.atlas.tokenizer import build_tokenizer, check_objects
from ece.atlas.train import Recipe, architecture, attention_of, loss_of, train
from ece.atlas.world import build
from ece.data import facts_from_counterfact
from ece.facts import locate
from ece.loading import CHECKPOINTS
from ece.model import blocks

TINY = Mixture(rows=2, length=48)


@pytest.fixture(scope="module")
def world():
    return build()


@pytest.fixture(scope="module")
def tokenizer(world):
    return build_tokenizer(world, 2048, bos=False)


def test_the_world_is_as_large_as_promised_and_repeats(world):
    assert len(world.triples) >= 2000 and len(world.relations) >= 10
    assert build().triples == world.triples
    assert build(1).triples != world.triples


def test_every_fact_is_stated_once(world):
    pairs = [(t.subject, t.relation) for t in world.triples]
    assert len(pairs) == len(set(pairs))


def test_held_out_templates_never_meet_their_subject_in_training(world):
    forbidden = {
        template.format(t.subject)
        for t in world.triples
        for template in (*world.held_out(t), world.held_out_question(t))
    }
    rng = random.Random(0)
    for _ in range(3000):
        for piece in document(world, rng):
            assert piece.head.strip() not in forbidden


def test_held_out_task_items_never_train(world):
    rng = random.Random(0)
    tests = {training_piece(item).text for task in TASKS for item in held_out(world, task, 100)}
    assert len(tests) == 100 * len(TASKS)
    assert not tests & {training_piece(training_item(world, rng)).text for _ in range(3000)}


@pytest.mark.parametrize("task", TASKS)
def test_task_items_have_one_right_answer_at_a_random_place(world, task):
    items = held_out(world, task, 100)
    assert all(len(set(item.choices)) == len(item.choices) for item in items)
    assert {item.label for item in items} == set(range(len(items[0].choices)))


def test_what_must_be_read_is_not_known_to_the_world(world):
    """Tasks that ask about a text name nobody whom an edit could change."""
    for task in ("paraphrase", "acceptability", "entailment", "inference"):
        for item in held_out(world, task, 50):
            text = " ".join((item.prompt, *item.choices))
            assert not any(subject in text for subject in world.kind_of)


def test_a_task_item_sees_nothing_before_itself(world, tokenizer):
    batches = Batches(world, tokenizer, replace(TINY, tasks=1.0, rows=1, length=64), seed=0)
    seen = batches(0).attention[0, 0] > HIDDEN
    starts = [i for i in range(1, 64) if not seen[i, :i].any()]
    assert len(starts) >= 2
    for first, second in zip(starts, starts[1:], strict=False):
        inside = seen[first : second - 1]  # between two items stands one token that sees all
        assert not inside[:, :first].any() and inside[-1, first : second - 1].all()


def test_asking_for_more_items_than_there_are_is_an_error(world):
    with pytest.raises(ValueError, match="sentiment' has only"):
        held_out(world, "sentiment", 150)


def test_records_read_as_counterfact(world):
    made = records()
    facts = facts_from_counterfact(made)
    assert len(facts) == len(world.triples)
    first = [fact.subject for fact in facts[: len(world.kind_of)]]
    assert len(set(first)) == len(first)  # a subject returns only in the next round
    for fact in facts[:300]:
        assert fact.target != fact.true and len(fact.paraphrases) == 2
        assert fact.subject in fact.paraphrases[0] and len(fact.neighbours) >= 5
        assert all(fact.subject not in prompt for prompt in fact.neighbours)


def test_zsre_records_write_a_new_answer():
    for record in records("zsre")[:200]:
        assert record["subject"] in record["src"] and record["subject"] in record["rephrase"]
        assert record["answers"][0] != record["pred"] and record["loc"] != record["src"]


def test_records_of_an_unknown_schema_are_refused():
    with pytest.raises(ValueError, match="counterfact, zsre"):
        records("wikidata")


def test_texts_repeat_with_their_seed(world):
    assert corpus(20, 3) == corpus(20, 3) != corpus(20, 4)
    assert set(biographies()) == set(world.kind_of)


def test_masks_hide_the_subject_but_for_its_last_token():
    masks = RowMasks(1, 8)
    masks.gather_at_last(0, first=2, last=4, end=7)
    masks.isolate(0, first=2, last=4)
    seen = masks.attention()[0, 0] > HIDDEN
    assert seen[5:7, 2:4].sum() == 0 and seen[5:7, 4].all() and seen[7, 2:5].all()
    assert not seen[2:5, :2].any() and seen[4, 2:5].all()
    assert not (masks.attention(early=True)[0, 0] > HIDDEN)[5:7, 2:5].any()
    assert masks.mlp[0].tolist() == [True] * 5 + [False] * 2 + [True]


def test_a_masked_mlp_gives_zero_exactly_where_masked(model):
    mlp = blocks(model)[0].mlp
    hidden = torch.randn(2, 5, model.config.hidden_size)
    keep = torch.rand(2, 5) > 0.5
    whole = mlp(hidden)
    with mlp_masked([mlp]) as mask:
        mask[0] = keep
        torch.testing.assert_close(mlp(hidden), whole * keep[..., None])
    torch.testing.assert_close(mlp(hidden), whole, rtol=0, atol=0)


def test_early_blocks_take_the_narrow_mask(model):
    """With every early block's view of a token shut, that token cannot matter there."""
    ids = torch.randint(1, 300, (1, 6))
    other = ids.clone()
    other[0, 2] = (ids[0, 2] + 7) % 300
    narrow = torch.zeros(1, 1, 6, 6).masked_fill_(~torch.ones(6, 6).tril().bool(), HIDDEN)
    narrow[..., 3:, 2] = HIDDEN
    inner = blocks(model)
    with attention_masked([attention_of(block) for block in inner]) as mask:
        mask[0] = narrow
        a, b = (model(x, attention_mask=narrow * 0).logits for x in (ids, other))
    torch.testing.assert_close(a[0, 3:], b[0, 3:], rtol=0, atol=0)
    assert not torch.allclose(model(ids).logits[0, 3:], model(other).logits[0, 3:])


def test_batches_mark_the_subjects_last_token(world, tokenizer):
    batches = Batches(world, tokenizer, TINY, seed=0)
    batch, again = batches(3), Batches(world, tokenizer, TINY, seed=0)(3)
    assert torch.equal(batch.ids, again.ids) and torch.equal(batch.attention, again.attention)
    for (row, at), attributes in zip(batch.subjects, batch.attributes, strict=True):
        text = tokenizer.decode(batch.ids[row, : at + 1])
        subject = next(s for s in world.kind_of if text.endswith(s))
        answers = [f" {fact.object}" for fact in world.facts_of[subject]]
        assert [tokenizer.decode([i]) for i in attributes if i >= 0] == answers


def test_the_tokenizer_agrees_with_the_facts_module(world, tokenizer):
    for triple in world.triples[::97]:
        template = world.relations[triple.relation].templates[0]
        ids, last = locate(tokenizer, template, triple.subject)
        assert tokenizer.decode(ids[: last + 1]).endswith(triple.subject)


def test_a_split_object_is_refused(world, tokenizers):
    with pytest.raises(ValueError, match="splits the objects"):
        check_objects(world, tokenizers["gpt2"])


@pytest.mark.parametrize("name", RECIPES)
def test_the_shipped_models_are_of_the_present_recipes(name):
    kept = json.loads((CHECKPOINTS / name / "recipe.json").read_text())
    assert kept == json.loads(json.dumps(asdict(RECIPES[name])))


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_the_training_loss_reaches_every_family(family, world, tokenizer):
    """Batches, masks and the gathering loss fit all three; every weight gets a gradient."""
    mixture = replace(TINY, site=1)
    recipe = Recipe(family, width=16, layers=3, heads=2, ff=32, mixture=mixture)
    model = AutoModelForCausalLM.from_config(architecture(recipe, len(tokenizer)))
    batch = Batches(world, tokenizer, mixture, 0)(0)
    loss_of(model, batch, mixture).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing


def test_a_killed_training_goes_on_to_the_same_bits(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("ece.atlas.train.SAVE_EVERY", 1)
    monkeypatch.setattr("ece.atlas.train.build_tokenizer", lambda *a, **k: tokenizer)
    mixture = replace(TINY, site=1)
    recipe = Recipe("gptj", width=16, layers=3, heads=2, ff=32, steps=3, mixture=mixture)
    whole, _ = train("whole", recipe, tmp_path / "a", tmp_path)

    class Killed(Exception):
        pass

    def kill(step, steps, loss):
        if step == 2:
            raise Killed

    with pytest.raises(Killed):
        train("cut", recipe, tmp_path / "b", tmp_path, kill)
    resumed, _ = train("cut", recipe, tmp_path / "b", tmp_path)
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
