"""Hyperformer (Karimi Mahabadi et al. 2021): a network that writes the adapters' weights for task and layer.

    z = norm(MLP(task, layer [, block]))        down.weight, down.bias, up.weight, up.bias = linear generators of z

Encoder and decoder have a hyper-network each and share the task embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vl_peft.tuning.base import Block, Route, Tunable, Tuning, check_factor, draw_normal, units_of

BLOCKS: tuple[Block, ...] = ("ff", "self", "cross")  # in the order of the published block embeddings


class Generator(nn.Module):
    """Writes the four tensors of an adapter from z ``[p]``.

    Args:
        z: size p.
        dim: size d of the adapter's input and output.
        bottleneck: size m of its hidden layer.
    """

    def __init__(self, z: int, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.shapes = {
            "down_weight": (bottleneck, dim),
            "down_bias": (bottleneck,),
            "up_weight": (dim, bottleneck),
            "up_bias": (dim,),
        }
        self.linears = nn.ModuleDict({name: nn.Linear(z, torch.Size(s).numel()) for name, s in self.shapes.items()})

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """The tensors by name."""
        return {name: self.linears[name](z).reshape(shape) for name, shape in self.shapes.items()}


class HyperNetwork(nn.Module):
    """From task, layer and block to the weights of one adapter.

    Args:
        tasks: the task embeddings, ``[e]`` each.
        layers: number of layers of the stack.
        blocks: the kinds of blocks that have adapters.
        by_block: one generator for all blocks, which then have an embedding each (the efficient form).
        hidden: units of the MLP.
        z: size of what the generators read.
        dim: size d of the adapters.
        bottleneck: size of their hidden layer.
    """

    def __init__(
        self,
        tasks: nn.ParameterDict,
        layers: int,
        blocks: tuple[Block, ...],
        by_block: bool,
        hidden: int,
        z: int,
        dim: int,
        bottleneck: int,
    ) -> None:
        super().__init__()
        size = next(iter(tasks.values())).shape[-1]
        self.tasks, self.layers = tasks, nn.Embedding(layers, size)
        self.blocks = nn.Embedding(len(BLOCKS), size) if by_block else None
        self.mlp = nn.Sequential(nn.Linear(size * (3 if by_block else 2), hidden), nn.ReLU(), nn.Linear(hidden, z))
        self.norm = nn.LayerNorm(z, eps=1e-6)
        names = ("all",) if by_block else blocks
        self.generators = nn.ModuleDict({name: Generator(z, dim, bottleneck) for name in names})

    def forward(self, task: str, layer: int, block: Block) -> dict[str, Tensor]:
        """The weights of the adapter at this place for this task."""
        parts = [self.tasks[task], self.layers.weight[layer]]
        if self.blocks is not None:
            parts.append(self.blocks.weight[BLOCKS.index(block)])
        z = self.norm(self.mlp(torch.cat(parts)))
        weights: dict[str, Tensor] = self.generators["all" if self.blocks is not None else block](z)
        return weights


class HyperDelta(nn.Module):
    """An adapter whose weights are written anew in every call."""

    def __init__(self, network: HyperNetwork, layer: int, block: Block, route: Route) -> None:
        super().__init__()
        self.network, self.layer, self.block, self.route = network, layer, block, route

    def _adapt(self, task: str, y: Tensor) -> Tensor:
        w = self.network(task, self.layer, self.block)
        hidden = functional.gelu(functional.linear(y, w["down_weight"], w["down_bias"]), approximate="tanh")
        return y + functional.linear(hidden, w["up_weight"], w["up_bias"])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The Linear's output y ``[B, S, d]`` with the adapter's correction."""
        return self.route.each(self._adapt, y)


class Hyperformer(Tuning):
    """Adapters written by a hyper-network; what tasks have in common is in the network.

    Args:
        reduction_factor: the bottleneck has d // reduction_factor units.
        efficient: one generator for all kinds of blocks, told apart by an embedding.
        projected_dim: size of what the generators read; the published scripts' 8.
        embedding_dim: size of the embeddings of tasks, layers and blocks.
        hidden_dim: units of the MLP.
        init_std: of all Linears of the networks, N(0, init_std); their biases begin as 0.
        **trains: what else trains, see :class:`Tuning`.
    """

    def __init__(
        self,
        reduction_factor: int = 8,
        efficient: bool = False,
        projected_dim: int = 8,
        embedding_dim: int = 512,
        hidden_dim: int = 128,
        init_std: float = 0.02,
        **trains: Any,
    ) -> None:
        super().__init__(**trains)
        self.reduction_factor, self.efficient, self.init_std = check_factor(reduction_factor), efficient, init_std
        self.projected_dim, self.embedding_dim, self.hidden_dim = projected_dim, embedding_dim, hidden_dim

    def extend(self, backbone: Tunable) -> None:
        """Make a network for each stack and let it write an adapter for the output of every block."""
        bottleneck = units_of(backbone.dim, self.reduction_factor)
        tasks = nn.ParameterDict({task: torch.randn(self.embedding_dim) for task in backbone.route.tasks})
        sites = [site for site in backbone.sites() if site.role == "out"]
        for stack in ("encoder", "decoder"):
            mine = [site for site in sites if site.stack == stack]
            network = HyperNetwork(
                tasks,
                layers=1 + max(site.layer for site in mine),
                blocks=tuple(block for block in BLOCKS if any(site.block == block for site in mine)),
                by_block=self.efficient,
                hidden=self.hidden_dim,
                z=self.projected_dim,
                dim=backbone.dim,
                bottleneck=bottleneck,
            )
            draw_normal(network, self.init_std)
            for site in mine:
                site.put(HyperDelta(network, site.layer, site.block, backbone.route))
