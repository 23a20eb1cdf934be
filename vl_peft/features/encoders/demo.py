"""``DemoEncoder``: a vision encoder that is small enough to ship with the package.

It is pretrained on pictures and captions of the embedded corpus (``experiments/demo/pretrain_encoder.py``) and has the
form of CLIP's ResNets (Radford et al. 2021, section 2.4): convolutions to a 7x7 grid, then attention pooling.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from vl_peft.errors import DataError
from vl_peft.features.encoders.base import VisionEncoder

PACKAGED = Path(__file__).parents[1] / "demo"


class Block(nn.Module):
    """Two 3x3 convolutions with a residual around them; ``[B, C, H, W]`` to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(x + self.norm2(self.conv2(y)))


class AttentionPool(nn.Module):
    """Learned queries look at the grid, which carries position embeddings; their answers are projected to one vector.

    CLIP asks one question, the mean of the grid; several fixed ones let a single vector tell what stands where.

    Args:
        cells: n, the number of grid cells.
        dim: F, of the grid and of the result.
        queries: number of learned queries.
        heads: number of heads each query attends with.
    """

    def __init__(self, cells: int, dim: int, queries: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.randn(cells, dim) * dim**-0.5)
        self.queries = nn.Parameter(torch.randn(heads, queries, dim // heads))
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(queries * dim, dim)

    def forward(self, grid: Tensor) -> Tensor:
        """``[B, n, F]`` to ``[B, F]``."""
        x = grid + self.positions
        key, value = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.key, self.value))
        y = functional.scaled_dot_product_attention(self.queries.expand(len(x), -1, -1, -1), key, value)
        vectors: Tensor = self.out(y.transpose(1, 2).flatten(1))
        return vectors


class DemoEncoder(VisionEncoder):
    """A small convolutional encoder: 112x112 pixels to a 7x7 grid of 128 features, and to one vector of 128.

    Args:
        widths: channels after the convolution of stride 4 and after each following one of stride 2; the last is F.
        blocks: residual blocks on the 7x7 grid.
        queries: queries of the attention pool.
        heads: heads of the attention pool.
    """

    name = "demo"
    size = 112

    def __init__(
        self, widths: tuple[int, ...] = (64, 96, 128), blocks: int = 1, queries: int = 8, heads: int = 4
    ) -> None:
        super().__init__()
        self.config = {"widths": list(widths), "blocks": blocks, "queries": queries, "heads": heads}
        self.dim = self.pooled_dim = widths[-1]
        # Stride 4 at once: half of the time would go into maps of 56x56, which small patches of colour do not need.
        shapes = [(8, 4, 2), *((3, 2, 1) for _ in widths[1:])]
        steps = [
            nn.Sequential(nn.Conv2d(before, after, *shape, bias=False), nn.BatchNorm2d(after), nn.ReLU(True))
            for before, after, shape in zip((3, *widths), widths, shapes, strict=False)
        ]
        self.trunk = nn.Sequential(*steps, *(Block(self.dim) for _ in range(blocks)))
        self.pool = AttentionPool((self.size >> len(widths) + 1) ** 2, self.dim, queries, heads)

    def grid(self, images: Tensor) -> Tensor:
        """The last convolution's map: uint8 ``[B, 3, 112, 112]`` to float ``[B, 49, 128]``, not negative."""
        x = (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        maps: Tensor = self.trunk(x)
        return maps.flatten(2).transpose(1, 2)

    def pooled(self, images: Tensor) -> Tensor:
        """uint8 ``[B, 3, 112, 112]`` to float ``[B, 128]``."""
        vectors: Tensor = self.pool(self.grid(images))
        return vectors

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> DemoEncoder:
        """The encoder saved in ``folder``, by default the weights shipped with the package; in evaluation mode.

        Raises:
            DataError: the folder has no ``encoder.json`` and ``encoder.safetensors`` that fit together.
        """
        folder = PACKAGED if folder is None else Path(folder)
        try:
            config = json.loads((folder / "encoder.json").read_text())["config"]
            encoder = cls(**config)
            encoder.load_state_dict(load_file(folder / "encoder.safetensors"))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            remedy = "Make it with experiments/demo/pretrain_encoder.py."
            raise DataError(folder, f"no usable encoder weights ({error})", remedy=remedy) from error
        return encoder.eval()

    def save_pretrained(self, folder: str | Path, **facts: object) -> None:
        """Writes ``encoder.safetensors`` and ``encoder.json``: the arguments of the class and any further ``facts``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights, card = folder / ".encoder.safetensors.tmp", folder / ".encoder.json.tmp"
        # As bytes: safetensors' own writer makes files that only their owner can read, whatever the umask.
        weights.write_bytes(save({name: x.cpu().contiguous() for name, x in self.state_dict().items()}))
        card.write_text(json.dumps({"name": self.name, "dim": self.dim, "config": self.config, **facts}, indent=1))
        weights.replace(folder / "encoder.safetensors")
        card.replace(folder / "encoder.json")
