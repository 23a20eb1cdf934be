"""Faults made on purpose in real runs: each ends in a clear error, or goes on; then the run ends as if undisturbed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs

from vl_peft.checkpoint_io import read_checkpoint
from vl_peft.cli import main

GoesOn = Callable[..., None]
FRAMES = "video/vis_features/tv/demo"
NAN = """{python} -c "
import pathlib, numpy as np
for file in pathlib.Path('{features}').iterdir():
    x = np.load(file)['features']
    x[0] = np.nan
    np.savez(file, features=x)
" """


def failure(ended: runs.Ended, rank: int = 0) -> str:
    """The one message of a process that has ended with an error it could explain."""
    said = ended.said[rank]
    assert ended.status[rank] == 2 and "Traceback" not in said and said.count("error: ") == 1, said
    return said.partition("error: ")[2]


def last_step(folder: Path) -> int:
    """Of the newest checkpoint, which can be read."""
    (file,) = folder.glob("runs/experiment/version_0/checkpoints/*")
    step: int = read_checkpoint(file)["global_step"]
    return step


@pytest.mark.parametrize(("moment", "step"), [("on_train_batch_start", 4), ("on_fit_end", 12)])
def test_a_disk_that_is_full(moment: str, step: int, small_disk: Path, demo_root: Path, goes_on: GoesOn) -> None:
    """While logs and checkpoints are written, and when results are."""
    fill = small_disk / "runs/fill"
    fault = {"moment": moment, "step": step, "command": f"cat /dev/zero > {fill} 2> /dev/null; true"}
    message = failure(runs.run(small_disk, demo_root, fault=fault))
    assert "No space left on device" in message and "--ckpt_path auto" in message
    assert last_step(small_disk) == step // 3 * 3
    fill.unlink()
    goes_on(small_disk)


def test_a_disk_that_becomes_read_only(small_disk: Path, demo_root: Path, goes_on: GoesOn) -> None:
    """In the middle of a run, and before one begins or goes on."""
    remount = f"mount -o remount,%s {small_disk}/runs"
    fault = {"moment": "on_train_batch_start", "step": 4, "command": remount % "ro"}
    assert "Read-only file system" in failure(runs.run(small_disk, demo_root, fault=fault))
    assert last_step(small_disk) == 3
    for option in ("--ckpt_path=auto", "--trainer.logger.name=other"):
        message = failure(runs.run(small_disk, demo_root, option))
        assert "runs/" in message and "Read-only file system" in message
    subprocess.run(remount % "rw", shell=True, check=True)
    goes_on(small_disk)


FEATURES = {
    "deleted": (0, "video", "rm -r {features}", "no such feature file"),
    "deleted, with workers": (2, "video", "rm -r {features}", "no such feature file"),
    "truncated": (0, "video", "truncate -s 300 {features}/*", "perhaps truncated"),
    "truncated HDF5": (0, "image", "truncate -s 2000 {features}/*", "perhaps truncated"),
    "truncated HDF5, with workers": (2, "image", "truncate -s 2000 {features}/*", "perhaps truncated"),
    "not a number": (0, "video", NAN, "features contain NaN or infinity"),
    "truncated packed": (0, "packed", "truncate -s 5000 {features}.packed.h5", "cut off while it was in use"),
    "truncated packed, with workers": (2, "packed", "truncate -s 5000 {features}.packed.h5", "cut off|truncated"),
}


@pytest.mark.parametrize("name", FEATURES)
def test_features_that_are_damaged_while_training(name: str, demo_root: Path, tmp_path: Path, goes_on: GoesOn) -> None:
    workers, what, command, reason = FEATURES[name]
    kind, place = ("image", "nlvr/clip_features/data_clip_demo_att") if what == "image" else ("video", FRAMES)
    root = shutil.copytree(demo_root, tmp_path / "data", ignore=shutil.ignore_patterns("*.mp4", "*.png", "*.jpg"))
    if what == "packed":
        assert main(["data", "pack", str(root / place)]) == 0
        shutil.rmtree(root / place)
    command = command.format(features=root / place, python=sys.executable)
    fault = {"moment": "on_train_batch_start", "step": 3, "command": command}
    options = ("--data.cache_gb=0", f"--data.num_workers={workers}")
    message = failure(runs.run(tmp_path / "run", root, *options, kind=kind, fault=fault))
    assert place in message and any(part in message for part in reason.split("|"))
    assert "again" in message or "Extract the features" in message, "a remedy"
    assert last_step(tmp_path / "run") >= 3
    goes_on(tmp_path / "run", kind=kind)


