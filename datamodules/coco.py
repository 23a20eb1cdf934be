"""COCO captions in the split of Karpathy and Fei-Fei, and that split itself (VQAv2 is divided by it too)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from datamodules.base import Benchmark
from datamodules.loading import Split
from datamodules.records import Record, read_items
from vl_peft.batch import Example, Generation, Task
from vl_peft.metrics import CaptionMetrics, SentenceMetric
from vl_peft.submission import JsonList, Submission

# train and restval (what is left of COCO's validation images) to train on, 5,000 images each to choose and to report.
KARPATHY: Mapping[str, Split] = {"train": "train", "restval": "train", "val": "val", "test": "test"}


class COCO(Benchmark):
    """Describe an image; the input text is the prompt alone.

    (The published code generates at most 20 tokens, although it trains on 40.)
    """

    task = Task("caption", reduction="token", generation=Generation(num_beams=5, max_length=40))
    prompt = "caption: "
    max_source = 40
    max_target = 40
    visual_tokens = 36
    visual_kind = "grid"
    media_patterns = ("COCO/images/*/{key}.jpg",)

    def feature_folder(self, split: Split) -> str:
        """All COCO images lie in one folder."""
        return "COCO/clip_features/data_clip_{encoder}_att"

    def metric(self) -> SentenceMetric:
        """BLEU, METEOR, ROUGE-L and CIDEr over all captions of an image."""
        return CaptionMetrics()

    def submission(self, split: Split) -> Submission | None:
        """Validation and test split in one archive, as COCO's server wants its own."""
        if split == "train":
            return None
        path = f"captions_karpathy_{split}_vl_peft_results.json"
        return Submission(path, JsonList("image_id", "caption"), archive="captions_vl_peft_results.zip")

    def read(self, split: Split) -> Iterator[Example]:
        """One example per caption (its id is the sentence's) to train on, one per image (``cocoid``) to evaluate."""
        source = self.prompted("")
        for image in karpathy_images(self.root, split):
            visuals = (image.require("filename", str).partition(".")[0],)
            sentences = image.each("sentences")
            captions = tuple(sentence.require("raw", str).strip() for sentence in sentences)
            groups: list[tuple[str, ...]]
            if split == "train":
                ids = [str(sentence.require("sentid", int)) for sentence in sentences]
                groups = [(caption,) for caption in captions]
            else:
                ids, groups = [str(image.require("cocoid", int))], [captions]
            for key, group in zip(ids, groups, strict=True):
                yield Example(key, source, visuals, targets=group, weights=(1.0,) * len(group), references=group)


def karpathy_images(root: Path, split: Split) -> Iterator[Record]:
    """Images of a split: the records of ``COCO/dataset_coco.json``, in file order."""
    for image in read_items(root / "COCO/dataset_coco.json", "images"):
        name = image.require("split", str)
        if name not in KARPATHY:
            raise image.error(f"'split' is '{name}', not one of {', '.join(KARPATHY)}")
        if KARPATHY[name] == split:
            yield image
