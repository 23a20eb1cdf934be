"""The texts part of ``vl-peft data check``: how long they are, and what examples have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.base import Benchmark
from datamodules.check_features import SHOWN, Depth
from datamodules.findings import Finding
from datamodules.gqa_index import IndexedQuestions
from datamodules.loading import Split
from datamodules.records import DAMAGED, locate, read_json
from vl_peft.batch import Example
from vl_peft.errors import DataError
from vl_peft.tokenizer import TextTokenizer

TEXTS = 10
"""Examples whose texts are measured, for each image or video that is read."""
CHUNK = 1000
"""Examples tokenized at a time."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of texts before anything is cut, special tokens included.

    Attributes:
        texts: how many were measured.
        p50: half of them are not longer; ``p90`` and ``p99`` likewise.
        max: tokens of the longest.
        longest: id of its example.
        limit: the most that training takes; ``None`` takes all.
        cut: share in [0, 1] of those that are longer.
    """

    texts: int
    p50: int
    p90: int
    p99: int
    max: int
    longest: str
    limit: int | None
    cut: float


@dataclass
class Survey:
    """What all examples of a split show and say: how many there are of each image or video, and of each target.

    ``spoken`` are the videos in which something is said.
    """

    visuals: Counter[str]
    targets: Counter[str]
    spoken: set[str]


def survey(examples: Sequence[Example], targets: bool) -> Survey:
    """Go over the examples once, or over none of them where an index has counted. ``targets`` asks for these."""
    if isinstance(examples, IndexedQuestions):
        return Survey(examples.images(), examples.answers(), set())
    found = Survey(Counter(), Counter(), set())
    for example in examples:
        found.visuals.update(example.visuals)
        if targets:
            found.targets.update(example.targets)
        if example.context[0] < example.context[1]:
            found.spoken.update(example.visuals)
    return found


def unknown_answers(benchmark: Benchmark, answers: Counter[str]) -> list[Finding]:
    """Those that the file of answers does not have, if it is there; raises DataError if it is damaged."""
    file = benchmark.root / benchmark.vocabulary if benchmark.vocabulary else None
    if file is None or not locate(file):
        return []
    known = read_json(file)
    if not isinstance(known, dict):
        raise DataError(file, f"an object of answers was expected, not {type(known).__name__}", remedy=DAMAGED)
    unknown = [answer for answer in answers if answer not in known]
    count = sum(answers[answer] for answer in unknown)
    what = f"answers are not in {benchmark.vocabulary}; kept as they are"
    return [Finding(what, count, tuple(unknown[:SHOWN]))] if unknown else []


def lengths(
    benchmark: Benchmark, split: Split, examples: Sequence[Example], tokenizer: TextTokenizer, depth: Depth
) -> tuple[Lengths | None, Lengths | None]:
    """Of the input texts and of the targets of some examples, or all; ``None`` where there are none."""
    rows = depth.rows(len(examples), TEXTS * depth.sample, benchmark.loading.seed)
    chunks = range(0, len(rows), CHUNK)
    sources, targets = _Longest(), _Longest()
    for start in depth.progress(chunks, len(chunks), f"{benchmark.task.name} {split} texts"):
        chosen = [examples[row] for row in rows[start : start + CHUNK]]
        sources.add([example.id for example in chosen], tokenizer.lengths([example.source for example in chosen]))
        pairs = [(example.id, target) for example in chosen for target in example.targets]
        if pairs:
            targets.add([key for key, _ in pairs], tokenizer.lengths([target for _, target in pairs]))
    return sources.lengths(benchmark.max_source), targets.lengths(benchmark.max_target)


class _Longest:
    """Counts lengths, and remembers which was the greatest."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.longest = ""

    def add(self, ids: Sequence[str], lengths: Sequence[int]) -> None:
        top = max(range(len(lengths)), key=lambda i: lengths[i])
        if not self.counts or lengths[top] > max(self.counts):
            self.longest = ids[top]
        self.counts.update(lengths)

    def lengths(self, limit: int | None) -> Lengths | None:
        if not self.counts:
            return None
        values = sorted(self.counts)
        ends = np.cumsum([self.counts[value] for value in values])  # texts up to each length
        texts = int(ends[-1])
        p50, p90, p99 = (values[int(np.searchsorted(ends, share * texts))] for share in (0.5, 0.9, 0.99))
        over = sum(count for value, count in self.counts.items() if limit is not None and value > limit)
        return Lengths(texts, p50, p90, p99, values[-1], self.longest, limit, over / texts)
