"""After ``vl-peft test --submit``: files that the benchmarks' servers accept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from vl_peft.module import VLModule
from vl_peft.submission import Submission, archive


class Submissions(Callback):
    """Writes the predictions of each evaluated split into ``submission/`` in the run's folder, checked and zipped.

    Raises:
        DataError: predictions are missing or too many. Nothing is written for that benchmark then.
    """

    def __init__(self) -> None:
        self.archives: dict[str, list[str]] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Some servers want the validation split too."""
        self._write(trainer, cast(VLModule, pl_module), "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The test split; then the archives are complete."""
        folder = self._write(trainer, cast(VLModule, pl_module), "test")
        if trainer.is_global_zero:
            for name, paths in self.archives.items():
                _say(f"{archive(folder, name, paths)}: {', '.join(paths)}")

    def _write(self, trainer: Trainer, module: VLModule, split: str) -> Path:
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "submission"  # asks the other processes
        for task, metric in module.metrics.items() if trainer.is_global_zero else ():
            benchmark: Any = trainer.datamodule.benchmarks[task]  # type: ignore[attr-defined]
            submission: Submission | None = benchmark.submission(split)
            if submission is None:
                continue
            records = metric.records
            file = submission.write(folder, records, (example.id for example in benchmark.read(split)))
            _say(f"{task} {split}: {len(records):,} predictions, all ids there: {file}")
            if replaced := sum(not submission.format.valid(r.prediction) for r in records.values()):
                _say(f"{task} {split}: {replaced} answers are none of the choices; the first choice stands for them")
            if submission.archive:
                self.archives.setdefault(submission.archive, []).append(submission.path)
        return folder


def _say(message: str) -> None:
    Console().print(message, soft_wrap=True, highlight=False)
