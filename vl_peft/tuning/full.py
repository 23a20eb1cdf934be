"""Strategies that add nothing to the backbone or next to nothing: what trains of it is what they differ in."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from vl_peft.tuning.base import PerTask, Tunable, Tuning, check_factor, draw_normal


class FullFineTuning(Tuning):
    """All parameters of the backbone train (the upper reference of the paper, Table 1)."""

    def __init__(self) -> None:
        super().__init__()

    def extend(self, backbone: Tunable) -> None:
        """Unfreeze everything."""
        for parameter in backbone.parameters():
            parameter.requires_grad_(True)


class _NothingAdded(Tuning):
    def extend(self, backbone: Tunable) -> None:
        """Nothing is added."""


class VisualEmbeddingOnly(_NothingAdded):
    """Only the embedding of the visual features trains (the lower reference: a frozen language model).

    Args:
        layer_norms: train the norms of the language model.
        **trains: what else trains, see :class:`Tuning`.
    """

    def __init__(self, layer_norms: bool = False, **trains: Any) -> None:
        super().__init__(layer_norms=layer_norms, **trains)


class LayerNormTuning(_NothingAdded):
    """The norms of the language model train.

    Args:
        **trains: what else trains, see :class:`Tuning`.
    """

    def __init__(self, **trains: Any) -> None:
        super().__init__(**trains)


class BitFit(_NothingAdded):
    """The biases of the language model train (Ben Zaken et al. 2022). T5 has none.

    Args:
        layer_norms: train the weights of the norms too.
        biases: train the biases.
        **trains: what else trains, see :class:`Tuning`.
    """

    def __init__(self, layer_norms: bool = False, biases: bool = True, **trains: Any) -> None:
        super().__init__(layer_norms=layer_norms, biases=biases, **trains)


class HeadDelta(nn.Module):
    """A bottleneck beside the output head: ``y + up(gelu(down(x)))``."""

    def __init__(self, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.down, self.activation, self.up = down, nn.GELU(approximate="tanh"), up

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Decoder states x ``[N, d]`` and logits y ``[N, vocabulary]`` to corrected logits."""
        out: Tensor = y + self.up(self.activation(self.down(x)))
        return out


class LMHeadAdapter(Tuning):
    """A bottleneck from the decoder states to the logits, beside the frozen output head.

    Args:
        reduction_factor: the bottleneck has d // reduction_factor units.
        sharing: one for all tasks or one for each.
        init_std: the weights begin as N(0, init_std), the biases as 0.
        **trains: what else trains, see :class:`Tuning`.
    """

    def __init__(
        self,
        reduction_factor: int = 16,
        sharing: Literal["single", "multiple"] = "single",
        init_std: float = 0.02,
        **trains: Any,
    ) -> None:
        super().__init__(**trains)
        self.reduction_factor, self.sharing, self.init_std = check_factor(reduction_factor), sharing, init_std

    def extend(self, backbone: Tunable) -> None:
        """Put the bottleneck beside the head."""
        head, hidden = backbone.head(), max(1, backbone.dim // self.reduction_factor)

        def linear(n_in: int, n_out: int) -> PerTask:
            def make() -> nn.Linear:
                layer = nn.Linear(n_in, n_out)
                draw_normal(layer, self.init_std)
                return layer

            return PerTask(make, backbone.route, self.sharing == "single")

        head.put(HeadDelta(linear(backbone.dim, hidden), linear(hidden, head.linear.out_features)))
