"""Runs killed with SIGKILL at random moments end as undisturbed ones; ``benchmarks/kill.py`` is the long form."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kill
import pytest
import runs

GoesOn = Callable[..., None]


def killed(folder: Path, root: Path, seconds: float, *options: str, **how: Any) -> None:
    """A part of a run, killed after some seconds if it lasts that long."""
    processes = runs.begin(folder, root, "--ckpt_path=auto", *options, **how)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and all(process.is_alive() for process in processes):
        time.sleep(0.005)
    kill.kill(processes, folder)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "workers"), [(1, (0, 2, 0)), (2, (2, 0, 2))])
def test_killed_at_random(
    world: int, workers: tuple[int, ...], demo_root: Path, tmp_path: Path, whole: Callable[..., Any], goes_on: GoesOn
) -> None:
    """Two epochs, temperature, VQA's draw of answers, dropout; the number of workers changes from part to part."""
    whole("image", world)
    begun = time.monotonic()
    goes_on(tmp_path / "timed", kind="image", world=world)
    seconds, draw = time.monotonic() - begun, random.Random(world)
    for number in workers:
        options = (f"--data.num_workers={number}",)
        killed(tmp_path, demo_root, draw.uniform(0.3, 1) * seconds, *options, kind="image", world=world)
    goes_on(tmp_path, f"--data.num_workers={2 - workers[-1]}", kind="image", world=world)


@pytest.mark.slow
def test_killed_at_chosen_steps(demo_root: Path, tmp_path: Path, goes_on: GoesOn) -> None:
    """Right after a checkpoint, in the validation of both epochs, and in the second epoch."""
    moments = [("on_train_batch_start", 3), ("on_validation_batch_start", 6), ("on_train_batch_start", 9)]
    for i, (moment, step) in enumerate([*moments, ("on_validation_batch_start", 12)]):
        fault = {"moment": moment, "step": step, "command": "kill -9 $PID"}
        options = ("--ckpt_path=auto", f"--data.num_workers={i % 2}")
        assert runs.run(tmp_path, demo_root, *options, kind="image", fault=fault).status == [-9]
    goes_on(tmp_path, kind="image")


@pytest.mark.slow
def test_killed_between_validations_within_an_epoch(demo_root: Path, tmp_path: Path) -> None:
    """Validation after every third step, which is when checkpoints fall due."""
    often = ("--trainer.val_check_interval=3",)
    assert runs.run(tmp_path / "whole", demo_root, *often).status == [0]
    for moment, step in (("on_validation_batch_start", 3), ("on_train_batch_start", 5)):
        fault = {"moment": moment, "step": step, "command": "kill -9 $PID"}
        ended = runs.run(tmp_path / "killed", demo_root, "--ckpt_path=auto", *often, fault=fault)
        assert ended.status == [-9], ended.said
    assert runs.run(tmp_path / "killed", demo_root, "--ckpt_path=auto", *often).status == [0]
    assert kill.differences(kill.outcome(tmp_path / "whole"), kill.outcome(tmp_path / "killed")) == []
