"""The caption scores of the COCO evaluation (BLEU, ROUGE-L, CIDEr-D) in plain Python: no Java, no temporary files.

All give fractions. Tokenized captions are words joined by single spaces; ``predictions`` has one per item,
``references`` the list of each item's references.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vl_peft.errors import UserError
from vl_peft.metrics import java
from vl_peft.metrics.base import Record, SentenceMetric
from vl_peft.metrics.ngrams import MAX_N, Captions
from vl_peft.metrics.tokenizer import ptb_tokenize

_SIGMA = 6.0  # CIDEr-D: width of the penalty for a different length
_BETA = 1.2  # ROUGE-L: weight of recall


def bleu(captions: Captions) -> list[float]:
    """Corpus BLEU-1 to BLEU-4 (Papineni et al. 2002), each item against its closest reference in length."""
    length = captions.lengths.sum()
    gaps = np.abs(captions.reference_lengths - captions.lengths[captions.owner])
    by_closeness = np.lexsort((captions.reference_lengths, gaps, captions.owner))
    closest = by_closeness[np.unique(captions.owner[by_closeness], return_index=True)[1]]
    ratio = (length + 1e-15) / (captions.reference_lengths[closest].sum() + 1e-9)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n, (prediction, reference, row) in enumerate(captions.counts, start=1):
        allowed = np.zeros(len(prediction.times) + 1, np.int64)  # row -1 takes what the prediction has not
        np.maximum.at(allowed, row, reference.times)  # the highest count in any reference
        matches = np.minimum(allowed[:-1], prediction.times).sum()
        guesses = np.maximum(0, captions.lengths - n + 1).sum()
        product *= (matches + 1e-15) / (guesses + 1e-9)
        scores.append(float(brevity * product ** (1 / n)))
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


def cider_d(captions: Captions) -> float:
    """CIDEr-D (Vedantam et al. 2015), document frequencies from these references. With one item it is 0."""
    items, owner = len(captions.lengths), captions.owner
    # The official code takes the number of bigrams for the length.
    bigrams, reference_bigrams = np.maximum(0, captions.lengths - 1), np.maximum(0, captions.reference_lengths - 1)
    penalty = np.exp(-((bigrams[owner] - reference_bigrams) ** 2) / (2 * _SIGMA**2)) / np.bincount(owner)[owner]
    total = 0.0
    for prediction, reference, row in captions.counts:
        kinds = 1 + max(prediction.ngram.max(initial=0), reference.ngram.max(initial=0))
        documents = np.bincount(np.unique(owner[reference.caption] * kinds + reference.ngram) % kinds, minlength=kinds)
        weights = (math.log(items) - np.log(np.maximum(1, documents))) ** 2
        norms = np.bincount(prediction.caption, prediction.times**2 * weights[prediction.ngram], items)
        reference_norms = np.bincount(reference.caption, reference.times**2 * weights[reference.ngram], len(owner))
        clipped = np.minimum(np.append(prediction.times, 0)[row], reference.times)
        dots = np.bincount(reference.caption, clipped * reference.times * weights[reference.ngram], len(owner))
        products = np.sqrt(norms[owner] * reference_norms)
        total += (penalty * np.divide(dots, products, out=np.zeros(len(owner)), where=products > 0)).sum()
    return float(10.0 * total / (MAX_N * items))


def coco_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """All of the above times 100, by the names of the COCO evaluation."""
    captions = Captions(predictions, references)
    scores = {"CIDEr": cider_d(captions)}
    scores |= {f"Bleu_{n}": value for n, value in enumerate(bleu(captions), start=1)}
    scores["ROUGE_L"] = rouge_l(predictions, references)
    return {name: 100.0 * value for name, value in scores.items()}


class CaptionMetrics(SentenceMetric):
    """CIDEr, BLEU-1 to BLEU-4 and ROUGE-L of the COCO evaluation (pycocoevalcap 1.2), all times 100.

    References are one or more captions. METEOR and SPICE exist as Java programs only: see ``thorough``. Where they
    cannot be run they are left out, and ``notes`` says why.

    Args:
        ascii_only: first replace each non-ASCII character by a space, as the VALUE benchmark and TVC do.
        videos: ``meta["vid_name"]`` is a video and, after its last underscore, the number of a segment. Adds the scores
            of two further views: ``macro/...``, the mean over videos of the scores of each by itself, and
            ``paragraph/...``, of all captions of a video joined in the order of its segments (of several references
            the first of each segment are joined, the second, and so on).
        meteor: METEOR is among the thorough scores.
        spice: SPICE is, which takes its models (400 MB) and 8 GB of memory.

    >>> metric = CaptionMetrics()
    >>> metric.update(["1", "2"], ["A man rides a horse.", "two dogs play"],
    ...               [["a man is riding a horse", "a man rides a horse"], ["two dogs are running"]])
    >>> {name: round(value, 2) for name, value in metric.compute().items()}
    {'CIDEr': 448.49, 'Bleu_1': 77.22, 'Bleu_2': 75.36, 'Bleu_3': 72.17, 'Bleu_4': 75.89, 'ROUGE_L': 77.85}
    """

    headline = "CIDEr"

    def __init__(
        self,
        ascii_only: bool = False,
        videos: bool = False,
        meteor: bool = True,
        spice: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ascii_only, self.videos = ascii_only, videos
        self.programs = {"METEOR": java.meteor} if meteor else {}
        self.programs |= {"SPICE": java.spice} if spice else {}

    def score(self, records: Mapping[str, Record]) -> dict[str, float]:
        """``CIDEr``, ``Bleu_1`` to ``Bleu_4`` and ``ROUGE_L``, with ``videos`` also those of the other views."""
        predictions, references = self._tokenized(records)
        scores = coco_scores(predictions, references)
        if self.videos:
            videos = _videos(records)
            alone = [coco_scores([predictions[i] for i in v], [references[i] for i in v]) for v in videos]
            joined = [" ".join(filter(None, (predictions[i] for i in v))) for v in videos]
            texts = [
                [" ".join(filter(None, column)) for column in zip(*(references[i] for i in v), strict=False)]
                for v in videos
            ]
            scores |= {f"macro/{name}": sum(s[name] for s in alone) / len(alone) for name in alone[0]}
            scores |= {f"paragraph/{name}": value for name, value in coco_scores(joined, texts).items()}
        return scores

    def extra(self, records: Mapping[str, Record]) -> dict[str, float]:
        """``METEOR`` and ``SPICE`` if asked for and possible."""
        predictions, references = self._tokenized(records)
        scores = {}
        for name, program in self.programs.items():
            try:
                scores[name] = 100.0 * program(predictions, references)
            except java.JavaError as error:
                self.notes = (*self.notes, str(error))
        return scores

    def _tokenized(self, records: Mapping[str, Record]) -> tuple[list[str], list[list[str]]]:
        predictions = [self._tokenize(record.prediction) for record in records.values()]
        return predictions, [[self._tokenize(text) for text in record.references] for record in records.values()]

    def _tokenize(self, text: str) -> str:
        return ptb_tokenize(re.sub(r"[^\x00-\x7f]", " ", text) if self.ascii_only else text)


def _videos(records: Mapping[str, Record]) -> list[list[int]]:
    """For each video the places of its segments among the records, in the order of their numbers.

    Raises:
        UserError: an example does not say which segment of which video it is.
    """
    videos: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for place, (key, record) in enumerate(records.items()):
        video, _, segment = str(record.meta.get("vid_name", "")).rpartition("_")
        if not video or not segment.isdecimal():
            raise UserError(f"Example {key!r} has no vid_name of the form video_segment, which the video views need.")
        videos[video].append((int(segment), place))
    return [[place for _, place in sorted(segments)] for _, segments in sorted(videos.items())]
