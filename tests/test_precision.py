"""Precision, clipping, accumulation, and parameters that a step does not use, under the Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from datamodules import TVC, TVQA, MultiTask
from vl_peft.backbones import VLBart
from vl_peft.callbacks import Guards
from vl_peft.callbacks.guards import owning_tasks
from vl_peft.module import VLModule
from vl_peft.tuning import Adapter
from vl_peft.tuning.base import trainable

State = dict[str, Tensor]


class Follow(Callback):
    """Keeps of every update its tasks, what trained before and after it, and the norm after clipping."""

    def __init__(self) -> None:
        self.updates: list[tuple[set[str], State, State]] = []
        self.momenta: list[State] = []
        self.norms: list[float] = []
        self._tasks: set[str] = set()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self._tasks:
            self._before = copied(pl_module)
        self._tasks.add(batch.task)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        grads = [p.grad.float().norm() for p in trainable(pl_module).values() if p.grad is not None]
        if grads:
            self.norms.append(float(torch.stack(grads).norm()))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.updates.append((self._tasks, self._before, copied(pl_module)))
            state = trainer.optimizers[0].state
            momenta = {n: state[p]["exp_avg"].clone() for n, p in trainable(pl_module).items() if p in state}
            self.momenta.append(momenta)
            self._tasks = set()


def copied(module: Any) -> State:
    return {name: p.detach().clone() for name, p in trainable(module).items()}


@pytest.fixture
def fit(demo_root: Path) -> Callable[..., tuple[VLModule, Follow]]:
    """``fit(**options of the trainer)``: twelve batches of two tasks with adapters of their own, no warm-up."""

    def run(steps: int = 12, **options: Any) -> tuple[VLModule, Follow]:
        torch.manual_seed(0)
        benchmarks = {"tvqa": TVQA(batch_size=4), "tvc": TVC(batch_size=4)}
        data = MultiTask(benchmarks, root=str(demo_root), steps_per_epoch=steps, temperature=float("inf"))
        backbone = VLBart("demo", feature_dim=data.feature_dim)
        module = VLModule(backbone, Adapter(sharing="multiple"), data.tasks, warmup=0.0, weight_decay=0.5)
        quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        follow = Follow()
        Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            callbacks=[follow, Guards()],
            **(dict.fromkeys(quiet, False) | {"limit_val_batches": 0} | options),
        ).fit(module, datamodule=data)
        return module, follow

    return run


@pytest.mark.parametrize(("precision", "weights"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)])
def test_bf16(fit: Callable[..., tuple[VLModule, Follow]], precision: str, weights: torch.dtype) -> None:
    full, _ = fit()
    module, follow = fit(precision=precision, limit_val_batches=1)
    assert {p.dtype for p in module.parameters()} == {weights}
    _, before, after = follow.updates[0]
    assert all(torch.isfinite(p).all() for p in module.parameters())
    moved = [(after[n] - before[n]).float().norm() > 0 for n in before]
    assert any(moved), "steps are not lost to rounding"
    one, other = copied(full), copied(module)
    gaps = [float((one[n] - other[n].float()).norm() / one[n].norm().clamp(min=1e-3)) for n in one]
    assert sum(gaps) / len(gaps) < (0.05 if precision == "bf16-mixed" else 0.2), "it ends near float32"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_bounds_the_norm_of_all_that_trains(
    fit: Callable[..., tuple[VLModule, Follow]], precision: str
) -> None:
    _, free = fit(steps=4, precision=precision)
    limit = min(free.norms) / 2
    _, clipped = fit(steps=4, precision=precision, gradient_clip_val=limit)
    assert clipped.norms == pytest.approx([limit] * len(clipped.norms), rel=1e-3) and clipped.norms


@pytest.mark.parametrize("accumulate", [1, 3])
def test_what_a_task_owns_moves_with_its_own_batches_only(
    fit: Callable[..., tuple[VLModule, Follow]], accumulate: int
) -> None:
    """Neither momentum nor weight decay (0.5 here) touches the other task's parts, also when batches are gathered."""
    module, follow = fit(accumulate_grad_batches=accumulate)
    owners = owning_tasks(module)
    assert set(owners.values()) == {"tvqa", "tvc"} and len(follow.updates) == 12 // accumulate
    seen: set[str] = set()
    last: State = {}
    for (tasks, before, after), momenta in zip(follow.updates, follow.momenta, strict=True):
        seen |= tasks
        for name in before:
            used = owners.get(name) in (None, *tasks)
            if not used:
                assert torch.equal(before[name], after[name]), f"{name} in an update of {tasks}"
                assert name not in momenta or torch.equal(momenta[name], last[name])
            assert (name in momenta) == (owners.get(name) in (None, *seen))
        assert any(not torch.equal(before[n], after[n]) for n, task in owners.items() if task in tasks)
        last = momenta
    if accumulate == 1:
        assert all(len(tasks) == 1 for tasks, _, _ in follow.updates)
    else:
        assert any(len(tasks) == 2 for tasks, _, _ in follow.updates), "an update over steps of both tasks"
