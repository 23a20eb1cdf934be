"""Watches a run for what must not happen, and says so at once."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vl_peft.batch import Batch
from vl_peft.errors import UserError
from vl_peft.module import VLModule
from vl_peft.tuning.base import PerTask

_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Guards(Callback):
    """Four checks, which together cost less than a percent of the time.

    * A frozen parameter has changed: looked at after each epoch; an error.
    * A parameter trains, its task was seen, and it never had a gradient: after the first epoch; a warning.
    * A gradient is not finite, as it is when the loss is not: the step is left out (by :class:`VLModule`) and counted;
      after ``max_skipped`` in a row, an error. The ids of those batches are in ``skipped_batches_<process>.jsonl``.
    * The processes do not train on the same task: an error.

    Args:
        max_skipped: steps in a row that may be left out.
        compare_tasks_every: steps between comparisons of the task; several processes wait for each other there.
    """

    def __init__(self, max_skipped: int = 10, compare_tasks_every: int = 50) -> None:
        self.max_skipped, self.compare_tasks_every = max_skipped, compare_tasks_every
        self._frozen: dict[str, int] = {}
        self._without_gradient: set[str] | None = None
        self._tasks: set[str] = set()
        self._in_a_row = 0
        self._gathered: list[tuple[str, list[str]]] = []  # tasks and ids of the batches of an update

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on has seen before: the same on all processes."""
        without = None if self._without_gradient is None else sorted(self._without_gradient)
        return {"in_a_row": self._in_a_row, "tasks": sorted(self._tasks), "without_gradient": without}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self._in_a_row, self._tasks = state_dict["in_a_row"], set(state_dict["tasks"])
        without = state_dict["without_gradient"]
        self._without_gradient = None if without is None else set(without)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what is frozen."""
        self._frozen = checksums(pl_module)
        if self._without_gradient is None:
            self._without_gradient = {name for name, p in pl_module.named_parameters() if p.requires_grad}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Compare the processes' tasks.

        Raises:
            UserError: they differ.
        """
        self._tasks.update(batch.tasks)
        if trainer.world_size > 1 and batch_idx % self.compare_tasks_every == 0:
            mine = torch.tensor(zlib.crc32(batch.task.encode()) / 2**32, dtype=torch.float64, device=pl_module.device)
            mean = cast(Tensor, trainer.strategy.reduce(mine.clone(), reduce_op="mean"))
            if abs(mean - mine) > 1e-9:
                raise UserError(f"Process {trainer.global_rank} trains on '{batch.task}' while others do not.")

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """See which parameters have a gradient."""
        if self._without_gradient and trainer.current_epoch == 0:
            parameters = dict(pl_module.named_parameters())
            has_gradient = getattr(trainer.strategy, "has_gradient", lambda p: p.grad is not None)
            self._without_gradient = {n for n in self._without_gradient if not has_gradient(parameters[n])}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the steps that were left out.

        Raises:
            UserError: too many in a row.
        """
        self._gathered.append((batch.task, batch.ids))
        if (skipped := cast(VLModule, pl_module).skipped_step) is None:
            return  # within an update
        batches, self._gathered = self._gathered, []
        if not skipped:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        rank_zero_warn(f"Step {trainer.global_step} ({batch.task}): a gradient is not finite; left out.")
        file = Path(trainer.log_dir or trainer.default_root_dir) / f"skipped_batches_{trainer.global_rank}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            for task, ids in batches:
                lines.write(json.dumps({"step": trainer.global_step, "task": task, "ids": ids}) + "\n")
        if self._in_a_row >= self.max_skipped:
            raise UserError(
                f"{self._in_a_row} steps in a row had a gradient that is not finite; the ids of their "
                f"examples are in {file}. Lower model.lr, or look at these examples with `vl-peft data check`."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare what is frozen; report what never trains.

        Raises:
            UserError: a frozen parameter has changed.
        """
        now = checksums(pl_module)
        changed = [name for name, before in self._frozen.items() if now.get(name) != before]
        if changed:
            raise UserError(f"{len(changed)} frozen parameters have changed, first {changed[0]}.")
        if trainer.current_epoch == 0:
            owners = owning_tasks(pl_module)
            idle = sorted(n for n in self._without_gradient or () if n not in owners or owners[n] in self._tasks)
            if idle:
                rank_zero_warn(f"{len(idle)} parameters train but never had a gradient, first {idle[0]}.")


def checksums(module: nn.Module) -> dict[str, int]:
    """For each frozen parameter the sum of the bits that this process has of it, read as integers."""
    frozen = {name: p.detach() for name, p in module.named_parameters() if not p.requires_grad}
    local = {name: p.to_local() if isinstance(p, DTensor) else p for name, p in frozen.items()}
    return {name: int(p.view(_INTEGER[p.element_size()]).sum(dtype=torch.int64)) for name, p in local.items()}


def owning_tasks(module: nn.Module) -> Mapping[str, str]:
    """The task of each parameter that one task owns."""
    return {
        f"{place}.parts.{task}.{name}": task
        for place, per_task in module.named_modules()
        if isinstance(per_task, PerTask) and not per_task.shared
        for task, part in per_task.parts.items()
        for name, _ in part.named_parameters()
    }
