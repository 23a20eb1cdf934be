"""What ``vl-peft data`` does: write the demo corpus, extract features."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from datamodules.demo.corpus import write_corpus
from vl_peft.errors import DataError
from vl_peft.features.encoders import VisionEncoder, load_encoder
from vl_peft.features.extract import ExtractReport, extract_images, extract_videos

IMAGE_SUFFIXES, VIDEO_SUFFIXES = (".jpg", ".jpeg", ".png"), (".mp4", ".mkv", ".webm", ".avi")

# Media folder and feature folder of the demo corpus, by part, below the root.
DEMO_IMAGES = {
    "image": {
        "COCO/images": "COCO/clip_features/data_clip_demo_att",
        "VG/images": "VG/clip_features/data_clip_demo_att",
        "GQA/images": "GQA/clip_features/data_clip_demo_att",
        "nlvr/images": "nlvr/clip_features/data_clip_demo_att",
    },
    "pretrain": {"pretrain/images": "pretrain/features/image/demo"},
}
DEMO_VIDEOS = {
    "video": {f"video/videos/{c}": f"video/vis_features/{c}/demo" for c in ("tv", "how2", "yc2")},
    "pretrain": {"pretrain/videos": "pretrain/features/video/demo"},
}


def write_demo(options: argparse.Namespace) -> None:
    """Write parts of the demo corpus and the demo encoder's features of their images and videos."""
    write_corpus(options.root, options.parts, options.seed, options.workers, options.scale)
    if options.no_features:
        return
    encoder = load_encoder("demo")
    for part in options.parts:
        for source, out in DEMO_IMAGES.get(part, {}).items():
            _extract_folder(options.root / source, options.root / out, encoder, "images", options.workers)
        for source, out in DEMO_VIDEOS.get(part, {}).items():
            _extract_folder(options.root / source, options.root / out, encoder, "videos", options.workers)
    size = sum(file.stat().st_size for file in options.root.rglob("*") if file.is_file())
    Console().print(f"demo corpus with features in {options.root} ({size / 2**20:.0f} MB)")


def extract(options: argparse.Namespace) -> None:
    """Extract features of the user's own images or videos."""
    _extract_folder(options.source, options.out, load_encoder(options.encoder), options.kind, options.workers)


def _extract_folder(source: Path, out: Path, encoder: VisionEncoder, kind: str, workers: int) -> None:
    suffixes = IMAGE_SUFFIXES if kind == "images" else VIDEO_SUFFIXES
    files = {f.name.partition(".")[0]: f for f in sorted(source.rglob("*")) if f.suffix.lower() in suffixes}
    if not files:
        raise DataError(source, f"no {kind} here", remedy=f"Looked for {', '.join(suffixes)}.")
    run: Callable[..., ExtractReport] = extract_images if kind == "images" else extract_videos
    report = run(files, out, encoder, workers=workers)
    summary = f"{source}: {len(report.done)} {kind} extracted to {out}"
    if report.skipped:
        summary += f", {len(report.skipped)} were there"
    Console().print(summary, soft_wrap=True)
    if report.failed:
        listed = "\n".join(f"  {key}: {reason}" for key, reason in list(report.failed.items())[:10])
        raise DataError(source, f"{len(report.failed)} {kind} could not be read:\n{listed}", remedy="Replace them.")
