"""Before training: what will train, on what."""

from __future__ import annotations

from typing import cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from vl_peft.module import VLModule
from vl_peft.parameters import count_parts, parts_table
from vl_peft.plan import plan_table


class Overview(Callback):
    """Prints the table of parameters, the training plan and the learning rate when ``fit`` begins."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print them, once."""
        if trainer.is_global_zero:
            console = Console()
            module = cast(VLModule, pl_module)
            title = f"{type(module.backbone).__name__}, {type(module.tuning).__name__}"
            console.print(parts_table(count_parts(module.backbone, module.vision), title))
            schedule = trainer.datamodule.schedule  # type: ignore[attr-defined]
            console.print(plan_table(schedule, trainer.max_epochs, (trainer.world_size,)))
            accumulated = trainer.accumulate_grad_batches
            updates = f"; an update takes {accumulated} batches" if accumulated > 1 else ""
            scaled = f" = {module.lr:g} x {module.lr_factor:g} ({module.lr_scaling})" if module.lr_factor != 1 else ""
            console.print(f"learning rate {module.lr * module.lr_factor:g}{scaled}{updates}", highlight=False)
