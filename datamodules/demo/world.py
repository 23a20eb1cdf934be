"""The world of the demo corpus: coloured shapes on a grey canvas, what can be said of them, and how they look.

Everything is a pure function of the generator it is drawn from. A scene belongs to exactly one split, because the hash
of what it shows decides the split; so no split can share a scene with another one, whatever the seed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

T = TypeVar("T")
Split = Literal["pretrain", "pretrain_val", "train", "more", "val", "test"]

CANVAS = 112
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SIZES = ("small", "large")
PLACES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip

_RGB = {
    "red": (215, 35, 35),
    "green": (35, 160, 55),
    "blue": (40, 75, 225),
    "yellow": (240, 220, 40),
    "purple": (150, 45, 185),
    "orange": (245, 135, 25),
    "white": (245, 245, 245),
    "black": (18, 18, 18),
}
_RADII = {"small": (8, 9), "large": (14, 15)}
_CENTERS = (19, 56, 93)
_JITTER = 3
# Percent of all scenes; "more" is training data kept apart from "train" (the val file of GQA, which is trained on too).
_SHARES: dict[Split, range] = {
    "pretrain": range(48),
    "pretrain_val": range(48, 50),
    "train": range(50, 72),
    "more": range(72, 80),
    "val": range(80, 90),
    "test": range(90, 100),
}


@dataclass(frozen=True)
class Thing:
    """One object: what it is (``color``, ``shape``, ``size``, ``cell`` of the 3x3 layout) and its look in pixels."""

    color: str
    shape: str
    size: str
    cell: int
    x: int
    y: int
    radius: int
    angle: int
    rgb: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Colour and shape, ``"red star"``."""
        return f"{self.color} {self.shape}"

    @property
    def place(self) -> str:
        """The name of its cell, ``"top left"``."""
        return PLACES[self.cell]

    @property
    def row(self) -> int:
        """Row of its cell, 0 at the top."""
        return self.cell // 3

    @property
    def column(self) -> int:
        """Column of its cell, 0 at the left."""
        return self.cell % 3


@dataclass(frozen=True)
class Scene:
    """An image before it is drawn: its objects and the seed of its background."""

    things: tuple[Thing, ...]
    background: int

    @property
    def signature(self) -> str:
        """What the scene shows, independent of order, jitter and background."""
        return signature(self.things)


def generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """The random numbers of item ``index`` of the named stream (``"coco-train"``); independent of all others."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), index])


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One item, uniformly (``rng.choice`` would make numpy scalars of them)."""
    return items[int(rng.integers(len(items)))]


def shuffled(rng: np.random.Generator, items: Iterable[T]) -> list[T]:
    """All items in random order."""
    pool = list(items)
    return [pool[int(i)] for i in rng.permutation(len(pool))]


def signature(things: Iterable[Thing]) -> str:
    """Sorted ``cell color shape size`` of all objects."""
    return "|".join(sorted(f"{t.cell} {t.color} {t.shape} {t.size}" for t in things))


def split_of(text: str) -> Split:
    """The only split that may show the scene or video with this signature."""
    bucket = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") % 100
    return next(split for split, buckets in _SHARES.items() if bucket in buckets)


