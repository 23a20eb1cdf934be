"""Writes NLVR2: sets of four image pairs, and sentences that hold for exactly two of the four."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.demo.facts import NUMBERS, a, having
from datamodules.demo.files import Job, chunks, scaled, write_image, write_jsonl
from datamodules.demo.world import (
    COLORS,
    SHAPES,
    Scene,
    Split,
    Thing,
    generator,
    pick,
    render_scene,
    sample_scene,
    shuffled,
)

NLVRSplit = Literal["train", "dev", "test1"]
Pair = tuple[Scene, Scene]

SIZES: dict[NLVRSplit, int] = {"train": 120, "dev": 20, "test1": 20}  # sets
PAIRS = 4
_SENTENCES = 4  # per set, at most
_WORLD: dict[NLVRSplit, Split] = {"train": "train", "dev": "val", "test1": "test"}


@dataclass(frozen=True)
class Sentence:
    """A sentence about two images and when it is true."""

    kind: str
    text: str
    holds: Callable[[tuple[Thing, ...], tuple[Thing, ...]], bool]


def _sentences(colors: list[str], shapes: list[str]) -> Iterator[Sentence]:
    """All sentences about the given colours and shapes."""
    for side, name in enumerate(("left", "right")):
        for color in colors:
            for shape in shapes:
                yield Sentence(
                    "one image",
                    f"The {name} image contains {a(f'{color} {shape}')}.",
                    lambda *two, i=side, c=color, s=shape: bool(having(two[i], color=c, shape=s)),
                )
        for number in (2, 3, 4):
            yield Sentence(
                "number",
                f"There are exactly {NUMBERS[number]} objects in the {name} image.",
                lambda *two, i=side, n=number: len(two[i]) == n,
            )
    named = [("shape", s, a(s)) for s in shapes] + [("color", c, a(f"{c} object")) for c in colors]
    for attribute, value, phrase in named:
        wanted = {attribute: value}
        yield Sentence(
            "both", f"Both images contain {phrase}.", lambda *two, w=wanted: all(having(things, **w) for things in two)
        )
        yield Sentence(
            "any",
            f"At least one image contains {phrase}.",
            lambda *two, w=wanted: any(having(things, **w) for things in two),
        )


def nlvr_set(seed: int, split: NLVRSplit, index: int) -> tuple[list[Pair], list[Sentence]]:
    """Four pairs of scenes, and three or four sentences of different kinds, each true of two pairs."""
    rng = generator(seed, f"nlvr-{split}", index)
    while True:
        # Few colours and shapes, so that a sentence has a fair chance to hold.
        colors, shapes = shuffled(rng, COLORS)[:3], shuffled(rng, SHAPES)[:3]
        pairs = [(_scene(rng, split, colors, shapes), _scene(rng, split, colors, shapes)) for _ in range(PAIRS)]
        fair: dict[str, list[Sentence]] = {}
        for sentence in _sentences(colors, shapes):
            if sum(sentence.holds(left.things, right.things) for left, right in pairs) == PAIRS // 2:
                fair.setdefault(sentence.kind, []).append(sentence)
        if len(fair) >= _SENTENCES - 1:
            return pairs, [pick(rng, fair[kind]) for kind in shuffled(rng, fair)][:_SENTENCES]


def _scene(rng: np.random.Generator, split: NLVRSplit, colors: list[str], shapes: list[str]) -> Scene:
    return sample_scene(rng, _WORLD[split], (2, 3, 4), colors, shapes)


def nlvr_records(seed: int, split: NLVRSplit, index: int) -> list[dict[str, Any]]:
    """The official records of one set."""
    pairs, sentences = nlvr_set(seed, split, index)
    records = []
    for pair, (left, right) in enumerate(pairs):
        for number, sentence in enumerate(sentences):
            label = str(sentence.holds(left.things, right.things))
            name = f"{split}-{index}-{pair}"
            record: dict[str, Any] = {
                "validation": {"61": label},
                "sentence": sentence.text,
                "left_url": f"https://example.org/{name}-img0.png",
                "right_url": f"https://example.org/{name}-img1.png",
                "writer": str(index % 7),
                "label": label,
                "synset": left.things[0].shape,
                "query": f"some {left.things[0].shape}s{index}",
                "identifier": f"{name}-{number}",
                "extra_validations": {} if split == "train" else {"49": label, "62": label},
            }
            records.append(record | ({"directory": index % 100} if split == "train" else {}))
    return records


def write_sentences(root: Path, seed: int, split: NLVRSplit, count: int) -> None:
    """Write the file of a split, one record per line."""
    write_jsonl(root / "nlvr" / f"{split}.json", (r for i in range(count) for r in nlvr_records(seed, split, i)))


def write_images(root: Path, seed: int, split: NLVRSplit, indices: range) -> None:
    """Write the images of some sets."""
    for index in indices:
        folder = root / "nlvr" / "images" / split / (str(index % 100) if split == "train" else "")
        folder.mkdir(parents=True, exist_ok=True)
        for number, pair in enumerate(nlvr_set(seed, split, index)[0]):
            for side, scene in enumerate(pair):
                write_image(folder / f"{split}-{index}-{number}-img{side}.png", render_scene(scene))


def jobs(root: Path, seed: int, scale: float) -> list[Job]:
    """All work of this writer."""
    work = []
    for split, size in SIZES.items():
        count = scaled(size, scale)
        work.append(Job("NLVR2 annotations", 1, write_sentences, (root, seed, split, count)))
        work += [
            Job("NLVR2 images", 2 * PAIRS * len(r), write_images, (root, seed, split, r)) for r in chunks(count, 30)
        ]
    return work
