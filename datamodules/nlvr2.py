"""NLVR2: is a sentence true of a pair of photographs? (https://lil.nlp.cornell.edu/nlvr)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from datamodules.image import ImageBenchmark
from datamodules.loading import Form, Size, Split
from datamodules.records import Record, is_list, read_lines, read_list
from vl_peft.batch import Example, Task
from vl_peft.metrics import NLVR2Accuracy, SentenceMetric
from vl_peft.submission import Submission, Verdicts


class NLVR2(ImageBenchmark):
    """Choose between ``true`` and ``false`` by the logits of their first tokens.

    The official files are JSON lines in spite of their names, ``nlvr/{train,dev,test1,test2}.json``; the processed ones
    are lists, ``nlvr/{train,valid,test}.json`` (test is test1). train to train on, dev to choose a model.

    Args:
        test_split: to report on: ``test1`` ("test-P") or ``test2`` (formerly hidden, "test-U"). Subsets are named by
            their path, as ``balanced/balanced_test1``.
        val_split: to choose a model on: ``dev``, or a subset such as ``balanced/balanced_dev``.
        **shared: options of every image benchmark.
    """

    task = Task("nlvr", candidates=("false", "true"))  # in this order, a tie is false, as published
    prompt = "nlvr: "
    max_source = None
    max_target = None
    media_patterns = ("nlvr/images/train/*/{key}.png", "nlvr/images/*/{key}.png")
    sizes: ClassVar[Mapping[str, Size]] = {
        "train": Size(86_373, exact=False),
        "dev": Size(6_982),
        "test1": Size(6_967),
        "test2": Size(6_970),
        "balanced/balanced_dev": Size(2_300),
        "balanced/balanced_test1": Size(2_316),
        "unbalanced/unbalanced_dev": Size(3_562),
        "unbalanced/unbalanced_test1": Size(3_536),
    }

    def __init__(self, test_split: str = "test1", val_split: str = "dev", **shared: Any) -> None:
        super().__init__(**shared)
        self.splits: Mapping[Split, str] = {"train": "train", "val": val_split, "test": test_split}

    def feature_folder(self, split: Split) -> str:
        """All splits lie in one folder."""
        return "nlvr/clip_features/data_clip_{encoder}_att"

    def metric(self) -> SentenceMetric:
        """Accuracy, and consistency over the pairs that share a sentence."""
        return NLVR2Accuracy()

    def submission(self, split: Split) -> Submission | None:
        """The test split."""
        path = f"nlvr2_{self.splits[split].rpartition('/')[2]}.csv"
        return Submission(path, Verdicts()) if split == "test" else None

    def files(self, split: Split) -> Mapping[Form, Sequence[Path]]:
        """One file; of train both forms have the same name."""
        name = self.splits[split]
        files: dict[Form, Sequence[Path]] = {"official": [self.root / f"nlvr/{name}.json"]}
        processed = {"train": "train", "dev": "valid", "test1": "test"}.get(name)
        return files | {"processed": [self.root / f"nlvr/{processed}.json"]} if processed else files

    def parts(self, split: Split) -> Sequence[str]:
        """Its name."""
        return (self.splits[split],)

    def is_there(self, form: Form, path: Path) -> bool:
        """Whether there is a list or lines."""
        return super().is_there(form, path) and is_list(path) == (form == "processed")

    def read(self, split: Split) -> Iterator[Example]:
        """Sentences of a split; ``dev-850-0-1`` is sentence 1 about ``dev-850-0-img0`` (left) and ``-img1`` (right)."""
        form = self.form(split)
        yield from self._read(split, form, *self.files(split)[form])

    def references(self, file: Path) -> Iterator[Example]:
        """Of an official or processed file."""
        yield from self._read("val", "processed" if is_list(file) else "official", file)

    def _read(self, split: Split, form: Form, *files: Path) -> Iterator[Example]:
        read, make = (read_list, self._processed) if form == "processed" else (read_lines, self._official)
        with self.findings(split) as found:
            for file in files:
                yield from found.examples(read(file, found.reject), make)

    def _official(self, record: Record) -> Iterator[Example]:
        identifier = record.require("identifier", str)
        pair, dash, _ = identifier.rpartition("-")
        if not dash:
            raise record.error(f"'identifier' is '{identifier}', not <split>-<set>-<pair>-<sentence>")
        label = record.require("label", str)
        if label not in ("True", "False"):
            raise record.error(f"'label' is '{label}', not 'True' or 'False'")
        images = f"{pair}-img0", f"{pair}-img1"
        yield self._example(identifier, record.require("sentence", str), images, label.lower())

    def _processed(self, record: Record) -> Iterator[Example]:
        label = record.require("label", int)
        if label not in (0, 1):
            raise record.error(f"'label' is {label}, not 0 or 1")
        images = record.require("img0", str), record.require("img1", str)
        sentence = record.require("sent", str)
        yield self._example(record.identifier("identifier"), sentence, images, ("false", "true")[label])

    def _example(self, key: str, sentence: str, images: tuple[str, str], answer: str) -> Example:
        return Example(key, self.prompted(sentence), images, (answer,), (1.0,), (answer,))
