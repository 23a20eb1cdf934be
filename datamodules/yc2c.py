"""YC2C: captions of the segments of YouCook2's cooking videos (http://youcook2.eecs.umich.edu), files of VALUE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from datamodules.findings import Findings
from datamodules.loading import Size
from datamodules.records import Record
from datamodules.video_captions import VideoCaptions
from vl_peft.batch import Generation, Task


class YC2C(VideoCaptions):
    """``[Subs] ...`` to the caption of a segment, which is a video of its own: there is no time span.

    train to train on (10,337 segments), val to choose and to report (3,492), one caption each. VALUE's server has
    those of the test segments (1,604). Some segments have no subtitles.
    """

    task = Task("yc2c", generation=Generation(num_beams=5))
    prompt = "yc2c: "
    channel = "yc2"
    by_video = True
    train_files = ("yc2c_train_release",)
    val_files = ("yc2c_val_release",)
    test_files = ("yc2c_test_release",)
    sizes: ClassVar[Mapping[str, Size]] = {
        "yc2c_train_release": Size(10_337),
        "yc2c_val_release": Size(3_492),
        "yc2c_test_release": Size(1_604),
    }

    def tail(self, record: Record, found: Findings) -> str:
        """Nothing follows the subtitles."""
        return ""
