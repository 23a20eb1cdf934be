"""What is said in each video, from a subtitle file of the VALUE release."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from datamodules.records import read_lines
from vl_peft.errors import DataError


class Subtitles:
    """The subtitles of all videos of a file, those of one video joined by spaces.

    A line of the file is ``{"vid_name": str, "sub": [{"text": str, "start": float, "end": float}, ...]}``; the times
    are not used.

    Args:
        file: the JSON-lines file.
        missing: what :meth:`of` does for a video the file does not have: give ``""``, or raise.

    Attributes:
        absent: names of the videos that were asked for and are not in the file.
    """

    def __init__(self, file: Path, missing: Literal["empty", "fail"] = "empty") -> None:
        self.file, self.missing = file, missing
        self.absent: set[str] = set()
        self._texts = {
            line.require("vid_name", str): " ".join(sub.require("text", str).strip() for sub in line.each("sub"))
            for line in read_lines(file)
        }

    def of(self, video: str) -> str:
        """All that is said in a video; raises DataError for an absent one if that was asked for."""
        if video not in self._texts:
            if self.missing == "fail":
                remedy = "Add a line for it, or set missing_subtitles: empty to go on without its subtitles."
                raise DataError(self.file, "no subtitles of this video", video, remedy)
            self.absent.add(video)
        return self._texts.get(video, "")
