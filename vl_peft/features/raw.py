"""Images and videos themselves in place of features: ``--data.raw ENCODER``.

Loader workers decode them and bring them to the encoder's size; the model encodes them (``vl_peft/vision.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from vl_peft.errors import DataError
from vl_peft.features.encoders import VisionEncoder, load_encoder
from vl_peft.features.store import FeatureStore
from vl_peft.features.video import map_frames


@lru_cache(maxsize=1)
def preparation(encoder: str) -> VisionEncoder:
    """The encoder of that name without its weights: enough to prepare pictures."""
    with torch.random.fork_rng(devices=()):  # a module draws weights before its own are loaded: a run begins without
        return load_encoder(encoder).to("meta")


class RawStore(FeatureStore):
    """Pictures ready to be encoded: ``read`` gives uint8 ``[n, 3, S, S]``, the image or every frame of the video.

    Args:
        path: the data root, for messages.
        files: image or video file of each key.
        encoder: name of the vision encoder.
        kind: ``"grid"`` reads images, ``"frames"`` videos.

    Raises:
        DataError: there is no file.
    """

    def __init__(self, path: Path, files: Mapping[str, Path], encoder: str, kind: Literal["grid", "frames"]) -> None:
        super().__init__(path)
        self.files, self.encoder, self.kind = files, encoder, kind
        if not files:
            media = "images" if kind == "grid" else "videos"
            raise DataError(path, f"no {media} below it", remedy="Put them there, or train on features without raw.")

    def read(self, key: str) -> np.ndarray:
        """The pictures; raises DataError naming the file when it is missing or cannot be decoded."""
        file = self.files.get(key)
        if file is None:
            raise DataError(self.path, "no image or video of this name below it", key)
        encoder = preparation(self.encoder)
        if self.kind == "frames":
            return np.stack(map_frames(file, lambda frame: encoder.prepare_frame(frame).numpy()))
        try:
            with Image.open(file) as image:
                return encoder.prepare_image(image).numpy()[None]
        except Exception as error:  # decoders raise nearly anything on broken files
            raise DataError(file, f"the image cannot be decoded ({error})", key, "Replace it.") from error

    @property
    def dim(self) -> int:
        """F of the features that the encoder makes of them."""
        encoder = preparation(self.encoder)
        return encoder.dim if self.kind == "grid" else encoder.pooled_dim

    def keys(self) -> list[str]:
        """All keys, sorted."""
        return sorted(self.files)

    def __contains__(self, key: str) -> bool:
        return key in self.files
