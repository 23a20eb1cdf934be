"""Prompt-tuning (Lester et al. 2021; VL-Adapter, section 3.2): trained vectors before the text.

table [P, d] ─► Linear d -> h ─► tanh ─► Linear h -> d ─► prompt [P, d]
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from vl_peft.errors import ConfigError
from vl_peft.tuning.base import PerTask, Tunable, Tuning, draw_normal


class Prompt(nn.Module):
    """The reparametrized prompt of one task.

    Args:
        length: P vectors.
        dim: d.
        hidden: units of the MLP.
        init_std: table and weights begin as N(0, init_std), biases as 0.
    """

    def __init__(self, length: int, dim: int, hidden: int, init_std: float) -> None:
        super().__init__()
        self.table = nn.Embedding(length, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, dim))
        draw_normal(self, init_std)

    def forward(self, like: Tensor) -> Tensor:
        """``[B, P, d]`` for what has B rows."""
        out: Tensor = self.mlp(self.table.weight).expand(len(like), -1, -1)
        return out


class PromptTuning(Tuning):
    """Trained vectors before the encoder's text, the decoder's, or both.

    The decoder's prompt is run through the decoder by itself, without a look at the encoder, and what it leaves in
    the self-attention's keys and values is what the answer's tokens see.

    Args:
        length: of the encoder's prompt; 0 for none. The published scripts' 40.
        decoder_length: of the decoder's prompt; 0 for none.
        hidden_dim: units of the reparametrization.
        sharing: one prompt for all tasks or one for each.
        init_std: see :class:`Prompt`.
        layer_norms: train the norms of the language model; the published scripts do not.
        **trains: what else trains, see :class:`Tuning`.
    """

    def __init__(
        self,
        length: int = 40,
        decoder_length: int = 0,
        hidden_dim: int = 800,
        sharing: Literal["single", "multiple"] = "single",
        init_std: float = 0.02,
        layer_norms: bool = False,
        **trains: Any,
    ) -> None:
        super().__init__(layer_norms=layer_norms, **trains)
        if length < 0 or decoder_length < 0 or not length + decoder_length:
            raise ConfigError(f"A prompt of {length} and {decoder_length} vectors: give one of them at least one.")
        self.lengths = {"encoder_prompt": length, "decoder_prompt": decoder_length}
        self.hidden_dim, self.sharing, self.init_std = hidden_dim, sharing, init_std

    def extend(self, backbone: Tunable) -> None:
        """Give the backbone the prompts, which it puts before its text."""
        for name, length in self.lengths.items():
            if not length:
                continue
            if name in backbone.added:
                raise ConfigError(f"Two tuning strategies want the {name.replace('_', ' ')}.")
            if name == "decoder_prompt":
                _keep_activations(backbone.lm.get_decoder())  # type: ignore[operator]

            def make(length: int = length) -> Prompt:
                return Prompt(length, backbone.dim, self.hidden_dim, self.init_std)

            backbone.added[name] = PerTask(make, backbone.route, self.sharing == "single")


def _keep_activations(decoder: nn.Module) -> None:
    """No gradient checkpointing: a layer that is recomputed cannot add to a cache twice. The decoder is short."""
    for layer in decoder.modules():
        if getattr(layer, "gradient_checkpointing", False):
            layer.gradient_checkpointing = False  # type: ignore[assignment]
