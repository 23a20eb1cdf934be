"""Which frames are read, by which decoder, and what happens to broken files."""

from __future__ import annotations

import contextlib
import sys
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.features.conftest import Maker, picture, rotate
from vl_peft.errors import DataError
from vl_peft.features import frame_times, map_frames, read_frames
from vl_peft.features import video as module


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
    wanted = [4 * (int(8 * t) - 1) for t in frame_times(6.25)]  # all times are ties: the frame before, as ffmpeg
    np.testing.assert_allclose(frames.mean((1, 2, 3)), wanted, atol=2.5)


def test_short_clip_has_a_row(make_video: Maker, decoder: str) -> None:
    assert len(read_frames(make_video("v.mp4", [grey(90)], fps=25))) == 1


def ffmpeg_fps(starts: list[int], end: int) -> list[int]:
    """Which frames FFmpeg's own filter ``fps=1/1.5`` lets through; starts and end in milliseconds."""
    graph, tick = av.filter.Graph(), Fraction(1, 1000)
    source = graph.add_buffer(width=16, height=16, format="gray", time_base=tick)
    rate, sink = graph.add("fps", "2/3"), graph.add("buffersink")
    source.link_to(rate)
    rate.link_to(sink)
    graph.configure()
    for i, (start, following) in enumerate(zip(starts, [*starts[1:], end], strict=True)):
        frame = av.VideoFrame.from_ndarray(np.full((16, 16), i, np.uint8), format="gray")
        frame.pts, frame.time_base, frame.duration = start, tick, following - start
        graph.push(frame)
    graph.push(None)
    shown = []
    with contextlib.suppress(av.BlockingIOError, av.EOFError):
        while True:
            shown.append(int(graph.pull().to_ndarray()[0, 0]))
    return shown


@given(st.lists(st.integers(1, 400), min_size=20, max_size=250))
def test_takes_the_frames_of_ffmpegs_filter(durations: list[int]) -> None:
    """The published features were made with it. The short-clip rule is HERO's, not the filter's."""
    starts, end = [0, *np.cumsum(durations[:-1]).tolist()], sum(durations)
    assume(end >= 1600)
    assert module._shown_at(np.array(starts) / 1000, end / 1000, 0, 1.5) == ffmpeg_fps(starts, end)


@pytest.mark.parametrize("fps", [4, 8, 24, 25, 30])
def test_takes_the_frames_of_ffmpegs_filter_at_ties(fps: int) -> None:
    starts = [round(1000 * i / fps) for i in range(240)]
    end = round(240_000 / fps)
    assert module._shown_at(np.array(starts) / 1000, end / 1000, 0, 1.5) == ffmpeg_fps(starts, end)


