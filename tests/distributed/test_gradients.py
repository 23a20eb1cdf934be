"""The gradients of several processes are those of one process on the same global batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
STRATEGIES = ["full", "adapters", "lora", "hyperformer", "prompts", "accumulated"]


def run(root: Path, backbone: Path, out: Path, world: int, *options: str) -> dict[str, Any]:
    """All processes of a run; what process 0 has kept."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    script = str(REPOSITORY / "tests/distributed/gradients.py")
    command = [sys.executable, script, str(root), str(backbone), str(out), *options]
    environments = [os.environ | common | {"LOCAL_RANK": str(rank)} for rank in range(world)]
    processes = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for env in environments]
    for process in processes:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said[-3000:]
    results: dict[str, Any] = torch.load(out, weights_only=True)
    return results


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory, write_bart: Callable[..., Path]) -> Path:
    """A tiny BART for texts of any length."""
    return write_bart(tmp_path_factory.mktemp("bart"), max_position_embeddings=1024)


@pytest.fixture(scope="module")
def results(demo_root: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Of 1, 2 and 4 processes."""
    folder = tmp_path_factory.mktemp("gradients")
    return {world: run(demo_root, backbone, folder / f"{world}.pt", world) for world in (1, 2, 4)}


def gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference over the largest magnitude; infinite if they are not of the same parameters."""
    if one.keys() != other.keys():
        return float("inf")
    largest = max(float(x.abs().max()) for x in one.values())
    return max(float((x - other[name]).abs().max()) for name, x in one.items()) / largest


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", STRATEGIES)
def test_gradients_and_weights(name: str, world: int, results: dict[int, dict[str, Any]]) -> None:
    alone, together = results[1][name], results[world][name]
    for one, other in zip(alone["gradients"], together["gradients"], strict=True):
        assert one.keys() == other.keys(), "a task's own parameters have a gradient in its own steps only"
        assert gap(one, other) < 1e-12
    assert gap(alone["weights"], together["weights"]) < 1e-10


def test_without_synchronisation_they_differ(
    results: dict[int, dict[str, Any]], demo_root: Path, backbone: Path, tmp_path: Path
) -> None:
    """The comparison above notices what is wrong in the published code."""
    bypassed = run(demo_root, backbone, tmp_path / "bypassed.pt", 2, "bypass")["adapters"]
    assert gap(results[1]["adapters"]["gradients"][0], bypassed["gradients"][0]) > 1e-3
    assert gap(results[1]["adapters"]["weights"], bypassed["weights"]) > 1e-6
