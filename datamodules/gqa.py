"""GQA: compositional questions about scenes, one answer each (https://cs.stanford.edu/people/dorarad/gqa)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from datamodules.gqa_index import FACTS, IndexedQuestions, Question, indexed
from datamodules.image import ImageBenchmark, soft_labels
from datamodules.loading import Form, Size, Split
from datamodules.records import MISSING, Record, is_list, locate, read_items, read_list
from vl_peft.batch import Example, Task
from vl_peft.errors import ConfigError, DataError
from vl_peft.metrics import GQAAccuracy, SentenceMetric
from vl_peft.submission import JsonList, Submission

# How the processed files are called, and what they are.
PROCESSED = {
    "train": "train_balanced",
    "valid": "val_balanced",
    "testdev": "testdev_balanced",
    "submit": "submission_all",
}


class GQA(ImageBenchmark):
    """Generate the answer to a question.

    A split is named as its official file, ``GQA/<name>_questions.json`` (``train_all`` as its folder with ten files),
    or as its processed one, ``GQA/{train,valid,testdev,submit}.json``, which stands for train_balanced, val_balanced,
    testdev_balanced and submission_all. train and val show Visual Genome images, all others COCO test images with
    features of their own. test, challenge and submission have no answers.

    Splits of a name with ``_all`` have millions of questions. They are read through an index, which is written once.

    Args:
        train_splits: to train on. The published protocol has ``[train_balanced, val_balanced]`` here and
            ``testdev_balanced`` as ``val_split``.
        val_split: to choose a model on; disjoint in images from train.
        test_split: to report on; testdev is the largest set from other images with public answers.
        index_folder: for the index of the large files; ``None`` is beside them.
        choices: where the files of valid and plausible answers are, below the root, if there are any; ``{split}``
            stands for ``val``, ``testdev``, ...
        **shared: options of every image benchmark.

    Raises:
        ConfigError: if splits that show different kinds of images, or share questions, are to be trained on together.
    """

    task = Task("gqa")
    prompt = "gqa: "
    max_source = 20
    max_target = None
    media_patterns = ("VG/images/{key}.jpg", "GQA/images/{key}.jpg")
    vocabulary = "GQA/trainval_ans2label.json"
    sizes: ClassVar[Mapping[str, Size]] = {
        "train_balanced": Size(943_000, exact=False),
        "val_balanced": Size(132_062, exact=False),
        "testdev_balanced": Size(12_578),
        "test_balanced": Size(95_336, exact=False),
        "challenge_balanced": Size(50_726, exact=False),
        "submission_all": Size(4_237_524, exact=False),
    }

    def __init__(
        self,
        train_splits: tuple[str, ...] = ("train_balanced",),
        val_split: str = "val_balanced",
        test_split: str = "testdev_balanced",
        index_folder: str | None = None,
        choices: str = "GQA/{split}_choices.json",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.index_folder, self.choices = index_folder, choices
        splits = {"train": train_splits, "val": (val_split,), "test": (test_split,)}
        self.splits: Mapping[Split, tuple[str, ...]] = {
            split: tuple(PROCESSED.get(name, name) for name in names)  # type: ignore[misc]
            for split, names in splits.items()
        }
        names = self.splits["train"]
        if len({_images_of(name) for name in names}) != 1:
            raise ConfigError(
                f"GQA train_splits {list(train_splits)}: name one or more splits whose images have their features in "
                "the same folder (train and val, or any others)."
            )
        if len({name.partition("_")[0] for name in names}) < len(names):
            raise ConfigError(f"GQA train_splits {list(train_splits)}: the balanced questions are among all.")

    def feature_folder(self, split: Split) -> str:
        """Features of Visual Genome images lie apart from those of COCO test images."""
        return _images_of(self.splits[split][0]) + "/clip_features/data_clip_{encoder}_att"

    def metric(self) -> SentenceMetric:
        """The official scores; validity and plausibility of the answers where the files of choices are."""
        names = {name.partition("_")[0] for split in ("val", "test") for name in self.splits[split]}
        files = (self.root / self.choices.format(split=name) for name in sorted(names))
        return GQAAccuracy(choices=tuple(file for file in files if file.exists()))

    def submission(self, split: Split) -> Submission | None:
        """The test split; the server takes that of ``test_split: submission_all``."""
        if split != "test":
            return None
        path = f"gqa_{self.splits[split][0]}_results.json"
        return Submission(path, JsonList("questionId", "prediction", number=False))

    def files(self, split: Split) -> Mapping[Form, Sequence[Path]]:
        """A file for each name, or the numbered files in its folder."""
        names = self.splits[split]
        files: dict[Form, Sequence[Path]] = {"official": [file for name in names for file in self._official(name)]}
        processed = {official: name for name, official in PROCESSED.items()}
        if all(name in processed for name in names):
            files["processed"] = [self.root / f"GQA/{processed[name]}.json" for name in names]
        return files

    def parts(self, split: Split) -> Sequence[str]:
        """Their names."""
        return self.splits[split]

    def annotated(self, split: Split) -> Sequence[Example]:
        """Large splits through their index."""
        return self.indexed(split) if self._is_large(split) else super().annotated(split)

    def _is_large(self, split: Split) -> bool:
        return any(name.endswith("_all") for name in self.splits[split]) and self.form(split) == "official"

    def collect(self, split: Split) -> Sequence[Example]:
        """Large splits through their index; only the distinct images are looked at."""
        if not self._is_large(split):
            return super().collect(split)
        questions = self.indexed(split)
        known = set(self.store(split).keys())
        missing = {image: count for image, count in questions.images().items() if image not in known}
        self.without_features(missing, split)
        return questions.without(missing) if missing else questions

    def indexed(self, split: Split) -> IndexedQuestions:
        """All questions of the official files of a split through their index, whether or not there are features."""
        files = [_existing(path) for path in self.files(split)["official"]]
        folder = Path(self.index_folder) if self.index_folder else None
        hidden = any(map(_is_hidden, self.splits[split]))
        parts = indexed(files, folder, hidden, lambda message: self.report(f"{split}: {message}"))
        return IndexedQuestions(parts, partial(self._example, evaluated=split != "train"))

    def commonest_target(self) -> str:
        """As of every benchmark; counted in the index where there is one."""
        examples = self.examples("train")
        if not isinstance(examples, IndexedQuestions):
            return super().commonest_target()
        return examples.answers().most_common(1)[0][0]

    def read(self, split: Split) -> Iterator[Example]:
        """Questions of a split; the id is the question's key, a string that may begin with zeros."""
        form = self.form(split)
        yield from self._read(split, form, *self.files(split)[form])

    def references(self, file: Path) -> Iterator[Example]:
        """Of an official or processed file."""
        yield from self._read("val", "processed" if is_list(file) else "official", file)

    def _read(self, split: Split, form: Form, *files: Path) -> Iterator[Example]:
        read, make = (read_list, self._processed) if form == "processed" else (read_items, self._question)
        with self.findings(split) as found:
            for file in files:
                yield from found.examples(read(file, reject=found.reject), partial(make, split=split))

    def _official(self, name: str) -> list[Path]:
        """``train_all`` has ten numbered files; those that exist, or else the first missing one is named."""
        folder = self.root / f"GQA/{name}_questions"
        if not folder.is_dir():
            return [self.root / f"GQA/{name}_questions.json"]
        numbers = [int(n) for f in folder.iterdir() if (n := _number(f)) is not None]
        return [folder / f"{name}_questions_{i}.json" for i in range(max(numbers, default=0) + 1)]

    def _question(self, record: Record, split: Split) -> Iterator[Example]:
        answer = None if _is_hidden(record.file.name) else record.require("answer", str)
        facts = {name: record.require(name, kind) for name, kind in FACTS.items() if name in record.fields}
        text, image = record.require("question", str), record.require("imageId", str)
        yield self._example(Question(record.where, text, image, answer, facts), split != "train")

    def _processed(self, record: Record, split: Split) -> Iterator[Example]:
        scores = {} if _is_hidden(record.file.name) else soft_labels(record)
        text, image = record.require("sent", str), record.require("img_id", str)
        example = self._example(Question(record.identifier("question_id"), text, image, None, {}), split != "train")
        answers = tuple(scores)
        yield replace(example, targets=answers, weights=tuple(scores.values()), references=answers)

    def _example(self, question: Question, evaluated: bool) -> Example:
        answer = () if question.answer is None else (question.answer,)
        return Example(
            id=question.key,
            source=self.prompted(question.text),
            visuals=(question.image,),
            targets=answer,
            weights=(1.0,) * len(answer),
            references=answer,
            meta=_meta(question) if evaluated else {},
        )


def _meta(question: Question) -> dict[str, Any]:
    """What the official metrics ask for, as far as the file has it."""
    facts = question.facts
    meta: dict[str, Any] = {"question": question.text, "image": question.image}
    if "types" in facts:
        meta["types"] = dict(facts["types"])
    if "entailed" in facts:
        meta["entailed"] = tuple(facts["entailed"])
    if "groups" in facts:
        meta["group"] = facts["groups"].get("global")
    if "isBalanced" in facts:
        meta["balanced"] = facts["isBalanced"]
    return meta


def _images_of(split: str) -> str:
    return "VG" if split.startswith(("train", "val")) else "GQA"


def _is_hidden(name: str) -> bool:
    """Whether a split or file of this name has no answers."""
    return name.startswith(("test_", "challenge", "subm"))


def _existing(path: Path) -> Path:
    file = locate(path)
    if file is None:
        raise DataError(path, "no such file", remedy=MISSING)
    return file


def _number(file: Path) -> int | None:
    match = re.search(r"_(\d+)\.json(\.gz)?$", file.name)
    return int(match[1]) if match else None
