"""Which frames are read, by which decoder, and what happens to broken files."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import pytest

from tests.features.conftest import Maker, picture
from vl_peft.errors import DataError
from vl_peft.features import frame_times, read_frames


@pytest.mark.parametrize(
    ("duration", "rows", "first", "interval"),
    [
        (12.0, 8, 0.75, 1.5),
        (60.0, 40, 0.75, 1.5),
        (60.8, 41, 0.75, 1.5),
        (1.6, 1, 0.75, 1.5),
        (1.59, 3, 0.25, 0.5),
        (0.9, 2, 0.25, 0.5),
        (0.1, 1, 0.25, 0.5),
    ],
)
def test_frame_times(duration: float, rows: int, first: float, interval: float) -> None:
    times = frame_times(duration)
    assert len(times) == rows
    np.testing.assert_allclose(times, first + interval * np.arange(rows))


def grey(level: int) -> np.ndarray:
    return np.full((64, 64, 3), level, np.uint8)


@pytest.fixture(params=["decord", "av"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Leaves only one decoder importable."""
    if request.param == "decord":
        pytest.importorskip("decord")
    monkeypatch.setitem(sys.modules, {"decord": "av", "av": "decord"}[request.param], None)
    return request.param


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_takes_the_frame_on_screen(make_video: Maker, decoder: str, suffix: str) -> None:
    codec = "libx264" if suffix == ".mp4" else "libvpx-vp9"
    path = make_video(f"v{suffix}", [grey(4 * i) for i in range(50)], fps=8, codec=codec)  # 6.25 s
    frames = read_frames(path)
    assert (frames.shape, frames.dtype) == ((4, 64, 64, 3), np.uint8)
    wanted = [4 * int(8 * t) for t in frame_times(6.25)]
    np.testing.assert_allclose(frames.mean((1, 2, 3)), wanted, atol=2.5)


def test_short_clip_has_a_row(make_video: Maker, decoder: str) -> None:
    assert len(read_frames(make_video("v.mp4", [grey(90)], fps=25))) == 1


def test_both_decoders_agree(make_video: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("decord")
    path = make_video("v.mp4", [picture(2 * i) for i in range(30)])
    frames = read_frames(path)
    monkeypatch.setitem(sys.modules, "decord", None)
    assert np.abs(frames.astype(int) - read_frames(path)).mean() < 1


@pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="no AV1 encoder in this PyAV")
def test_av1_falls_back_to_pyav(make_video: Maker) -> None:
    path = make_video("v.mp4", [picture(2 * i) for i in range(48)], codec="libsvtav1")
    assert len(read_frames(path)) == 8


def test_broken_files(make_video: Maker, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such video"):
        read_frames(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DataError, match="empty"):
        read_frames(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match="cannot be decoded"):
        read_frames(tmp_path / "text.mp4")


@pytest.mark.parametrize("index_first", [True, False])
def test_truncated(make_video: Maker, decoder: str, index_first: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 64, 64, 3), dtype=np.uint8)
    options = {"movflags": "faststart"} if index_first else {}
    path = make_video("v.mp4", list(noise), options=options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cannot be decoded"):
        read_frames(path)
