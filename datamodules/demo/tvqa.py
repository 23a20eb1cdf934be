"""Writes TVQA: questions that need both the subtitles (who is which shape) and the video (what the shape does)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.demo.files import Job, scaled, write_jsonl
from datamodules.demo.speech import WAYS, color_choices, labelled, offer, sentence
from datamodules.demo.tv import SIZES, TVClip, VideoSplit, tv_clip
from datamodules.demo.world import generator, pick, shuffled

QUESTIONS = 5  # per clip
_FILES: dict[VideoSplit, str] = {"train": "tvqa_train", "val": "tvqa_val", "test": "tvqa_test_public"}
_FIRST_QID: dict[VideoSplit, int] = {"train": 0, "val": 122_039, "test": 137_292}


def tvqa_questions(tv: TVClip, seed: int, split: VideoSplit, index: int) -> list[tuple[str, str, tuple[str, ...]]]:
    """Question, answer and the five choices, for each question about a clip."""
    rng, clip = generator(seed, f"tvqa-{split}", index), tv.clip
    found: list[tuple[str, str, tuple[str, ...]]] = []
    for thing in shuffled(rng, clip.things)[:2]:
        colors = [sentence(c) for c in color_choices(clip, rng)]
        answer = sentence(thing.color)
        found.append((f"What color is {tv.who(thing.shape)}?", answer, offer(rng, answer, colors, 5)))
    # One of five stays where it is, so that each of the five answers is as likely as the others.
    thing = clip.mover if rng.random() < 0.8 else pick(rng, clip.still)
    name, way = tv.who(thing.shape), clip.way_of(thing)
    ways = [*WAYS.values(), f"{name} does not move."]
    answer = WAYS[way] if way else ways[-1]
    found.append((f"Which way does {name} move?", answer, offer(rng, answer, ways, 5)))
    thing = pick(rng, clip.things)
    names = [f"{n}." for n in tv.roles]
    for text, shape in ((f"Who is {thing.color}?", thing.shape), ("Who moves?", clip.mover.shape)):
        answer = f"{tv.who(shape)}."
        found.append((text, answer, offer(rng, answer, names, 5)))
    return found


def tvqa_records(seed: int, split: VideoSplit, index: int) -> list[dict[str, Any]]:
    """The official records about one clip."""
    tv = tv_clip(seed, split, index)
    start, stop = tv.moment
    return [
        {
            **labelled(choices, answer, hidden=split == "test"),
            "q": text,
            "qid": _FIRST_QID[split] + QUESTIONS * index + number,
            "show_name": tv.show,
            "ts": f"{start:.2f}-{stop:.2f}",
            "vid_name": tv.name,
        }
        for number, (text, answer, choices) in enumerate(tvqa_questions(tv, seed, split, index))
    ]


def write_questions(root: Path, seed: int, scale: float) -> None:
    """Write the files of all splits."""
    for split, size in SIZES.items():
        rows = (row for index in range(scaled(size, scale)) for row in tvqa_records(seed, split, index))
        write_jsonl(root / "video" / "ann" / "tvqa" / f"{_FILES[split]}.jsonl", rows)


def jobs(root: Path, seed: int, scale: float) -> list[Job]:
    """All work of this writer; its videos are those of the TV clips."""
    return [Job("TVQA annotations", 1, write_questions, (root, seed, scale))]
