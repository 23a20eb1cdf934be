"""Writes How2QA: instruction videos with a narrator who tells a part of the story, and questions on the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.demo.files import Job, chunks, scaled, write_jsonl
from datamodules.demo.speech import WAYS, color_choices, labelled, offer, sentence, shape_choices, spoken, thing_choices
from datamodules.demo.tv import VideoSplit
from datamodules.demo.video import Clip, render_clip, sample_clip, write_mp4
from datamodules.demo.world import generator, pick, shuffled

Told = Literal["move", "change", "nothing"]
Asked = tuple[str, str, tuple[str, ...]]  # question, answer, choices

SIZES: dict[VideoSplit, int] = {"train": 500, "val": 90, "test": 60}
QUESTIONS = 3  # per clip
CHOICES = 4
_FILES: dict[VideoSplit, str] = {"train": "train", "val": "val", "test": "test_public"}
_FIRST: dict[VideoSplit, int] = {"train": 20_000, "val": 30_000, "test": 40_000}
_OPENINGS = ("hello and welcome .", "let us begin .", "so here we are .")
_ENDINGS = ("watch closely .", "that is all .", "thank you for watching .", "it is really easy .")
_VERBS = {"appears": "add", "disappears": "remove"}


def how2_clip(seed: int, split: VideoSplit, index: int) -> tuple[str, Clip, Told]:
    """Name, video and what the narrator tells, for clip ``index`` of a split."""
    rng = generator(seed, f"how2-{split}", index)
    clip = sample_clip(rng, split)
    told: Told = pick(rng, ("move", "change" if clip.change else "move", "nothing"))
    return str(_FIRST[split] + index), clip, told


def how2_subtitles(seed: int, split: VideoSplit, index: int) -> dict[str, Any]:
    """The subtitle record of a clip."""
    rng = generator(seed, f"how2-subtitles-{split}", index)
    name, clip, told = how2_clip(seed, split, index)
    lines = [pick(rng, _OPENINGS), pick(rng, _ENDINGS)]
    if told == "move":
        form = pick(rng, ("today we move the {} .", "now i will move the {} ."))
        lines.insert(1, form.format(clip.mover.shape))
    elif told == "change" and clip.changed is not None and clip.change is not None:
        lines.insert(1, f"later we {_VERBS[clip.change]} the {clip.changed.shape} .")
    return spoken(name, lines, rng)


def _shape_of(clip: Clip, told: Told, rng: np.random.Generator) -> Asked:
    """The object the narrator names is the answer in one of four cases, so that having heard it gives nothing away."""
    named = {"move": clip.mover, "change": clip.changed, "nothing": None}[told]
    thing = pick(rng, clip.things)
    if named is not None:
        thing = named if rng.random() < 1 / CHOICES else pick(rng, [t for t in clip.things if t is not named])
    answer, wrong = sentence(thing.shape), [sentence(s) for s in shape_choices(clip, rng)]
    return f"What shape is the {thing.color} object?", answer, offer(rng, answer, wrong, CHOICES)


def _colors(clip: Clip, told: Told, rng: np.random.Generator) -> list[Asked]:
    """What colour a named object has, and the one that the narrator moves, adds or removes."""
    asked = [(f"the {(one := pick(rng, clip.things)).shape}", one)]
    if told == "move":
        asked.append(("the object that we move", clip.mover))
    elif told == "change" and clip.changed is not None and clip.change is not None:
        asked.append((f"the object that we {_VERBS[clip.change]}", clip.changed))
    return [
        (f"What color is {who}?", answer := sentence(thing.color), offer(rng, answer, colors, CHOICES))
        for who, thing in asked
        for colors in [[sentence(c) for c in color_choices(clip, rng)]]
    ]


def _events(clip: Clip, told: Told, rng: np.random.Generator) -> list[Asked]:
    """Where the mover goes and, unless the narrator has told anything, which object moves, appears or disappears."""
    way = WAYS[clip.direction]
    asked = [(f"In which direction does the {clip.mover.shape} go?", way, offer(rng, way, tuple(WAYS.values()), 4))]
    if told != "nothing":
        return asked
    happened = [("Which object moves?", clip.mover)]
    if clip.changed is not None and clip.change is not None:
        happened.append((f"What {clip.change} in the video?", clip.changed))
    for text, thing in happened:
        answer, wrong = f"The {thing.name}.", [f"The {name}." for name in thing_choices(clip, rng)]
        asked.append((text, answer, offer(rng, answer, wrong, CHOICES)))
    return asked


def how2_questions(seed: int, split: VideoSplit, index: int) -> list[Asked]:
    """Three questions about a clip; the rarer ones come first."""
    rng = generator(seed, f"how2qa-{split}", index)
    _, clip, told = how2_clip(seed, split, index)
    events = _events(clip, told, rng)
    common = shuffled(rng, [*events[:1], *_colors(clip, told, rng), _shape_of(clip, told, rng)])
    return shuffled(rng, [*events[1:], *common][:QUESTIONS])


def how2_records(seed: int, split: VideoSplit, index: int) -> list[dict[str, Any]]:
    """The official records about one clip."""
    name, clip, _ = how2_clip(seed, split, index)
    return [
        {
            "vid_name": name,
            "ts": f"{clip.start / 4:.2f}-{clip.stop / 4:.2f}",
            "qid": QUESTIONS * (_FIRST[split] + index) + number,
            "q": text,
            **labelled(choices, answer, hidden=split == "test"),
        }
        for number, (text, answer, choices) in enumerate(how2_questions(seed, split, index))
    ]


def write_annotations(root: Path, seed: int, scale: float) -> None:
    """Write subtitles and questions of all splits."""
    places = [(s, i) for s, size in SIZES.items() for i in range(scaled(size, scale))]
    folder = root / "video" / "ann"
    write_jsonl(folder / "how2_subtitles.jsonl", (how2_subtitles(seed, s, i) for s, i in places))
    for split, name in _FILES.items():
        rows = (row for s, i in places if s == split for row in how2_records(seed, split, i))
        write_jsonl(folder / "how2qa" / f"how2qa_{name}_release.jsonl", rows)


def write_videos(folder: Path, seed: int, split: VideoSplit, indices: range) -> None:
    """Write some videos of a split."""
    for index in indices:
        name, clip, _ = how2_clip(seed, split, index)
        write_mp4(render_clip(clip), folder / f"{name}.mp4")


def jobs(root: Path, seed: int, scale: float) -> list[Job]:
    """All work of this writer."""
    folder = root / "video" / "videos" / "how2"
    folder.mkdir(parents=True, exist_ok=True)
    work = [Job("How2QA annotations", 1, write_annotations, (root, seed, scale))]
    for split, size in SIZES.items():
        pieces = chunks(scaled(size, scale), 75)
        work += [Job("How2 videos", len(r), write_videos, (folder, seed, split, r)) for r in pieces]
    return work
