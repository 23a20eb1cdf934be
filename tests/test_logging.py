"""What a run writes to its log."""

from __future__ import annotations

from pathlib import Path

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules import TVC, TVQA, MultiTask
from vl_peft.backbones import VLBart
from vl_peft.module import VLModule
from vl_peft.tuning import BitFit


def test_the_loss_of_a_task_is_logged_in_its_own_steps(demo_root: Path, tmp_path: Path) -> None:
    """Lightning repeats what was logged before; after a resume it could not."""
    data = MultiTask({"tvqa": TVQA(batch_size=2), "tvc": TVC(batch_size=2)}, root=str(demo_root), steps_per_epoch=8)
    module = VLModule(VLBart("demo", feature_dim=data.feature_dim), BitFit(), data.tasks)
    Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=TensorBoardLogger(tmp_path, "run"),
        log_every_n_steps=1,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    ).fit(module, datamodule=data)
    log = EventAccumulator(str(tmp_path / "run/version_0")).Reload()
    drawn = [draw.task for draw in data.schedule().epoch(0)]
    losses = {event.step: event.value for event in log.Scalars("train/loss")}
    assert len(losses) == 8
    for task in data.tasks:
        own = {event.step: event.value for event in log.Scalars(f"train/loss/{task}")}
        assert own == {step: losses[step] for step, name in enumerate(drawn) if name == task}
