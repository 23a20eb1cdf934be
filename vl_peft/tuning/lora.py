"""LoRA (Hu et al. 2022): a low-rank correction beside a Linear.

x ─┬─► W x + b ──────────────────┬─► y'        y' = W x + b + (alpha / r) B A dropout(x)
└─► dropout ─► A d -> r ─► B ─┘
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from vl_peft.errors import ConfigError
from vl_peft.tuning.base import Block, PerTask, Role, Route, Sharing, Tunable, Tuning, part_is_shared


class LoRADelta(nn.Module):
    """The correction at one site.

    Args:
        n_in: size of the Linear's input.
        n_out: size of its output.
        rank: r.
        scale: alpha / r.
        dropout: probability.
        route: which task each row is of.
        sharing: which of the parts ``down`` (A) and ``up`` (B) all tasks share.
    """

    def __init__(
        self, n_in: int, n_out: int, rank: int, scale: float, dropout: float, route: Route, sharing: Sharing
    ) -> None:
        super().__init__()

        def zero() -> nn.Linear:
            linear = nn.Linear(rank, n_out, bias=False)
            nn.init.zeros_(linear.weight)
            return linear

        self.scale, self.dropout = scale, nn.Dropout(dropout)
        self.down = PerTask(lambda: nn.Linear(n_in, rank, bias=False), route, part_is_shared("down", sharing))
        self.up = PerTask(zero, route, part_is_shared("up", sharing))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The Linear's input x ``[B, S, in]`` and output y ``[B, S, out]`` to the corrected output."""
        out: Tensor = y + self.scale * self.up(self.down(self.dropout(x)))
        return out

    @torch.no_grad()
    def merged(self) -> Tensor | None:
        """What may be added to the Linear's weight in place of the correction, ``[out, in]``; if tasks share all."""
        if not (self.down.shared and self.up.shared):
            return None
        up, down = self.up.parts["shared"].weight, self.down.parts["shared"].weight
        merged: Tensor = self.scale * (up @ down)  # type: ignore[operator]
        return merged


class LoRA(Tuning):
    """Low-rank corrections of some of the Linears.

    Args:
        rank: r; the published scripts' 128.
        alpha: the correction is scaled by alpha / rank.
        dropout: of the correction's input, in training.
        sharing: ``single`` one for all tasks, ``multiple`` one for each; ``shared_down`` / ``shared_up`` share A / B.
        roles: which Linears of each block.
        blocks: which blocks.
        layer_norms: train the norms; the published code trains their biases only, as ``biases`` does.
        biases: train the biases of the language model, which all tasks share.
        **trains: what else trains, see :class:`Tuning`.
    """

    def __init__(
        self,
        rank: int = 128,
        alpha: float = 32.0,
        dropout: float = 0.1,
        sharing: Sharing = "single",
        roles: Collection[Role] = ("q", "v"),
        blocks: Collection[Block] = ("self", "cross"),
        layer_norms: bool = False,
        biases: bool = True,
        **trains: Any,
    ) -> None:
        super().__init__(layer_norms=layer_norms, biases=biases, **trains)
        if rank < 1:
            raise ConfigError(f"The rank of LoRA must be at least 1, not {rank}.")
        self.rank, self.alpha, self.dropout, self.sharing = rank, alpha, dropout, sharing
        self.roles, self.blocks = roles, blocks

    def extend(self, backbone: Tunable) -> None:
        """Put a correction on every chosen Linear."""
        scale = self.alpha / self.rank
        for site in list(backbone.sites()):
            if site.role in self.roles and site.block in self.blocks:
                n_in, n_out = site.linear.in_features, site.linear.out_features
                site.put(LoRADelta(n_in, n_out, self.rank, scale, self.dropout, backbone.route, self.sharing))
