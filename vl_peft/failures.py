"""What went wrong outside the program, told from the errors that libraries raise: one message, no traceback."""

from __future__ import annotations

import errno
import os
import threading

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.distributed import DistError

from vl_peft.errors import ConfigError, UserError
from vl_peft.sampling import worker_death

STORAGE = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE")}


def mistake(error: BaseException | None) -> UserError | None:
    """The user's mistake, or the failure of the machine, behind an error: libraries wrap what is raised below them."""
    while error is not None and not isinstance(error, UserError):
        if failure := worker_death(error) or process_death(error) or storage_failure(error) or refusal(error):
            return failure
        error = error.__cause__
    return error


def process_death(error: BaseException) -> UserError | None:
    """What to tell the user if an error says that another process of the run is gone."""
    if not isinstance(error, DistError) and not (isinstance(error, RuntimeError) and "gloo/" in str(error)):
        return None
    reason = str(error).partition(". ")[0]
    return UserError(
        f"Another process of this run has ended or cannot be reached ({reason}): see what it said, then go on with "
        "--ckpt_path auto."
    )


def storage_failure(error: BaseException) -> UserError | None:
    """What to tell the user if an error says that a disk is full, read-only or broken."""
    if not isinstance(error, OSError) or error.errno not in STORAGE:
        return None
    file = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "A file of the run"
    return UserError(f"{file}: {error.strerror}. See to the disk or folder, then go on with --ckpt_path auto.")


def refusal(error: BaseException) -> UserError | None:
    """What Lightning says to options of the trainer that do not go together, or not on this machine."""
    refused = isinstance(error, ValueError) and any(word in str(error) for word in ("`val_check_int", "The strategy `"))
    return ConfigError(str(error).strip()) if refused or isinstance(error, MisconfigurationException) else None


def quiet_threads() -> None:
    """Let threads not print a traceback of what the main thread raises again: TensorBoard's writer on a full disk."""
    usual = threading.excepthook

    def hook(thread: threading.ExceptHookArgs) -> None:
        if thread.exc_value is None or storage_failure(thread.exc_value) is None:
            usual(thread)

    threading.excepthook = hook