def both(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames by decord and by PyAV."""
    pytest.importorskip("decord")
    return tuple(np.stack(f(path, np.asarray, 1.5)) for f in (module._map_decord, module._map_pyav))  # type: ignore


def moving(count: int) -> list[np.ndarray]:
    return [picture(2 * i % 80) for i in range(count)]


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.webm", "v.avi"])
def test_decoders_agree(make_video: Maker, name: str) -> None:
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(name[2:], "libx264")
    one, other = both(make_video(name, moving(40), codec=codec))
    assert one.shape == other.shape == (7, 112, 112, 3)
    assert np.abs(one.astype(int) - other).mean() < 1


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_variable_frame_rate(make_video: Maker, name: str) -> None:
    """Frames are chosen by their times: one that stands long is taken several times."""
    at = [0, 40, 80, 5000, 5040, 9000, 9500]
    path = make_video(name, [grey(30 * i) for i in range(7)], fps=25, at=at)
    levels = [round(x / 30) for x in read_frames(path).mean((1, 2, 3))]
    assert levels == [2, 2, 2, 4, 4, 4]  # at 0.75, 2.25, ... 8.25 of 9.5 s
    one, other = both(path)
    assert np.abs(one.astype(int) - other).mean() < 1


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_videos_are_upright(make_video: Maker, degrees: int) -> None:
    path = make_video("v.mp4", [np.tile(picture(), (1, 2, 1))] * 8)
    upright = read_frames(path)[0]
    rotate(path, degrees)
    one, other = both(path)
    assert np.array_equal(one, other)
    assert np.abs(one[0].astype(int) - np.rot90(upright, -degrees // 90)).mean() < 1


def test_video_cut_out_of_another(make_video: Maker, tmp_path: Path) -> None:
    """``ffmpeg -ss 7.3 -c copy`` keeps what comes before, from the key frame on, and says that it is not shown."""
    source, path = make_video("v.mp4", [grey(i) for i in range(200)], fps=10), tmp_path / "cut.mp4"
    with av.open(str(source)) as whole, av.open(str(path), "w") as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(whole.streams.video[0]):
            if packet.pts is not None:
                packet.pts, packet.dts = (int(t - 7.3 / packet.time_base) for t in (packet.pts, packet.dts))
                packet.stream = stream
                cut.mux(packet)
    levels = read_frames(path).mean((1, 2, 3))
    np.testing.assert_allclose(levels, [int(10 * (7.3 + t)) for t in frame_times(12.7)], atol=2.5)


def test_one_frame_at_a_time(make_video: Maker, decoder: str) -> None:
    path, seen = make_video("v.mp4", moving(40)), []
    assert map_frames(path, lambda frame: seen.append(frame.shape) or len(seen)) == [1, 2, 3, 4, 5, 6, 7]
    assert seen == [(112, 112, 3)] * 7


def test_names_that_ffmpeg_takes_for_something_else(make_video: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_video("-a_b.c.mp4", [grey(9)] * 8).parent
    (folder / "-a_b.c.mp4").rename(folder / "http:-a_b.c.mp4")
    monkeypatch.chdir(folder)
    assert len(read_frames("http:-a_b.c.mp4")) == 1


@pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="no AV1 encoder in this PyAV")
def test_av1_falls_back_to_pyav_and_says_so_once(make_video: Maker, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("decord")
    path = make_video("v.mp4", [picture(2 * i) for i in range(48)], codec="libsvtav1")
    module._say_once.cache_clear()
    assert [len(read_frames(path)), len(read_frames(path))] == [8, 8]
    assert caplog.messages == ["decord cannot read a video: PyAV decodes instead"]


def test_without_decord(make_video: Maker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    path = make_video("v.mp4", moving(8))
    module._say_once.cache_clear()
    assert [len(read_frames(path)), len(read_frames(path))] == [1, 1]
    assert caplog.messages == ["decord is not installed: PyAV decodes instead"]


def test_audio_only(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="PyAV: it has no video stream"):
        read_frames(tmp_path / "a.mp4")


def test_broken_files(make_video: Maker, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such video"):
        read_frames(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DataError, match="empty"):
        read_frames(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match="cannot be decoded"):
        read_frames(tmp_path / "text.mp4")


@pytest.mark.parametrize("name", ["faststart.mp4", "v.mp4", "v.mkv", "v.webm"])
def test_truncated(make_video: Maker, decoder: str, name: str) -> None:
    """Whatever the container: not the frames that are left, silently. (Of Matroska decord alone cannot tell.)"""
    if decoder == "decord" and name in ("v.mkv", "v.webm"):
        pytest.skip("PyAV reads the length that the file announces")
    noise = np.random.default_rng(0).integers(0, 256, (96, 64, 64, 3), dtype=np.uint8)
    options = {"movflags": "faststart"} if name == "faststart.mp4" else {}
    codec = "libvpx-vp9" if name == "v.webm" else "libx264"
    path = make_video(name, list(noise), codec=codec, options=options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cannot be decoded"):
        read_frames(path)


@pytest.mark.parametrize("name", ["v.mkv", "v.webm"])
def test_truncated_for_decord(make_video: Maker, name: str) -> None:
    pytest.importorskip("decord")
    path = make_video(name, moving(48), codec="libvpx-vp9" if name == "v.webm" else "libx264")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"decord: only \d\.\d of 12\.0 seconds are there"):
        read_frames(path)


def test_reasons_are_the_same_in_every_run(make_video: Maker, tmp_path: Path) -> None:
    """decord puts the time of day in front."""
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError) as error:
        read_frames(tmp_path / "text.mp4")
    assert "[" not in str(error.value).partition("PyAV")[0]
    assert "\n" not in str(error.value)
