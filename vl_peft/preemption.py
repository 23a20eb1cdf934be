"""Being asked to leave: the exit status, SLURM's queue, and signals that come before a run has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

SIGNALS = "SIGUSR1", "SIGTERM"
"""These ask a run to leave: SLURM sends the one before the time is up, everybody the other."""

PREEMPTED = 75
"""Exit status of a run that was asked to stop and can be continued (``EX_TEMPFAIL`` of sysexits.h)."""


class Preempted(SystemExit):
    """The run has left in time: what there is to save is saved. Exit status 75."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """A signal ends the program as ``LastCheckpoint`` would, until that listens: there is nothing to save yet.

    Reading annotations and weights may take minutes, and without a handler a signal is an error, not a preemption.

    Raises:
        Preempted: a signal came.
    """

    def leave(number: int, frame: Any) -> None:
        for name in SIGNALS:
            signal.signal(signal.Signals[name], signal.SIG_IGN)  # on the way out
        rank_zero_info(f"{signal.Signals(number).name} while nothing is trained: leaving at once.")
        if os.getpid() != program:
            pass  # a worker of it
        elif rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            requeue()
        elif "SLURM_JOB_ID" in os.environ:
            time.sleep(130)  # srun ends all when the first one leaves: that has to be process 0, which asks SLURM twice
        raise Preempted

    program = os.getpid()
    before = {name: signal.signal(signal.Signals[name], leave) for name in SIGNALS}
    left = False
    try:
        yield
    except Preempted:
        left = True
        raise
    finally:
        for name, handler in before.items() if not left else ():
            signal.signal(signal.Signals[name], handler)


def requeue() -> None:
    """Put this SLURM job back into the queue while it is running; nothing outside SLURM.

    SLURM ends a job that is cancelled or that others have queued again with SIGTERM, too. Such a job is no longer
    "running", and queueing it would bring back what somebody has cancelled.
    """
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))
    if job is None:
        return
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        job += f"_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        if _ask_slurm("squeue", "--noheader", "--format", "%T", "--jobs", job) == "RUNNING":
            _ask_slurm("scontrol", "requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        rank_zero_warn(f"The job {job} could not be queued again ({reason}): submit it again, with --ckpt_path auto.")


def _ask_slurm(*command: str) -> str:
    return subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout.strip()
