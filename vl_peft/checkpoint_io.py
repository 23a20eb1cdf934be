"""Checkpoints on disk: complete or not there, and never a program."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from vl_peft.errors import ConfigError, DataError
from vl_peft.tuning.base import trainable


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, waits for the disk, renames; reads tensors and plain values only.

    A checkpoint that cannot be written (the disk is full, the folder is gone) is a warning: training goes on, and the
    former checkpoint stays. Raising it here would leave the other processes waiting for this one.

    Attributes:
        problem: why the newest checkpoint was not written; empty if it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.problem = ""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint, or warn and leave the former one as it was."""
        file = Path(path)
        temporary = file.with_name(f".{file.name}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
            _sync_folder(file.parent)
            self.problem = ""
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            self.problem = f"{file} could not be written ({error})"
            rank_zero_warn(f"{self.problem}; the former checkpoint is kept, and training goes on.")
            _remove(temporary)

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            DataError: it is missing, truncated, holds objects (which could run code) or is no checkpoint of a run.
        """
        return read_checkpoint(Path(path), map_location)


def read_checkpoint(file: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The checkpoint of a run, of tensors and plain values only.

    Raises:
        DataError: it is missing, truncated, holds objects (which could run code) or is no checkpoint of a run.
    """
    remedy = "Take another checkpoint, or begin anew."
    try:
        checkpoint = torch.load(file, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise DataError(file, "there is no such checkpoint", remedy=remedy) from None
    except pickle.UnpicklingError as error:
        reason = "is no checkpoint, or holds objects that could run code, and is not loaded"
        raise DataError(file, reason, remedy=remedy) from error
    except Exception as error:  # a damaged archive fails in many ways
        raise DataError(file, f"cannot be read, perhaps truncated ({error!r})", remedy=remedy) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "loops"} <= checkpoint.keys():
        raise DataError(file, "is not the checkpoint of a run", remedy=remedy)
    return checkpoint


def refuse_others(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint of another configuration instead of loading the part that fits.

    Args:
        module: the module that is to go on.
        weights: the checkpoint's, of all that trains.

    Raises:
        ConfigError: if parameters are missing, unknown, or of another shape.
    """
    mine = {name: p.shape for name, p in trainable(module).items()}
    theirs = {name: t.shape for name, t in weights.items()}
    if mine != theirs:
        wrong = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        raise ConfigError(
            f"The checkpoint is of another configuration: {len(wrong)} of its trained parameters differ from "
            f"this model's, first '{wrong[0]}' (checkpoint {theirs.get(wrong[0])}, model {mine.get(wrong[0])})."
        )


def _sync_folder(folder: Path) -> None:
    """Make the new name last, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(file: Path) -> None:
    with suppress(OSError):  # a read-only folder: there is nothing to remove
        file.unlink(missing_ok=True)
