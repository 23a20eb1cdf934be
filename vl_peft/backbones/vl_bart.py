"""VL-BART: BART (Lewis et al. 2020) that reads visual tokens (Cho et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BartForConditionalGeneration

from vl_peft.backbones.base import Backbone
from vl_peft.tuning.base import Site


class _NoPositions(nn.Module):
    """In place of the encoder's position embedding, which :meth:`VLBart.embed_text` has applied to the text."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(1)


class VLBart(Backbone):
    """BART with visual tokens behind the text.

    Text gets position embeddings and the embedding norm; visual tokens get neither. See :class:`Backbone` for the
    arguments.
    """

    model_class = BartForConditionalGeneration
    beams_end = True

    def join_embeddings(self) -> None:
        """Take position embedding and embedding norm over from the encoder, which would apply them to vision too."""
        encoder = self.lm.get_encoder()
        self.text_positions, self.text_norm = encoder.embed_positions, encoder.layernorm_embedding
        encoder.embed_positions, encoder.layernorm_embedding = _NoPositions(), nn.Identity()

    def save_pretrained(self, folder: Path) -> None:
        """As :meth:`Backbone.save_pretrained`, the two modules that were taken over back in their places."""
        encoder = self.lm.get_encoder()
        encoder.embed_positions, encoder.layernorm_embedding = self.text_positions, self.text_norm
        super().save_pretrained(folder)
        encoder.embed_positions, encoder.layernorm_embedding = _NoPositions(), nn.Identity()

    def embed_text(self, input_ids: Tensor, prompt: Tensor | None) -> Tensor:
        """``norm([prompt, token + position])``: the prompt has no position, and the text is not shifted by it."""
        text = self.lm.get_encoder().embed_tokens(input_ids) + self.text_positions(input_ids)
        out: Tensor = self.text_norm(text if prompt is None else torch.cat([prompt, text], dim=1))
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the tied token table plus the (zero) bias of the checkpoint."""
        out: Tensor = self.lm.lm_head(hidden) + self.lm.final_logits_bias
        return out

    def norm(self, dim: int) -> nn.Module:
        """BART has layer norms."""
        return nn.LayerNorm(dim)

    def sites(self) -> Iterator[Site]:
        """Query, key, value and output of every attention, input and output of every feed-forward block."""
        names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
        for stack in ("encoder", "decoder"):
            for i, layer in enumerate(getattr(self.lm.model, stack).layers):
                blocks = {"self": layer.self_attn} | ({"cross": layer.encoder_attn} if stack == "decoder" else {})
                for block, attention in blocks.items():
                    for role, name in names.items():
                        yield Site(stack, i, block, role, attention, name)  # type: ignore[arg-type]
                yield Site(stack, i, "ff", "in", layer, "fc1")  # type: ignore[arg-type]
                yield Site(stack, i, "ff", "out", layer, "fc2")  # type: ignore[arg-type]

    def language_norms(self) -> Iterator[nn.Module]:
        """All layer norms of the language model, the embedding norm included, without those of deltas."""
        yield self.text_norm
        yield self.lm.model.decoder.layernorm_embedding
        for stack in (self.lm.model.encoder, self.lm.model.decoder):
            for layer in stack.layers:
                yield from (m for m in layer.children() if isinstance(m, nn.LayerNorm))

    @property
    def token_std(self) -> float:
        """BART's initialisation."""
        std: float = self.lm.config.init_std
        return std

    @property
    def answer_start(self) -> list[int]:
        """BART's answers begin with ``</s><s>``."""
        return [self.lm.config.decoder_start_token_id, self.lm.config.bos_token_id]
