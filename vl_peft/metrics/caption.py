"""The caption scores of the COCO evaluation (BLEU, ROUGE-L, CIDEr-D) in plain Python: no Java, no temporary files.

All functions take tokenized captions, words joined by single spaces, and give fractions: ``predictions`` has one per
item, ``references`` the list of each item's references.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vl_peft.metrics.base import Record, SentenceMetric
from vl_peft.metrics.tokenizer import ptb_tokenize

Ngrams = Counter[tuple[str, ...]]

_MAX_N = 4
_SIGMA = 6.0  # CIDEr-D: width of the penalty for a different length
_BETA = 1.2  # ROUGE-L: weight of recall


def _ngrams(words: Sequence[str], n: int) -> Ngrams:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Corpus BLEU-1 to BLEU-4 (Papineni et al. 2002), each item against its closest reference in length."""
    matches, guesses = [0] * _MAX_N, [0] * _MAX_N
    length = reference_length = 0
    for prediction, texts in zip(predictions, references, strict=True):
        words, others = prediction.split(), [text.split() for text in texts]
        length += len(words)
        reference_length += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for n in range(1, _MAX_N + 1):
            ngrams, allowed = _ngrams(words, n), Counter[tuple[str, ...]]()
            for other in others:
                allowed |= _ngrams(other, n)  # the highest count in any reference
            matches[n - 1] += (ngrams & allowed).total()
            guesses[n - 1] += max(0, len(words) - n + 1)
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(1, _MAX_N + 1):
        product *= (matches[n - 1] + 1e-15) / (guesses[n - 1] + 1e-9)
        scores.append(brevity * product ** (1 / n))
    return scores


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, all of ``second`` at once as bits of an integer (Hyyro 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(second)) - 1
    free = full
    for word in first:
        hits = free & places.get(word, 0)
        free = ((free + hits) | (free - hits)) & full
    return len(second) - free.bit_count()


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L (Lin 2004): F of the best precision and the best recall over the references, mean over items."""
    total = 0.0
    for prediction, texts in zip(predictions, references, strict=True):
        words, others = prediction.split(" "), [text.split(" ") for text in texts]
        common = [_common_subsequence(words, other) for other in others]
        precision = max(common) / len(words)
        recall = max(count / len(other) for count, other in zip(common, others, strict=True))
        if precision and recall:
            total += (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
    return total / len(predictions)


def cider_d(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D (Vedantam et al. 2015), document frequencies from these references. With one item it is 0."""
    prediction_words = [text.split() for text in predictions]
    reference_words = [[text.split() for text in texts] for texts in references]
    total = 0.0
    for n in range(1, _MAX_N + 1):
        cooked = [[_ngrams(words, n) for words in texts] for texts in reference_words]
        documents = Counter(ngram for texts in cooked for ngram in set().union(*texts))
        weights = {ngram: math.log(len(predictions)) - math.log(count) for ngram, count in documents.items()}
        unseen = math.log(len(predictions))
        for words, texts, others in zip(prediction_words, cooked, reference_words, strict=True):
            vector = {ngram: count * weights.get(ngram, unseen) for ngram, count in _ngrams(words, n).items()}
            similarity = 0.0
            for ngrams, other in zip(texts, others, strict=True):
                # The official code takes the number of bigrams for the length.
                gap = max(0, len(words) - 1) - max(0, len(other) - 1)
                reference = {ngram: count * weights[ngram] for ngram, count in ngrams.items()}
                similarity += _clipped_cosine(vector, reference) * math.exp(-(gap**2) / (2 * _SIGMA**2))
            total += similarity / len(texts)
    return 10.0 * total / (_MAX_N * len(predictions))


def _clipped_cosine(hypothesis: Mapping[Any, float], reference: Mapping[Any, float]) -> float:
    dot = sum(min(value, reference[key]) * reference[key] for key, value in hypothesis.items() if key in reference)
    norms = math.sqrt(sum(v * v for v in hypothesis.values())) * math.sqrt(sum(v * v for v in reference.values()))
    return dot / norms if norms else 0.0


class CaptionMetrics(SentenceMetric):
    """CIDEr, BLEU-1 to BLEU-4 and ROUGE-L of the COCO evaluation (pycocoevalcap 1.2), all times 100.

    References are one or more captions. METEOR and SPICE, which exist as Java programs only, are left out.

    Args:
        ascii_only: first replace each non-ASCII character by a space, as the VALUE benchmark and TVC do.

    >>> metric = CaptionMetrics()
    >>> metric.update(["1", "2"], ["A man rides a horse.", "two dogs play"],
    ...               [["a man is riding a horse", "a man rides a horse"], ["two dogs are running"]])
    >>> {name: round(value, 2) for name, value in metric.compute().items()}
    {'CIDEr': 448.49, 'Bleu_1': 77.22, 'Bleu_2': 75.36, 'Bleu_3': 72.17, 'Bleu_4': 75.89, 'ROUGE_L': 77.85}
    """

    headline = "CIDEr"

    def __init__(self, ascii_only: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ascii_only = ascii_only

    def score(self, records: Mapping[str, Record]) -> dict[str, float]:
        """``CIDEr``, ``Bleu_1`` to ``Bleu_4`` and ``ROUGE_L``."""
        predictions = [self._tokenize(record.prediction) for record in records.values()]
        references = [[self._tokenize(text) for text in record.references] for record in records.values()]
        scores = {"CIDEr": cider_d(predictions, references)}
        scores |= {f"Bleu_{n}": value for n, value in enumerate(bleu(predictions, references), start=1)}
        scores["ROUGE_L"] = rouge_l(predictions, references)
        return {name: 100.0 * value for name, value in scores.items()}

    def _tokenize(self, text: str) -> str:
        return ptb_tokenize(re.sub(r"[^\x00-\x7f]", " ", text) if self.ascii_only else text)