def make_thing(rng: np.random.Generator, color: str, shape: str, size: str, cell: int) -> Thing:
    """An object with a jittered position, radius, angle and tint."""
    dx, dy = (int(v) for v in rng.integers(-_JITTER, _JITTER + 1, 2))
    tint = rng.integers(-9, 10, 3)
    red, green, blue = (int(min(255, max(0, c + t))) for c, t in zip(_RGB[color], tint, strict=True))
    return Thing(
        color, shape, size, cell,
        x=_CENTERS[cell % 3] + dx,
        y=_CENTERS[cell // 3] + dy,
        radius=pick(rng, _RADII[size]),
        angle=pick(rng, (-9, 0, 9)),
        rgb=(red, green, blue),
    )  # fmt: skip


def sample_scene(
    rng: np.random.Generator,
    split: Split,
    counts: Sequence[int] = (2, 3, 4),
    all_colors: Sequence[str] = COLORS,
    all_shapes: Sequence[str] = SHAPES,
) -> Scene:
    """A scene of ``split`` with one of ``counts`` objects of distinct (colour, shape) pairs from the given ones.

    Half of the scenes draw from few colours and shapes: there the same shape occurs in two colours, so that a question
    needs the pair of both.
    """
    while True:
        few = rng.random() < 0.5
        shapes = shuffled(rng, all_shapes)[: 2 if few else None]
        colors = shuffled(rng, all_colors)[: 3 if few else None]
        pairs = shuffled(rng, [(c, s) for c in colors for s in shapes])[: pick(rng, counts)]
        cells = shuffled(rng, range(9))
        things = [
            make_thing(rng, color, shape, pick(rng, SIZES), cell)
            for (color, shape), cell in zip(pairs, cells, strict=False)
        ]
        scene = Scene(tuple(things), int(rng.integers(2**31)))
        if split_of(scene.signature) == split:
            return scene


def _outline(shape: str, center: float, radius: float, angle: float) -> list[tuple[float, float]]:
    """Corners of a polygonal shape around ``center``."""
    polar: list[tuple[float, float]]
    if shape == "square":
        polar = [(radius * 1.2, 45 + 90 * i) for i in range(4)]
    elif shape == "triangle":
        polar = [(radius * 1.15, -90 + 120 * i) for i in range(3)]
    elif shape == "star":
        polar = [(radius * (1.12 if i % 2 == 0 else 0.45), -90 + 36 * i) for i in range(10)]
    else:
        arm, bar = radius * 1.05, radius * 0.36
        corners = [(-bar, -arm), (bar, -arm), (bar, -bar), (arm, -bar), (arm, bar), (bar, bar),
                   (bar, arm), (-bar, arm), (-bar, bar), (-arm, bar), (-arm, -bar), (-bar, -bar)]  # fmt: skip
        polar = [(float(np.hypot(x, y)), float(np.degrees(np.arctan2(y, x)))) for x, y in corners]
    return [
        (center + r * float(np.cos(np.radians(a + angle))), center + r * float(np.sin(np.radians(a + angle))))
        for r, a in polar
    ]


@lru_cache(maxsize=512)
def mask(shape: str, radius: int, angle: int) -> NDArray[np.float32]:
    """Coverage of a shape, float32 ``[2m+1, 2m+1]`` in 0..1 with ``m = radius + 3``, drawn at four times its size."""
    side, zoom = 2 * (radius + 3) + 1, 4
    big = Image.new("L", (side * zoom, side * zoom))
    draw, center, r = ImageDraw.Draw(big), (side * zoom - 1) / 2, radius * zoom
    if shape in ("circle", "ring"):
        draw.ellipse((center - r, center - r, center + r, center + r), fill=255)
        if shape == "ring":
            hole = r * 0.55
            draw.ellipse((center - hole, center - hole, center + hole, center + hole), fill=0)
    else:
        draw.polygon(_outline(shape, center, r, angle), fill=255)
    shrunk = np.asarray(big.resize((side, side), Image.Resampling.BOX))
    small: NDArray[np.float32] = shrunk.astype(np.float32) / np.float32(255)
    small.setflags(write=False)
    return small


def background(seed: int) -> NDArray[np.uint8]:
    """A grey canvas, uint8 ``[112, 112, 3]``: a brightness, a gradient and soft blotches (which compress well)."""
    rng = np.random.default_rng(seed)
    level, slope = rng.uniform(105, 155), rng.uniform(-14, 14, 2)
    blotches = Image.fromarray(rng.normal(0, 5, (9, 9)).astype(np.float32))
    soft = np.asarray(blotches.resize((CANVAS, CANVAS), Image.Resampling.BILINEAR))
    ramp = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    grey = np.clip(level + slope[0] * ramp[:, None] + slope[1] * ramp[None, :] + soft, 0, 255)
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def paint(canvas: NDArray[np.uint8], thing: Thing, dx: int = 0, dy: int = 0, opacity: float = 1.0) -> None:
    """Draw one object on ``canvas`` in place, moved by (dx, dy) pixels; what lies outside is cut off."""
    cover = mask(thing.shape, thing.radius, thing.angle)
    half = cover.shape[0] // 2
    left, top = thing.x + dx - half, thing.y + dy - half
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + cover.shape[1], CANVAS), min(top + cover.shape[0], CANVAS)
    alpha = opacity * cover[y0 - top : y1 - top, x0 - left : x1 - left, None]
    below = canvas[y0:y1, x0:x1].astype(np.float32)
    canvas[y0:y1, x0:x1] = (below + alpha * (np.asarray(thing.rgb, dtype=np.float32) - below) + 0.5).astype(np.uint8)


def render_scene(scene: Scene) -> NDArray[np.uint8]:
    """The image of a scene, uint8 ``[112, 112, 3]`` RGB."""
    canvas = background(scene.background)
    for thing in scene.things:
        paint(canvas, thing)
    return canvas
