"""Writes the pretraining split: images and videos of their own scenes, with captions and questions.

Files under ``pretrain/``: ``images/<id>.jpg``, ``videos/<id>.mp4``, ``captions.jsonl`` (``id, kind, split, captions,
things``) and ``questions.jsonl`` (``id, kind, split, question, answer, choices, subtitles``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.demo.files import Job, chunks, scaled, write_image, write_jsonl
from datamodules.demo.pretrain_images import image_captions, image_questions
from datamodules.demo.pretrain_objects import traits
from datamodules.demo.pretrain_videos import video_captions, video_questions, way_word
from datamodules.demo.video import Clip, render_clip, sample_clip, write_mp4
from datamodules.demo.world import Scene, Split, generator, render_scene, sample_scene

IMAGES, VIDEOS = 12000, 6000
_HELD_OUT = 33  # one item of so many is for validation


def split_at(index: int) -> Split:
    """Which scenes item ``index`` may show."""
    return "pretrain" if index % _HELD_OUT else "pretrain_val"


def pretrain_scene(seed: int, index: int) -> Scene:
    """The scene of image ``i<index>``."""
    return sample_scene(generator(seed, "pretrain-image", index), split_at(index))


def pretrain_clip(seed: int, index: int) -> Clip:
    """The clip of video ``v<index>``."""
    return sample_clip(generator(seed, "pretrain-video", index), split_at(index))


def write_images(root: Path, seed: int, indices: range) -> None:
    """Write some of the images."""
    for index in indices:
        write_image(root / "pretrain" / "images" / f"i{index:05d}.jpg", render_scene(pretrain_scene(seed, index)))


def write_videos(root: Path, seed: int, indices: range) -> None:
    """Write some of the videos."""
    for index in indices:
        write_mp4(render_clip(pretrain_clip(seed, index)), root / "pretrain" / "videos" / f"v{index:05d}.mp4")


def pretrain_rows(seed: int, images: int, videos: int) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """For every item its line of the captions file and its lines of the questions file."""
    for kind, count in (("image", images), ("video", videos)):
        for index in range(count):
            rng = generator(seed, f"pretrain-{kind}-text", index)
            if kind == "image":
                scene = pretrain_scene(seed, index)
                captions, questions = image_captions(scene, rng), image_questions(scene, rng)
                things = [traits(t) for t in scene.things]
            else:
                clip = pretrain_clip(seed, index)
                captions, questions = video_captions(clip, rng), video_questions(clip, rng)
                things = [traits(t, way=way_word(clip, t)) for t in clip.things]
            split = "train" if index % _HELD_OUT else "val"
            head = {"id": f"{kind[0]}{index:05d}", "kind": kind, "split": split}
            rows = [
                {**head, "question": q.text, "answer": q.answer, "choices": q.choices, "subtitles": q.subtitles}
                for q in questions
            ]
            yield {**head, "captions": captions, "things": things}, rows


def write_language(root: Path, seed: int, images: int, videos: int) -> None:
    """Write the captions and questions."""
    rows = list(pretrain_rows(seed, images, videos))
    write_jsonl(root / "pretrain" / "captions.jsonl", (captions for captions, _ in rows))
    write_jsonl(root / "pretrain" / "questions.jsonl", (q for _, questions in rows for q in questions))


def jobs(root: Path, seed: int, scale: float) -> list[Job]:
    """All work of this part."""
    images, videos = scaled(IMAGES, scale), scaled(VIDEOS, scale)
    for folder in ("images", "videos"):
        (root / "pretrain" / folder).mkdir(parents=True, exist_ok=True)
    return [
        Job("pretrain text", 1, write_language, (root, seed, images, videos)),
        *(Job("pretrain videos", len(r), write_videos, (root, seed, r)) for r in chunks(videos, 100)),
        *(Job("pretrain images", len(r), write_images, (root, seed, r)) for r in chunks(images, 400)),
    ]
