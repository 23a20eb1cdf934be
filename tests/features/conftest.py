"""Small pictures and videos made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import av.subtitles.stream  # add_stream imports it when a test may hide av
import numpy as np
import pytest

Maker = Callable[..., Path]


def picture(left: int = 30, size: int = 112) -> np.ndarray:
    """A grey canvas with a red square at ``left`` and a blue bar: uint8 ``[size, size, 3]``."""
    frame = np.full((size, size, 3), 130, np.uint8)
    frame[20:45, left : left + 25] = (215, 35, 35)
    frame[70:80, 20:90] = (40, 75, 225)
    return frame


@pytest.fixture
def make_video(tmp_path: Path) -> Maker:
    """``make_video(name, frames, fps, codec, options)`` writes a video and returns its path."""

    def make(
        name: str,
        frames: list[np.ndarray],
        fps: int = 4,
        codec: str = "libx264",
        options: dict[str, str] | None = None,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", options=options or {}) as container:
            stream = container.add_stream(codec, rate=fps)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path

    return make
