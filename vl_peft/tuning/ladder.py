"""Ladder side-tuning (Sung, Cho and Bansal 2022, "LST"): a small network beside the frozen backbone.

    backbone   x0 ─► layer 1 ─► x1 ─► layer 2 ─► x2 ─ ... ─► xn ──────────(+)─► head
                │               │                │                         ▲
    side       down ──────────► gate ─► side 1 ─► gate ─► side 2 ─ ... ─► up

    gate(s, x) = g down(x) + (1 - g) s          g = sigmoid(learned / 0.1)

No gradient goes through the backbone, which saves the memory for its activations. The side decoder attends to the side
encoder. Only the first input x0, which holds the trained visual embedding, gets a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vl_peft.errors import ConfigError
from vl_peft.tuning.base import PerTask, Tunable, Tuning, check_factor

TEMPERATURE = 0.1


class SideStack(nn.Module):
    """The side network of an encoder or a decoder.

    Args:
        layers: of the backbone's stack, each of which has one beside it.
        dim: D of the backbone.
        side_dim: d of the side network.
        heads: of its attention.
        cross: attend to a side encoder, and to the past only: a decoder.
        dropout: in the side layers.
    """

    def __init__(self, layers: int, dim: int, side_dim: int, heads: int, cross: bool, dropout: float) -> None:
        super().__init__()
        kind = nn.TransformerDecoderLayer if cross else nn.TransformerEncoderLayer
        self.cross = cross
        self.downs = nn.ModuleList(nn.Linear(dim, side_dim) for _ in range(layers + 1))
        self.gates = nn.Parameter(torch.zeros(layers))
        self.layers = nn.ModuleList(
            kind(side_dim, heads, 4 * side_dim, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(side_dim)

    def forward(self, states: Tensor, mask: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """The side network's last states ``[B, S, d]``.

        Args:
            states: input and outputs of the backbone's layers, ``[B, layers + 1, S, D]``.
            mask: ``[B, S]`` of an encoder, ``[B, S of the memory]`` of a decoder; 1 for what may be attended to.
            memory: of a decoder, the side encoder's states ``[B, S', d]``.
        """
        hidden: Tensor = self.downs[0](states[:, 0])
        padding = None if mask is None else mask == 0
        causal = None
        if self.cross:
            causal = nn.Transformer.generate_square_subsequent_mask(states.shape[2], states.device, hidden.dtype)
        for i, layer in enumerate(self.layers):
            gate = torch.sigmoid(self.gates[i] / TEMPERATURE)
            hidden = gate * self.downs[i + 1](states[:, i + 1]) + (1 - gate) * hidden
            if self.cross:
                hidden = layer(hidden, memory, tgt_mask=causal, memory_key_padding_mask=padding)
            else:
                hidden = layer(hidden, src_key_padding_mask=padding)
        out: Tensor = self.norm(hidden)
        return out


class LadderSideTuning(Tuning):
    """A side network of 1 / ``reduction_factor`` of the backbone's width.

    Args:
        reduction_factor: the side network has width D // reduction_factor.
        heads: of the side network's attention; divides its width.
        dropout: in the side network.
        sharing: one side network for all tasks or one for each.
        visual_embedding: train the embedding of the visual features.
    """

    def __init__(
        self,
        reduction_factor: int = 8,
        heads: int = 4,
        dropout: float = 0.1,
        sharing: Literal["single", "multiple"] = "single",
        visual_embedding: bool = True,
    ) -> None:
        super().__init__(layer_norms=False, visual_embedding=visual_embedding)
        self.reduction_factor, self.heads = check_factor(reduction_factor), heads
        self.dropout, self.sharing = dropout, sharing

    def extend(self, backbone: Tunable) -> None:
        """Put a side network beside encoder and decoder, and a Linear that brings its states back to width D."""
        dim = backbone.dim // self.reduction_factor
        if dim < 1 or dim % self.heads:
            raise ConfigError(
                f"A side network of width {backbone.dim} // {self.reduction_factor} = {dim} cannot have {self.heads} "
                "heads."
            )
        sites = list(backbone.sites())
        for stack in ("encoder", "decoder"):
            layers = 1 + max(site.layer for site in sites if site.stack == stack)
            backbone.added[f"{stack}_side"] = self._part(
                backbone, SideStack, layers, backbone.dim, dim, self.heads, stack == "decoder", self.dropout
            )
        backbone.added["side_up"] = self._part(backbone, zero_linear, dim, backbone.dim)

    def _part(self, backbone: Tunable, kind: Callable[..., nn.Module], *arguments: Any) -> PerTask:
        return PerTask(lambda: kind(*arguments), backbone.route, self.sharing == "single")


def zero_linear(n_in: int, n_out: int) -> nn.Linear:
    """A Linear that gives nothing at first, so that training begins at the backbone's own answers."""
    linear = nn.Linear(n_in, n_out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
