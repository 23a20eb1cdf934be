"""The progress bar, and the throughput it shows."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from vl_peft.batch import Batch


class Progress(RichProgressBar):
    """A rich progress bar with the running task, its loss and the examples per second of this process.

    The examples per second, over the last ``window`` steps, are logged as ``train/samples_per_s`` too.

    Args:
        window: steps that the throughput is averaged over.
        refresh_rate: update the bar every so many batches; 0 turns it off.
    """

    def __init__(self, window: int = 50, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._recent: deque[tuple[float, int]] = deque(maxlen=window + 1)
        self._shown: dict[str, str] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure anew: the pause for validation is not training."""
        super().on_train_epoch_start(trainer, pl_module)
        self._recent.clear()
        self._recent.append((time.perf_counter(), 0))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Measure, log, and redraw."""
        self._recent.append((time.perf_counter(), len(batch)))
        seconds = self._recent[-1][0] - self._recent[0][0]
        rate = sum(size for _, size in list(self._recent)[1:]) / max(seconds, 1e-9)
        pl_module.log("train/samples_per_s", rate, batch_size=len(batch))
        loss: Tensor = outputs["loss"]
        self._shown = {"task": batch.task, "loss": f"{loss.item():.3f}", "samples/s": f"{rate:.0f}"}
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands right of the bar."""
        return self._shown if trainer.training else {}
