"""Counting n-grams of many captions at once, in arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

MAX_N = 4


class Counts(NamedTuple):
    """How often the n-grams of one n occur: a row for each caption and each different n-gram in it; all int64 ``[R]``.

    Attributes:
        caption: number of the caption, rising.
        ngram: number of the n-gram, the same for equal ones in predictions and references.
        times: how often it occurs in the caption.
    """

    caption: Ints
    ngram: Ints
    times: Ints


class Captions:
    """Tokenized captions (words joined by single spaces): N predictions, and M references of them.

    Attributes:
        owner: int64 ``[M]``, the item of each reference.
        lengths, reference_lengths: int64 ``[N]`` and ``[M]``, numbers of words.
        counts: for each n of 1 to 4 the counts of the predictions' n-grams, those of the references', and int64
            ``[R]``, for each row of the latter the row of the former with the item's prediction and the same n-gram, or
            -1 if the prediction has it not.
    """

    def __init__(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        texts = [text.split() for text in [*predictions, *chain.from_iterable(references)]]
        lengths = np.array([len(text) for text in texts])
        self.lengths, self.reference_lengths = lengths[: len(predictions)], lengths[len(predictions) :]
        self.owner = np.repeat(np.arange(len(references)), [len(others) for others in references])
        self.counts = [self._split(counts) for counts in _count(texts, lengths)]

    def _split(self, counts: Counts) -> tuple[Counts, Counts, Ints]:
        items = len(self.lengths)
        first = np.searchsorted(counts.caption, items)  # the first row of a reference
        prediction = Counts(*(column[:first] for column in counts))
        reference = Counts(*(column[first:] for column in counts))._replace(caption=counts.caption[first:] - items)
        kinds = counts.ngram.max(initial=0) + 1
        have = prediction.caption * kinds + prediction.ngram
        want = self.owner[reference.caption] * kinds + reference.ngram
        row = np.searchsorted(have, want)
        found = np.append(have, -1)[row] == want
        return prediction, reference, np.where(found, row, -1)


def _count(texts: Sequence[Sequence[str]], lengths: Ints) -> Iterator[Counts]:
    """The counts for n = 1 to 4, rows sorted by caption and n-gram."""
    numbers: dict[str, int] = {}
    words = np.array([numbers.setdefault(word, len(numbers)) for text in texts for word in text], np.int64)
    caption = np.repeat(np.arange(len(texts)), lengths)
    ngrams = words
    for n in range(1, MAX_N + 1):
        if n > 1:  # an n-gram is an (n-1)-gram and a further word; equal pairs get equal numbers
            ngrams = np.unique(ngrams[:-1] * len(numbers) + words[n - 1 :], return_inverse=True)[1]
        inside = caption[: len(ngrams)] == caption[n - 1 :]  # does not run on into the next caption
        kinds = ngrams.max(initial=0) + 1
        keys, count = np.unique((caption[: len(ngrams)] * kinds + ngrams)[inside], return_counts=True)
        yield Counts(keys // kinds, keys % kinds, count)
