"""Weights shared out over the processes, for a backbone that one device cannot hold (FSDP2, ``fully_shard``)."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from vl_peft.backbones.base import Backbone
from vl_peft.errors import ConfigError


def share_out(backbone: Backbone, mesh: DeviceMesh, one_file: bool) -> None:
    """Give each process its part of every parameter, frozen or not; layers are gathered one at a time when they run.

    Args:
        backbone: tuned already; changed in place.
        mesh: of Lightning's ``ModelParallelStrategy``, with the dimensions ``data_parallel`` and ``tensor_parallel``.
        one_file: whether the strategy writes a checkpoint as one file.

    Raises:
        ConfigError: the strategy is to split single layers, or checkpoints.
    """
    if mesh["tensor_parallel"].size() > 1 or not one_file:
        raise ConfigError(
            "ModelParallelStrategy needs data_parallel_size: the number of all processes, tensor_parallel_size: 1 and "
            "save_distributed_checkpoint: false; see experiments/sharded.yaml."
        )
    whole = mesh["data_parallel"]
    for stack in (backbone.lm.get_encoder(), backbone.lm.get_decoder()):
        for layers in stack.children():
            for layer in layers if isinstance(layers, nn.ModuleList) else ():
                fully_shard(layer, mesh=whole)
    fully_shard(backbone, mesh=whole, reshard_after_forward=True)
    for method in ("generate", "choose"):  # they begin outside of forward
        register_fsdp_forward_method(backbone, method)
