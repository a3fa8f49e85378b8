"""The metrics: batched scores equal one prompt at a time, and rates mean what they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ece.errors import DataError
from ece.evaluation.metrics import (
    KINDS,
    Scores,
    evaluate,
    harmonic,
    join,
    questions,
    recall,
    unchanged,
)
from ece.evaluation.teacher_forcing import score_answers
from ece.facts import Fact, encode, target_ids

SUBJECTS = ("Ilo", "Tor Asken", "Mira Velan")
ANSWERS = ("Paris", "New Harbour", "baker", "New Harbour of old")


@pytest.fixture
def facts():
    """Facts whose prompts and answers differ in length; prompts are shared, answers recur."""
    return [
        Fact(
            prompt="{} lives in",
            subject=subject,
            target=ANSWERS[i % 4],
            true=ANSWERS[(i + 1) % 4],
            paraphrases=(f"The home of {subject} is", f"It is cold in the city of {subject}, in"),
            neighbours=tuple(f"{other} lives in" for other in SUBJECTS[:i]),
        )
        for i, subject in enumerate(SUBJECTS)
    ]


def naive(model, tokenizer, prompt, answer):
    """The twin of `score_answers`: one prompt, all logits, token by token.

    -> NLL per token, top-1, share of tokens right, likeliest tokens
    """
    ids, target = list(encode(tokenizer, prompt)), list(target_ids(tokenizer, answer))
    with torch.no_grad():
        logits = model(torch.tensor([ids + target])).logits[0].double()
    losses, hits, said = [], [], []
    for k, token in enumerate(target):
        row = logits[len(ids) - 1 + k]
        losses.append((row.logsumexp(0) - row[token]).item())
        said.append(row.argmax().item())
        hits.append(said[-1] == token)
    return sum(losses) / len(losses), all(hits), sum(hits) / len(hits), tuple(said)


def test_read_equals_one_prompt_at_a_time(model, tokenizer, facts):
    pairs = [(q.prompt, answer) for fact in facts for q in questions(fact) for answer in ANSWERS]
    losses, hits, shares, tokens = zip(
        *(naive(model, tokenizer, *pair) for pair in pairs), strict=True
    )
    for batch_tokens in (1, 37, 4096):
        nll, top1, accuracy, said = score_answers(model, tokenizer, pairs, batch_tokens)
        np.testing.assert_allclose(nll, losses, rtol=1e-4)
        assert top1.tolist() == list(hits) and said.tolist() == list(tokens)
        np.testing.assert_allclose(accuracy, shares)


def test_evaluate_equals_its_naive_twin(model, tokenizer, facts):
    scores = evaluate(model, tokenizer, facts, batch_tokens=64)
    for i, fact in enumerate(facts):
        for kind in KINDS:
            asked = [q for q in questions(fact) if q.kind == kind]
            success = [
                naive(model, tokenizer, q.prompt, q.wanted)[0]
                < naive(model, tokenizer, q.prompt, q.other)[0]
                for q in asked
            ]
            top1 = [naive(model, tokenizer, q.prompt, q.wanted)[1] for q in asked]
            for name, values in ((kind, success), (f"{kind}_top1", top1)):
                expected = np.mean(values) if values else np.nan
                np.testing.assert_allclose(getattr(scores, name)[i], expected)


def remember(model, tokenizer, text, bonus=20.0):
    """Make each token of the text the likeliest after the three before it, by `bonus` nats."""
    ids = encode(tokenizer, text)
    follows = {tuple(ids[i - 3 : i]): ids[i] for i in range(3, len(ids))}

    def add(module, inputs, named, output):
        ids = inputs[0] if inputs else named["input_ids"]
        next_ids = torch.tensor(
            [[follows.get(tuple(row[max(0, i - 2) : i + 1]), -1) for i in range(len(row))]
             for row in ids.tolist()]
        )  # fmt: skip
        next_ids = next_ids[named["logits_to_keep"]] if "logits_to_keep" in named else next_ids
        output.logits[next_ids >= 0, next_ids[next_ids >= 0]] += bonus

    model.register_forward_hook(add, with_kwargs=True)


def test_answers_of_several_tokens_are_measured_in_three_ways(model, tokenizer):
    """Each measure equals its slow twin, where the three differ from each other."""
    remember(model, tokenizer, "Ilo lives in New Harbour of old")
    city, near = "New Harbour of old", ("Tor Asken lives in", "It is cold in")
    facts = [
        Fact("{} lives in", "Ilo", city, "Paris", paraphrases=near, neighbours=near),
        Fact("{} lives in", "Ilo", "New Paris", city, paraphrases=("Ilo is",), neighbours=near),
        Fact("{} lives in", "Ilo", "New Harbour", "night", paraphrases=near, neighbours=near),
    ]
    scores = evaluate(model, tokenizer, facts, batch_tokens=50)
    for i, fact in enumerate(facts):
        for kind in KINDS:
            wanted, other = zip(*[
                [naive(model, tokenizer, q.prompt, answer) for answer in (q.wanted, q.other)]
                for q in questions(fact) if q.kind == kind
            ], strict=True)  # fmt: skip
            twins = {
                "": [a[0] < b[0] for a, b in zip(wanted, other, strict=True)],
                "_top1": [a[1] for a in wanted],
                "_accuracy": [a[2] for a in wanted],
            }
            for suffix, values in twins.items():
                assert getattr(scores, kind + suffix)[i] == pytest.approx(np.mean(values))
    right, top1, accuracy = (
        getattr(scores, f"efficacy{suffix}").tolist() for suffix in ("", "_top1", "_accuracy")
    )
    assert right == [1, 0, 1] and top1 == [1, 0, 1] and 0 < accuracy[1] < 1
    assert scores.specificity.tolist() == [0, 1, 0]
    assert scores.specificity_top1[1] == 0 and 0 < scores.specificity_accuracy[1] < 1
    summaries = [scores.summary(measure) for measure in ("success", "top1", "accuracy")]
    assert len({summary["efficacy"] for summary in summaries}) == 2
    assert len({summary["generalization"] for summary in summaries}) == 3


def test_specificity_is_also_told_without_edited_neighbours(model, tokenizer, facts):
    texts = {facts[0].text}  # a neighbour of the second and the third fact
    plain, told = (evaluate(model, tokenizer, facts, edited=e) for e in (None, texts))
    cut = [replace(f, neighbours=tuple(n for n in f.neighbours if n not in texts)) for f in facts]
    expected = evaluate(model, tokenizer, cut)
    for name in ("", "_top1", "_accuracy"):
        known = getattr(plain, f"specificity{name}")
        np.testing.assert_array_equal(getattr(told, f"specificity{name}"), known)
        left = getattr(told, f"specificity_unedited{name}")
        np.testing.assert_array_equal(left, getattr(expected, f"specificity{name}"))
    assert np.isnan(left).tolist() == [True, True, False], "no neighbour is left of the second"
    for measure in ("success", "accuracy"):
        summary, wanted = told.summary(measure), expected.summary(measure)
        assert summary["specificity_unedited"] == wanted["specificity"]
        assert summary["score_unedited"] == wanted["score"]
        assert summary["specificity_unedited_ci"] == wanted["specificity_ci"]
        assert not any("unedited" in name for name in plain.summary(measure))
    assert join([told.part(0, 1), told.part(1, 3)]).summary() == told.summary()


def test_only_rows_that_are_no_prefix_of_another_run(model, tokenizer, facts, monkeypatch):
    run = []
    forward = model.forward

    def watched(*args, **kwargs):
        mask = kwargs["attention_mask"].bool()
        run.extend(tuple(ids[m].tolist()) for ids, m in zip(kwargs["input_ids"], mask, strict=True))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", watched)
    pairs = [(q.prompt, answer) for fact in facts for q in questions(fact) for answer in ANSWERS]
    score_answers(model, tokenizer, pairs * 2, batch_tokens=50)
    rows = {(*encode(tokenizer, p), *target_ids(tokenizer, a)[:-1]) for p, a in pairs}
    maximal = [r for r in rows if not any(o[: len(r)] == r for o in rows if o != r)]
    assert len(maximal) < len(rows)
    assert sorted(run) == sorted(maximal)


def test_the_head_is_asked_only_for_answer_positions(model, tokenizer, monkeypatch):
    kept = []
    forward = model.forward

    def counted(*args, **kwargs):
        out = forward(*args, **kwargs)
        kept.append(out.logits.shape)
        return out

    monkeypatch.setattr(model, "forward", counted)
    score_answers(model, tokenizer, [("Ilo lives in", "baker"), ("Ossia Marn", "baker")])
    assert len(kept) == 1
    assert kept[0][0] == 2 * len(target_ids(tokenizer, "baker"))


def forced(model, tokenizer, fact):
    """The answer that the model gives by itself to the fact's prompt: its arg-max token's text."""
    with torch.no_grad():
        logits = model(torch.tensor([list(encode(tokenizer, fact.text))])).logits[0, -1]
    order = logits.argsort(descending=True).tolist()
    texts = [tokenizer.decode([token]) for token in order]
    return next(
        (text.strip(), rank)
        for rank, (token, text) in enumerate(zip(order, texts, strict=True))
        if list(target_ids(tokenizer, text.strip())) == [token]
    )


def test_recall_finds_the_most_likely_answer_and_no_other(model, tokenizer, facts):
    answers, ranks = zip(*(forced(model, tokenizer, fact) for fact in facts), strict=True)
    found = recall(model, tokenizer, [fact.text for fact in facts], list(answers))
    assert found.tolist() == [rank == 0 for rank in ranks]


def test_specificity_wants_the_true_answer_and_efficacy_the_new_one(model, tokenizer):
    prompt = "Ilo lives in"
    nll, *_ = score_answers(model, tokenizer, [(prompt, "Paris"), (prompt, "baker")])
    likely, unlikely = ("Paris", "baker") if nll[0] < nll[1] else ("baker", "Paris")
    fact = Fact("{} lives in", "Ilo", likely, unlikely, neighbours=(prompt,))
    scores = evaluate(model, tokenizer, [fact])
    assert scores.efficacy[0] == 1 and scores.specificity[0] == 0
    swapped = Fact("{} lives in", "Ilo", unlikely, likely, neighbours=(prompt,))
    scores = evaluate(model, tokenizer, [swapped])
    assert scores.efficacy[0] == 0 and scores.specificity[0] == 1


def test_a_tie_fails_both_ways(model, tokenizer):
    prompt = "Ilo lives in"
    fact = Fact("{} lives in", "Ilo", "Paris", "Paris", neighbours=(prompt,))
    scores = evaluate(model, tokenizer, [fact])
    assert scores.efficacy[0] == 0 and scores.specificity[0] == 0


def test_a_fact_without_rival_has_top1_only(model, tokenizer):
    scores = evaluate(
        model, tokenizer, [Fact("{} is", "Ilo", "baker", neighbours=("Tor Asken is",))]
    )
    assert np.isnan(scores.efficacy[0]) and not np.isnan(scores.efficacy_top1[0])
    summary = scores.summary()
    assert summary["efficacy"] is None and summary["score"] is None
    assert summary["specificity_top1"] is None


def test_facts_are_weighed_equally_whatever_their_number_of_prompts(model, tokenizer, facts):
    together = evaluate(model, tokenizer, facts)
    apart = join([evaluate(model, tokenizer, [fact]) for fact in facts])
    for name in (*KINDS, *(f"{kind}_top1" for kind in KINDS)):
        np.testing.assert_allclose(getattr(together, name), getattr(apart, name), err_msg=name)


def made(**columns):
    """Scores of four facts; columns not given are all ones."""
    suffixes = ("", "_top1", "_accuracy")
    names = [kind + suffix for suffix in suffixes for kind in KINDS]
    return Scores(*(np.array(columns.get(name, [1.0] * 4)) for name in names))


def test_the_interval_is_that_of_the_mean_over_facts():
    summary = made(efficacy=[0.0, 1.0, 1.0, np.nan]).summary()
    assert summary["efficacy"] == pytest.approx(200 / 3)
    deviation = np.std([0, 100, 100], ddof=1)
    assert summary["efficacy_ci"] == pytest.approx(1.96 * deviation / 3**0.5)
    assert summary["generalization_ci"] == 0


def test_the_score_is_the_harmonic_mean_of_the_chosen_measure():
    scores = made(efficacy=[1.0] * 4, generalization=[0.5] * 4, specificity_top1=[0.25] * 4)
    assert scores.summary()["score"] == pytest.approx(300 / (1 + 2 + 1))
    top1 = scores.summary("top1")
    assert top1["score"] == pytest.approx(300 / (1 + 1 + 4))
    assert top1["specificity"] == top1["specificity_top1"] == 25
    with pytest.raises(ValueError, match="success, top1, accuracy"):
        scores.summary("recall")


def test_harmonic_mean_bounds():
    rates = [90.0, 60.0, 30.0]
    assert min(rates) < harmonic(rates) < np.mean(rates)
    assert harmonic([50.0] * 3) == pytest.approx(50)
    assert harmonic([100.0, 0.0, 100.0]) == 0
    assert np.isnan(harmonic([100.0, np.nan, 100.0]))


def test_prompts_that_cannot_be_read_are_named(model, tokenizer, monkeypatch):
    prompt = "Ilo lives in Oslo and " * model.config.max_position_embeddings
    monkeypatch.setattr(model, "forward", None)  # nothing runs before
    with pytest.raises(DataError, match="Ilo lives in Oslo.*shorten the prompt"):
        score_answers(model, tokenizer, [("Ilo is", "baker"), (prompt, "Paris")])
    if not encode(tokenizer, ""):
        with pytest.raises(DataError, match="prompt '' with answer 'baker': .* no tokens; give"):
            score_answers(model, tokenizer, [("Ilo is", "baker"), ("", "baker")])


def test_one_text_in_place_of_several_is_refused(model, tokenizer):
    for prompts, answers in (("Ilo", ["a", "b", "c"]), (["a", "b", "c"], "Ilo")):
        with pytest.raises(DataError, match="are 'Ilo'; give a list of texts"):
            recall(model, tokenizer, prompts, answers)


def test_accuracy_counts_tokens_and_unchanged_compares_with_before(model, tokenizer, facts):
    before = evaluate(model, tokenizer, facts)
    assert (before.efficacy_accuracy >= before.efficacy_top1).all()
    some = unchanged(before, before)
    assert np.isnan(some[0]) and (some[1:] == 1).all()  # the first fact has no neighbours
    next(model.parameters()).add_(0.3)
    after = evaluate(model, tokenizer, facts)
    told = unchanged(before, after)
    for i in range(1, len(facts)):
        pairs = [
            (a, b)
            for x, y in zip(before.predictions[i], after.predictions[i], strict=True)
            for a, b in zip(x, y, strict=True)
        ]
        assert told[i] == np.mean([a == b for a, b in pairs])
    summary = replace(after, unchanged=told).summary("accuracy")
    assert summary["efficacy"] == summary["efficacy_accuracy"]
    assert summary["unchanged"] == pytest.approx(100 * told[1:].mean())
