"""Adapters (Houlsby et al. 2019) as VL-Adapter places them (Sung et al. 2022, section 3.3).

    y ──────────────────────────────────────────────────┐
    └─► [norm] ─► down d -> d/r ─► gelu ─► up ─► [norm] ─┴─► y'        y' = y + up(gelu(down(y)))

One stands on the output projection of each attention and feed-forward block, before dropout and the residual sum.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from typing import Any, Literal

from torch import Tensor, nn

from vl_peft.tuning.base import (
    Block,
    PerTask,
    Sharing,
    Tunable,
    Tuning,
    check_factor,
    draw_normal,
    part_is_shared,
    units_of,
)

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
Activation = Literal["gelu_new", "gelu", "relu", "silu", "tanh"]


class AdapterDelta(nn.Module):
    """The bottleneck at one site: ``y + after(up(activation(down(before(y)))))``.

    Args:
        down: ``[B, S, d]`` to ``[B, S, m]``.
        up: ``[B, S, m]`` to ``[B, S, d]``.
        activation: between them.
        before: norm of what goes down, or nothing.
        after: norm of what came up, or nothing.
    """

    def __init__(
        self, down: nn.Module, up: nn.Module, activation: nn.Module, before: nn.Module | None, after: nn.Module | None
    ) -> None:
        super().__init__()
        self.before, self.down, self.activation, self.up, self.after = before, down, activation, up, after

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The Linear's output y ``[B, S, d]`` with the adapter's correction; its input x is not used."""
        hidden = y if self.before is None else self.before(y)
        hidden = self.up(self.activation(self.down(hidden)))
        out: Tensor = y + (hidden if self.after is None else self.after(hidden))
        return out


class BottleneckTuning(Tuning):
    """What all bottlenecks on block outputs have in common; they differ in the Linears.

    Args:
        reduction_factor: the bottleneck has d // reduction_factor units.
        sharing: ``single`` one for all tasks, ``multiple`` one for each, ``shared_down`` / ``shared_up`` all tasks
            share that half.
        blocks: where they stand.
        stacks: in encoder, decoder or both.
        activation: between down and up; the published one is ``gelu_new``, the tanh approximation.
        norm_before: a layer norm in front of each, shared by all tasks.
        norm_after: a layer norm behind each, shared by all tasks.
        **trains: what else trains, see :class:`Tuning`.
    """

    def __init__(
        self,
        reduction_factor: int = 8,
        sharing: Sharing = "single",
        blocks: Collection[Block] = ("self", "cross", "ff"),
        stacks: Collection[Literal["encoder", "decoder"]] = ("encoder", "decoder"),
        activation: Activation = "gelu_new",
        norm_before: bool = False,
        norm_after: bool = False,
        **trains: Any,
    ) -> None:
        super().__init__(**trains)
        self.reduction_factor, self.sharing = check_factor(reduction_factor), sharing
        self.blocks, self.stacks, self.activation = blocks, stacks, activation
        self.norm_before, self.norm_after = norm_before, norm_after

    @abstractmethod
    def linear_maker(self, n_in: int, n_out: int) -> Callable[[], nn.Module]:
        """What makes the Linears ``[..., n_in]`` to ``[..., n_out]`` of one place, one for each task or for all."""

    def extend(self, backbone: Tunable) -> None:
        """Put a bottleneck on the output of every chosen block."""
        for site in list(backbone.sites()):
            if site.role == "out" and site.block in self.blocks and site.stack in self.stacks:
                site.put(self._delta(site.linear.out_features, backbone))

    def _delta(self, dim: int, backbone: Tunable) -> AdapterDelta:
        bottleneck = units_of(dim, self.reduction_factor)

        def half(name: str, n_in: int, n_out: int) -> PerTask:
            return PerTask(self.linear_maker(n_in, n_out), backbone.route, part_is_shared(name, self.sharing))

        return AdapterDelta(
            half("down", dim, bottleneck),
            half("up", bottleneck, dim),
            ACTIVATIONS[self.activation](),
            nn.LayerNorm(dim) if self.norm_before else None,
            nn.LayerNorm(dim) if self.norm_after else None,
        )


class Adapter(BottleneckTuning):
    """Bottleneck adapters of plain Linears.

    Args:
        reduction_factor: the bottleneck has d // reduction_factor units.
        sharing: see :class:`BottleneckTuning`.
        init_std: the weights begin as N(0, init_std), the biases as 0; the published code's 0.02.
        **bottleneck: see :class:`BottleneckTuning`.
    """

    def __init__(
        self, reduction_factor: int = 8, sharing: Sharing = "single", init_std: float = 0.02, **bottleneck: Any
    ) -> None:
        super().__init__(reduction_factor, sharing, **bottleneck)
        self.init_std = init_std

    def linear_maker(self, n_in: int, n_out: int) -> Callable[[], nn.Module]:
        """Plain Linears."""

        def make() -> nn.Linear:
            linear = nn.Linear(n_in, n_out)
            draw_normal(linear, self.init_std)
            return linear

        return make
