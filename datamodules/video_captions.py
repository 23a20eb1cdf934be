"""What the video benchmarks with captions share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from datamodules.captions import LineBreaks, captions_of
from datamodules.findings import Findings
from datamodules.loading import Split
from datamodules.records import Record
from datamodules.video import VideoBenchmark
from vl_peft.errors import ConfigError
from vl_peft.metrics import CaptionMetrics, SentenceMetric
from vl_peft.submission import ClipCaptions, Submission


class VideoCaptions(VideoBenchmark):
    """Captions of a clip.

    Args:
        flatten_val: validate on one example per caption with that caption as its only reference, as the published code
            does, instead of one per clip with all its captions. Scores of the two are not comparable.
        line_breaks: line breaks within a caption become one space, or are kept; both are counted.
        meteor: score METEOR too, in evaluations outside of training, where Java and ``vl_peft[caption]`` are there.
        spice: SPICE likewise, which takes models of 400 MB and 8 GB of memory.
        **shared: options of every video benchmark.
    """

    submission_format = ClipCaptions()
    by_video: ClassVar[bool] = False
    """Whether clips are segments of videos, which are scored too."""

    def __init__(
        self,
        flatten_val: bool = False,
        line_breaks: LineBreaks = "space",
        meteor: bool = True,
        spice: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.flatten_val, self.line_breaks = flatten_val, line_breaks
        self.meteor, self.spice = meteor, spice

    def submission(self, split: Split) -> Submission | None:
        """One caption per clip.

        Raises:
            ConfigError: if the validation split is flattened.
        """
        if self.flatten_val and split == "val":
            raise ConfigError(f"A submission has one caption per clip: set flatten_val of {self.task.name} to false.")
        return super().submission(split)

    def parts(self, split: Split) -> Sequence[str]:
        """As of every video benchmark; the number of single captions to validate on is not known."""
        return () if self.flatten_val and split == "val" else super().parts(split)

    def labels(self, record: Record, split: Split, found: Findings) -> Iterator[dict[str, Any]]:
        """One Example per caption (training) or per clip; without captions where a test file hides them."""
        clip = record.identifier("clip_id")
        meta = {k: record.fields[k] for k in ("vid_name", "clip_id", "ts") if k in record.fields}
        if split == "test" and not record.fields.get("descs"):
            yield {"id": clip, "meta": meta}
            return
        captions = captions_of(record.each("descs"), "desc", found, self.line_breaks)
        if not captions:
            raise record.error("it has no captions")
        groups = {clip: tuple(caption for _, caption in captions)}
        if split == "train" or (split == "val" and self.flatten_val):
            groups = {desc.identifier("desc_id"): (caption,) for desc, caption in captions}
        for key, group in groups.items():
            yield {"id": key, "targets": group, "weights": (1.0,) * len(group), "references": group, "meta": meta}

    def metric(self) -> SentenceMetric:
        """BLEU, METEOR, ROUGE-L and CIDEr after VALUE's replacement of non-ASCII characters by spaces."""
        return CaptionMetrics(ascii_only=True, videos=self.by_video, meteor=self.meteor, spice=self.spice)
