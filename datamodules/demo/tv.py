"""The TV clips that TVQA and TVC share: videos, and subtitles in which one of the people says which shape she is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datamodules.demo.files import Job, chunks, scaled, write_jsonl
from datamodules.demo.speech import spoken
from datamodules.demo.video import Clip, render_clip, sample_clip, write_mp4
from datamodules.demo.world import Thing, generator, pick, shuffled

VideoSplit = Literal["train", "val", "test"]

SIZES: dict[VideoSplit, int] = {"train": 800, "val": 120, "test": 60}
NAMES = ("Anna", "Bob", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivan", "Jane", "Leo", "Mia")
SHOWS = {"The Shape Theory": "", "Castle of Forms": "castle_", "Grey Canvas": "grey_"}  # show -> prefix of its clips
TOPICS = ("music", "tea", "the rain", "books", "the sea")


@dataclass(frozen=True)
class TVClip:
    """A clip with its official name, who plays which of its objects, and who else talks about what."""

    name: str
    show: str
    clip: Clip
    speaker: str
    thing: Thing
    talk: dict[str, str]

    @property
    def moment(self) -> tuple[float, float]:
        """Seconds during which something moves."""
        return self.clip.start / 4, self.clip.stop / 4


def tv_clip(seed: int, split: VideoSplit, index: int) -> TVClip:
    """Clip ``index`` of a split."""
    rng = generator(seed, f"tv-{split}", index)
    clip = sample_clip(rng, split)
    speaker, *others = shuffled(rng, NAMES)[:3]
    # One of five plays an object that stays, so that each of four directions and rest are equally likely.
    thing = clip.mover if rng.random() < 0.8 else pick(rng, clip.still)
    talk = dict(zip(others, shuffled(rng, TOPICS), strict=False))
    show = tuple(SHOWS)[index % len(SHOWS)]
    season = ("train", "val", "test").index(split) + 1
    name = f"{SHOWS[show]}s{season:02d}e{index // 40 + 1:02d}_seg{index // 20 % 2 + 1:02d}_clip_{index % 20:02d}"
    return TVClip(name, show, clip, speaker, thing, talk)


def tv_subtitles(seed: int, split: VideoSplit, index: int) -> dict[str, Any]:
    """The subtitle record of a clip."""
    rng, tv = generator(seed, f"tv-subtitles-{split}", index), tv_clip(seed, split, index)
    forms = ("{0} : I am the {1} .", "{0} : Look , I am the {1} .")
    lines = [f"{name} : I like {topic} ." for name, topic in tv.talk.items()]
    lines.append(pick(rng, forms).format(tv.speaker, tv.thing.shape))
    return spoken(tv.name, shuffled(rng, lines), rng)


def write_subtitles(root: Path, seed: int, scale: float) -> None:
    """Write the subtitles of all splits."""
    path = root / "video" / "ann" / "tv_subtitles.jsonl"
    write_jsonl(path, (tv_subtitles(seed, s, i) for s, n in SIZES.items() for i in range(scaled(n, scale))))


def write_videos(folder: Path, seed: int, split: VideoSplit, indices: range) -> None:
    """Write some videos of a split."""
    for index in indices:
        tv = tv_clip(seed, split, index)
        write_mp4(render_clip(tv.clip), folder / f"{tv.name}.mp4")


def jobs(root: Path, seed: int, scale: float) -> list[Job]:
    """All work of this writer."""
    folder = root / "video" / "videos" / "tv"
    folder.mkdir(parents=True, exist_ok=True)
    work = [Job("TV subtitles", 1, write_subtitles, (root, seed, scale))]
    for split, size in SIZES.items():
        pieces = chunks(scaled(size, scale), 75)
        work += [Job("TV videos", len(r), write_videos, (folder, seed, split, r)) for r in pieces]
    return work
