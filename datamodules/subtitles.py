"""What is said in each video, from a subtitle file of the VALUE release."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from datamodules.findings import Findings
from datamodules.records import MalformedError, read_lines
from vl_peft.errors import DataError


class Subtitles:
    """The subtitles of all videos of a file, those of one video joined by spaces.

    A line of the file is ``{"vid_name": str, "sub": [{"text": str, "start": float, "end": float}, ...]}``; the times
    are not used.

    Args:
        file: the JSON-lines file.
        found: counts lines that cannot be used and videos with two of them, of which the first counts; and, when they
            are asked for, videos without a line and videos in which nothing is said.
        missing: what :meth:`of` does for a video the file does not have: give ``""``, or raise.
    """

    def __init__(self, file: Path, found: Findings, missing: Literal["empty", "fail"] = "empty") -> None:
        self.file, self.found, self.missing = file, found, missing
        self._silent: set[str] = set()
        self._texts: dict[str, str] = {}
        for line in read_lines(file, found.reject):
            try:
                video = line.require("vid_name", str)
                text = " ".join(sub.require("text", str).strip() for sub in line.each("sub"))
            except MalformedError as error:
                found.reject(error)
                continue
            if video in self._texts:
                found.note("lines of subtitles are for a video that has some; left out", line)
            self._texts.setdefault(video, text)

    def of(self, video: str) -> str:
        """All that is said in a video; raises DataError for an absent one if that was asked for."""
        text = self._texts.get(video)
        if text is None and self.missing == "fail":
            remedy = "Add a line for it, or set missing_subtitles: empty to go on without its subtitles."
            raise DataError(self.file, "no subtitles of this video", video, remedy)
        if not text and video not in self._silent:
            self._silent.add(video)
            absent = f"videos have no subtitles in {self.file}; theirs are left empty"
            self.found.note(absent if text is None else "videos have subtitles without a word", video)
        return text or ""
