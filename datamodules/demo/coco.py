"""Writes the COCO images and the Karpathy captions; the VQA questions are about the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.demo.facts import NUMBERS, SIDES, a, beside, full, listed
from datamodules.demo.files import Job, chunks, scaled, write_image, write_json
from datamodules.demo.world import Scene, generator, pick, render_scene, sample_scene, shuffled

KarpathySplit = Literal["train", "restval", "val", "test"]

SIZES: dict[KarpathySplit, int] = {"train": 850, "restval": 150, "val": 150, "test": 150}
_FIRST_ID = {"train": 100_000, "restval": 200_000, "val": 300_000, "test": 400_000}
_SIDE_WORDS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


def coco_scene(seed: int, split: KarpathySplit, index: int) -> Scene:
    """The scene of image ``index`` of a Karpathy split."""
    return sample_scene(generator(seed, f"coco-{split}", index), "train" if split == "restval" else split)


def coco_id(split: KarpathySplit, index: int) -> int:
    """Its number in COCO."""
    return _FIRST_ID[split] + index


def year(split: KarpathySplit) -> str:
    """The official image set: Karpathy's restval, val and test all come from val2014."""
    return "train2014" if split == "train" else "val2014"


def file_name(split: KarpathySplit, index: int) -> str:
    """The official file name."""
    return f"COCO_{year(split)}_{coco_id(split, index):012d}.jpg"


def coco_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five captions: all objects with or without their sizes, their number, and the relation of two of them."""
    order = sorted(scene.things, key=lambda t: t.cell)
    one, two = shuffled(rng, order)[:2]
    side = pick(rng, [s for s in SIDES if beside(one, two, s)])
    named, sized = listed([a(t.name) for t in order]), listed([a(full(t)) for t in order])
    opening = pick(rng, ("A picture of", "An image with", "A grey background with"))
    return [
        f"{sized[0].upper()}{sized[1:]}.",
        f"{opening} {named}.",
        f"There are {NUMBERS[len(order)]} objects: {named}.",
        f"{a(one.name)} is {_SIDE_WORDS[side]} {a(two.name)}.".capitalize(),
        f"{opening} {sized}. ",  # some official captions end with a space, too
    ]


def karpathy_image(seed: int, split: KarpathySplit, index: int, number: int) -> dict[str, Any]:
    """The record of one image, the ``number``-th of the file."""
    captions = coco_captions(coco_scene(seed, split, index), generator(seed, f"coco-captions-{split}", index))
    ids = [5 * number + i for i in range(len(captions))]
    sentences = [
        {
            "tokens": caption.lower().replace(".", "").replace(",", "").replace(":", "").split(),
            "raw": caption,
            "imgid": number,
            "sentid": sentid,
        }
        for sentid, caption in zip(ids, captions, strict=True)
    ]
    return {
        "filepath": year(split),
        "sentids": ids,
        "filename": file_name(split, index),
        "imgid": number,
        "split": split,
        "sentences": sentences,
        "cocoid": coco_id(split, index),
    }


def write_karpathy(root: Path, seed: int, sizes: dict[KarpathySplit, int]) -> None:
    """Write ``COCO/dataset_coco.json``."""
    places = [(split, index) for split, count in sizes.items() for index in range(count)]
    images = [karpathy_image(seed, split, index, number) for number, (split, index) in enumerate(places)]
    write_json(root / "COCO" / "dataset_coco.json", {"images": images, "dataset": "coco"})


def write_images(root: Path, seed: int, split: KarpathySplit, indices: range) -> None:
    """Write some images of a split."""
    folder = root / "COCO" / "images" / year(split)
    for index in indices:
        write_image(folder / file_name(split, index), render_scene(coco_scene(seed, split, index)))


def jobs(root: Path, seed: int, scale: float) -> list[Job]:
    """All work of this writer."""
    sizes = {split: scaled(count, scale) for split, count in SIZES.items()}
    for folder in ("train2014", "val2014"):
        (root / "COCO" / "images" / folder).mkdir(parents=True, exist_ok=True)
    work = [Job("COCO annotations", 1, write_karpathy, (root, seed, sizes))]
    for split, count in sizes.items():
        work += [Job("COCO images", len(r), write_images, (root, seed, split, r)) for r in chunks(count, 250)]
    return work
