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
        found: counts lines that cannot be used, and second lines for a video, of which the first counts.
        missing: what :meth:`of` does for a video the file does not have: give ``""``, or raise.
    """

    def __init__(self, file: Path, found: Findings, missing: Literal["empty", "fail"] = "empty") -> None:
        self.file, self.missing = file, missing
        self._texts: dict[str, str] = {}
        self._asked: dict[str, None] = {}  # for videos without a text; in their order
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
        if not text:
            self._asked[video] = None
        return text or ""

    def tell(self, found: Findings) -> None:
        """Count the videos that were asked for and have no line, or one in which nothing is said."""
        absent = f"videos have no subtitles in {self.file}; theirs are left empty"
        for video in self._asked:
            found.note("videos have subtitles without a word" if video in self._texts else absent, video)
