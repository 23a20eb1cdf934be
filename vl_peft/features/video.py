"""Frames of a video at the rate of the published video features: one per 1.5 seconds."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vl_peft.errors import DataError

REMEDY = "Fetch or make the video again, or leave it out."
TIE = 1e-4  # seconds; time stamps are multiples of 1 ms or of float32's precision

Prepared = TypeVar("Prepared")
Prepare = Callable[[np.ndarray], Prepared]


def frame_times(duration: float, seconds_per_row: float = 1.5) -> np.ndarray:
    """The times at which frames are taken: the middles of equal intervals, as ffmpeg's ``fps`` filter does.

    A clip hardly longer than one interval (under 1.6 s by default) gets the higher rate ``2 / max(int(duration), 1)``,
    the rule of the HERO feature extractor of the VALUE benchmark.

    Args:
        duration: seconds.
        seconds_per_row: length of an interval in seconds.

    Returns:
        float64 ``[T]``, T >= 1, seconds from the start of the video.
    """
    interval = seconds_per_row
    if duration < seconds_per_row + 0.1:
        interval = max(int(duration), 1) / 2
    rows = max(1, int(duration / interval + 0.5))
    return (np.arange(rows) + 0.5) * interval


def read_frames(path: str | Path, seconds_per_row: float = 1.5) -> np.ndarray:
    """The frames shown at ``frame_times`` of the video's duration, all at once: uint8 ``[T, H, W, 3]``.

    See :func:`map_frames`, which holds only one of them at a time.
    """
    return np.stack(map_frames(path, np.asarray, seconds_per_row))


def map_frames(path: str | Path, prepare: Prepare[Prepared], seconds_per_row: float = 1.5) -> list[Prepared]:
    """``prepare(frame)`` of each frame shown at ``frame_times`` of the video's duration.

    Decodes with decord (or decord2, which has its name), or with PyAV where there is no decord or it cannot read the
    file (AV1); that this happens is said once per process. The file is opened and closed inside, so this may be called
    in any worker; only one frame of the video's own size is held at a time.

    Args:
        path: of the video.
        prepare: called with uint8 ``[H, W, 3]``, RGB at the video's own size, upright also where the video is marked as
            rotated.
        seconds_per_row: see ``frame_times``.

    Returns:
        T results, in order.

    Raises:
        DataError: there is no such file, or neither decoder can read all of it.
    """
    path = Path(path).absolute()  # FFmpeg takes what stands before a colon in a relative one for a protocol
    if not path.is_file():
        raise DataError(path, "no such video file")
    if path.stat().st_size == 0:
        raise DataError(path, "the video file is empty", remedy=REMEDY)
    problems = []
    for name, read in (("decord", _map_decord), ("PyAV", _map_pyav)):
        try:
            prepared = read(path, prepare, seconds_per_row)
        except ImportError:
            problems.append(f"{name} is not installed")
        except Exception as error:  # both have exception classes of their own, which need them imported
            problems.append(f"{name}: {_reason(error)}")
        else:
            if problems:
                _say_once("decord is not installed" if "not installed" in problems[0] else "decord cannot read a video")
            return prepared
    raise DataError(path, f"the video cannot be decoded ({'; '.join(problems)})", remedy=REMEDY)


@functools.cache
def _say_once(problem: str) -> None:
    logging.getLogger(__name__).warning("%s: PyAV decodes instead", problem)


def _reason(error: Exception) -> str:
    """One line, without the time and source line that decord puts in front: the same in every run."""
    text = " ".join((str(error).strip() or repr(error)).split("Stack trace")[0].split())
    return re.sub(r"^\[[\d:]+\] \S+:\d+: (Check failed: .*? \(.*?\) )?", "", text)


def _shown_at(starts: np.ndarray, end: float, announced: float, seconds_per_row: float) -> list[int]:
    """Index of the frame taken for each row: the last that starts before its time, as ffmpeg's ``fps`` filter takes it.

    Args:
        starts: seconds at which each frame starts, sorted.
        end: seconds at which the last one ends.
        announced: seconds that the file says it has, 0 where it does not say.
        seconds_per_row: see ``frame_times``.

    Raises:
        ValueError: a row or more of what is announced is not there.
    """
    duration = end - float(starts[0])
    if duration < announced - seconds_per_row:
        raise ValueError(f"only {duration:.1f} of {announced:.1f} seconds are there")
    times = starts[0] + frame_times(duration, seconds_per_row)
    shown: list[int] = np.maximum(np.searchsorted(starts, times - TIE) - 1, 0).tolist()
    return shown


def _map_decord(path: Path, prepare: Prepare[Prepared], seconds_per_row: float) -> list[Prepared]:
    from decord import VideoReader

    # One thread: videos are read in parallel by loader workers, and threads cost more than they gain on short clips.
    reader = VideoReader(str(path), num_threads=1)
    stamps = reader.get_frame_timestamp(np.arange(len(reader)))
    if stamps[0, 0] < 0:
        raise ValueError("it begins within another video (an edit list)")  # decord would count the hidden frames
    rows = _shown_at(stamps[:, 0], float(stamps[-1, 1]), _announced(path), seconds_per_row)
    prepared = {i: prepare(reader.get_batch([i]).asnumpy()[0]) for i in dict.fromkeys(rows)}
    return [prepared[i] for i in rows]


def _map_pyav(path: Path, prepare: Prepare[Prepared], seconds_per_row: float) -> list[Prepared]:
    import av

    with av.open(str(path)) as container:
        stream = _video_stream(container)
        stamps = sorted((p.pts, p.duration or 0) for p in container.demux(stream) if _is_shown(p))
        if not stamps:
            raise ValueError("it has no frames")
        starts = np.array([pts for pts, _ in stamps]) * float(stream.time_base)
        end = sum(stamps[-1]) * float(stream.time_base)
        rows = [stamps[i][0] for i in _shown_at(starts, end, _seconds(stream), seconds_per_row)]
    prepared: dict[int, Prepared] = {}
    with av.open(str(path)) as container:  # not all files can be wound back
        for frame in container.decode(_video_stream(container)):
            if frame.pts in rows:
                picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                prepared[frame.pts] = prepare(np.ascontiguousarray(picture))
            if len(prepared) == len(set(rows)):
                break
    if len(prepared) < len(set(rows)):
        raise ValueError(f"only {len(prepared)} of {len(set(rows))} frames can be decoded")
    return [prepared[pts] for pts in rows]


def _is_shown(packet: Any) -> bool:
    return packet.pts is not None and not packet.is_discard


def _announced(path: Path) -> float:
    """Seconds that the file says its video has. decord does not tell, and takes what is left of a cut one for all."""
    try:
        import av
    except ImportError:
        return 0.0
    with av.open(str(path)) as container:
        return _seconds(_video_stream(container))


def _video_stream(container: Any) -> Any:
    stream = container.streams.best("video")
    if stream is None:
        raise ValueError("it has no video stream")
    return stream


def _seconds(stream: Any) -> float:
    """Seconds by the header of an mp4 or avi, by the tag of a Matroska file; 0 where neither says."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    parts = stream.metadata.get("DURATION", "0").split(":")
    return float(sum(float(part) * 60**i for i, part in enumerate(reversed(parts))))
