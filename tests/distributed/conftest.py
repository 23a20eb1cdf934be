"""Fixtures of runs that are disturbed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kill
import pytest
import runs


@pytest.fixture(scope="session")
def whole(demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """``whole(kind, world)``: the outcome of an undisturbed run."""

    @cache
    def make(kind: str = "video", world: int = 1) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(f"whole_{kind}_{world}")
        ended = runs.run(folder, demo_root, kind=kind, world=world)
        assert ended.status == [0] * world, ended.said
        return kill.outcome(folder)

    return make


@pytest.fixture
def goes_on(demo_root: Path, whole: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """``goes_on(folder, ...)``: the run there, started again, ends as an undisturbed one, to the last bit."""

    def check(folder: Path, *options: str, kind: str = "video", world: int = 1) -> None:
        ended = runs.run(folder, demo_root, "--ckpt_path=auto", *options, kind=kind, world=world)
        assert ended.status == [0] * world, ended.said
        assert kill.differences(whole(kind, world), kill.outcome(folder)) == []

    return check


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A run's folder whose ``runs`` are on a disk of 16 MB."""
    disk = tmp_path / "runs"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", "-l", str(disk)], check=True)
