"""VQAv2: open questions about COCO images, ten human answers each (https://visualqa.org)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.coco import KARPATHY_FILE, karpathy_images
from datamodules.findings import Findings
from datamodules.image import ImageBenchmark
from datamodules.loading import Form, Size, Split
from datamodules.records import DAMAGED, Record, is_list, locate, read_items, read_json, read_list
from datamodules.vqa_files import (
    Labels,
    Question,
    official_labels,
    official_question,
    processed_question,
    without_people,
)
from vl_peft.batch import Example, Task
from vl_peft.errors import DataError
from vl_peft.metrics import SentenceMetric, VQAAccuracy
from vl_peft.submission import JsonList, Submission

# Trained on train2014; its validation set val2014 is public; the answers to test2015 are on the server only.
OFFICIAL: Mapping[Split, str] = {"train": "train2014", "val": "val2014", "test": "test2015"}
PROCESSED: Mapping[str, Mapping[Split, tuple[str, ...]]] = {
    "karpathy": {"train": ("karpathy_train",), "val": ("karpathy_val",), "test": ("karpathy_test",)},
    "official": {"train": ("train",), "val": ("nominival", "minival"), "test": ("test",)},
    "lxmert": {"train": ("train", "nominival"), "val": ("minival",), "test": ("test",)},
}


class VQAv2(ImageBenchmark):
    """Generate the answer to a question.

    A target is any answer that was given, weighted by its soft score. Training draws one per epoch.

    Args:
        split_by: ``"karpathy"`` divides the questions of train2014 and val2014 by the image split of
            ``COCO/dataset_coco.json`` (train + restval to train, val to choose a model, test to report);
            ``"official"`` takes train2014, val2014 and test2015, the last without answers; ``"lxmert"`` trains on all
            of val2014 but ``vqa/minival.json``. The processed files are ``vqa/karpathy_{train,val,test}.json`` and
            LXMERT's ``vqa/{train,nominival,minival,test}.json``.
        accuracy: ``"official"`` is the current evaluation script, ``"published"`` the older one behind the published
            numbers.
        without_answer: a training question none of whose answers is in the vocabulary (``vqa/trainval_ans2label.json``)
            is kept with loss weight 0, as published, or left out; both are counted.
        empty_answer: an answer that is empty (an article, normalised) is no target, or is one; both are counted.
        **shared: options of every image benchmark.
    """

    task = Task("vqa")
    prompt = "vqa: "
    max_source = 20
    max_target = 10
    media_patterns = ("COCO/images/*/{key}.jpg",)
    sizes: ClassVar[Mapping[str, Size]] = {
        "karpathy_train": Size(605_102, exact=False),
        "karpathy_val": Size(26_729, exact=False),
        "karpathy_test": Size(26_280, exact=False),
        "nominival": Size(188_360, exact=False),
        "minival": Size(25_994, exact=False),
        **dict.fromkeys(("train2014", "train"), Size(443_757)),
        "val2014": Size(214_354),
        **dict.fromkeys(("test2015", "test"), Size(447_793)),
    }

    def __init__(
        self,
        split_by: Literal["karpathy", "official", "lxmert"] = "karpathy",
        accuracy: Literal["official", "published"] = "official",
        without_answer: Literal["keep", "skip"] = "keep",
        empty_answer: Literal["omit", "keep"] = "omit",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.split_by: Literal["karpathy", "official", "lxmert"] = split_by
        self.accuracy: Literal["official", "published"] = accuracy
        self.without_answer, self.empty_answer = without_answer, empty_answer

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
        part = "karpathy_test" if self.split_by == "karpathy" else OFFICIAL[split]
        return Submission(f"v2_OpenEnded_mscoco_{part}_vl_peft_results.json", JsonList("question_id", "answer"))

    def files(self, split: Split) -> Mapping[Form, Sequence[Path]]:
        """Questions and annotations of the split's parts of COCO, or processed files."""
        processed = [self.root / f"vqa/{name}.json" for name in PROCESSED[self.split_by][split]]
        if self.split_by == "lxmert":
            return {"processed": processed}
        karpathy = self.split_by == "karpathy"
        parts = [OFFICIAL[split]] if not karpathy else ["train2014", "val2014"] if split == "train" else ["val2014"]
        files = [self.root / f"vqa/v2_OpenEnded_mscoco_{part}_questions.json" for part in parts]
        files += [self._annotations(part) for part in parts if part != "test2015"]
        return {"official": [*files, self.root / KARPATHY_FILE] if karpathy else files, "processed": processed}

    def parts(self, split: Split) -> Sequence[str]:
        """Parts of COCO, or the processed files that were made of them."""
        return (OFFICIAL[split],) if self.split_by == "official" else PROCESSED[self.split_by][split]

    def read(self, split: Split) -> Iterator[Example]:
        """Questions of a split; references and question types only where they are evaluated."""
        with self.findings(split) as found:
            read = self._official if self.form(split) == "official" else self._processed
            yield from read(split, found)

    def references(self, file: Path) -> Iterator[Example]:
        """Of a ``v2_mscoco_*_annotations.json`` or a processed file."""
        with self.findings("val") as found:
            if is_list(file):
                make = partial(processed_question, people={}, hidden=False, evaluated=True)
                yield from self._made(read_list(file, found.reject), make, "val", found)
                return
            for key, labels in official_labels(file, lambda record: True, True, found).items():
                yield Example(str(key), "", (), references=labels.references, meta=labels.meta)

    def _official(self, split: Split, found: Findings) -> Iterator[Example]:
        for part, images in self._images(split, found).items():
            labels = None
            if part != "test2015":
                wanted = partial(_is_about, "image_id", images)
                labels = official_labels(self._annotations(part), wanted, split != "train", found)
            file = self.root / f"vqa/v2_OpenEnded_mscoco_{part}_questions.json"
            question_of = partial(official_question, part=part, images=images, labels=labels)
            yield from self._made(read_items(file, "questions", found.reject), question_of, split, found)

    def _annotations(self, part: str) -> Path:
        return self.root / f"vqa/v2_mscoco_{part}_annotations.json"

    def _images(self, split: Split, found: Findings) -> Mapping[str, Container[int] | None]:
        """The parts of COCO with images of the split, and which images those are (``None``: all)."""
        if self.split_by == "official":
            return {OFFICIAL[split]: None}
        images: dict[str, set[int]] = defaultdict(set)
        for image in karpathy_images(self.root, split, found):
            images[image.require("filepath", str)].add(image.require("cocoid", int))
        return dict(sorted(images.items()))

    def _processed(self, split: Split, found: Findings) -> Iterator[Example]:
        people, evaluated = self._people(split, found), split != "train"
        question_of = partial(processed_question, people=people, hidden=split == "test", evaluated=evaluated)
        for file in self.files(split)["processed"]:
            yield from self._made(read_list(file, found.reject), question_of, split, found)

    def _made(
        self, records: Iterator[Record], question_of: Callable[[Record], Question | None], split: Split, found: Findings
    ) -> Iterator[Example]:
        return found.examples(records, lambda record: self._examples_of(question_of(record), split, found))

    def _people(self, split: Split, found: Findings) -> Mapping[int, Labels]:
        """The ten answers to evaluated questions whose processed files lack them, if the official files are there."""
        people: dict[int, Labels] = {}
        if split == "train":
            return people
        for part, ids in without_people(self.files(split)["processed"]).items():
            file = self._annotations(part)
            if locate(file):
                people |= official_labels(file, partial(_is_about, "question_id", ids), True, found)
            else:
                self.report(f"{split}: no ten answers in the processed files or in {file}; scored against soft labels")
        return people

    def _examples_of(self, question: Question | None, split: Split, found: Findings) -> Iterator[Example]:
        if question is None:
            return
        fields: dict[str, Any] = {}
        if question.labels is not None:
            scores = self._targets(question, question.labels.scores, split, found)
            if not scores and split == "train" and self.without_answer == "skip":
                return
            fields = {"targets": tuple(scores) or ("",), "weights": tuple(scores.values()) or (0.0,)}
            fields |= {"references": question.labels.references, "meta": question.labels.meta}
        source = self.prompted(question.text)
        yield Example(id=str(question.key), source=source, visuals=(question.image,), **fields)

    def _targets(
        self, question: Question, scores: Mapping[str, float], split: Split, found: Findings
    ) -> Mapping[str, float]:
        if "" in scores:
            done = "no target" if self.empty_answer == "omit" else "kept as a target"
            found.note(f"questions have an empty answer; {done}", question.record)
        known = self._vocabulary
        scores = {
            answer: score
            for answer, score in scores.items()
            if (answer or self.empty_answer == "keep") and (known is None or answer in known)
        }
        if not scores:
            skip = split == "train" and self.without_answer == "skip"
            done = "left out" if skip else "their loss weight is 0"
            found.note(f"questions have no answer in the vocabulary; {done}", question.record)
        return scores

    @cached_property
    def _vocabulary(self) -> Container[str] | None:
        file = self.root / "vqa/trainval_ans2label.json"
        if not locate(file):
            return None
        answers = read_json(file)
        if not isinstance(answers, dict):
            raise DataError(file, f"an object of answers was expected, not {type(answers).__name__}", remedy=DAMAGED)
        return frozenset(answers)


def _is_about(field: str, ids: Container[int] | None, record: Record) -> bool:
    return ids is None or record.require(field, int) in ids
