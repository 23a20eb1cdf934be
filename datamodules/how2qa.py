"""How2QA: questions about 60-second clips of instructional videos, four choices, files of the VALUE release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from datamodules.loading import Size
from datamodules.video_questions import VideoQuestions
from vl_peft.batch import Task
from vl_peft.metrics import ExactMatch, SentenceMetric


class How2QA(VideoQuestions):
    """``[Subs] ... [Q] ... [TS] (36.58-58.52) [Choices] a0: ... a3: ...`` to ``a0`` .. ``a3``.

    train to train on (34,187 questions), val to choose and to report with public answers (3,115), test_public for
    VALUE's server, which has its answers (3,095). Not every video has subtitles.
    """

    task = Task("how2qa")
    prompt = "how2qa: "
    channel = "how2"
    choices = 4
    train_files = ("how2qa_train_release",)
    val_files = ("how2qa_val_release",)
    test_files = ("how2qa_test_public_release",)
    sizes: ClassVar[Mapping[str, Size]] = {
        "how2qa_train_release": Size(34_187),
        "how2qa_val_release": Size(3_115),
        "how2qa_test_public_release": Size(3_095),
    }
    submitted: ClassVar[Mapping[str, str]] = {"val": "val", "test": "test_public"}

    def metric(self) -> SentenceMetric:
        """Accuracy."""
        return ExactMatch()
