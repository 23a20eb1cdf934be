"""TVQA: questions about clips of six TV shows, five choices (https://tvqa.cs.unc.edu), files of the VALUE release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from datamodules.loading import Size
from datamodules.records import Record
from datamodules.video_questions import VideoQuestions
from vl_peft.batch import Task
from vl_peft.metrics import ExactMatch, SentenceMetric


class TVQA(VideoQuestions):
    """``[Subs] ... [Q] ... [TS] (48.62-60.02) [Choices] a0: ... a4: ...`` to ``a0`` .. ``a4``.

    train to train on (122,039 questions), val to choose and to report with public answers (15,253). The answers to
    the test questions are on VALUE's server: test_public (7,623) and, where it is there, test_release, which has
    all 15,253.
    """

    task = Task("tvqa")
    prompt = "tvqa: "
    channel = "tv"
    choices = 5
    train_files = ("tvqa_train",)
    val_files = ("tvqa_val",)
    test_files = ("tvqa_test_public", "tvqa_test_release")
    sizes: ClassVar[Mapping[str, Size]] = {
        "tvqa_train": Size(122_039),
        "tvqa_val": Size(15_253),
        "tvqa_test_public": Size(7_623),
        "tvqa_test_release": Size(15_253),
    }

    def facts(self, record: Record) -> dict[str, Any]:
        """The show, for an accuracy of each."""
        return {"show_name": record.require("show_name", str)}

    def metric(self) -> SentenceMetric:
        """Accuracy, over all questions and of each show."""
        return ExactMatch(per="show_name")
