"""GQA: compositional questions about scenes, one answer each (https://cs.stanford.edu/people/dorarad/gqa)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from datamodules.base import Benchmark
from datamodules.loading import Split
from datamodules.records import read_items
from vl_peft.batch import Example, Task
from vl_peft.errors import ConfigError
from vl_peft.metrics import GQAAccuracy, SentenceMetric


class GQA(Benchmark):
    """Generate the answer to a question.

    A split is named as its file, ``GQA/<name>_questions.json``. train and val show Visual Genome images, all others
    COCO test images with features of their own. test and challenge have no answers.

    Args:
        train_splits: to train on. The published protocol has ``[train_balanced, val_balanced]`` here and
            ``testdev_balanced`` as ``val_split``.
        val_split: to choose a model on; disjoint in images from train.
        test_split: to report on; testdev is the largest set from other images with public answers.
        choices: where the files of valid and plausible answers are, below the root, if there are any; ``{split}``
            stands for ``val``, ``testdev``, ...
        **shared: options of every benchmark.

    Raises:
        ConfigError: if splits with different kinds of images are to be trained on together.
    """

    task = Task("gqa")
    prompt = "gqa: "
    max_source = 20
    max_target = None
    visual_tokens = 36
    visual_kind = "grid"
    media_patterns = ("VG/images/{key}.jpg", "GQA/images/{key}.jpg")

    def __init__(
        self,
        train_splits: tuple[str, ...] = ("train_balanced",),
        val_split: str = "val_balanced",
        test_split: str = "testdev_balanced",
        choices: str = "GQA/{split}_choices.json",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.choices = choices
        self.splits: Mapping[Split, tuple[str, ...]] = {
            "train": tuple(train_splits),
            "val": (val_split,),
            "test": (test_split,),
        }
        if len({_images_of(name) for name in train_splits}) != 1:
            raise ConfigError(
                f"GQA train_splits {list(train_splits)}: name one or more splits whose images have their features in "
                "the same folder (train and val, or any others)."
            )

    def feature_folder(self, split: Split) -> str:
        """Features of Visual Genome images lie apart from those of COCO test images."""
        return _images_of(self.splits[split][0]) + "/clip_features/data_clip_{encoder}_att"

    def metric(self) -> SentenceMetric:
        """The official scores; validity and plausibility of the answers where the files of choices are."""
        names = {name.partition("_")[0] for split in ("val", "test") for name in self.splits[split]}
        files = (self.root / self.choices.format(split=name) for name in sorted(names))
        return GQAAccuracy(choices=tuple(file for file in files if file.exists()))

    def read(self, split: Split) -> Iterator[Example]:
        """Questions of a split; the id is the question's key, a string that may begin with zeros."""
        for name in self.splits[split]:
            hidden = name.startswith(("test_", "challenge", "submission"))
            for record in read_items(self.root / f"GQA/{name}_questions.json"):
                answer = () if hidden else (record.require("answer", str),)
                yield Example(
                    id=record.where,
                    source=self.prompted(record.require("question", str)),
                    visuals=(record.require("imageId", str),),
                    targets=answer,
                    weights=(1.0,) * len(answer),
                    references=answer,
                )


def _images_of(split: str) -> str:
    return "VG" if split.startswith(("train", "val")) else "GQA"
