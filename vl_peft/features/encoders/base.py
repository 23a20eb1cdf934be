"""What a vision encoder is, and how its pictures are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


class VisionEncoder(ABC, nn.Module):
    """Images to features. Shape letters: B images, S their size in pixels, n grid cells, F feature size.

    Attributes:
        name: how folders of its features are called; without slashes.
        dim: F of the grid.
        pooled_dim: F of the pooled vector.
        size: S.
    """

    name: str
    dim: int
    pooled_dim: int
    size: int

    def prepare_image(self, image: Image.Image) -> Tensor:
        """An image of any size and mode as uint8 RGB ``[3, S, S]``: see :func:`squash`."""
        return squash(image, self.size)

    def prepare_frame(self, frame: np.ndarray) -> Tensor:
        """A video frame, uint8 ``[H, W, 3]``, as uint8 RGB ``[3, S, S]``: see :func:`centre`."""
        return centre(frame, self.size)

    @abstractmethod
    def grid(self, images: Tensor) -> Tensor:
        """Prepared images uint8 ``[B, 3, S, S]`` to float ``[B, n, F]``, row by row."""

    @abstractmethod
    def pooled(self, images: Tensor) -> Tensor:
        """Prepared images uint8 ``[B, 3, S, S]`` to one vector each, float ``[B, F]``."""


class NormalisingEncoder(VisionEncoder):
    """One that wants pixels in [0, 1] minus a mean, over a standard deviation: CLIP and its relatives.

    Args:
        name: see VisionEncoder.
        size: see VisionEncoder.
        mean: of each colour.
        std: of each colour.
    """

    def __init__(self, name: str, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.name, self.size = name, size
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 ``[B, 3, S, S]`` to float32 of the same shape."""
        x: Tensor = (images.float() / 255 - self.mean) / self.std
        return x


def squash(image: Image.Image, size: int) -> Tensor:
    """An image of any size and mode as uint8 RGB ``[3, size, size]``, bicubic; the aspect ratio is not kept."""
    return _to_tensor(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def centre(frame: np.ndarray, size: int) -> Tensor:
    """A frame uint8 ``[H, W, 3]`` as uint8 ``[3, size, size]``: shorter side to ``size``, then the centre square.

    Bicubic; the longer side is rounded down.
    """
    height, width = frame.shape[:2]
    shorter = min(height, width)
    height, width = height * size // shorter, width * size // shorter
    left, top = (width - size) // 2, (height - size) // 2
    image = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    return _to_tensor(image.crop((left, top, left + size, top + size)))


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
