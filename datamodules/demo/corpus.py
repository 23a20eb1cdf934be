"""Writes the embedded corpus into a data root, in the published ``datasets/`` layout."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress

from datamodules.demo import coco, gqa, how2qa, nlvr2, pretrain, tv, tvc, tvqa, vqa, yc2c
from datamodules.demo.files import Job, write_json
from vl_peft.errors import DataError

Part = Literal["image", "video", "pretrain"]

VERSION = 4  # raised whenever what is written changes, so that an older copy is not taken for it
_REMEDY = "Choose an empty folder, or delete this one."
_FOLDERS: dict[Part, tuple[str, ...]] = {
    "image": ("COCO", "vqa", "GQA", "VG", "nlvr"),
    "video": ("video",),
    "pretrain": ("pretrain",),
}
_WRITERS: dict[Part, tuple[Callable[[Path, int, float], list[Job]], ...]] = {
    "image": (coco.jobs, vqa.jobs, gqa.jobs, nlvr2.jobs),
    "video": (tv.jobs, tvqa.jobs, tvc.jobs, how2qa.jobs, yc2c.jobs),
    "pretrain": (pretrain.jobs,),
}


def write_corpus(root: Path, parts: Collection[Part], seed: int = 0, processes: int = 2, scale: float = 1.0) -> None:
    """Write the wanted parts of the corpus under ``root``; a part already there with the same settings is left alone.

    Args:
        root: the data root; made when missing.
        parts: ``"image"`` (VQA, GQA, NLVR2, COCO captions), ``"video"`` (TVQA, How2QA, TVC, YC2C), ``"pretrain"``.
        seed: what is drawn; all files are a pure function of it and of ``scale``.
        processes: worker processes; 1 works in this process.
        scale: multiplies the number of images and videos; every split keeps at least a few.

    A part's manifest ``demo_<part>.json`` is written last; a part that was interrupted is written again.

    Raises:
        DataError: ``root`` holds other data where the part belongs, or the part with other settings (whose features
            would not fit the new images); nothing is overwritten.
    """
    for part in parts:
        manifest, begun = root / f"demo_{part}.json", root / f".demo_{part}.part"
        wanted = {"part": part, "version": VERSION, "seed": seed, "scale": scale}
        if _written(manifest, wanted):
            continue
        if not begun.exists() and (taken := [f for f in _FOLDERS[part] if (root / f).exists()]):
            raise DataError(root / taken[0], "holds data that are not of the demo corpus", remedy=_REMEDY)
        write_json(begun, wanted)
        jobs = [job for writer in _WRITERS[part] for job in writer(root, seed, scale)]
        _run(jobs, processes, f"demo corpus, {part} part")
        counts: Counter[str] = Counter()
        for job in jobs:
            counts[job.kind] += job.items
        write_json(manifest, {**wanted, "counts": counts}, indent=2)
        begun.unlink()


def _written(manifest: Path, wanted: dict[str, Any]) -> bool:
    """Whether the part is complete; an error if it was written with other settings."""
    if not manifest.exists():
        return False
    found = json.loads(manifest.read_text(encoding="utf-8"))
    for key, value in wanted.items():
        if found.get(key) != value:
            problem = f"the demo corpus here has {key} {found.get(key)}, but {value} is asked for"
            raise DataError(manifest, problem, remedy=_REMEDY)
    return True


def _run(jobs: Sequence[Job], processes: int, title: str) -> None:
    """Do all jobs, showing how many items are written."""
    with Progress(transient=True) as progress:
        bar = progress.add_task(title, total=sum(job.items for job in jobs))
        for job in _finished(jobs, processes):
            progress.advance(bar, job.items)


def _finished(jobs: Sequence[Job], processes: int) -> Iterator[Job]:
    """Do the jobs and yield each one when it is done."""
    if processes <= 1:
        for job in jobs:
            job.run(*job.args)
            yield job
        return
    # Spawned, not forked: the caller may hold threads (torch, a progress bar), and a fork would copy their locks.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(job.run, *job.args): job for job in jobs}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
