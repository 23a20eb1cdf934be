"""Writes YC2C: segments of recipes for shapes, each with one instruction that describes it."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from datamodules.demo.facts import a
from datamodules.demo.files import Job, chunks, scaled, write_jsonl
from datamodules.demo.speech import spoken
from datamodules.demo.tv import VideoSplit
from datamodules.demo.tvc import goes
from datamodules.demo.video import SECONDS, Clip, render_clip, sample_clip, write_mp4
from datamodules.demo.world import generator, pick

SIZES: dict[VideoSplit, int] = {"train": 500, "val": 120, "test": 60}
_SEGMENTS = 4  # of one video
_FIRST_CLIP: dict[VideoSplit, int] = {"train": 0, "val": 10_337, "test": 13_829}
_LETTERS = string.ascii_letters + string.digits + "-_"


def yc2_clip(seed: int, split: VideoSplit, index: int) -> tuple[str, Clip]:
    """Name (``<11 characters>_<segment>``) and video of segment ``index`` of a split."""
    letters = generator(seed, f"yc2-name-{split}", index // _SEGMENTS)
    name = "".join(pick(letters, _LETTERS) for _ in range(11))
    return f"{name}_{index % _SEGMENTS}", sample_clip(generator(seed, f"yc2-{split}", index), split)


def yc2_subtitles(seed: int, split: VideoSplit, index: int) -> dict[str, Any]:
    """The subtitle record: some speech names a shape, some nothing; some segments are silent."""
    rng = generator(seed, f"yc2-subtitles-{split}", index)
    name, clip = yc2_clip(seed, split, index)
    lines = []
    if rng.random() < 0.5:
        lines.append(pick(rng, ("now take the {} .", "you want to take your {} .")).format(clip.mover.shape))
    if clip.changed is not None and rng.random() < 0.3:
        verb = "bring in" if clip.change == "appears" else "take out"
        lines.append(f"and then {verb} the {clip.changed.shape} .")
    if rng.random() < 0.4:
        lines.insert(0, pick(rng, ("this is easy .", "smells good already .", "do it slowly .")))
    return spoken(name, lines, rng)


def yc2c_desc(clip: Clip) -> str:
    """The instruction: what to move where, and what to add or remove."""
    text = f"move the {clip.mover.name} {goes(clip.direction)}"
    if clip.bumped is not None:
        text += f" until it touches the {clip.bumped.name}"
    if clip.changed is not None:
        text += f" and {'add' if clip.change == 'appears' else 'remove'} {a(clip.changed.name)}"
    return text


def yc2c_record(seed: int, split: VideoSplit, index: int) -> dict[str, Any]:
    """The official record of a segment; the test split has no ``descs``."""
    name, clip = yc2_clip(seed, split, index)
    clip_id = _FIRST_CLIP[split] + index
    record: dict[str, Any] = {"vid_name": name, "clip_id": clip_id, "duration": int(SECONDS)}
    return record if split == "test" else record | {"descs": [{"desc": yc2c_desc(clip), "desc_id": clip_id}]}


def write_annotations(root: Path, seed: int, scale: float) -> None:
    """Write subtitles and descriptions of all splits."""
    places = [(s, i) for s, size in SIZES.items() for i in range(scaled(size, scale))]
    folder = root / "video" / "ann"
    write_jsonl(folder / "yc2_subtitles.jsonl", (yc2_subtitles(seed, s, i) for s, i in places))
    for split in SIZES:
        rows = (yc2c_record(seed, s, i) for s, i in places if s == split)
        write_jsonl(folder / "yc2c" / f"yc2c_{split}_release.jsonl", rows)


def write_videos(folder: Path, seed: int, split: VideoSplit, indices: range) -> None:
    """Write some videos of a split."""
    for index in indices:
        name, clip = yc2_clip(seed, split, index)
        write_mp4(render_clip(clip), folder / f"{name}.mp4")


def jobs(root: Path, seed: int, scale: float) -> list[Job]:
    """All work of this writer."""
    folder = root / "video" / "videos" / "yc2"
    folder.mkdir(parents=True, exist_ok=True)
    work = [Job("YC2C annotations", 1, write_annotations, (root, seed, scale))]
    for split, size in SIZES.items():
        pieces = chunks(scaled(size, scale), 75)
        work += [Job("YC2 videos", len(r), write_videos, (folder, seed, split, r)) for r in pieces]
    return work
