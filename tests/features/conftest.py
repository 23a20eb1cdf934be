"""Small pictures and videos made on the spot."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
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


def rotate(path: Path, degrees: int) -> None:
    """Marks an mp4 as to be shown turned clockwise: the matrix in its track header, in 16.16 fixed point."""
    content, one = bytearray(path.read_bytes()), 1 << 16
    cos, sin = {90: (0, one), 180: (-one, 0), 270: (0, -one)}[degrees]
    start = content.find(b"tkhd") + 44
    content[start : start + 36] = struct.pack(">9i", cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


@pytest.fixture
def make_video(tmp_path: Path) -> Maker:
    """``make_video(name, frames, fps, codec, options, at)`` writes a video and returns its path.

    ``at`` has the milliseconds at which each frame starts; without, they follow each other at ``fps``.
    """

    def make(
        name: str,
        frames: list[np.ndarray],
        fps: int = 4,
        codec: str = "libx264",
        options: dict[str, str] | None = None,
        at: list[int] | None = None,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", options=options or {}) as container:
            stream = container.add_stream(codec, rate=fps)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            if at:
                stream.codec_context.time_base = Fraction(1, 1000)
            for i, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if at:
                    frame.pts, frame.time_base = at[i], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return make
