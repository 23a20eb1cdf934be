"""A run that is asked to leave: what it saves, how it ends, and when its SLURM job comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vl_peft.callbacks import LastCheckpoint
from vl_peft.checkpoint_io import SafeCheckpointIO, read_checkpoint
from vl_peft.preemption import leaving_at_once, requeue


class Model(BoringModel):
    """Logs its loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output: Any = super().training_step(batch, batch_idx)
        self.log("loss", output["loss"])
        return output


class Ask(Callback):
    """Sends this process a signal before its fourth step."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            os.kill(os.getpid(), self.number)


class Late(TensorBoardLogger):
    """Sends this process SIGTERM while it leaves, as SLURM does when a job is queued again."""

    def finalize(self, status: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        super().finalize(status)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_it_ends_its_step_saves_and_leaves(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    trainer = Trainer(
        max_epochs=1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=Late(tmp_path, "run"),
        log_every_n_steps=1,
        callbacks=[LastCheckpoint(), Ask(number)],
        plugins=[SafeCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(SystemExit) as left:
        trainer.fit(Model())
    run = tmp_path / "run" / "version_0"
    signal.signal(number, before)  # on its way out a run goes on to note signals, so that none cuts it short
    assert left.value.code == 75
    assert not trainer.received_sigterm, "Lightning would have broadcast it to processes that are gone"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 4
    logged = EventAccumulator(str(run)).Reload().Scalars("loss")
    assert sorted({event.step for event in logged}) == [0, 1, 2, 3], "the loss of the saved step is logged too"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``squeue`` says what is in the file ``state``; ``scontrol`` writes its arguments to the file ``asked``."""
    broken = "[ ! -e broken ] || { echo no contact >&2; exit 1; }"
    commands = {"squeue": "cat state", "scontrol": f'{broken}; echo "$@" >> asked'}
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\ncd '{tmp_path}'\n{line}\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    (tmp_path / "state").write_text("RUNNING\n")
    return tmp_path


def test_a_running_job_is_queued_again(slurm: Path) -> None:
    requeue()
    assert (slurm / "asked").read_text() == "requeue 77\n"


def test_of_an_array_its_own_task_is_queued_again(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")
    requeue()
    assert (slurm / "asked").read_text() == "requeue 70_5\n"


@pytest.mark.parametrize("state", ["COMPLETING", "PENDING", ""])
def test_a_job_that_is_cancelled_or_queued_already_is_left_alone(state: str, slurm: Path) -> None:
    (slurm / "state").write_text(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        requeue()
    assert not (slurm / "asked").exists()


def test_a_job_that_cannot_be_queued_again_is_named(slurm: Path) -> None:
    (slurm / "broken").touch()
    with pytest.warns(UserWarning, match=r"job 77 could not be queued again \(no contact\): submit it again"):
        requeue()


def test_outside_of_slurm_nothing_is_asked(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    requeue()
    assert not (slurm / "asked").exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_while_loading_leaves_at_once(number: signal.Signals, slurm: Path) -> None:
    before = [signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)]
    with pytest.raises(SystemExit) as left, leaving_at_once():
        os.kill(os.getpid(), number)
        pytest.fail("still there")
    ways = [signal.signal(n, handler) for n, handler in zip((signal.SIGUSR1, signal.SIGTERM), before, strict=True)]
    assert left.value.code == 75 and (slurm / "asked").read_text() == "requeue 77\n"
    assert ways == [signal.SIG_IGN] * 2, "SLURM's SIGTERM does not cut the way out short"


@pytest.mark.parametrize("error", [None, ValueError()])
def test_after_a_run_signals_are_as_they_were(error: Exception | None) -> None:
    before = [signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)]
    with suppress(ValueError), leaving_at_once():
        assert signal.getsignal(signal.SIGTERM) not in before
        if error:
            raise error
    assert [signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)] == before


def test_lightning_does_not_queue_the_job_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NTASKS": "1", "JOB_ID": "77", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_JOB_NAME", "vl-peft")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing is to be asked"))
    handlers: list[Any] = []

    class Look(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            handlers.append(signal.getsignal(signal.SIGUSR1))

    last = LastCheckpoint()
    trainer = Trainer(
        max_steps=1,
        limit_val_batches=0,
        accelerator="cpu",
        devices=1,
        logger=False,
        default_root_dir=tmp_path,
        callbacks=[last, Look()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model())
    assert handlers == [last._ask]
