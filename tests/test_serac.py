"""SERAC: what is in scope goes to the counterfactual model, everything else to the base model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ece.baselines import BASELINES
from ece.baselines import training as fitting
from ece.baselines.base import Task, wordings
from ece.baselines.serac import answer as serac_answer
from ece.baselines.serac import scope as serac_scope
from ece.baselines.serac.train import Serac, train
from ece.baselines.serac.view import view
from ece.baselines.trained import trained
from ece.errors import ConfigError, StateError
from ece.evaluation.generation import generate
from ece.evaluation.metrics import evaluate
from ece.evaluation.teacher_forcing import score_answers
from ece.experiments.flags import field_docs
from ece.facts import encode, pad
from ece.fingerprint import fingerprint

NUMBERS = Serac(
    scope_steps=60,
    scope_lr=1e-2,
    steps=80,
    width=64,
    batch=6,
    lr=3e-3,
    text=0.01,
    heads=2,
    seen=True,
)


@pytest.fixture
def facts(facts):
    """The six facts with a paraphrase each, and two neighbours that are no edits."""
    others = ("Anna Bell", "Carl of Lom")
    return [
        replace(
            fact,
            true="Vienna",
            paraphrases=(f"They agree on {fact.text}",),
            neighbours=tuple(fact.prompt.replace("{}", other) for other in others),
            generation=(f"Of late {fact.text}",),
        )
        for fact in facts
    ]


@pytest.fixture(scope="module")
def memo():
    """What was trained, per family: training is what takes time here."""
    return {}


@pytest.fixture
def task(family, model, tokenizer, facts, memo):
    """Both parts overfit to the six facts."""
    task = Task(model, tokenizer, NUMBERS, {})
    if family not in memo:
        memo[family] = train(task, facts)
    return replace(task, trained=memo[family])


def forward(model, tokenizer, texts):
    """Logits at every real token, `[token of any text, vocab]`."""
    ids, mask = pad([encode(tokenizer, text) for text in texts])
    with torch.inference_mode():
        out = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=mask)
    return out.logits


def test_each_wording_finds_its_edit_and_neighbours_find_none(task, facts):
    seen = view(task, facts)
    for i, fact in enumerate(facts):
        rows = [encode(task.tokenizer, text) for text in wordings(fact, True)]
        assert seen.route(rows).tolist() == [i] * len(rows)
        rows = [encode(task.tokenizer, text) for text in fact.neighbours]
        assert seen.route(rows).tolist() == [-1] * len(rows)


def test_in_scope_the_counterfactual_model_answers_after_the_edit(task, facts):
    seen, fact = view(task, facts), facts[1]
    told = serac_answer.entry(task.tokenizer, fact)
    row = encode(task.tokenizer, fact.text)
    with torch.inference_mode():
        expected = seen.answerer(torch.tensor([told + row])).logits[0, -1]
        ids, mask = pad([row, encode(task.tokenizer, facts[0].neighbours[0])])
        last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
        found = seen(input_ids=ids, attention_mask=mask, logits_to_keep=last).logits
        plain = task.model(input_ids=ids, attention_mask=mask, logits_to_keep=last).logits
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], plain[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], plain[0], atol=0.1)


def test_out_of_scope_logits_are_the_base_models_bit_for_bit(task, facts):
    texts = [text for fact in facts for text in fact.neighbours]
    seen = view(task, facts)
    one, two = (forward(model, task.tokenizer, texts) for model in (seen, task.model))
    assert torch.equal(one, two)


def test_an_empty_memory_is_the_base_model(task, facts):
    seen, texts = view(task, []), [fact.text for fact in facts]
    one, two = (forward(model, task.tokenizer, texts) for model in (seen, task.model))
    assert torch.equal(one, two)
    assert generate(seen, task.tokenizer, texts, 16) == generate(
        task.model, task.tokenizer, texts, 16
    )


def test_evaluate_sees_the_edits_and_untouched_neighbours(task, facts):
    before = evaluate(task.model, task.tokenizer, facts)
    after = evaluate(view(task, facts), task.tokenizer, facts)
    summary = after.summary()
    assert summary["efficacy"] > 80 and summary["generalization"] > 80
    assert after.specificity.tolist() == before.specificity.tolist()
    assert evaluate(view(task, []), task.tokenizer, facts).efficacy.tolist() == (
        before.efficacy.tolist()
    )


def test_a_question_that_another_goes_on_from_is_judged_by_itself(task, facts):
    """`score_answers` runs both as one row, in which one may be in scope and the other not."""
    seen, pairs = view(task, facts), [("Mira Velan", "baker"), (facts[0].text, "night watchman")]
    routes = seen.route([encode(task.tokenizer, prompt) for prompt, _ in pairs])
    assert routes[1] == 0
    together = score_answers(seen, task.tokenizer, pairs).nll
    apart = [score_answers(seen, task.tokenizer, [pair]).nll[0] for pair in pairs]
    np.testing.assert_allclose(together, apart, rtol=1e-4)
    plain = score_answers(task.model, task.tokenizer, pairs).nll
    assert np.isclose(together, plain, rtol=1e-4).tolist() == (routes < 0).tolist()


def test_all_tokens_are_answered_where_none_are_chosen(task, facts):
    ids = torch.tensor([encode(task.tokenizer, facts[0].text)])
    seen = view(task, facts)
    with torch.inference_mode():
        whole = seen(input_ids=ids).logits
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, -1] = True
        assert whole.shape == (*ids.shape, task.model.config.vocab_size)
        last = seen(input_ids=ids, logits_to_keep=mask).logits
        torch.testing.assert_close(whole[0, -1:], last)
        torch.testing.assert_close(seen(input_ids=ids, logits_to_keep=1).logits[0], last)


def test_generation_leaves_texts_out_of_scope_alone(task, facts):
    texts = [facts[0].text, *facts[0].neighbours, facts[2].text, *facts[2].neighbours]
    state = torch.random.get_rng_state()
    one = generate(view(task, facts), task.tokenizer, texts, 20, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    two = generate(task.model, task.tokenizer, texts, 20, seed=3)
    assert [a == b for a, b in zip(one, two, strict=True)] == [False, True, True] * 2
    assert all(text.startswith(prompt) for text, prompt in zip(one, texts, strict=True))
    assert one == generate(view(task, facts), task.tokenizer, texts, 20, seed=3)


def test_a_later_edit_of_the_same_prompt_holds(task, facts):
    again = replace(facts[0], target="Vienna")
    seen = view(task, [*facts, again])
    assert len(seen.entries) == len(facts)
    row = encode(task.tokenizer, facts[0].text)
    (entry,) = seen.route([row]).tolist()
    assert seen.entries[entry] == serac_answer.entry(task.tokenizer, again)


def test_training_lowers_both_losses_and_leaves_the_model_alone(task, facts):
    before = fingerprint(task.model)
    made = serac_answer.network(task)
    for part, loss, start in (
        ("scope", serac_scope.loss(task, facts), serac_scope.start(task)),
        ("counterfactual", serac_answer.loss(task, made, facts), serac_answer.start(made)),
    ):
        trained = {k.removeprefix(f"{part}."): v for k, v in task.trained.items() if part in k}
        draws = [torch.Generator().manual_seed(1000 + i) for i in range(4)]
        first = sum(loss(start, draw).item() for draw in draws)
        draws = [torch.Generator().manual_seed(1000 + i) for i in range(4)]
        assert sum(loss(trained, draw).item() for draw in draws) < 0.5 * first, part
    train(replace(task, numbers=replace(NUMBERS, scope_steps=2, steps=2)), facts)
    evaluate(view(task, facts), task.tokenizer, facts)
    assert fingerprint(task.model) == before


class Killed(Exception):
    """What ends a run in the middle."""


@pytest.mark.parametrize("end", [3, 8])
@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_a_killed_run_ends_with_the_same_bits(task, facts, tmp_path, monkeypatch, end):
    monkeypatch.setattr(fitting, "SAVE_EVERY", 2)
    task = replace(task, numbers=replace(NUMBERS, scope_steps=5, steps=6), trained={})

    def kill(stage, done, total):
        assert stage == "train" and total == 11
        if done == end:
            raise Killed

    with pytest.raises(Killed):
        train(task, facts, tmp_path / "serac", kill)
    resumed, whole = train(task, facts, tmp_path / "serac"), train(task, facts)
    assert list(resumed) == list(whole)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    with pytest.raises(StateError, match="serac-scope is of another run .'facts' differs"):
        train(task, facts[:-1], tmp_path / "serac")


def test_another_seed_gives_other_weights_and_random_numbers_stay(task, facts):
    few = replace(NUMBERS, scope_steps=1, steps=1)
    state = torch.random.get_rng_state()
    one = train(replace(task, numbers=few), facts)
    assert torch.equal(torch.random.get_rng_state(), state)
    two = train(replace(task, numbers=replace(few, seed=1)), facts)
    assert not any(torch.equal(one[f"scope.{n}"], two[f"scope.{n}"]) for n in ("query", "project"))


def test_the_vocabulary_adds_no_trained_weight(task):
    made = serac_answer.network(task)
    size = task.model.config.vocab_size
    assert made.get_input_embeddings().weight.shape[0] == size
    assert not any(size in value.shape for value in serac_answer.start(made).values())


def test_numbers_are_documented():
    assert all(field_docs(Serac).get(name) for name in Serac.__dataclass_fields__)


@pytest.mark.parametrize("wrong", [
    dict(width=20), dict(width=0), dict(width=64.0), dict(threshold=2.0), dict(depth=-1.0),
    dict(heads=0), dict(steps=-4), dict(scope_steps=-1), dict(scope_lr=0.0), dict(lr=float("nan")),
    dict(text=-1.0), dict(batch=0), dict(blocks=1.5), dict(seen=1), dict(seed=-1),
], ids=str)  # fmt: skip
def test_settings_of_a_wrong_type_or_range_are_named(wrong):
    """Among others `steps=-4` and `text=-1` were taken."""
    with pytest.raises(ConfigError, match=f"setting '{next(iter(wrong))}"):
        Serac(**wrong)


def test_training_on_nothing_is_refused(model, tokenizer):
    with pytest.raises(ConfigError, match="none are left"):
        train(Task(model, tokenizer, NUMBERS, {}), [])


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_training_reads_no_paraphrase_unless_told_to(task, facts):
    """But where a data set has no other wordings, its paraphrases are what there is."""
    numbers = replace(NUMBERS, scope_steps=2, steps=2)
    bare = [replace(fact, paraphrases=()) for fact in facts]
    poor = [replace(fact, generation=()) for fact in facts]

    def same(one, two, seen):
        some = replace(task, numbers=replace(numbers, seen=seen))
        return all(torch.equal(a, b) for a, b in zip(
            train(some, one).values(), train(some, two).values(), strict=True
        ))  # fmt: skip

    assert same(facts, bare, False) and not same(facts, bare, True)
    assert wordings(poor[0], False) == (facts[0].text, *facts[0].paraphrases)
    assert not set(wordings(facts[0], False)) & set(facts[0].paraphrases)


def test_another_threshold_trains_nothing_anew(model, tokenizer, facts, tmp_path):
    def learned(**settings):
        numbers = replace(NUMBERS, scope_steps=2, steps=2, **settings)
        task = Task(model, tokenizer, numbers, {})
        return trained(BASELINES["serac"], task, facts, tmp_path)

    whole = learned()
    for number, settings in ((1, dict(threshold=0.1)), (2, dict(lr=1e-3))):
        again = learned(**settings)
        assert len(list(tmp_path.glob("*.safetensors"))) == number
        same = [torch.equal(again[name], whole[name]) for name in whole]
        assert all(same) == (number == 1)
