"""NLVR2: is a sentence true of a pair of photographs? (https://lil.nlp.cornell.edu/nlvr)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from datamodules.base import Benchmark
from datamodules.loading import Split
from datamodules.records import read_lines
from vl_peft.batch import Example, Task
from vl_peft.metrics import NLVR2Accuracy, SentenceMetric
from vl_peft.submission import Submission, Verdicts


class NLVR2(Benchmark):
    """Choose between ``true`` and ``false`` by the logits of their first tokens.

    The files are JSON lines in spite of their names. train to train on, dev to choose a model.

    Args:
        test_split: to report on: ``test1`` ("test-P") or ``test2`` (formerly hidden, "test-U").
        **shared: options of every benchmark.
    """

    task = Task("nlvr", candidates=("false", "true"))  # in this order, a tie is false, as published
    prompt = "nlvr: "
    max_source = None
    max_target = None
    visual_tokens = 36  # of each image
    visual_kind = "grid"
    media_patterns = ("nlvr/images/train/*/{key}.png", "nlvr/images/*/{key}.png")

    def __init__(self, test_split: Literal["test1", "test2"] = "test1", **shared: Any) -> None:
        super().__init__(**shared)
        self.files: Mapping[Split, str] = {"train": "train", "val": "dev", "test": test_split}

    def feature_folder(self, split: Split) -> str:
        """All splits lie in one folder."""
        return "nlvr/clip_features/data_clip_{encoder}_att"

    def metric(self) -> SentenceMetric:
        """Accuracy, and consistency over the pairs that share a sentence."""
        return NLVR2Accuracy()

    def submission(self, split: Split) -> Submission | None:
        """The test split."""
        return Submission(f"nlvr2_{self.files[split]}.csv", Verdicts()) if split == "test" else None

    def read(self, split: Split) -> Iterator[Example]:
        """Sentences of a split; ``dev-850-0-1`` is sentence 1 about ``dev-850-0-img0`` (left) and ``-img1`` (right)."""
        for record in read_lines(self.root / f"nlvr/{self.files[split]}.json"):
            identifier = record.require("identifier", str)
            pair, dash, _ = identifier.rpartition("-")
            if not dash:
                raise record.error(f"'identifier' is '{identifier}', not <split>-<set>-<pair>-<sentence>")
            label = record.require("label", str)
            if label not in ("True", "False"):
                raise record.error(f"'label' is '{label}', not 'True' or 'False'")
            answer = (label.lower(),)
            yield Example(
                id=identifier,
                source=self.prompted(record.require("sentence", str)),
                visuals=(f"{pair}-img0", f"{pair}-img1"),
                targets=answer,
                weights=(1.0,),
                references=answer,
            )
