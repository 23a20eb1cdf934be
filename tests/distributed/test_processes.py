"""Batches stated once for all: 2 and 3 processes train and are scored as one, also with weights shared out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

REPOSITORY = Path(__file__).parents[2]
BENCHMARKS = {"tvqa": "datamodules.TVQA", "tvc": "datamodules.TVC"}


@pytest.fixture(scope="module")
def corpus(demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The video part, with two questions to validate on, fewer than processes, and seven captions."""
    root = tmp_path_factory.mktemp("corpus")
    shutil.copytree(demo_root / "video", root / "video", ignore=shutil.ignore_patterns("videos"))
    for name, count in (("tvqa/tvqa_val.jsonl", 2), ("tvc/tvc_val_release.jsonl", 7)):
        file = root / "video/ann" / name
        file.write_text("\n".join(file.read_text().splitlines()[:count]) + "\n")
    return root


def fit(corpus: Path, folder: Path, world: int, *options: str) -> Path:
    """One run; batches of 7, which neither 2 nor 3 processes share evenly. Returns the run's folder."""
    benchmarks = {
        k: {"class_path": c, "init_args": {"batch_size": 7, "eval_batch_size": 3}} for k, c in BENCHMARKS.items()
    }
    init = {"benchmarks": benchmarks, "batch": "global", "steps_per_epoch": 6, "root": str(corpus)}
    trainer = {"devices": world, "accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 1}
    # A large epsilon: Adam blows rounding noise up to whole steps where gradients are all but 0.
    model = {"eps": 1e-3, "tuning": {"class_path": "vl_peft.tuning.Adapter", "init_args": {"sharing": "multiple"}}}
    config = {"data": {"class_path": "datamodules.MultiTask", "init_args": init}, "trainer": trainer, "model": model}
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "vl_peft.cli", "fit", "--config", str(REPOSITORY / "experiments/base.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, "--config", "run.yaml", *options], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = folder.glob("runs/experiment/version_*")
    return run


def losses(run: Path) -> dict[str, list[Any]]:
    """The logged losses, by tag: pairs of step and value."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("train/loss")]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int | str, Path]:
    """A run of 1, 2 and 3 processes, and of 2 that share the weights out."""
    folder = tmp_path_factory.mktemp("runs")
    found: dict[int | str, Path] = {world: fit(corpus, folder / str(world), world) for world in (1, 2, 3)}
    sharded = ("--config", str(REPOSITORY / "experiments/sharded.yaml"))
    return found | {"sharded": fit(corpus, folder / "sharded", 2, *sharded)}


several = pytest.mark.parametrize("world", [2, 3, "sharded"])


@several
def test_losses_and_weights_are_those_of_one_process(runs: dict[int | str, Path], world: int | str) -> None:
    alone, together = losses(runs[1]), losses(runs[world])
    assert alone.keys() == together.keys() and len(alone["train/loss"]) == 6
    for tag, events in alone.items():
        assert [step for step, _ in events] == [step for step, _ in together[tag]]
        assert [loss for _, loss in together[tag]] == pytest.approx([loss for _, loss in events], rel=1e-5)
    one, other = (torch.load(runs[n] / "checkpoints/last.ckpt", weights_only=True) for n in (1, world))
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@several
def test_scores_are_those_of_one_process_to_the_last_digit(runs: dict[int | str, Path], world: int | str) -> None:
    one, other = (json.loads((runs[n] / "results.json").read_text()) for n in (1, world))
    assert other["scores"] == one["scores"] and other["history"] == one["history"]
    assert other["counts"] == one["counts"] and one["counts"]["tvqa"] == 2


@several
def test_predictions_are_written_once(runs: dict[int | str, Path], world: int | str) -> None:
    for task in BENCHMARKS:
        (file,) = runs[world].rglob(f"val_{task}.jsonl*")
        assert file.read_bytes() == (runs[1] / "predictions" / file.name).read_bytes()
        ids = [json.loads(line)["id"] for line in file.read_text().splitlines()]
        assert len(set(ids)) == len(ids), "no example twice"
