"""What the video benchmarks of VALUE share: files, subtitles, the text they begin with, answers and captions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from datamodules.base import Benchmark
from datamodules.loading import Split
from datamodules.records import Record, locate, read_lines
from datamodules.subtitles import Subtitles
from vl_peft.batch import Example
from vl_peft.metrics import CaptionMetrics, SentenceMetric


class VideoBenchmark(Benchmark):
    """Text about a video: its subtitles, then what the benchmark adds.

    The subtitles and the features are those of the whole clip; a time span appears in the text only.

    Args:
        missing_subtitles: a video without an entry in the subtitle file gets an empty text, or the run fails.
        unknown_span: a few spans are ``NaN-NaN``. ``"omit"`` leaves the ``[TS]`` part out of their text;
            ``"verbatim"`` prints them, as the published code does. (Spans of length zero are printed: they still say
            when. No effect on benchmarks without time spans.)
        **shared: options of every benchmark.
    """

    max_source = 600
    max_target = 20
    visual_tokens = 64
    visual_kind = "frames"

    channel: ClassVar[str]
    """Whose subtitles and videos: ``tv``, ``how2`` or ``yc2``."""
    id_field: ClassVar[str]
    """The field that tells the records of a split apart."""
    train_files: ClassVar[tuple[str, ...]]
    val_files: ClassVar[tuple[str, ...]]
    test_files: ClassVar[tuple[str, ...]]
    """Annotation files of a split; of several, those that exist are read one after the other."""

    def __init__(
        self,
        missing_subtitles: Literal["empty", "fail"] = "empty",
        unknown_span: Literal["omit", "verbatim"] = "omit",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.missing_subtitles, self.unknown_span = missing_subtitles, unknown_span
        self.media_patterns = (f"video/videos/{self.channel}/{{key}}.*",)

    @abstractmethod
    def tail(self, record: Record) -> str:
        """The text after the subtitles, beginning with a space; may be empty."""

    @abstractmethod
    def labels(self, record: Record, split: Split) -> Iterator[dict[str, Any]]:
        """For each Example to make of a record its fields besides ``source``, ``context`` and ``visuals``."""

    def feature_folder(self, split: Split) -> str:
        """All splits of a channel lie in one folder."""
        return f"video/vis_features/{self.channel}/{{encoder}}"

    def read(self, split: Split) -> Iterator[Example]:
        """Examples of a split, in the order of its files."""
        subtitles = Subtitles(self.root / f"video/ann/{self.channel}_subtitles.jsonl", self.missing_subtitles)
        unknown = 0
        for record in self._records(split):
            unknown += _is_unknown(record.fields.get("ts"))
            video = record.require("vid_name", str)
            said = subtitles.of(video)
            source, context = self.prompted_with_context("[Subs] ", said, self.tail(record))
            for fields in self.labels(record, split):
                yield Example(source=source, context=context, visuals=(video,), **fields)
        if subtitles.absent:
            absent = len(subtitles.absent)
            self.report(f"{split}: {absent} videos have no subtitles in {subtitles.file}; theirs are left empty")
        if unknown:
            done = "left out of the text" if self.unknown_span == "omit" else "printed as they are"
            self.report(f"{split}: {unknown} time spans are not a number; {done}")

    def time_span(self, record: Record) -> str:
        """``" [TS] (<span>)"``: the span as the file writes it, text or list."""
        span = record.require("ts", (str, list))
        return "" if self.unknown_span == "omit" and _is_unknown(span) else f" [TS] ({span})"

    def _records(self, split: Split) -> Iterator[Record]:
        """Records of all files of the split; one that an earlier file had (by its id) is left out and counted."""
        names = {"train": self.train_files, "val": self.val_files, "test": self.test_files}[split]
        candidates = [self.root / "video/ann" / self.task.name / f"{name}.jsonl" for name in names]
        seen: set[object] = set()
        repeated = 0
        for file in [f for f in candidates if locate(f)] or candidates[:1]:
            for record in read_lines(file):
                key = record.require(self.id_field, (int, str))
                if key in seen:
                    repeated += 1
                else:
                    seen.add(key)
                    yield record
        if repeated:
            self.report(f"{split}: {repeated} records repeat the {self.id_field} of an earlier one; left out")


class VideoQuestions(VideoBenchmark):
    """A question about a video with numbered choices; the target is the label of the right one, ``a0``, ``a1``, ..."""

    id_field = "qid"
    choices: ClassVar[int]
    """How many answers there are to choose from."""

    def tail(self, record: Record) -> str:
        """Question, time span and choices; a choice loses its dots and spaces at both ends and gets one dot."""
        answers = (record.require(f"a{i}", str).strip(". ") for i in range(self.choices))
        choices = " ".join(f"a{i}: {answer}." for i, answer in enumerate(answers))
        return f" [Q] {record.require('q', str).strip()}{self.time_span(record)} [Choices] {choices}"

    def labels(self, record: Record, split: Split) -> Iterator[dict[str, Any]]:
        """One Example per question; without answer where a test file hides it."""
        right: tuple[str, ...] = ()
        if split != "test" or "answer_idx" in record.fields:
            index = record.require("answer_idx", int)
            if not 0 <= index < self.choices:
                raise record.error(f"'answer_idx' is {index}, not one of 0 to {self.choices - 1}")
            right = (f"a{index}",)
        yield {
            "id": str(record.fields["qid"]),
            "targets": right,
            "weights": (1.0,) * len(right),
            "references": right,
            "meta": self.facts(record),
        }

    def facts(self, record: Record) -> dict[str, Any]:
        """What the metric needs to know besides the answer."""
        return {}


class VideoCaptions(VideoBenchmark):
    """Captions of a clip.

    Args:
        flatten_val: validate on one example per caption with that caption as its only reference, as the published code
            does, instead of one per clip with all its captions. Scores of the two are not comparable.
        **shared: options of every video benchmark.
    """

    id_field = "clip_id"

    def __init__(self, flatten_val: bool = False, **shared: Any) -> None:
        super().__init__(**shared)
        self.flatten_val = flatten_val

    def labels(self, record: Record, split: Split) -> Iterator[dict[str, Any]]:
        """One Example per caption (training) or per clip; without captions where a test file hides them."""
        hidden = split == "test" and "descs" not in record.fields
        descs = [] if hidden else record.each("descs")
        meta = {k: record.fields[k] for k in ("vid_name", "clip_id", "ts") if k in record.fields}
        groups: list[tuple[str, ...]]
        if split == "train" or (split == "val" and self.flatten_val):
            ids = [str(d.require("desc_id", (int, str))) for d in descs]
            groups = [(_caption(d),) for d in descs]
        else:
            ids, groups = [str(record.fields["clip_id"])], [tuple(map(_caption, descs))]
        for key, captions in zip(ids, groups, strict=True):
            weights = (1.0,) * len(captions)
            yield {"id": key, "targets": captions, "weights": weights, "references": captions, "meta": meta}

    def metric(self) -> SentenceMetric:
        """BLEU, METEOR, ROUGE-L and CIDEr after VALUE's replacement of non-ASCII characters by spaces."""
        return CaptionMetrics(ascii_only=True)


def _caption(desc: Record) -> str:
    caption: str = desc.require("desc", str)
    return caption.strip()


def _is_unknown(span: Any) -> bool:
    """True of ``"NaN-NaN"`` and of a list with a NaN."""
    return "nan" in str(span).lower()
