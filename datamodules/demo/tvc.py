"""Writes TVC: descriptions of the moment of each TV clip in which something moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datamodules.demo.files import Job, scaled, write_jsonl
from datamodules.demo.tv import SIZES, TVClip, VideoSplit, tv_clip
from datamodules.demo.video import SECONDS, Clip
from datamodules.demo.world import Thing, generator, shuffled

_FIRST_CLIP: dict[VideoSplit, int] = {"train": 0, "val": 86_603, "test": 97_444}
_DESCS: dict[VideoSplit, int] = {"train": 2, "val": 4, "test": 0}


def goes(direction: str) -> str:
    """The direction as an adverb, ``"to the left"``."""
    return f"to the {direction}" if direction in ("left", "right") else direction


def passed(clip: Clip) -> Thing | None:
    """A resting object halfway along the way of the mover, beside its lane, that is visible all the time."""
    mover, horizontal = clip.mover, clip.direction in ("left", "right")
    for thing in clip.still:
        across = abs(thing.row - mover.row) if horizontal else abs(thing.column - mover.column)
        along = thing.column if horizontal else thing.row
        if along == 1 and across == 1 and thing is not clip.changed:
            return thing
    return None


def _more(clip: Clip) -> str:
    """What else happens: a bump, something coming or going, something passed by."""
    near = passed(clip)
    if clip.bumped is not None:
        return f" and bumps into the {clip.bumped.name}"
    if clip.changed is not None:
        return f" and the {clip.changed.name} {clip.change}"
    return "" if near is None else f" past the {near.name}"


def tvc_descs(tv: TVClip, count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """``count`` (two or four) descriptions with their types: half from the video alone, half with the name."""
    mover, way, more = tv.clip.mover, goes(tv.clip.direction), _more(tv.clip)
    video = [f"The {mover.name} moves {way}{more}.", f"The {mover.name} moves {way}."]
    if tv.thing is mover:
        both = [f"{tv.speaker}, the {mover.name}, moves {way}{more}.", f"{tv.speaker}, the {mover.name}, moves {way}."]
    else:
        both = [f"{tv.speaker} watches the {mover.name} move {way}{more}.", f"{tv.speaker} watches the {mover.name}."]
    half = count // 2
    return [(d, "v") for d in shuffled(rng, video)[:half]] + [(d, "vt") for d in shuffled(rng, both)[:half]]


def tvc_record(seed: int, split: VideoSplit, index: int) -> dict[str, Any]:
    """The official record of one moment."""
    tv, rng, clip_id = tv_clip(seed, split, index), generator(seed, f"tvc-{split}", index), _FIRST_CLIP[split] + index
    record: dict[str, Any] = {"vid_name": tv.name, "duration": SECONDS, "ts": list(tv.moment)}
    if _DESCS[split]:
        record["descs"] = [
            {"desc": desc, "desc_id": 4 * clip_id + number, "type": kind, "from_retrieval": number == 0}
            for number, (desc, kind) in enumerate(tvc_descs(tv, _DESCS[split], rng))
        ]
    return record | {"clip_id": clip_id}


def write_descs(root: Path, seed: int, scale: float) -> None:
    """Write the files of all splits."""
    for split, size in SIZES.items():
        rows = (tvc_record(seed, split, index) for index in range(scaled(size, scale)))
        write_jsonl(root / "video" / "ann" / "tvc" / f"tvc_{split}_release.jsonl", rows)


def jobs(root: Path, seed: int, scale: float) -> list[Job]:
    """All work of this writer; its videos are those of the TV clips."""
    return [Job("TVC annotations", 1, write_descs, (root, seed, scale))]
