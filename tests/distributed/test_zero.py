"""DeepSpeed's ZeRO trains as ddp does and goes on from its own checkpoints, and each from the other's."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import kill
import pytest
import runs
import torch
from outcome import EXPERIMENTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed (pip install deepspeed)"),
]
SINGLE = f"--config={EXPERIMENTS}/video/single_lora.yaml"  # with dropout
SPOILT = "--trainer.callbacks+={class_path: zero_on_cpu.NotFinite}"
EPSILON = "--model.eps=1e-3"  # large: Adam blows rounding noise up to whole steps where gradients are all but 0
CLIPPED = "--trainer.gradient_clip_val=0.5"
GATHERED = "--trainer.accumulate_grad_batches=3"


def zero(stage: int = 2) -> str:
    return f"--trainer.strategy={{class_path: zero_on_cpu.ZeroOnCpu, init_args: {{stage: {stage}}}}}"


def trained(folder: Path, root: Path, *options: str, killed_at: int = 0) -> dict[str, Any]:
    """What a run of two processes ends with; killed in a step, that of its last checkpoint is left."""
    fault = {"moment": "on_train_batch_start", "step": killed_at, "command": "kill -9 $PID"} if killed_at else {}
    ended = runs.run(folder, root, SINGLE, EPSILON, "--ckpt_path=auto", *options, world=2, fault=fault)
    assert ended.status[0] == (-9 if killed_at else 0), ended.said
    return {} if killed_at else kill.outcome(folder)


def assert_close(one: Any, other: Any, path: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_close(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{path}/{i}")
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=2e-6, msg=lambda text: f"{path}: {text}")
    elif isinstance(one, float) and math.isfinite(one):
        assert other == pytest.approx(one, rel=1e-4), path
    elif isinstance(one, float):
        assert not math.isfinite(other), path  # DeepSpeed's norm is inf where another is NaN
    else:
        assert one == other, path


@pytest.mark.parametrize(("stage", "options"), [(1, (CLIPPED,)), (2, (CLIPPED, SPOILT)), (2, (GATHERED,))])
def test_trains_as_ddp(stage: int, options: tuple[str, ...], demo_root: Path, tmp_path: Path) -> None:
    """Losses, norms, weights, the optimizer's state, scores and predictions; steps that are left out, too."""
    one = trained(tmp_path / "ddp", demo_root, *options)
    other = trained(tmp_path / "zero", demo_root, zero(stage), *options)
    assert_close(one, other)
    norms = [value for name, value in one["losses"].items() if name.startswith("train/grad_norm")]
    assert sum(map(math.isfinite, norms)) == len(norms) - (3 if SPOILT in options else 0)
    assert CLIPPED not in options or max(filter(math.isfinite, norms)) > 0.5
    if SPOILT in options:
        files = [next((tmp_path / name).rglob("skipped_batches_0.jsonl")).read_text() for name in ("ddp", "zero")]
        assert files[0] == files[1] and len(files[0].splitlines()) == 3


def test_half_precision_is_that_of_ddp(demo_root: Path, tmp_path: Path) -> None:
    """``bf16-mixed`` keeps float32 weights; after the first steps rounding goes its own ways."""
    bf16 = "--trainer.precision=bf16-mixed"
    one, other = (trained(tmp_path / name, demo_root, bf16, *how) for name, how in (("ddp", ()), ("zero", (zero(),))))
    assert {tensor.dtype for tensor in other["state_dict"].values()} == {torch.float32}
    assert [other["losses"][f"train/loss {step}"] for step in (0, 1)] == [
        one["losses"][f"train/loss {step}"] for step in (0, 1)
    ]
    full = trained(tmp_path / "full", demo_root, zero())
    assert full["losses"]["train/loss 0"] != other["losses"]["train/loss 0"], "it does compute in bfloat16"


@pytest.mark.parametrize("options", [(), ("--trainer.precision=bf16-true",)])
def test_a_killed_run_ends_bit_identical(options: tuple[str, ...], demo_root: Path, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", demo_root, zero(), *options)
    for step in (4, 8):
        trained(tmp_path / "killed", demo_root, zero(), *options, killed_at=step)
    assert kill.differences(whole, trained(tmp_path / "killed", demo_root, zero(), *options)) == []
    assert {tensor.dtype for tensor in whole["state_dict"].values()} == {torch.float32}


def test_each_goes_on_from_checkpoints_of_the_other(demo_root: Path, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", demo_root)
    for first, second in (((), (zero(),)), ((zero(),), ())):
        folder = tmp_path / f"{len(first)}"
        trained(folder, demo_root, *first, killed_at=8)
        assert_close(whole, trained(folder, demo_root, *second))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "tasks' own parts in other tasks' steps; take ddp"),
        ((SINGLE, "--trainer.accumulate_grad_batches=4"), "a multiple of trainer.accumulate_grad_batches 4"),
    ],
)
def test_what_cannot_be_right_is_refused(options: tuple[str, ...], said: str, demo_root: Path, tmp_path: Path) -> None:
    ended = runs.run(tmp_path, demo_root, *options, zero(), world=2)
    assert all(ended.status) and said in ended.said[0]
