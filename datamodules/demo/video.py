"""Videos of the demo world: three objects are shown one by one, then together, when one of them moves.

There may be a bump, an appearance or a disappearance too. The first shots have one object each because a video's
features are one vector per frame: of a frame with three objects it says little which colour goes with which shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from datamodules.demo.files import unfinished
from datamodules.demo.world import (
    CANVAS,
    COLORS,
    SHAPES,
    SIZES,
    Split,
    Thing,
    background,
    make_thing,
    paint,
    pick,
    shuffled,
    signature,
    split_of,
)

FPS = 4
FRAMES = 48
SECONDS = FRAMES / FPS
DIRECTIONS = ("left", "right", "up", "down")

_STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_TRAVEL = 74  # pixels between the outer columns (or rows) of the layout
_FADE = 4  # frames
SHOT = 6  # frames that show one object alone; as long as from one sampled frame to the next (1.5 s)
ACTION = 3 * SHOT  # first frame that shows all


@dataclass(frozen=True)
class Clip:
    """A video before it is drawn.

    Attributes:
        things: three objects of distinct colours and distinct shapes, where they are at the start.
        mover: the only one that moves, in ``direction`` during frames ``start`` to ``stop``, by ``travel`` pixels, when
            all are shown.
        bumped: the object it runs into and stops at, if any.
        changed: the object that ``change``s ("appears" or "disappears") at frame ``moment``.
        background: seed of the grey canvas.
    """

    things: tuple[Thing, Thing, Thing]
    mover: Thing
    direction: str
    start: int
    stop: int
    travel: int
    bumped: Thing | None
    change: str | None
    changed: Thing | None
    moment: int
    background: int

    @property
    def still(self) -> list[Thing]:
        """The objects that do not move."""
        return [t for t in self.things if t is not self.mover]

    @property
    def signature(self) -> str:
        """What the video shows, independent of jitter, background and exact times."""
        events = [self.mover.shape, self.direction, self.bumped and self.bumped.shape, self.change]
        return f"{signature(self.things)}|{events}|{self.changed and self.changed.shape}"

    def way_of(self, thing: Thing) -> str | None:
        """The direction in which ``thing`` moves; ``None`` if it stays."""
        return self.direction if thing is self.mover else None


def _cells(rng: np.random.Generator, direction: str, bump: bool) -> list[int]:
    """Cells of the mover, of the object at the end of its lane (or elsewhere) and of one outside the lane."""
    lane = int(rng.integers(3))
    along = [3 * lane + i if direction in ("left", "right") else 3 * i + lane for i in range(3)]
    if direction in ("left", "up"):
        along.reverse()
    outside = shuffled(rng, [c for c in range(9) if c not in along])
    return [along[0], along[2] if bump else outside[1], outside[0]]


def sample_clip(rng: np.random.Generator, split: Split) -> Clip:
    """A video of ``split``; directions are equally likely, a quarter has a bump, a third each appears / disappears."""
    while True:
        direction, bump = pick(rng, DIRECTIONS), bool(rng.random() < 0.25)
        looks = zip(shuffled(rng, COLORS)[:3], shuffled(rng, SHAPES)[:3], _cells(rng, direction, bump), strict=True)
        mover, second, third = (make_thing(rng, color, shape, pick(rng, SIZES), cell) for color, shape, cell in looks)
        change = pick(rng, ("appears", "disappears", None))
        travel = _TRAVEL
        if bump:
            gap = abs(second.x - mover.x) if direction in ("left", "right") else abs(second.y - mover.y)
            travel = gap - second.radius - mover.radius
        start = ACTION + int(rng.integers(2, 6))
        order = shuffled(rng, (mover, second, third))
        clip = Clip(
            things=(order[0], order[1], order[2]),
            mover=mover,
            direction=direction,
            start=start,
            stop=start + int(rng.integers(16, 23)),
            travel=travel,
            bumped=second if bump else None,
            change=change,
            changed=pick(rng, (third,) if bump else (second, third)) if change else None,
            moment=ACTION + int(rng.integers(9, 20)),
            background=int(rng.integers(2**31)),
        )
        if split_of(clip.signature) == split:
            return clip


def _opacity(clip: Clip, frame: int) -> float:
    """How visible the changing object is in a frame."""
    shown = min(1.0, max(0.0, (frame - clip.moment) / _FADE))
    return shown if clip.change == "appears" else 1.0 - shown


def render_clip(clip: Clip) -> NDArray[np.uint8]:
    """All frames of a video, uint8 ``[48, 112, 112, 3]`` RGB."""
    stage = background(clip.background)
    empty = stage.copy()
    for thing in clip.still:
        if thing is not clip.changed:
            paint(stage, thing)
    dx, dy = _STEP[clip.direction]
    frames = np.empty((FRAMES, CANVAS, CANVAS, 3), dtype=np.uint8)
    for shot, thing in enumerate(clip.things):
        frames[SHOT * shot : SHOT * (shot + 1)] = empty
        for frame in range(SHOT * shot, SHOT * (shot + 1)):
            paint(frames[frame], thing)
    for frame in range(ACTION, FRAMES):
        canvas = frames[frame]
        canvas[:] = stage
        if clip.changed is not None and (opacity := _opacity(clip, frame)) > 0:
            paint(canvas, clip.changed, opacity=opacity)
        done = min(1.0, max(0.0, (frame - clip.start) / (clip.stop - clip.start)))
        moved = round(done * clip.travel)
        paint(canvas, clip.mover, dx * moved, dy * moved)
    return frames


def write_mp4(frames: NDArray[np.uint8], path: Path) -> None:
    """Encode ``frames`` (uint8 ``[T, H, W, 3]`` RGB, 4 per second) as H.264 and put the file in place when complete."""
    part = unfinished(path)
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # The bytes must not depend on the machine's load: hence one thread, and a constant quantizer, because x264's
        # adaptive quantization was measured to give other bytes in one of a thousand runs.
        stream.options = {"preset": "veryfast", "qp": "20", "threads": "1"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    part.replace(path)
