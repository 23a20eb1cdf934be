"""The LightningModule: joins data, backbone and tuning strategy. No task and no method is named here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from vl_peft.backbones.base import Backbone
from vl_peft.batch import Batch, Task
from vl_peft.checkpoint import load_adapters
from vl_peft.checkpoint_io import refuse_others
from vl_peft.collate import uniform
from vl_peft.errors import ConfigError
from vl_peft.metrics import SentenceMetric
from vl_peft.sharding import Sharded, share_out
from vl_peft.tuning.base import Tuning, trainable
from vl_peft.vision import Vision
from vl_peft.zero import Zero


def warmup_then_linear(step: int, warmup: int, total: int) -> float:
    """Factor of the learning rate in step 0, 1, ...: up from 0 over ``warmup`` steps, then down to 0 at ``total``."""
    return step / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))


def decays(name: str, parameter: Tensor, decay: Literal["matrices", "all_but_bias"]) -> bool:
    """Whether weight decay applies to a parameter."""
    if decay == "matrices":
        return parameter.ndim >= 2
    # The one norm that the published pattern "LayerNorm.weight" does match is the hyper-network's.
    return "bias" not in name and not name.endswith("network.norm.weight")


class VLModule(LightningModule):
    """Multi-task training and evaluation of a backbone under a tuning strategy.

    Args:
        backbone: the vision-and-language model.
        tuning: what is added to it and what of it trains.
        tasks: the tasks by name (the command line takes them from the data).
        lr: peak learning rate.
        lr_scaling: what becomes of ``lr`` and ``vision_lr`` where an update takes more examples than the benchmarks'
            ``batch_size``, by several processes (with ``data.batch: per_process``) or by ``accumulate_grad_batches``:
            nothing, as many times as much (``"linear"``), or the square root of that (``"sqrt"``).
        weight_decay: of AdamW.
        decay: ``"matrices"`` spares biases and norms; ``"all_but_bias"`` decays norm weights too, as the published
            code does by accident.
        betas: of AdamW.
        eps: of AdamW.
        compile: train through ``torch.compile``: slow to begin, one graph for each task and length of the text.
        raw: name of the vision encoder that makes features of images and videos (the command line takes it from the
            data); ``None`` where features are read.
        train_vision: train it too; it is frozen otherwise.
        vision_lr: its peak learning rate.
        adapters: folder of exported adapters to begin with (``vl-peft adapters export``).
        warmup: share of all steps in which the learning rate rises linearly from 0; then it falls linearly to 0.
    """

    def __init__(
        self,
        backbone: Backbone,
        tuning: Tuning,
        tasks: dict[str, Task],
        lr: float = 1e-3,
        lr_scaling: Literal["none", "linear", "sqrt"] = "none",
        weight_decay: float = 0.01,
        decay: Literal["matrices", "all_but_bias"] = "matrices",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        warmup: float = 0.1,
        adapters: Path | None = None,
        compile: bool = False,
        raw: str | None = None,
        train_vision: bool = False,
        vision_lr: float = 1e-5,
    ) -> None:
        super().__init__()
        if not 0 <= warmup < 1:
            raise ConfigError(f"model.warmup is a share of all steps, from 0 to below 1, not {warmup}.")
        if train_vision and raw is None:
            raise ConfigError("model.train_vision trains the encoder of data.raw: name one there.")
        self.backbone, self.tuning, self.tasks = backbone, tuning, tasks
        self.vision_lr = vision_lr
        self.lr, self.lr_scaling, self.weight_decay, self.decay = lr, lr_scaling, weight_decay, decay
        self.betas, self.eps, self.warmup = betas, eps, warmup
        self.strict_loading = False  # checkpoints hold what trains; the rest comes from the pretrained backbone
        self.metrics: dict[str, SentenceMetric] = {}
        self.skipped_step: bool | None = None  # whether this batch's update was; None where gradients are gathered
        self.repeats = False  # a validation of a former process, which has logged it and not written its results
        tuning.attach(backbone, list(tasks))
        self.vision = None if raw is None else Vision(raw, train_vision)
        if adapters is not None:
            load_adapters(adapters, backbone)
        if compile:
            torch._dynamo.config.recompile_limit = max(64, 4 * len(tasks))  # beyond it, steps run uncompiled
            backbone.compile(dynamic=True)

        self._shared_out = False

    def setup(self, stage: str) -> None:
        """Look at the strategy.

        Raises:
            ConfigError: it has checkpoints of its own, or cannot train parts that tasks own.
        """
        strategy = self.trainer.strategy
        others = FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
        if isinstance(strategy, others) and not isinstance(strategy, (Sharded, Zero)):
            take = "zero" if isinstance(strategy, DeepSpeedStrategy) else "sharded"
            raise ConfigError(
                f"trainer.strategy {type(strategy).__name__}: its checkpoints are others; take experiments/{take}.yaml."
            )
        if isinstance(strategy, Zero) and self._tasks_own_parts:
            raise ConfigError("trainer.strategy Zero: would update tasks' own parts in other tasks' steps; take ddp.")

    def configure_model(self) -> None:
        """Tell the strategy what it has to know: parts that a step does not use, or which weights to share out."""
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and self._tasks_own_parts:
            strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        if self.device_mesh is not None and not self._shared_out:
            share_out(self.backbone, self.device_mesh)
            self._shared_out = True

    @property
    def _tasks_own_parts(self) -> bool:
        """Whether some of what trains is one task's own: it is called after the task, wherever it is."""
        return len(self.tasks) > 1 and any(self.tasks.keys() & name.split(".") for name in trainable(self))

    # -- training ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make dropout a pure function of seed, epoch, step and process, so that a resumed run repeats it."""
        self.skipped_step = None
        seed = self.trainer.datamodule.loading.seed  # type: ignore[attr-defined]
        key = uniform(seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(key * 2**63))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch, reduced as its task says."""
        loss = self.loss(batch)
        # The mean over the processes is the loss of the global batch: see loss().
        self.log("train/loss", loss, batch_size=len(batch), sync_dist=True)
        self._log_of_task(batch.task, loss)
        return loss

    def _log_of_task(self, task: str, loss: Tensor) -> None:
        """Log the loss of a task in its own steps: ``self.log`` would repeat it in those of the other tasks."""
        step = self.trainer.global_step
        if (step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            loss = loss.detach().clone()
            mean = self.trainer.strategy.reduce(loss, reduce_op="mean") if self._distributed else loss
            for logger in self.loggers:
                logger.log_metrics({f"train/loss/{task}": float(mean)}, step)

    def loss(self, batch: Batch) -> Tensor:
        """Scalar loss: see :class:`vl_peft.batch.Task` for the two reductions.

        The loss of a batch that mixes tasks is the sum of what its tasks' rows give by themselves.

        Under distributed training the sum over this process's rows is divided by the processes' mean number of rows
        (or tokens), so that the average of the processes' gradients is the gradient of the global batch, however
        unevenly its rows or tokens fall to them.
        """
        losses: Tensor = self.backbone(self.seen(batch))
        assert batch.labels is not None  # or the backbone would have said so
        labelled = torch.ne(batch.labels, -100)
        if not batch.row_tasks:
            return self._reduce(self.tasks[batch.task].reduction, losses, labelled, batch.weights)
        total = losses.new_zeros(())
        for task in dict.fromkeys(batch.row_tasks):
            rows = torch.tensor([name == task for name in batch.row_tasks], device=losses.device)
            total = total + self._reduce(self.tasks[task].reduction, losses[rows], labelled[rows], batch.weights[rows])
        return total

    def seen(self, batch: Batch) -> Batch:
        """The batch with visual features, made of its pictures where it has them."""
        return batch if self.vision is None else self.vision(batch)  # type: ignore[no-any-return]

    def _reduce(self, reduction: str, losses: Tensor, labelled: Tensor, weights: Tensor) -> Tensor:
        if reduction == "token":
            return losses.sum().div(self._mean_over_processes(labelled.sum()))
        per_example = losses.sum(dim=1) / labelled.sum(dim=1).clamp(min=1)
        rows = torch.tensor(len(weights), device=weights.device)
        return (per_example * weights).sum().div(self._mean_over_processes(rows))

    def _mean_over_processes(self, count: Tensor) -> Tensor:
        count = count.float()
        if self._distributed:
            count = self.trainer.strategy.reduce(count, reduce_op="mean")  # type: ignore[assignment]
        return count.clamp(min=1 / 1024)  # a batch without any label has a loss of 0, not 0 / 0

    @property
    def _distributed(self) -> bool:
        return self._trainer is not None and self.trainer.world_size > 1

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over what trains, with warm-up and linear decay per step."""
        if self.trainer.precision == "16-mixed":
            raise ConfigError(
                "trainer.precision 16-mixed is not supported: use bf16-mixed, which needs no loss scaling."
            )
        optimizer = torch.optim.AdamW(
            self._parameter_groups(),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            fused=True,
        )
        total = int(self.trainer.estimated_stepping_batches)
        warmup = int(self.warmup * total)
        scheduler = LambdaLR(optimizer, lambda step: warmup_then_linear(step, warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def lr_factor(self) -> float:
        """What ``lr_scaling`` makes of the learning rates under this trainer."""
        if self.lr_scaling == "none":
            return 1.0
        as_one = self.trainer.datamodule.loading.batch == "global"  # type: ignore[attr-defined]
        grown = self.trainer.accumulate_grad_batches * (1 if as_one else self.trainer.world_size)
        return float(grown if self.lr_scaling == "linear" else grown**0.5)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        for name, parameter in trainable(self).items():
            key = name.startswith("vision."), not decays(name, parameter, self.decay)
            groups.setdefault(key, []).append(parameter)
        return [
            {
                "params": groups[vision, spared],
                "lr": self.lr_factor * (self.vision_lr if vision else self.lr),
                "weight_decay": 0.0 if spared else self.weight_decay,
            }
            for vision, spared in sorted(groups)
        ]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm as the trainer is told to, and log what it was before. One that is not finite skips the step.

        Done here because Lightning refuses to clip for a fused optimizer under mixed precision; bf16 has no loss
        scaling, so there the gradients are what they seem.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            raise ConfigError(f"trainer.gradient_clip_algorithm must be norm, not {gradient_clip_algorithm}.")
        if isinstance(self.trainer.strategy, Zero):
            return  # DeepSpeed does all this
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self.log("train/grad_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)
        self.skipped_step = not bool(norm.isfinite())
        if self.skipped_step:  # what has no gradient, AdamW leaves alone: no momentum, no weight decay
            optimizer.zero_grad()
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    # -- evaluation -------------------------------------------------------------------------------------------------

    def answer(self, batch: Batch) -> list[str]:
        """What the model answers to each example."""
        task, batch = self.tasks[batch.task], self.seen(batch)
        if task.candidates:
            return self.backbone.choose(batch, task.candidates)
        return self.backbone.generate(batch, task.generation)

    def _evaluation_start(self) -> None:
        benchmarks: Mapping[str, Any] = self.trainer.datamodule.benchmarks  # type: ignore[attr-defined]
        self.metrics = {name: benchmark.metric() for name, benchmark in benchmarks.items()}
        for metric in self.metrics.values():
            metric.thorough = self.trainer.state.fn in ("validate", "test") and not self.repeats

    def _evaluation_step(self, batch: Batch) -> list[str]:
        sentences = self.answer(batch)
        self.metrics[batch.task].update(
            batch.ids,
            sentences,
            [example.references for example in batch.examples],
            [example.meta for example in batch.examples],
        )
        return sentences

    def _evaluation_end(self, stage: str) -> None:
        for task, metric in self.metrics.items():
            scores = {f"{stage}/{task}/{name}": value for name, value in metric.compute().items()}
            self.log_dict({} if self.repeats else scores)

    def on_validation_epoch_start(self) -> None:
        """Fresh metrics."""
        self._evaluation_start()

    def validation_step(  # type: ignore[override]
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> list[str]:
        """Answers of a batch of one benchmark."""
        return self._evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        """Scores, the same on every process."""
        self._evaluation_end("val")

    def on_test_epoch_start(self) -> None:
        """Fresh metrics."""
        self._evaluation_start()

    def test_step(  # type: ignore[override]
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> list[str]:
        """Answers of a batch of one benchmark."""
        return self._evaluation_step(batch)

    def on_test_epoch_end(self) -> None:
        """Scores, the same on every process."""
        self._evaluation_end("test")

    def on_predict_epoch_end(self) -> None:
        """Gather the predictions of all processes."""
        for metric in self.metrics.values():
            metric.compute()

    def on_predict_epoch_start(self) -> None:
        """Fresh stores of predictions."""
        self._evaluation_start()

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[str]:
        """Answers of a batch of one benchmark."""
        return self._evaluation_step(batch)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what trains: the frozen rest is that of the pretrained backbone."""
        keep = trainable(self).keys()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in keep}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another configuration instead of loading the part that fits.

        Raises:
            ConfigError: if parameters are missing, unknown, or of another shape.
        """
        if self._shared_out:
            return  # the strategy has loaded it already, by name
        refuse_others(self, checkpoint["state_dict"])
