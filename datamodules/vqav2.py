"""VQAv2: open questions about COCO images, ten human answers each (https://visualqa.org)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from typing import Any, Literal

from datamodules.base import Benchmark
from datamodules.coco import karpathy_images
from datamodules.loading import Split
from datamodules.records import DAMAGED, Record, locate, read_items, read_json
from vl_peft.batch import Example, Task
from vl_peft.errors import DataError
from vl_peft.metrics import SentenceMetric, VQAAccuracy, soft_scores
from vl_peft.submission import JsonList, Submission

# Trained on train2014; its validation set val2014 is public; the answers to test2015 are on the server only.
OFFICIAL: Mapping[Split, str] = {"train": "train2014", "val": "val2014", "test": "test2015"}


class VQAv2(Benchmark):
    """Generate the answer to a question.

    A target is any answer that was given, weighted by its soft score. Training draws one per epoch.

    Args:
        split_by: ``"karpathy"`` divides the questions of train2014 and val2014 by the image split of
            ``COCO/dataset_coco.json`` (train + restval to train, val to choose a model, test to report);
            ``"official"`` takes train2014, val2014 and test2015, the last without answers.
        accuracy: ``"official"`` is the current evaluation script, ``"published"`` the older one behind the published
            numbers.
        **shared: options of every benchmark.
    """

    task = Task("vqa")
    prompt = "vqa: "
    max_source = 20
    max_target = 10
    visual_tokens = 36
    visual_kind = "grid"
    media_patterns = ("COCO/images/*/{key}.jpg",)

    def __init__(
        self,
        split_by: Literal["karpathy", "official"] = "karpathy",
        accuracy: Literal["official", "published"] = "official",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.split_by: Literal["karpathy", "official"] = split_by
        self.accuracy: Literal["official", "published"] = accuracy

    def feature_folder(self, split: Split) -> str:
        """All COCO images lie in one folder."""
        return "COCO/clip_features/data_clip_{encoder}_att"

    def metric(self) -> SentenceMetric:
        """VQA accuracy against the ten answers."""
        return VQAAccuracy(variant=self.accuracy)

    def submission(self, split: Split) -> Submission | None:
        """The test split; the server takes that of ``split_by: official``."""
        if split != "test":
            return None
        part = OFFICIAL[split] if self.split_by == "official" else f"karpathy_{split}"
        return Submission(f"v2_OpenEnded_mscoco_{part}_vl_peft_results.json", JsonList("question_id", "answer"))

    def read(self, split: Split) -> Iterator[Example]:
        """Questions of a split; references and question types only where they are evaluated."""
        unanswerable = 0
        vocabulary = self._vocabulary()
        for part, images in self._images(split).items():
            file = self.root / f"vqa/v2_mscoco_{part}_annotations.json"
            answers = None if part == "test2015" else self._answers(part, images, vocabulary, split != "train")
            for record in read_items(self.root / f"vqa/v2_OpenEnded_mscoco_{part}_questions.json", "questions"):
                image = record.require("image_id", int)
                if images is not None and image not in images:
                    continue
                key = record.require("question_id", int)
                if answers is not None and key not in answers:
                    raise DataError(file, "no annotation of this question", key, DAMAGED)
                labels = answers[key] if answers is not None else {}
                unanswerable += labels.get("targets") == ("",)
                source = self.prompted(record.require("question", str))
                yield Example(id=str(key), source=source, visuals=(f"COCO_{part}_{image:012d}",), **labels)
        if unanswerable:
            self.report(f"{split}: {unanswerable} questions have no answer in the vocabulary; their loss weight is 0")

    def _images(self, split: Split) -> Mapping[str, Container[int] | None]:
        """The parts of COCO with images of the split, and which images those are (``None``: all)."""
        if self.split_by == "official":
            return {OFFICIAL[split]: None}
        images: dict[str, set[int]] = defaultdict(set)
        for image in karpathy_images(self.root, split):
            images[image.require("filepath", str)].add(image.require("cocoid", int))
        return dict(sorted(images.items()))

    def _vocabulary(self) -> Container[str] | None:
        file = self.root / "vqa/trainval_ans2label.json"
        return frozenset(read_json(file)) if locate(file) else None

    def _answers(
        self, part: str, images: Container[int] | None, vocabulary: Container[str] | None, evaluated: bool
    ) -> dict[int, dict[str, Any]]:
        """For each question the fields of the Example that come from its annotation."""
        records = read_items(self.root / f"vqa/v2_mscoco_{part}_annotations.json", "annotations")
        return {
            record.require("question_id", int): _labels(record, vocabulary, evaluated)
            for record in records
            if images is None or record.require("image_id", int) in images
        }


def _labels(record: Record, vocabulary: Container[str] | None, evaluated: bool) -> dict[str, Any]:
    scores = soft_scores([answer.require("answer", str) for answer in record.each("answers")])
    # An empty answer (an article, normalised) teaches nothing, although the vocabulary has it.
    scores = {a: score for a, score in scores.items() if a and (vocabulary is None or a in vocabulary)}
    labels: dict[str, Any] = {"targets": tuple(scores) or ("",), "weights": tuple(scores.values()) or (0.0,)}
    if evaluated:
        types = ("question_type", "answer_type")
        labels["references"] = tuple(record.fields["answers"])
        labels["meta"] = {name: record.fields[name] for name in types if name in record.fields}
    return labels
