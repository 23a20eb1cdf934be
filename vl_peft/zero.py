"""Gradients and optimizer state shared out over the processes by DeepSpeed (ZeRO 1 and 2); it has to be installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, cast

import torch
from lightning import Trainer
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.plugins import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from vl_peft.errors import ConfigError
from vl_peft.tuning.base import trainable

MOMENTS = "exp_avg", "exp_avg_sq"  # what AdamW keeps of a parameter, besides its number of steps


class Zero(DeepSpeedStrategy):
    """Lightning's strategy for DeepSpeed, with the precision and the checkpoints of ``ddp``, which can go on from them.

    Every process holds all weights, and its part of what the optimizer keeps of them. DeepSpeed clips the gradients and
    leaves out a step in which they are not finite. It updates a parameter without a gradient as if that were zero, so
    tasks cannot own parts. Under ``bf16-true`` it keeps float32 weights of what trains, and checkpoints hold these.

    Args:
        stage: 1 shares out the optimizer's state, 2 the gradients too.
    """

    def __init__(self, stage: Literal[1, 2] = 2) -> None:
        super().__init__(stage=stage, logging_batch_size_per_gpu=1)
        self._with_gradient: set[nn.Parameter] = set()

    def setup_environment(self) -> None:
        """Now it is known which precision and device are asked for.

        Raises:
            ConfigError: it is not a CUDA GPU.
        """
        if not isinstance(self.accelerator, CUDAAccelerator):
            raise ConfigError("trainer.strategy Zero: needs CUDA GPUs; without, take experiments/sharded.yaml.")
        self.precision_plugin = _Precision(cast(Any, self.precision_plugin.precision), self.root_device)
        super().setup_environment()

    def _format_config(self) -> None:
        super()._format_config()
        config = cast(dict[str, Any], self.config)
        if self.precision_plugin.precision == "bf16-mixed":
            del config["bf16"]  # DeepSpeed would make bf16-true of it
            # For no layer's gradients: they are summed up in float32.
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}

    def setup(self, trainer: Trainer) -> None:
        """Hand the model to DeepSpeed.

        Raises:
            ConfigError: an epoch would end within an update, which DeepSpeed would carry on to the next.
        """
        super().setup(trainer)
        steps, gathered = trainer.num_training_batches, trainer.accumulate_grad_batches
        if trainer.training and steps % gathered:
            raise ConfigError(
                f"trainer.strategy Zero: make the epoch's {steps} steps (data.steps_per_epoch) a multiple of "
                f"trainer.accumulate_grad_batches {gathered}."
            )
        for parameter in trainable(self._module).values():
            parameter.register_hook(partial(self._note, parameter))

    @property
    def _module(self) -> Any:
        return self.lightning_module

    # -- training ---------------------------------------------------------------------------------------------------

    def _note(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        self._with_gradient.add(parameter)

    def has_gradient(self, parameter: nn.Parameter) -> bool:
        """Whether it has ever had one; ``parameter.grad`` does not tell."""
        return parameter in self._with_gradient

    def optimizer_step(self, *what: Any, **how: Any) -> Any:
        """At the end of an update note what the module cannot see: the gradients' norm, and whether it was left out."""
        engine = cast(Any, self.deepspeed_engine)
        whole = engine.is_gradient_accumulation_boundary()
        found = super().optimizer_step(*what, **how)
        if whole:
            self._module.log("train/grad_norm", torch.as_tensor(engine.get_global_grad_norm()))
            self._module.skipped_step = self._optimizer.overflow
        return found

    # -- checkpoints ------------------------------------------------------------------------------------------------

    @property
    def lightning_restore_optimizer(self) -> bool:
        """By the methods below."""
        return True

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any = None) -> None:
        """One file, written by process 0."""
        DDPStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Tensors and plain values only: what DeepSpeed writes itself could run code."""
        return DDPStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights, in training those in float32 that the optimizer changes. All processes have to ask."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights: dict[str, Any] = super().lightning_module_state_dict()
        return weights | {name: safe_get_full_fp32_param(p) for name, p in self._updated()}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """The weights, and those that the optimizer changes."""
        from deepspeed.utils import safe_set_full_fp32_param

        DDPStrategy.load_model_state_dict(self, checkpoint, strict)
        for name, p in self._updated():
            safe_set_full_fp32_param(p, checkpoint["state_dict"][name].to(p.device))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As AdamW of one process would have it. All processes have to ask."""
        from deepspeed.utils import safe_get_full_optimizer_state

        state: dict[int, dict[str, Any]] = {}
        groups = []
        self._link()
        for group, parameters in self._groups():
            numbers = range(len(state), len(state) + len(parameters))
            groups.append({**group, "params": list(numbers)})
            mine = self._optimizer.optimizer.state.get(group["params"][0])
            for number, p in zip(numbers, parameters, strict=True):
                moments = {key: safe_get_full_optimizer_state(p, key) for key in MOMENTS} if mine else {}
                state[number] = moments | {"step": mine["step"].clone()} if mine else {}
        return {"state": {number: values for number, values in state.items() if values}, "param_groups": groups}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Every process takes its part."""
        from deepspeed.utils import safe_set_full_optimizer_state

        (theirs,) = checkpoint["optimizer_states"]
        pairs = list(zip(self._groups(), theirs["param_groups"], strict=True))
        for (group, _), values in pairs:
            (flat,) = group["params"]
            group.update({key: value for key, value in values.items() if key != "params"})
            if steps := [theirs["state"][number]["step"] for number in values["params"] if number in theirs["state"]]:
                empty = {key: torch.zeros_like(flat) for key in MOMENTS}
                self._optimizer.optimizer.state[flat] = empty | {"step": max(steps).to(flat.device)}
        self._link()
        for (_, parameters), values in pairs:
            for number, p in zip(values["params"], parameters, strict=True):
                for key in MOMENTS if number in theirs["state"] else ():
                    safe_set_full_optimizer_state(p, theirs["state"][number][key].to(p.device), key)

    @property
    def _optimizer(self) -> Any:
        (optimizer,) = self.optimizers
        return optimizer

    def _groups(self) -> Iterator[tuple[dict[str, Any], list[nn.Parameter]]]:
        """AdamW's groups, whose one parameter is this process' part of all, and the parameters themselves."""
        return zip(self._optimizer.optimizer.param_groups, self._optimizer.bit16_groups, strict=True)

    def _updated(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in trainable(self._module).items() if self.optimizers)

    def _link(self) -> None:
        """Let DeepSpeed find every group's state: by itself it looks when only the first group has any."""
        self._optimizer._hp_optimizer_states_linked = False
        if self._optimizer.optimizer.state:
            self._optimizer._lazy_init_hp_params_optimizer_state()


class _Precision(DeepSpeedPrecision):
    """That of other strategies: ``bf16-mixed`` computes in bfloat16 and keeps float32 weights."""

    def __init__(self, precision: Literal["32-true", "bf16-true", "bf16-mixed"], device: torch.device) -> None:
        super().__init__(precision)
        self.device = device

    def convert_input(self, data: Any) -> Any:
        """Float32 stays what it is under autocast."""
        return super().convert_input(data) if self.precision == "bf16-true" else data

    def backward(self, tensor: Tensor, *what: Any, **how: Any) -> None:  # type: ignore[override]
        """Lightning has divided the loss by the number of gathered batches; DeepSpeed would once more."""
        super().backward(tensor, *what, scale_wrt_gas=False, **how)

    def forward_context(self) -> AbstractContextManager[Any]:
        """With autocast where it is asked for."""
        if self.precision != "bf16-mixed":
            return super().forward_context()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
