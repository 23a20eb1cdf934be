"""Adapters (Houlsby et al. 2019) as VL-Adapter places them (Sung et al. 2022, section 3.3).

    y ──────────────────────────────┐
    └─► down d -> d/r ─► gelu ─► up ─┴─► y'        y' = y + up(gelu(down(y)))

One stands on the output projection of each attention and feed-forward block, before dropout and the residual sum.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from torch import Tensor, nn

from vl_peft.errors import ConfigError
from vl_peft.tuning.base import PerTask, Route, Sharing, Tunable, Tuning, part_is_shared

Block = Literal["self", "cross", "ff"]


class AdapterDelta(nn.Module):
    """The bottleneck at one site.

    Args:
        dim: size d of the site's output.
        bottleneck: size of the hidden layer.
        route: which task's parts are used.
        sharing: which of the parts ``down`` and ``up`` all tasks share.
        init_std: the weights begin as N(0, init_std), the biases as 0.
    """

    def __init__(self, dim: int, bottleneck: int, route: Route, sharing: Sharing, init_std: float) -> None:
        super().__init__()

        def linear(n_in: int, n_out: int) -> nn.Linear:
            layer = nn.Linear(n_in, n_out)
            nn.init.normal_(layer.weight, std=init_std)
            nn.init.zeros_(layer.bias)
            return layer

        self.down = PerTask(lambda: linear(dim, bottleneck), route, part_is_shared("down", sharing))
        self.up = PerTask(lambda: linear(bottleneck, dim), route, part_is_shared("up", sharing))
        self.activation = nn.GELU(approximate="tanh")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The Linear's output y ``[B, S, d]`` with the adapter's correction; its input x is not used."""
        out: Tensor = y + self.up(self.activation(self.down(y)))
        return out


class Adapter(Tuning):
    """Bottleneck adapters.

    Args:
        reduction_factor: the bottleneck has d // reduction_factor units.
        sharing: ``single`` one adapter for all tasks, ``multiple`` one for each, ``shared_down`` / ``shared_up`` all
            tasks share that half.
        blocks: where adapters stand, in encoder and decoder.
        init_std: see :class:`AdapterDelta`; the published code's 0.02.
        layer_norms: train the layer norms of the language model.
        visual_embedding: train the embedding of the visual features.
    """

    def __init__(
        self,
        reduction_factor: int = 8,
        sharing: Sharing = "single",
        blocks: Collection[Block] = ("self", "cross", "ff"),
        init_std: float = 0.02,
        layer_norms: bool = True,
        visual_embedding: bool = True,
    ) -> None:
        super().__init__(layer_norms, visual_embedding)
        if reduction_factor < 1:
            raise ConfigError(f"reduction_factor must be at least 1, not {reduction_factor}.")
        self.reduction_factor, self.sharing, self.blocks, self.init_std = reduction_factor, sharing, blocks, init_std

    def extend(self, backbone: Tunable) -> None:
        """Put an adapter on the output of every chosen block."""
        for site in list(backbone.sites()):
            if site.role == "out" and site.block in self.blocks:
                dim = site.linear.out_features
                bottleneck = dim // self.reduction_factor
                if bottleneck < 1:
                    raise ConfigError(f"reduction_factor {self.reduction_factor} leaves no unit of {dim}.")
                site.put(AdapterDelta(dim, bottleneck, backbone.route, self.sharing, self.init_std))
