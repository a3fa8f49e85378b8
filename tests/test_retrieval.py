"""Retrieval: a prompt like that of an edit is answered after the edit's sentence."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from ece.baselines import BASELINES, Task
from ece.baselines.memory import View
from ece.baselines.retrieval import ENTRY
from ece.errors import ConfigError, DataError
from ece.evaluation.generation import answer, generate
from ece.evaluation.metrics import evaluate
from ece.evaluation.teacher_forcing import score_answers
from ece.facts import encode, target_ids
from ece.model import room

RETRIEVAL = BASELINES["retrieval"]


@pytest.fixture
def task(model, tokenizer):
    return Task(model, tokenizer, RETRIEVAL.configure("retrieval"), {})


def test_a_prompt_in_scope_is_answered_after_the_edits_sentence(task, facts):
    view, tokenizer = RETRIEVAL.view(task, facts), task.tokenizer
    found = score_answers(view, tokenizer, [(fact.text, fact.target) for fact in facts]).nll
    for nll, entry, fact in zip(found, view.entries, facts, strict=True):
        assert entry == encode(tokenizer, ENTRY.format(fact.text, fact.target))
        answer = target_ids(tokenizer, fact.target)
        ids = [*entry, *tokenizer(fact.text, add_special_tokens=False)["input_ids"], *answer]
        with torch.no_grad():
            logs = task.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        first = len(ids) - len(answer) - 1
        slow = -sum(float(logs[first + k, token]) for k, token in enumerate(answer)) / len(answer)
        assert nll == pytest.approx(slow, abs=1e-4)


def test_other_texts_are_the_models_own(task, facts):
    view, other = RETRIEVAL.view(task, facts), ["Quite another matter", "Bread and butter please"]
    pairs = [(text, "Rome") for text in other]
    mine, own = (score_answers(m, task.tokenizer, pairs) for m in (view, task.model))
    assert mine.nll.tolist() == own.nll.tolist()
    texts = [generate(m, task.tokenizer, other, 12) for m in (view, task.model)]
    assert texts[0] == texts[1]


def test_an_unknown_subject_is_out_of_scope_and_a_high_threshold_ends_it(task, facts):
    fact = facts[0]
    stranger = fact.prompt.format("Xyzzyqua Plughmore Frobnitz")
    rows = [encode(task.tokenizer, text) for text in (fact.text, stranger)]
    assert RETRIEVAL.view(task, facts).route(rows).tolist() == [0, -1]
    closed = replace(task, numbers=RETRIEVAL.configure("retrieval", threshold=1.0))
    assert RETRIEVAL.view(closed, facts).route(rows[1:]).tolist() == [-1]


def test_a_later_edit_of_a_prompt_holds_and_an_empty_memory_is_the_model(task, facts):
    again = replace(facts[0], target=facts[1].target)
    view = RETRIEVAL.view(task, [*facts, again])
    assert view.entries[0] == encode(task.tokenizer, ENTRY.format(again.text, again.target))
    empty = RETRIEVAL.view(task, [])
    one, other = (evaluate(m, task.tokenizer, facts) for m in (empty, task.model))
    assert one.efficacy_top1.tolist() == other.efficacy_top1.tolist()


def test_free_answers_do_not_depend_on_the_prompts_beside(task, facts):
    view, texts = RETRIEVAL.view(task, facts), [fact.text for fact in facts]
    assert len({len(encode(task.tokenizer, text)) for text in texts}) > 1, "some are padded"
    alone = [answer(view, task.tokenizer, [text])[0] for text in texts]
    assert answer(view, task.tokenizer, texts) == alone
    assert alone != answer(task.model, task.tokenizer, texts)


def test_a_prompt_that_is_too_long_behind_its_edit_is_refused(task, facts):
    view, most = RETRIEVAL.view(task, facts), room(task.model)
    fact = facts[0]
    long = " ".join([fact.text] * (most // len(encode(task.tokenizer, fact.text))))
    closed = RETRIEVAL.view(task, [replace(fact, prompt=long.replace(fact.subject, "{}", 1))])
    with pytest.raises(DataError, match="the edit before it"):
        score_answers(closed, task.tokenizer, [(long, fact.target)])
    with pytest.raises(DataError, match="the edit before it"):
        answer(view, task.tokenizer, [" ".join([fact.text] * 2)], tokens=most - 40)


def test_no_weight_changes(task, facts):
    before = {name: weight.clone() for name, weight in task.model.state_dict().items()}
    evaluate(RETRIEVAL.view(task, facts), task.tokenizer, facts)
    assert all(torch.equal(before[n], w) for n, w in task.model.state_dict().items())
    with pytest.raises(ConfigError, match="threshold"):
        RETRIEVAL.configure("retrieval", threshold=2.0)


class Stops(nn.Module):
    """A model that writes a token a few times, and stops."""

    config, device = PretrainedConfig(), torch.device("cpu")

    def __init__(self, token: int, count: int):
        super().__init__()
        self.token, self.count = token, count

    def generate(self, ids, **options):
        return torch.cat([ids, ids.new_full((len(ids), self.count), self.token)], 1)


@pytest.mark.parametrize(("base", "answerer"), [(2, 4), (4, 2), (3, 3)])
def test_either_model_may_stop_before_the_other(base, answerer):
    def scope(rows):
        return torch.tensor([0, -1])

    view = View(Stops(7, base), Stops(8, answerer), [[1]], scope)
    ids, most = torch.tensor([[5, 6], [5, 9]]), max(base, answerer)
    found = view.generate(ids, max_length=9, pad_token_id=3)
    inside = [5, 6, *[8] * answerer, *[3] * (most - answerer)]
    assert found.tolist() == [inside, [5, 9, *[7] * base, *[3] * (most - base)]]
