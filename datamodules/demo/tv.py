"""The TV clips that TVQA and TVC share: videos, and subtitles in which five people say which shape they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datamodules.demo.files import Job, chunks, scaled, write_jsonl
from datamodules.demo.speech import cast, spoken
from datamodules.demo.video import Clip, render_clip, sample_clip, write_mp4
from datamodules.demo.world import generator, pick

VideoSplit = Literal["train", "val", "test"]

SIZES: dict[VideoSplit, int] = {"train": 600, "val": 90, "test": 60}
NAMES = ("Anna", "Bob", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivan", "Jane", "Leo", "Mia")
SHOWS = {"The Shape Theory": "", "Castle of Forms": "castle_", "Grey Canvas": "grey_"}  # show -> prefix of its clips
TOPICS = ("music", "tea", "the rain", "books", "the sea")


@dataclass(frozen=True)
class TVClip:
    """A clip with its official name, who claims which shape, and who (if any) talks about what."""

    name: str
    show: str
    clip: Clip
    roles: dict[str, str]
    talk: tuple[str, str] | None

    @property
    def moment(self) -> tuple[float, float]:
        """Seconds during which something moves."""
        return self.clip.start / 4, self.clip.stop / 4

    def who(self, shape: str) -> str:
        """The name of the person who claims a shape."""
        return next(name for name, claimed in self.roles.items() if claimed == shape)


def tv_clip(seed: int, split: VideoSplit, index: int) -> TVClip:
    """Clip ``index`` of a split."""
    rng = generator(seed, f"tv-{split}", index)
    clip = sample_clip(rng, split)
    roles = cast(clip, NAMES, rng)
    talk = (pick(rng, tuple(roles)), pick(rng, TOPICS)) if rng.random() < 0.4 else None
    show = tuple(SHOWS)[index % len(SHOWS)]
    season = ("train", "val", "test").index(split) + 1
    name = f"{SHOWS[show]}s{season:02d}e{index // 40 + 1:02d}_seg{index // 20 % 2 + 1:02d}_clip_{index % 20:02d}"
    return TVClip(name, show, clip, roles, talk)


def tv_subtitles(seed: int, split: VideoSplit, index: int) -> dict[str, Any]:
    """The subtitle record of a clip."""
    rng, tv = generator(seed, f"tv-subtitles-{split}", index), tv_clip(seed, split, index)
    forms = ("{0} : I am the {1} .", "{0} : Look , I am the {1} .")
    lines = [pick(rng, forms).format(name, shape) for name, shape in tv.roles.items()]
    if tv.talk is not None:
        lines.insert(int(rng.integers(len(lines) + 1)), "{} : I like {} .".format(*tv.talk))
    return spoken(tv.name, lines, rng)


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
