"""Runs of the command line in processes of their own, with a fault at a chosen moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import kill
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from outcome import EXPERIMENTS

TASKS = {"video": {"tvqa": "TVQA", "tvc": "TVC"}, "image": {"vqa": "VQAv2", "nlvr": "NLVR2"}}
TUNING = {"video": "multiple_adapters", "image": "multiple_lora"}  # LoRA has dropout, the demo backbone has none
CALLBACKS = "Overview", "Progress", "Pictures", "Results", "Guards", "LastCheckpoint"
NONE: Mapping[str, Any] = {}
LIMIT = 60  # seconds within which a run has to end or go on after a fault


class Fault(Callback):
    """Runs a shell command once, when a hook is called; ``$PID`` is the process that calls it.

    Args:
        moment: name of the hook.
        command: for ``/bin/sh``.
        step: not before this optimizer step.
        rank: on this process only.
        also: another fault.
    """

    def __init__(
        self, moment: str, command: str, step: int = 0, rank: int = 0, also: dict[str, Any] | None = None
    ) -> None:
        self.command, self.step, self.rank = command, step, rank
        setattr(self, moment, self._strike)
        if also:
            setattr(self, also["moment"], Fault(**also)._strike)

    def _strike(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_rank == self.rank and trainer.global_step >= self.step and self.command:
            command, self.command = self.command, ""
            subprocess.run(command, shell=True, check=True, env=os.environ | {"PID": str(os.getpid())})


@dataclass(frozen=True)
class Ended:
    """How a run has ended: exit status and what was said, of each process."""

    status: list[int | None]
    said: list[str]


@cache
def server() -> ForkServerContext:
    """Makes processes that have imported everything, from one that does nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vl_peft.cli", "tensorboard.backend.event_processing.event_accumulator"])
    return context


def arguments(
    folder: Path, root: Path, *options: str, kind: str = "video", fault: Mapping[str, Any] = NONE
) -> list[str]:
    """A run of two epochs of six steps, with all callbacks, which writes a checkpoint after every third step."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"batch_size": 4, "eval_batch_size": 16}
    benchmarks = {task: {"class_path": f"datamodules.{name}", "init_args": sizes} for task, name in TASKS[kind].items()}
    callbacks: list[dict[str, Any]] = [{"class_path": f"vl_peft.callbacks.{name}"} for name in CALLBACKS]
    callbacks[-1]["init_args"] = {"every_n_steps": 3, "agree_every_n_steps": 1}
    if fault:
        callbacks.insert(0, {"class_path": "runs.Fault", "init_args": dict(fault)})
    data = {"class_path": "datamodules.MultiTask", "init_args": {"benchmarks": benchmarks, "temperature": 2.0}}
    trainer = {"callbacks": callbacks, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    file = folder / "run.json"
    file.write_text(json.dumps({"data": data, "trainer": trainer}))
    configs = [*(EXPERIMENTS / f"{name}.yaml" for name in ("base", f"{kind}/base", f"{kind}/{TUNING[kind]}"))]
    given = ["--trainer.max_epochs=2", "--data.steps_per_epoch=6", "--trainer.limit_val_batches=1"]
    given += [f"--data.root={root}", "--trainer.accelerator=cpu", "--trainer.devices=1", "--data.num_workers=0"]
    return ["fit", *(f"--config={config}" for config in (*configs, file)), *given, *options]


def run(folder: Path, root: Path, *options: str, world: int = 1, seconds: float = LIMIT, **how: Any) -> Ended:
    """A run from its start to its end; the test fails if that takes too long."""
    return end(folder, begin(folder, root, *options, world=world, **how), seconds)


def begin(folder: Path, root: Path, *options: str, world: int = 1, only: str = "", **how: Any) -> list[BaseProcess]:
    """The processes of a run; ``only`` is an option that the last one has alone."""
    given = [*arguments(folder, root, *options, **how), f"--trainer.devices={world}"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world):
        (folder / f"log{rank}.txt").unlink(missing_ok=True)
        mine = [*given, only] if only and rank == world - 1 else given
        processes.append(server().Process(target=_process, args=(mine, folder, rank, world, port)))
        processes[-1].start()
    return processes


def _process(*what: Any) -> None:
    """A process of the run, whose workers are forked as usual."""
    multiprocessing.set_start_method("fork", force=True)
    kill.child(*what)


def end(folder: Path, processes: list[BaseProcess], seconds: float = LIMIT) -> Ended:
    """Wait for them, but not for long."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    late = [process.is_alive() for process in processes]
    kill.kill(processes, folder)
    said = [" ".join((folder / f"log{rank}.txt").read_text().split()) for rank in range(len(processes))]
    assert not any(late), f"still running after {seconds} s: {late}, {said}"
    return Ended([process.exitcode for process in processes], said)
