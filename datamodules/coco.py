"""COCO captions in the split of Karpathy and Fei-Fei, and that split itself (VQAv2 is divided by it too)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.captions import LineBreaks, captions_of
from datamodules.findings import Findings
from datamodules.image import ImageBenchmark
from datamodules.loading import Form, Size, Split
from datamodules.records import MalformedError, Record, locate, read_items
from vl_peft.batch import Example, Generation, Task
from vl_peft.metrics import CaptionMetrics, SentenceMetric
from vl_peft.submission import JsonList, Submission

# train and restval (what is left of COCO's validation images) to train on, 5,000 images each to choose and to report.
KARPATHY: Mapping[str, Split] = {"train": "train", "restval": "train", "val": "val", "test": "test"}
OFFICIAL: Mapping[str, Split] = {"train2014": "train", "val2014": "val", "test2014": "test"}
KARPATHY_FILE = "COCO/dataset_coco.json"


class COCO(ImageBenchmark):
    """Describe an image; the input text is the prompt alone.

    (The published code generates at most 20 tokens, although it trains on 40.)

    Args:
        split_by: ``"karpathy"``, which needs ``COCO/dataset_coco.json``, or ``"official"``: train2014 and val2014, by
            ``captions_*.json`` in ``COCO/annotations`` or in ``COCO`` or by the file of Karpathy, and test2014 by
            ``image_info_test2014.json``, without captions.
        line_breaks: line breaks within a caption become one space, or are kept; both are counted.
        meteor: score METEOR too, in evaluations outside of training, where Java and ``vl_peft[caption]`` are there.
        spice: SPICE likewise, which takes models of 400 MB and 8 GB of memory.
        **shared: options of every image benchmark.
    """

    task = Task("caption", reduction="token", generation=Generation(num_beams=5, max_length=40))
    prompt = "caption: "
    max_source = 40
    max_target = 40
    media_patterns = ("COCO/images/*/{key}.jpg",)
    sizes: ClassVar[Mapping[str, Size]] = {  # captions to train on, images to evaluate
        "karpathy_train": Size(566_747, exact=False),
        "karpathy_val": Size(5_000, exact=False),
        "karpathy_test": Size(5_000, exact=False),
        "official_val": Size(40_504),
    }

    def __init__(
        self,
        split_by: Literal["karpathy", "official"] = "karpathy",
        line_breaks: LineBreaks = "space",
        meteor: bool = True,
        spice: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.split_by: Literal["karpathy", "official"] = split_by
        self.line_breaks, self.meteor, self.spice = line_breaks, meteor, spice

    def feature_folder(self, split: Split) -> str:
        """All COCO images lie in one folder."""
        return "COCO/clip_features/data_clip_{encoder}_att"

    def metric(self) -> SentenceMetric:
        """BLEU, METEOR, ROUGE-L and CIDEr over all captions of an image."""
        return CaptionMetrics(meteor=self.meteor, spice=self.spice)

    def submission(self, split: Split) -> Submission | None:
        """Validation and test split in one archive, as COCO's server wants its own (``split_by: official``)."""
        if split == "train":
            return None
        part = f"{split}2014" if self.split_by == "official" else f"karpathy_{split}"
        path = f"captions_{part}_vl_peft_results.json"
        return Submission(path, JsonList("image_id", "caption"), archive="captions_vl_peft_results.zip")

    def files(self, split: Split) -> Mapping[Form, Sequence[Path]]:
        """Karpathy's file has the official train2014 and val2014 too."""
        karpathy = self.root / KARPATHY_FILE
        if self.split_by == "karpathy":
            return {"processed": [karpathy]}
        name = {"train": "captions_train2014", "val": "captions_val2014", "test": "image_info_test2014"}[split]
        here, within = self.root / f"COCO/{name}.json", self.root / f"COCO/annotations/{name}.json"
        official: dict[Form, Sequence[Path]] = {"official": [here if locate(here) else within]}
        return official if split == "test" else official | {"processed": [karpathy]}

    def parts(self, split: Split) -> Sequence[str]:
        """Its name in Karpathy's file or in COCO."""
        return (f"{self.split_by}_{split}",)

    def read(self, split: Split) -> Iterator[Example]:
        """One example per caption (its id is the sentence's) to train on, one per image (``cocoid``) to evaluate."""
        form = self.form(split)
        (file,) = self.files(split)[form]
        if form == "official":
            yield from self._captions(file, split)
            return
        with self.findings(split) as found:
            images = karpathy_images(self.root, split, found, self.split_by)
            yield from found.examples(images, partial(self._karpathy, split=split, found=found))

    def references(self, file: Path) -> Iterator[Example]:
        """Of a ``captions_*.json``."""
        yield from self._captions(file, "val")

    def _captions(self, file: Path, split: Split) -> Iterator[Example]:
        with self.findings(split) as found:
            captions = None if split == "test" else _by_image(file, found)
            make = partial(self._official, split=split, found=found, captions=captions)
            yield from found.examples(read_items(file, "images", found.reject), make)

    def _karpathy(self, image: Record, split: Split, found: Findings) -> Iterator[Example]:
        captions = captions_of(image.each("sentences"), "raw", found, self.line_breaks)
        sentences = {str(sentence.require("sentid", int)): caption for sentence, caption in captions}
        return self._examples_of(image, image.require("filename", str), image.require("cocoid", int), sentences, split)

    def _official(
        self, image: Record, split: Split, found: Findings, captions: Mapping[int, list[Record]] | None
    ) -> Iterator[Example]:
        key, name = image.require("id", int), image.require("file_name", str)
        if captions is None:
            return iter([Example(str(key), self.prompted(""), (_key(name),))])
        given = captions_of(captions.get(key, []), "caption", found, self.line_breaks)
        return self._examples_of(image, name, key, {str(c.require("id", int)): text for c, text in given}, split)

    def _examples_of(
        self, image: Record, name: str, key: int, captions: Mapping[str, str], split: Split
    ) -> Iterator[Example]:
        if not captions:
            raise image.error("it has no captions")
        groups = {str(key): tuple(captions.values())}
        if split == "train":
            groups = {sentence: (caption,) for sentence, caption in captions.items()}
        for id_, group in groups.items():
            yield Example(id_, self.prompted(""), (_key(name),), group, (1.0,) * len(group), group)


def karpathy_images(
    root: Path, split: Split, found: Findings, split_by: Literal["karpathy", "official"] = "karpathy"
) -> Iterator[Record]:
    """Images of a split: the records of ``COCO/dataset_coco.json``, in file order.

    Args:
        root: the data root.
        split: which of them.
        found: counts records that cannot be used.
        split_by: Karpathy's split, or COCO's own, which is the folder of the image.
    """
    field, splits = ("split", KARPATHY) if split_by == "karpathy" else ("filepath", OFFICIAL)
    for image in read_items(root / KARPATHY_FILE, "images", found.reject):
        try:
            name = image.require(field, str)
            if name not in splits:
                raise image.error(f"'{field}' is '{name}', not one of {', '.join(splits)}")
            image.require("cocoid", int)
            image.require("filepath", str)
        except MalformedError as error:
            found.reject(error)
        else:
            if splits[name] == split:
                yield image


def _by_image(file: Path, found: Findings) -> Mapping[int, list[Record]]:
    captions: dict[int, list[Record]] = defaultdict(list)
    for record in read_items(file, "annotations", found.reject):
        try:
            captions[record.require("image_id", int)].append(record)
        except MalformedError as error:
            found.reject(error)
    return captions


def _key(filename: str) -> str:
    return filename.partition(".")[0]
