"""The published ZsRE evaluation: which tokens it scores, with its slips and without them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig

from conftest import build
from ece.evaluation.metrics import evaluate
from ece.evaluation.teacher_forcing import score_answers
from ece.evaluation.zsre_compat import adds_bos, published_rows, score_published
from ece.facts import Fact, encode, target_ids

BOS = 0
PROMPT, ANSWER = "Ilo lives in", "New Harbour of old"


def rows_of(tokenizer, answer, neighbour):
    """(text of the row after its BOS, the one token scored) of every question."""
    bos = adds_bos(tokenizer)
    asked = published_rows(tokenizer, PROMPT, answer, neighbour)
    assert all(one.first == len(one.ids) - 1 and len(one.answer) == 1 for one in asked)
    assert all(one.ids[:bos] == [BOS] * bos for one in asked)
    return [(tokenizer.decode(one.ids[bos:]), one.answer[0]) for one in asked]


def test_only_the_llama_tokenizer_adds_a_bos(tokenizers):
    assert {n: adds_bos(t) for n, t in tokenizers.items()} == {"gpt2": 0, "gptj": 0, "llama": 1}


def test_without_a_bos_the_tokens_are_those_of_read(tokenizers):
    tokenizer = tokenizers["gpt2"]
    ids = target_ids(tokenizer, ANSWER)
    assert len(ids) > 2
    wanted = [(PROMPT + tokenizer.decode(ids[:i]), token) for i, token in enumerate(ids)]
    assert rows_of(tokenizer, ANSWER, False) == rows_of(tokenizer, ANSWER, True) == wanted


IDS = [BOS, 41, 294, 286, 259]  # <s>|I|lo| lives| in
SPACE, R, OME = 221, 298, 319  # " Rome" is " R" and "ome"


def asked_by_hand(tokenizer, neighbour):
    assert encode(tokenizer, PROMPT) == IDS and target_ids(tokenizer, "Rome") == [R, OME]
    return [(one.ids, one.answer) for one in published_rows(tokenizer, PROMPT, "Rome", neighbour)]


def test_by_hand_an_edited_prompt_gets_two_spaces(tokenizers):
    """The second token is asked for after "Ilo lives in  R": a space more than in `read`."""
    asked = asked_by_hand(tokenizers["llama"], neighbour=False)
    assert asked == [(IDS, [R]), ([*IDS, SPACE, R], [OME])]


def test_by_hand_a_neighbour_is_asked_for_the_bos_and_reads_it(tokenizers):
    """Three questions for two tokens; the first wants `<s>`, the others read it in the middle."""
    asked = asked_by_hand(tokenizers["llama"], neighbour=True)
    assert asked == [(IDS, [BOS]), ([*IDS, BOS], [R]), ([*IDS, BOS, R], [OME])]


class Knows:
    """A model that goes on with "Rome" after " in" and after a BOS, whatever was before."""

    config, device = PretrainedConfig(), torch.device("cpu")
    after = {IDS[-1]: R, R: OME, BOS: R}

    def __call__(self, input_ids, logits_to_keep, **_):
        self.last = input_ids
        told = [self.after.get(token, SPACE) for token in input_ids[logits_to_keep].tolist()]
        return SimpleNamespace(logits=torch.nn.functional.one_hot(torch.tensor(told), 320))


def test_by_hand_the_bos_costs_a_right_neighbour_one_token_in_three(tokenizers):
    model, tokenizer = Knows(), tokenizers["llama"]
    plain = score_answers(model, tokenizer, [(PROMPT, "Rome")])
    assert plain.accuracy[0] == 1 and plain.predictions[0] == (R, OME)
    assert model.last.tolist() == [[*IDS, R]]
    slips = score_published(model, tokenizer, [(PROMPT, "Rome", True), (PROMPT, "Rome", False)])
    assert slips.accuracy.tolist() == [pytest.approx(2 / 3), 1.0]
    assert slips.top1.tolist() == [False, True]
    assert slips.predictions.tolist() == [(R, R, OME), (R, OME)]


@pytest.fixture
def zsre():
    """Facts in ZsRE's schema, with answers of several tokens."""
    return [
        Fact(
            prompt=f"{{}} {word}",
            subject="Ilo",
            target="New Harbour of old",
            true="night watchman",
            id=i,
            paraphrases=("The home of Ilo is",),
            neighbours=("The trade of Mira Velan, all agree, is?",),
        )
        for i, word in enumerate(("lives in", "is from"))
    ]


def test_without_a_bos_the_two_modes_agree(tokenizers, zsre):
    model = build("gpt2")
    plain, compat = (
        evaluate(model, tokenizers["gpt2"], zsre, compat=compat) for compat in (False, True)
    )
    for kind in ("efficacy", "generalization", "specificity"):
        for suffix in ("", "_accuracy", "_top1"):
            np.testing.assert_array_equal(
                getattr(plain, kind + suffix), getattr(compat, kind + suffix)
            )
    assert plain.predictions.tolist() == compat.predictions.tolist()


def hits(model, tokenizer, rows):
    """Whether the likeliest token after each text is the wanted one, one forward each."""
    found = []
    for text, wanted in rows:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            found.append(int(model(ids).logits[0, -1].argmax()) == wanted)
    return found


def test_accuracy_is_the_share_of_the_questions_answered(tokenizers, zsre):
    model, tokenizer = build("llama"), tokenizers["llama"]
    asked = [(PROMPT, ANSWER, False), (PROMPT, ANSWER, True), (PROMPT, "baker", True)] * 2
    answers = score_published(model, tokenizer, asked, batch_tokens=30)
    for i, one in enumerate(asked):
        told = [
            (tokenizer.decode(q.ids[1:]), q.answer[0]) for q in published_rows(tokenizer, *one)
        ]  # from text again, as the published code does
        right = hits(model, tokenizer, told)
        assert answers.accuracy[i] == np.mean(right) and answers.top1[i] == all(right)
        assert len(answers.predictions[i]) == len(told)
