"""Run folders: which run is the newest, going on in its folder, and whether it is finished."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ParallelStrategy
from lightning_utilities.core.rank_zero import rank_zero_info

from vl_peft.errors import ConfigError, DataError
from vl_peft.module import VLModule

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
        check_writable(checkpoint.parent)
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


def check_writable(folder: Path) -> None:
    """Make a folder if there is none, and see that files can be written to it, before hours of training.

    Raises:
        DataError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        remedy = "Give another folder with --trainer.logger.init_args.save_dir."
        raise DataError(folder, f"the run cannot write here ({error.strerror})", remedy=remedy) from error


def finish(trainer: Trainer, module: VLModule, data: LightningDataModule) -> None:
    """Say that a run was trained to its end before; validate it if it was ended before its results were written."""
    results = Path(trainer.log_dir or trainer.default_root_dir) / "results.json"
    if not trainer.strategy.broadcast(results.exists()):
        module.repeats = True
        trainer.validate(module, data, verbose=False)
    more = "to train on, raise --trainer.max_epochs; to begin anew, leave --ckpt_path out"
    rank_zero_info(f"This run is finished after {trainer.global_step} steps: see {results} ({more}).")
