"""TVC: captions of moments in clips of six TV shows (https://github.com/jayleicn/TVCaption), files of VALUE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from datamodules.findings import Findings
from datamodules.loading import Size
from datamodules.records import Record
from datamodules.video_captions import VideoCaptions
from vl_peft.batch import Generation, Task


class TVC(VideoCaptions):
    """``[Subs] ... [TS] ([80.64, 85.28])`` to a caption of that moment.

    train to train on (86,603 moments, two captions each), val to choose and to report (10,841, four each). VALUE's
    server has the captions of the test moments (10,842; without the full file, the 5,420 of test_public).
    """

    task = Task("tvc", generation=Generation(num_beams=5))
    prompt = "tvc: "
    channel = "tv"
    train_files = ("tvc_train_release",)
    val_files = ("tvc_val_release",)
    test_files = ("tvc_test_release", "tvc_test_public_release")
    sizes: ClassVar[Mapping[str, Size]] = {
        "tvc_train_release": Size(174_000, exact=False),  # captions; two, rarely more, of each moment
        "tvc_val_release": Size(10_841),
        "tvc_test_release": Size(10_842),
        "tvc_test_public_release": Size(5_420),
    }

    def tail(self, record: Record, found: Findings) -> str:
        """The time span."""
        return self.time_span(record, found)