def test_a_packed_file_that_is_deleted_is_read_on(demo_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(demo_root, tmp_path / "data", ignore=shutil.ignore_patterns("*.mp4", "*.png", "*.jpg"))
    assert main(["data", "pack", str(root / FRAMES)]) == 0
    shutil.rmtree(root / FRAMES)
    command = f"rm {root / FRAMES}.packed.h5"
    ended = runs.run(tmp_path, root, fault={"moment": "on_train_batch_start", "step": 3, "command": command})
    assert ended.status == [0], ended.said


def test_a_worker_that_is_killed(demo_root: Path, tmp_path: Path, goes_on: GoesOn) -> None:
    fault = {"moment": "on_train_batch_start", "step": 3, "command": "kill -9 $(pgrep -P $PID | head -n 1)"}
    message = failure(runs.run(tmp_path, demo_root, "--data.num_workers=2", fault=fault))
    assert "A data worker has died" in message and "--data.num_workers" in message
    assert last_step(tmp_path) >= 3
    goes_on(tmp_path)


@pytest.mark.parametrize(
    ("rank", "moment"), [(0, "on_train_batch_start"), (1, "on_train_batch_start"), (0, "on_validation_batch_start")]
)
def test_a_process_of_two_that_is_killed(
    rank: int, moment: str, demo_root: Path, tmp_path: Path, goes_on: GoesOn
) -> None:
    fault = {"moment": moment, "step": 3, "command": "kill -9 $PID", "rank": rank}
    ended = runs.run(tmp_path, demo_root, world=2, fault=fault)
    assert ended.status[rank] == -9
    message = failure(ended, 1 - rank)
    assert "Another process of this run has ended" in message and "--ckpt_path auto" in message
    assert last_step(tmp_path) >= 3
    goes_on(tmp_path, world=2)


def one_command(folder: Path, root: Path, fault: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """A run of two processes, the second of which Lightning starts."""
    given = runs.arguments(folder, root, "--trainer.devices=2", fault=fault)
    paths = os.pathsep.join(
        str(Path(__file__).parents[n] / place) for n, place in ((0, ""), (2, ""), (2, "benchmarks"))
    )
    return subprocess.run(
        [sys.executable, "-m", "vl_peft.cli", *given],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=3 * runs.LIMIT,
    )


@pytest.mark.slow
def test_one_command_with_two_processes_leaves_none_behind(demo_root: Path, tmp_path: Path) -> None:
    """The second one is killed."""
    fault = {"moment": "on_train_batch_start", "step": 3, "command": "kill -9 $PID", "rank": 1}
    process = one_command(tmp_path, demo_root, fault)
    assert process.returncode in (2, -9), process.stderr  # -9: Lightning itself ends all processes
    assert "Another process of this run has ended" in process.stderr or "terminated with code -9" in process.stderr
    assert last_step(tmp_path) == 3


@pytest.mark.slow
def test_one_command_with_two_processes_leaves_in_time(demo_root: Path, tmp_path: Path) -> None:
    """The first one is asked to, and is slow on its way out: Lightning would kill it, as the second one has left."""
    fault = {"moment": "on_train_batch_start", "step": 3, "command": "kill -USR1 $PID"}
    slow = {"moment": "on_exception", "command": "sleep 6"}
    process = one_command(tmp_path, demo_root, fault | {"also": slow})
    assert process.returncode == 75, process.stderr
    assert last_step(tmp_path) == 4


SIGNALS = {
    "set-up": ("on_fit_start", 0, "TERM", 75, 1),
    "the start of training": ("on_train_start", 0, "USR1", 75, 1),
    "validation": ("on_validation_batch_start", 6, "TERM", 75, 6),
    "the writing of a checkpoint": ("on_save_checkpoint", 3, "USR1", 75, 4),
    "the last validation": ("on_validation_batch_start", 12, "USR1", 0, 12),
    "the writing of results": ("on_fit_end", 12, "TERM", 0, 12),
    "the writing of results, killed": ("on_fit_end", 12, "KILL", -9, 12),
}


@pytest.mark.parametrize("during", SIGNALS)
def test_a_signal_at_an_awkward_moment(during: str, demo_root: Path, tmp_path: Path, goes_on: GoesOn) -> None:
    moment, step, signal, status, at = SIGNALS[during]
    fault = {"moment": moment, "step": step, "command": f"kill -{signal} $PID"}
    ended = runs.run(tmp_path, demo_root, fault=fault)
    assert ended.status == [status] and "Traceback" not in ended.said[0], ended.said
    assert last_step(tmp_path) == at
    goes_on(tmp_path)


def test_a_signal_before_training(demo_root: Path, tmp_path: Path) -> None:
    """While data and weights are read, nothing is there to save."""
    ended = runs.run(tmp_path, demo_root, fault={"moment": "setup", "command": "kill -USR1 $PID"})
    assert ended.status == [75] and "leaving at once" in ended.said[0] and "Traceback" not in ended.said[0], ended.said
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_a_signal_to_one_of_two_in_set_up(demo_root: Path, tmp_path: Path, goes_on: GoesOn) -> None:
    """After which Lightning itself would begin to listen."""
    fault = {"moment": "on_train_start", "command": "kill -TERM $PID", "rank": 1}
    ended = runs.run(tmp_path, demo_root, world=2, fault=fault)
    assert ended.status == [75, 75] and "Traceback" not in "".join(ended.said), ended.said
    assert last_step(tmp_path) == 1
    goes_on(tmp_path, world=2)


def test_a_process_that_trains_on_another_task(demo_root: Path, tmp_path: Path) -> None:
    """Its seed is another, and so is its order of tasks."""
    ended = runs.run(tmp_path, demo_root, world=2, only="--seed_everything=3")
    assert "trains on '" in failure(ended, 0) and "while others do not" in failure(ended, 1)
