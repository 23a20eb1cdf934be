"""Run folders: which run is the newest, and going on in its folder."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ParallelStrategy
from lightning_utilities.core.rank_zero import rank_zero_info

from vl_peft.errors import ConfigError

NEWEST = ("auto", "last")
"""Words for ``--ckpt_path``: the newest checkpoint of the runs with this name; without one, ``auto`` begins anew."""


def newest_checkpoint(trainer: Trainer, word: str) -> Path | None:
    """The newest ``version_<n>/checkpoints/last.ckpt`` of the runs with the logger's name.

    Args:
        trainer: its logger says where runs are and what this one is called.
        word: one of ``NEWEST``.

    Returns:
        The file, or ``None`` if there is none and the word is ``auto``.

    Raises:
        ConfigError: there is none, and the word is ``last``; or the logger does not number its runs.
    """
    logger = trainer.logger
    if not isinstance(logger, TensorBoardLogger):
        raise ConfigError(f"--ckpt_path {word} needs a TensorBoardLogger; give the checkpoint's file.")
    files = list(Path(logger.root_dir).glob("version_*/checkpoints/last.ckpt"))
    if not files and word == "last":
        raise ConfigError(f"--ckpt_path last: no run in {logger.root_dir} has a checkpoint.")
    return max(files, key=lambda file: file.stat().st_mtime, default=None)


def continue_newest(trainer: Trainer, module: LightningModule, word: str) -> Path | None:
    """As :func:`newest_checkpoint`, the same on all processes; the trainer then logs into the folder of that run."""
    checkpoint = _agree(trainer, module, newest_checkpoint(trainer, word))
    if checkpoint is not None:
        logger = trainer.logger
        assert isinstance(logger, TensorBoardLogger)
        version = int(checkpoint.parents[1].name.removeprefix("version_"))
        trainer.logger = TensorBoardLogger(logger.save_dir, logger.name, version)
        rank_zero_info(f"Going on from {checkpoint}")
    return checkpoint


def _agree(trainer: Trainer, module: LightningModule, found: Path | None) -> Path | None:
    """What process 0 has found: over a network another host may still see the folder as it was.

    Processes that Lightning starts itself are on one host, and are not there yet.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ParallelStrategy) or strategy.cluster_environment is None:
        return found
    if not strategy.cluster_environment.creates_processes_externally:
        return found
    strategy.connect(module)
    strategy.setup_environment()  # the processes meet, as they otherwise would a moment later
    return strategy.broadcast(found)
