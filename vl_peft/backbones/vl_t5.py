"""VL-T5: T5 (Raffel et al. 2020) that reads visual tokens (Cho et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5LayerNorm

from vl_peft.backbones.base import Backbone
from vl_peft.tuning.base import Site

ComputeBias = Callable[..., Tensor]


def text_bias(backbone: VLT5, compute: ComputeBias, query_length: int, key_length: int, **more: object) -> Tensor:
    """Relative position bias ``[1, heads, S, S]`` of text and vision: T5's among text tokens, 0 to and from vision."""
    length = min(backbone.text_length, query_length)
    return functional.pad(compute(length, length, **more), (0, key_length - length, 0, query_length - length))


class VLT5(Backbone):
    """T5 with visual tokens behind the text.

    Visual tokens have no position: the relative position bias of every pair with one of them is 0. See
    :class:`Backbone` for the arguments.
    """

    model_class = T5ForConditionalGeneration
    beams_end = False

    def join_embeddings(self) -> None:
        """Limit the encoder's relative position bias to the text."""
        attention = self.lm.get_encoder().block[0].layer[0].SelfAttention
        attention.compute_bias = partial(text_bias, self, attention.compute_bias)

    def embed_text(self, input_ids: Tensor, prompt: Tensor | None) -> Tensor:
        """``[prompt, token]``: positions come as relative biases, and the prompt counts as text."""
        text: Tensor = self.lm.get_input_embeddings()(input_ids)
        return text if prompt is None else torch.cat([prompt, text], dim=1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the tied token table, which T5 scales by 1 / sqrt(D)."""
        if self.lm.config.scale_decoder_outputs:
            hidden = hidden * self.lm.config.d_model**-0.5
        out: Tensor = self.lm.lm_head(hidden)
        return out

    def norm(self, dim: int) -> nn.Module:
        """T5 has RMS norms without bias."""
        norm: nn.Module = T5LayerNorm(dim)
        return norm

    def sites(self) -> Iterator[Site]:
        """Query, key, value and output of every attention, input(s) and output of every feed-forward block."""
        for stack in ("encoder", "decoder"):
            for i, block in enumerate(getattr(self.lm, stack).block):
                attentions = {"self": block.layer[0].SelfAttention}
                if stack == "decoder":
                    attentions["cross"] = block.layer[1].EncDecAttention
                for name, attention in attentions.items():
                    for role, linear in {"q": "q", "k": "k", "v": "v", "out": "o"}.items():
                        yield Site(stack, i, name, role, attention, linear)  # type: ignore[arg-type]
                feed_forward = block.layer[-1].DenseReluDense
                for linear in ("wi", "wi_0", "wi_1"):  # one, or the two of a gated block
                    if hasattr(feed_forward, linear):
                        yield Site(stack, i, "ff", "in", feed_forward, linear)  # type: ignore[arg-type]
                yield Site(stack, i, "ff", "out", feed_forward, "wo")  # type: ignore[arg-type]

    def language_norms(self) -> Iterator[nn.Module]:
        """All norms of the language model, without those of deltas."""
        for stack in (self.lm.encoder, self.lm.decoder):
            for block in stack.block:
                yield from (layer.layer_norm for layer in block.layer)
            yield stack.final_layer_norm

    def position_biases(self) -> Iterator[nn.Module]:
        """The bias tables of encoder and decoder."""
        for stack in (self.lm.encoder, self.lm.decoder):
            yield stack.block[0].layer[0].SelfAttention.relative_attention_bias

    @property
    def token_std(self) -> float:
        """T5's initialisation."""
        std: float = self.lm.config.initializer_factor
        return std

    @property
    def answer_start(self) -> list[int]:
        """T5's answers begin with its pad token."""
        return [self.lm.config.decoder_start_token_id]
