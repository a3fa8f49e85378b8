"""Measure how a model writes about edited subjects: fluency and consistency (appendix B).

Fluency is the entropy of bigrams and trigrams: repetition lowers it. Consistency is the cosine
between the TF-IDF vectors of what the model writes about a subject and of a reference text.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import nn

from ece.evaluation.checks import check_texts
from ece.evaluation.generation import generate
from ece.facts import Fact

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Weight of the n-gram entropy per n, whose weighted mean is the fluency."""


def entropy(words: Sequence[str], n: int) -> float:
    """Compute the entropy of the n-grams of `words`, in bits; 0 for fewer than n words."""
    counts = np.array(list(Counter(zip(*(words[i:] for i in range(n)), strict=False)).values()))
    if not len(counts):
        return 0.0
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def fluency(text: str) -> float:
    """Compute (2/3 H_2 + 4/3 H_3) / 2 of a text (Eq 26), times 100 as the paper prints it.

    >>> fluency("to be or not"), fluency("no no no no no")
    (119.49875002403854, 0.0)
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    return 100 * sum(weight * entropy(words, n) for n, weight in WEIGHTS.items()) / len(WEIGHTS)


def write_texts(
    model: nn.Module, tokenizer, facts: Sequence[Fact], tokens: int = 100, seed: int = 0
) -> list[list[str]]:
    """Let the model continue the generation prompts of each fact."""
    prompts = [prompt for fact in facts for prompt in fact.generation]
    texts = iter(generate(model, tokenizer, prompts, tokens, seed=seed))
    return [[next(texts) for _ in fact.generation] for fact in facts]


def fluencies(texts: Sequence[Sequence[str]]) -> Float[np.ndarray, " fact"]:
    """Average the fluency (Eq 26) of each fact's texts; nan where it has none."""
    texts = [check_texts("the texts of a fact", own) for own in texts]
    return np.array([np.mean([fluency(t) for t in own]) if own else np.nan for own in texts])


def vectorizer(references: Mapping[tuple, str]) -> TfidfVectorizer | None:
    """Fit TF-IDF, words and weights, on all references; None if there are none."""
    return TfidfVectorizer().fit(list(references.values())) if references else None


def consistencies(
    facts: Sequence[Fact],
    texts: Sequence[Sequence[str]],
    references: Mapping[tuple, str],
    vectors: TfidfVectorizer | None = None,
) -> Float[np.ndarray, " fact"]:
    """Compare the texts of each fact, as one, with the reference text: similarity in 0 to 1.

    references: (relation, target) -> text about subjects of which the new object is true. A fact
    without one is nan. vectors: as by `vectorizer`, which is called where None is given.
    """
    vectors = vectors or vectorizer(references)
    result = np.full(len(facts), np.nan)
    for i, (fact, own) in enumerate(zip(facts, texts, strict=True)):
        check_texts("the texts of a fact", own)
        text = references.get((fact.relation, fact.target))
        if text is not None and own:
            found, wanted = vectors.transform([" ".join(own), text])
            result[i] = (found @ wanted.T).toarray()[0, 0]  # rows have length 1
    return result
