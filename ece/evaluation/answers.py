"""Compare free answers with the one wanted: exact match and token F1, as SQuAD does."""

import re
import string
from collections import Counter

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normal(text: str) -> str:
    """Lower a text's letters, and drop punctuation, articles and spare blanks."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact(answer: str, wanted: str) -> float:
    """Tell whether the two are the same once `normal`: 1.0 or 0.0."""
    return float(normal(answer) == normal(wanted))


def token_f1(answer: str, wanted: str) -> float:
    """Compute the harmonic mean of the shares of words that the two have in common, in [0, 1]."""
    one, other = normal(answer).split(), normal(wanted).split()
    common = (Counter(one) & Counter(other)).total()
    return 2 * common / (len(one) + len(other)) if common else float(one == other)
