"""Frames of a video at the rate of the published video features: one per 1.5 seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vl_peft.errors import DataError

REMEDY = "Fetch or make the video again, or leave it out."


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
    """The frames shown at ``frame_times`` of the video's duration.

    Decodes with decord, or with PyAV where decord is not installed or cannot open the file (AV1).
    The file is opened and closed inside, so this may be called in any worker.

    Returns:
        uint8 ``[T, H, W, 3]``, RGB at the video's own size.

    Raises:
        DataError: there is no such file, or neither decoder can read all of it.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "no such video file")
    if path.stat().st_size == 0:
        raise DataError(path, "the video file is empty", remedy=REMEDY)
    problems = []
    for name, read in (("decord", _read_decord), ("PyAV", _read_pyav)):
        try:
            return read(path, seconds_per_row)
        except ImportError:
            problems.append(f"{name} is not installed")
        except Exception as error:  # both have exception classes of their own, which need them imported
            problems.append(f"{name}: {str(error).strip() or repr(error)}")
    raise DataError(path, f"the video cannot be decoded ({'; '.join(problems)})", remedy=REMEDY)


def _shown_at(starts: np.ndarray, end: float, seconds_per_row: float) -> np.ndarray:
    """Index of the frame on screen at each time: the last that has started. ``starts`` is sorted."""
    times = starts[0] + frame_times(end - starts[0], seconds_per_row)
    shown: np.ndarray = np.maximum(np.searchsorted(starts, times, side="right") - 1, 0)
    return shown


def _read_decord(path: Path, seconds_per_row: float) -> np.ndarray:
    from decord import VideoReader

    # One thread: videos are read in parallel by loader workers, and threads cost more than they gain on short clips.
    reader = VideoReader(str(path), num_threads=1)
    stamps = reader.get_frame_timestamp(np.arange(len(reader)))
    rows = _shown_at(stamps[:, 0], float(stamps[-1, 1]), seconds_per_row)
    frames: np.ndarray = reader.get_batch(rows).asnumpy()
    return frames


def _read_pyav(path: Path, seconds_per_row: float) -> np.ndarray:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stamps = sorted((p.pts, p.duration or 0) for p in container.demux(stream) if p.pts is not None)
        tick = float(stream.time_base or 0)
        starts, end = np.array([pts * tick for pts, _ in stamps]), sum(stamps[-1]) * tick
        announced = (stream.duration or 0) * tick
        if end - starts[0] < announced - seconds_per_row:
            raise ValueError(f"only {end - starts[0]:.1f} of {announced:.1f} seconds are there")
        wanted = _shown_at(starts, end, seconds_per_row)
        container.seek(0)
        found: dict[int, np.ndarray] = {}
        for i, frame in enumerate(container.decode(stream)):
            if i in wanted:
                found[i] = frame.to_ndarray(format="rgb24")
            if i == wanted[-1]:
                break
    if len(found) < len(set(wanted)):
        raise ValueError(f"only {len(found)} of {len(set(wanted))} frames can be decoded")
    return np.stack([found[i] for i in wanted])
