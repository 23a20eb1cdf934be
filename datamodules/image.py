"""What the image benchmarks share: grid features, and annotations as official or as processed files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from datamodules.base import Benchmark
from datamodules.loading import Form, Split
from datamodules.records import Record, is_text, locate
from vl_peft.errors import ConfigError


class ImageBenchmark(Benchmark):
    """Text about one image or two.

    Args:
        annotations: read the official files or the processed ones; ``"auto"`` takes, for each split, the official ones
            if all that it needs are there, else the processed ones. Examples are the same as far as the files are.
        **shared: options of every benchmark.
    """

    visual_kind = "grid"
    visual_tokens = 36  # of each image

    def __init__(self, annotations: Literal["auto", "official", "processed"] = "auto", **shared: Any) -> None:
        super().__init__(**shared)
        self.annotations: Literal["auto", "official", "processed"] = annotations

    def form(self, split: Split) -> Form:
        """Which form of a split is read; what was found is reported.

        Raises:
            ConfigError: if the split does not exist in the form that was asked for.
        """
        files = self.files(split)
        complete = [form for form, paths in files.items() if all(self.is_there(form, path) for path in paths)]
        if self.annotations == "auto":
            form = next(iter(complete or files))
        elif self.annotations in files:
            form = self.annotations
        else:
            raise ConfigError(
                f"{self.task.name}: with these options the {split} split has no {self.annotations} files. "
                "Set annotations: auto, or other splits."
            )
        if form in complete:
            names = [str(path.relative_to(self.root)) for path in files[form]]
            more = f" and {len(names) - 4} more" if len(names) > 5 else ""
            self.report(f"{split}: {form} annotations, {', '.join(names[:4] if more else names)}{more}")
        return form

    def is_there(self, form: Form, path: Path) -> bool:
        """Whether the file exists, plain or gzipped."""
        return locate(path) is not None


def soft_labels(record: Record) -> dict[str, float]:
    """The answers of a processed record and their scores in (0, 1]; raises MalformedError if they are not that."""
    labels = record.require("label", dict)
    for answer, score in labels.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 < score <= 1:
            raise record.error(f"the score of '{answer}' in 'label' is {score!r}, not a number above 0 and up to 1")
        if not is_text(answer):
            raise record.error("an answer in 'label' has half of a character (a lone surrogate)")
    return ranked({answer: float(score) for answer, score in labels.items()})


def ranked(scores: Mapping[str, float]) -> dict[str, float]:
    """Best first, then by answer: the order does not depend on the file, and draws do on the order."""
    return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0])))
