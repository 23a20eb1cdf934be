"""What the video benchmarks of VALUE share: files, subtitles, and the text they begin with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.base import Benchmark
from datamodules.findings import Findings
from datamodules.loading import Form, Split
from datamodules.records import Record, locate, read_lines
from datamodules.subtitles import Subtitles
from vl_peft.batch import Example
from vl_peft.submission import ClipCaptions, Format, Submission

UNKNOWN = {"omit": "left out of the text", "verbatim": "printed as they are", "substitute": "10 to 30 in their place"}


class VideoBenchmark(Benchmark):
    """Text about a video: its subtitles, then what the benchmark adds.

    The subtitles and the features are those of the whole clip; a time span appears in the text only.

    Args:
        missing_subtitles: a video without an entry in the subtitle file gets an empty text, or the run fails.
        unknown_span: a few spans are ``NaN-NaN``, or no two numbers. ``"omit"`` leaves the ``[TS]`` part out of their
            text, ``"verbatim"`` prints them, as the published code does, ``"substitute"`` prints seconds 10 to 30, as
            the first code for TVQA does. (No effect on benchmarks without time spans.)
        empty_span: a few spans end where they begin. They still say when and are kept, or ``"omit"`` leaves the
            ``[TS]`` part out.
        **shared: options of every benchmark.
    """

    max_source = 600
    max_target = 20
    visual_tokens = 64
    visual_kind = "frames"

    channel: ClassVar[str]
    """Whose subtitles and videos: ``tv``, ``how2`` or ``yc2``."""
    train_files: ClassVar[tuple[str, ...]]
    val_files: ClassVar[tuple[str, ...]]
    test_files: ClassVar[tuple[str, ...]]
    """Annotation files of a split; of several, those that exist are read one after the other."""
    submitted: ClassVar[Mapping[str, str]] = {"val": "val", "test": "test"}
    """What VALUE's server calls the splits it wants."""
    submission_format: Format
    """In which form it wants them."""

    def __init__(
        self,
        missing_subtitles: Literal["empty", "fail"] = "empty",
        unknown_span: Literal["omit", "verbatim", "substitute"] = "omit",
        empty_span: Literal["keep", "omit"] = "keep",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.missing_subtitles, self.unknown_span, self.empty_span = missing_subtitles, unknown_span, empty_span
        self.media_patterns = (f"video/videos/{self.channel}/{{key}}.*",)

    @abstractmethod
    def tail(self, record: Record, found: Findings) -> str:
        """The text after the subtitles, beginning with a space; may be empty."""

    @abstractmethod
    def labels(self, record: Record, split: Split, found: Findings) -> Iterator[dict[str, Any]]:
        """For each Example to make of a record its fields besides ``source``, ``context`` and ``visuals``."""

    def submission(self, split: Split) -> Submission | None:
        """Validation and test split of all tasks in one archive."""
        if split == "train":
            return None
        task, suffix = self.task.name, "jsonl" if isinstance(self.submission_format, ClipCaptions) else "json"
        path = f"{task}/{task}_{self.submitted[split]}_predictions.{suffix}"
        return Submission(path, self.submission_format, archive="value.zip")

    def feature_folder(self, split: Split) -> str:
        """All splits of a channel lie in one folder."""
        return f"video/vis_features/{self.channel}/{{encoder}}"

    def files(self, split: Split) -> Mapping[Form, Sequence[Path]]:
        """VALUE's annotations, and the subtitles of the channel."""
        return {"official": [*self._files(split), self._subtitles]}

    def parts(self, split: Split) -> Sequence[str]:
        """The largest of its files: the others are within it."""
        names = [file.stem for file in self._files(split) if file.stem in self.sizes]
        return [max(names, key=lambda name: self.sizes[name].count)] if names else []

    @property
    def _subtitles(self) -> Path:
        return self.root / f"video/ann/{self.channel}_subtitles.jsonl"

    def read(self, split: Split) -> Iterator[Example]:
        """Examples of a split, in the order of its files."""
        with self.findings(split) as found:
            subtitles = Subtitles(self._subtitles, found, self.missing_subtitles)
            for file in self._files(split):
                make = partial(self._examples_of, split=split, subtitles=subtitles, found=found)
                yield from found.examples(read_lines(file, found.reject), make)
            subtitles.tell(found)

    def references(self, file: Path) -> Iterator[Example]:
        """Of a file in the form of the benchmark's own."""
        with self.findings("val") as found:
            yield from found.examples(read_lines(file, found.reject), partial(self._labelled, found=found))

    def _labelled(self, record: Record, found: Findings) -> Iterator[Example]:
        return (Example(source="", visuals=(), **fields) for fields in self.labels(record, "val", found))

    def _examples_of(self, record: Record, split: Split, subtitles: Subtitles, found: Findings) -> Iterator[Example]:
        video = record.require("vid_name", str)
        source, context = self.prompted_with_context("[Subs] ", subtitles.of(video), self.tail(record, found))
        for fields in self.labels(record, split, found):
            yield Example(source=source, context=context, visuals=(video,), **fields)

    def time_span(self, record: Record, found: Findings) -> str:
        """``" [TS] (<span>)"``: the span as the file writes it, text or list."""
        span = record.require("ts", (str, list))
        length = _length(span)
        if length is None:
            found.note(f"time spans are not two numbers; {UNKNOWN[self.unknown_span]}", record)
            if self.unknown_span == "omit":
                return ""
            if self.unknown_span == "substitute":
                span = "10-30" if isinstance(span, str) else [10, 30]
        elif length <= 0:
            omit = self.empty_span == "omit"
            found.note(f"time spans end where they begin; {'left out of the text' if omit else 'kept'}", record)
            if omit:
                return ""
        return f" [TS] ({span})"

    def _files(self, split: Split) -> list[Path]:
        """The annotation files of the split that exist, or the first, of which reading will say that it does not."""
        names = {"train": self.train_files, "val": self.val_files, "test": self.test_files}[split]
        candidates = [self.root / "video/ann" / self.task.name / f"{name}.jsonl" for name in names]
        return [file for file in candidates if locate(file)] or candidates[:1]


def _length(span: str | list[Any]) -> float | None:
    """Seconds from ``"<start>-<end>"`` or ``[start, end]``; ``None`` if these are not two numbers."""
    try:
        start, end = (float(time) for time in (span.split("-") if isinstance(span, str) else span))
    except (TypeError, ValueError):
        return None
    return end - start if isfinite(end - start) else None
