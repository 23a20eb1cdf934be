"""A vision encoder inside the model, for training from images and videos: pictures of a batch to visual features."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vl_peft.batch import Batch, PictureLayout
from vl_peft.collate import place
from vl_peft.errors import ConfigError
from vl_peft.features.encoders import load_encoder

CHUNK = 256  # pictures through the encoder at a time: bounds memory when a batch holds long videos


class Vision(nn.Module):
    """Gives a batch the visual features that its pictures would have had on disk.

    It is in evaluation mode even while it trains: batch norms keep their pretrained statistics, for a batch holds one
    task's pictures and the frames of a video resemble each other. So nothing but parameters ever changes.

    Args:
        name: of the encoder.
        trains: whether its parameters do.
    """

    def __init__(self, name: str, trains: bool) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=()):  # so that all else begins as it does without
            self.encoder = load_encoder(name).requires_grad_(trains)
        self.trains = trains
        self.train()

    def train(self, mode: bool = True) -> Vision:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)

    def forward(self, batch: Batch) -> Batch:
        """The batch with ``visual``, its mask, indices and boxes in place of ``pictures``; itself if it has none.

        Raises:
            ConfigError: the encoder's grid cannot be pooled to the benchmark's number of tokens.
        """
        if batch.pictures is None or batch.layout is None:
            return batch
        layout, device = batch.layout, batch.pictures.device
        half = next(self.encoder.parameters()).dtype == torch.bfloat16  # bf16-true; pixels are float32
        precision = torch.autocast(device.type, torch.bfloat16) if half else nullcontext()
        with torch.set_grad_enabled(self.trains and torch.is_grad_enabled()), precision:
            encoded = torch.cat([self._encode(chunk, layout) for chunk in batch.pictures.split(CHUNK)]).float()
            tokens, lengths = _shorten(encoded, layout)
        places = place(lengths, layout.pad_to)
        shape = places.mask.shape
        real = torch.arange(shape[1]) < torch.tensor([sum(row) for row in lengths])[:, None]
        visual = tokens.new_zeros(shape.numel(), tokens.shape[1])
        if not layout.ablate:
            visual = visual.index_copy(0, real.flatten().nonzero()[:, 0].to(device), tokens)
        mask, image_index, object_index = (x.to(device) for x in places)
        return replace(
            batch,
            visual=visual.unflatten(0, shape),
            visual_mask=mask,
            image_index=image_index,
            object_index=object_index,
            boxes=visual.new_zeros(*shape, 4),
            pictures=None,
            layout=None,
        )

    def _encode(self, pictures: Tensor, layout: PictureLayout) -> Tensor:
        """``[n, 3, S, S]`` to grids ``[n, cells, F]`` or vectors ``[n, F]``."""
        encode = self.encoder.grid if layout.kind == "grid" else self.encoder.pooled
        if self.trains and torch.is_grad_enabled():  # keeps the activations of one chunk, not of all
            return checkpoint(encode, pictures, use_reentrant=False)  # type: ignore[no-any-return]
        return encode(pictures)


def _shorten(encoded: Tensor, layout: PictureLayout) -> tuple[Tensor, list[list[int]]]:
    """All visual tokens ``[n, F]`` one after the other, and how many each image or video of each example has.

    The rules are those of ``vl_peft/features/pooling.py``.
    """
    if layout.kind == "grid":
        grids = _pool_grids(encoded, layout.tokens)
        return grids.flatten(0, 1), [[grids.shape[1]] * len(row) for row in layout.counts]
    videos = encoded.split(list(chain.from_iterable(layout.counts)))
    pooled = [
        functional.adaptive_max_pool1d(video.T, layout.tokens).T if len(video) > layout.tokens else video
        for video in videos
    ]
    return torch.cat(pooled), [[min(count, layout.tokens) for count in row] for row in layout.counts]


def _pool_grids(grids: Tensor, tokens: int) -> Tensor:
    """``[N, n, F]`` to ``[N, tokens, F]``; shorter grids stay as they are."""
    cells = grids.shape[1]
    if cells <= tokens:
        return grids
    side, out = isqrt(cells), isqrt(tokens)
    if side * side != cells or out * out != tokens:
        raise ConfigError(f"The encoder's {cells} grid cells cannot be pooled to {tokens}: both must be square.")
    maps = grids.transpose(1, 2).unflatten(2, (side, side))
    return functional.adaptive_max_pool2d(maps, out).flatten(2).transpose(1, 2)
