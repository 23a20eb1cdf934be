"""What the video benchmarks with numbered answers share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from datamodules.findings import Findings
from datamodules.loading import Split
from datamodules.records import Record
from datamodules.video import VideoBenchmark
from vl_peft.submission import ChoiceIndices


class VideoQuestions(VideoBenchmark):
    """A question about a video with numbered choices; the target is the label of the right one, ``a0``, ``a1``, ..."""

    choices: ClassVar[int]
    """How many answers there are to choose from."""

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self.submission_format = ChoiceIndices(self.choices)

    def tail(self, record: Record, found: Findings) -> str:
        """Question, time span and choices; a choice loses its dots and spaces at both ends and gets one dot."""
        answers = (record.require(f"a{i}", str).strip(". ") for i in range(self.choices))
        choices = " ".join(f"a{i}: {answer}." for i, answer in enumerate(answers))
        return f" [Q] {record.require('q', str).strip()}{self.time_span(record, found)} [Choices] {choices}"

    def labels(self, record: Record, split: Split, found: Findings) -> Iterator[dict[str, Any]]:
        """One Example per question; without answer where a test file hides it."""
        right: tuple[str, ...] = ()
        if split != "test" or "answer_idx" in record.fields:
            index = record.require("answer_idx", int)
            if not 0 <= index < self.choices:
                raise record.error(f"'answer_idx' is {index}, not one of 0 to {self.choices - 1}")
            right = (f"a{index}",)
        yield {
            "id": record.identifier("qid"),
            "targets": right,
            "weights": (1.0,) * len(right),
            "references": right,
            "meta": self.facts(record),
        }

    def facts(self, record: Record) -> dict[str, Any]:
        """What the metric needs to know besides the answer."""
        return {}
