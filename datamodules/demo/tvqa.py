"""Writes TVQA: questions that need both the subtitles (who is which shape) and the video (what the shape does)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.demo.files import Job, scaled, write_jsonl
from datamodules.demo.speech import WAYS, color_choices, labelled, offer, sentence
from datamodules.demo.tv import SIZES, TVClip, VideoSplit, tv_clip
from datamodules.demo.world import PLACES, generator, shuffled

QUESTIONS = 3  # per clip
_FILES: dict[VideoSplit, str] = {"train": "tvqa_train", "val": "tvqa_val", "test": "tvqa_test_public"}
_FIRST_QID: dict[VideoSplit, int] = {"train": 0, "val": 122_039, "test": 137_292}


def tvqa_questions(tv: TVClip, seed: int, split: VideoSplit, index: int) -> list[tuple[str, str, tuple[str, ...]]]:
    """Question, answer and the five choices, for each question about a clip."""
    rng, clip = generator(seed, f"tvqa-{split}", index), tv.clip
    name, thing, way = tv.speaker, tv.thing, clip.way_of(tv.thing)
    colors = [sentence(c) for c in color_choices(clip, rng)]
    ways = [*WAYS.values(), f"{name} does not move."]
    places = [t.place for t in shuffled(rng, clip.things)] + shuffled(rng, PLACES)
    return [
        (f"What color is {name}?", sentence(thing.color), offer(rng, sentence(thing.color), colors, 5)),
        (f"Which way does {name} move?", answer := WAYS[way] if way else ways[-1], offer(rng, answer, ways, 5)),
        (
            f"Where is {name} at the start?",
            sentence(thing.place),
            offer(rng, sentence(thing.place), [sentence(p) for p in places], 5),
        ),
    ]


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
