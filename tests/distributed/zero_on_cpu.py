"""DeepSpeed without a GPU, which Lightning does not take, and batches whose loss is not finite."""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import patch

from lightning import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback

from vl_peft.batch import Batch
from vl_peft.zero import Zero

LIGHTNING = "lightning.pytorch.strategies.deepspeed"


class ZeroOnCpu(Zero):
    """Zero, but for two looks at the kind and the number of the device."""

    def __init__(self, stage: int) -> None:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
        super().__init__(stage)  # type: ignore[arg-type]

    def setup_environment(self) -> None:
        checks = {"CUDAAccelerator": CPUAccelerator, "_validate_device_index_selection": lambda devices: None}
        with patch.multiple(LIGHTNING, **checks), patch("vl_peft.zero.CUDAAccelerator", CPUAccelerator):
            super().setup_environment()

    def _setup_model_and_optimizer(self, *what: Any, **how: Any) -> Any:
        with patch(f"{LIGHTNING}.argparse.Namespace", return_value=None):
            return super()._setup_model_and_optimizer(*what, **how)


class NotFinite(Callback):
    """Spoils the batches of three steps, two of them in a row."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step in (2, 3, 7):
            batch.weights.fill_(float("inf"))
