"""Weights shared out over the processes, for a backbone that one device cannot hold (FSDP2, ``fully_shard``)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from vl_peft.backbones.base import Backbone
from vl_peft.checkpoint_io import read_checkpoint, refuse_others
from vl_peft.errors import ConfigError


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all processes of all nodes; a checkpoint is one file, as in other runs.

    A layer's weights are gathered from all processes when it runs. So all have to run as many batches, in evaluation
    too (``in_step``), and as many steps of generation.
    """

    in_step = True

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Every process holds a part."""
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint into the parts.

        Raises:
            DataError: it is missing, truncated, holds objects (which could run code) or is no checkpoint of a run.
            ConfigError: it is of another configuration.
        """
        assert self.lightning_module is not None
        refuse_others(self.lightning_module, read_checkpoint(Path(checkpoint_path))["state_dict"])
        return super().load_checkpoint(checkpoint_path, weights_only=True)


def share_out(backbone: Backbone, mesh: DeviceMesh) -> None:
    """Give each process its part of every parameter, frozen or not; layers are gathered one at a time when they run.

    Args:
        backbone: tuned already; changed in place.
        mesh: of :class:`Sharded`, with the dimension ``data_parallel``.

    Raises:
        ConfigError: two layers have the same parameter, as with Hyperformer.
    """
    layers = [
        layer
        for stack in (backbone.lm.get_encoder(), backbone.lm.get_decoder())
        for modules in stack.children()
        for layer in (modules if isinstance(modules, nn.ModuleList) else ())
    ]
    owners = Counter(parameter for layer in layers for parameter in layer.parameters())
    shared = [name for name, parameter in backbone.named_parameters() if owners[parameter] > 1]
    if shared:
        raise ConfigError(f"trainer.strategy Sharded: several layers share '{shared[0]}'; take ddp for this tuning.")
    whole = mesh["data_parallel"]
    for layer in layers:
        fully_shard(layer, mesh=whole)
    fully_shard(backbone, mesh=whole, reshard_after_forward=True)
    backbone.lm._is_fsdp_managed_module = True  # type: ignore[assignment]  # transformers generates in step then
    for method in ("generate", "choose"):  # they begin outside of forward
        register_fsdp_forward_method(backbone, method)
