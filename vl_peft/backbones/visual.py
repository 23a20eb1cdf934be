"""From visual features to visual tokens (VL-T5, Cho et al. 2021, section 3.1; VL-Adapter, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vl_peft.tuning.base import draw_normal


class VisualEmbedding(nn.Module):
    """Sum of four embeddings: feature, box, which image, and which object.

    The object embedding is a row of the language model's token table, counted from its end (``<vis_extra_id_0>`` is
    the last row), and is handed in because it belongs to the language model.

    Args:
        feature_dim: F.
        dim: D.
        norm: makes the norm after each projection (layer norm for BART, RMS norm for T5).
        n_images: the most images an example can have.
    """

    def __init__(self, feature_dim: int, dim: int, norm: Callable[[int], nn.Module], n_images: int = 2) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.feature = nn.Sequential(nn.Linear(feature_dim, dim), norm(dim))
        self.box = nn.Sequential(nn.Linear(5, dim), norm(dim))
        self.image = nn.Embedding(n_images, dim)
        draw_normal(self, 0.02)

    def forward(self, visual: Tensor, boxes: Tensor, image_index: Tensor, objects: Tensor) -> Tensor:
        """Visual tokens ``[B, V, D]``.

        Args:
            visual: features ``[B, V, F]``.
            boxes: ``[B, V, 4]`` in the unit square. The published code reads them as (x1, x2, y1, y2) when it makes the
                fifth number, an area; the feature files have (x1, y1, x2, y2). Trained weights know it so.
            image_index: int64 ``[B, V]``.
            objects: object embeddings ``[B, V, D]``.
        """
        x1, x2, y1, y2 = boxes.unbind(-1)
        boxes = torch.cat([boxes, ((y2 - y1) * (x2 - x1)).unsqueeze(-1)], dim=-1)
        visual, boxes = visual.to(self.image.weight.dtype), boxes.to(self.image.weight.dtype)
        out: Tensor = self.feature(visual) + self.box(boxes) + self.image(image_index) + objects
        return out
