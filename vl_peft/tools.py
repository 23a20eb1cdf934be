"""What the commands around training do: the demo corpus, features, counting parameters, adapters as files."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import track
from rich.table import Table

from datamodules import BENCHMARKS
from datamodules.demo.corpus import write_corpus
from datamodules.score import Scores, score
from vl_peft.backbones.base import Backbone
from vl_peft.checkpoint import (
    add_task,
    build,
    export_adapters,
    listing,
    load_adapters,
    merge,
    read_adapters,
    save_adapters,
    task_names,
)
from vl_peft.errors import ConfigError, DataError
from vl_peft.features.encoders import VisionEncoder, load_encoder
from vl_peft.features.extract import ExtractReport, extract_images, extract_videos
from vl_peft.features.packed import PackedStore, pack, unpack, verify
from vl_peft.features.unfinished import UNREADABLE
from vl_peft.published import import_published, read_published
from vl_peft.tuning.base import trainable

SUFFIXES = {
    "images": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "videos": (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg", ".mpeg", ".wmv", ".3gp", ".ts"),
}

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
            _extract_folder(options.root / source, options.root / out, "images", encoder, workers=options.workers)
        for source, out in DEMO_VIDEOS.get(part, {}).items():
            _extract_folder(options.root / source, options.root / out, "videos", encoder, workers=options.workers)
    size = sum(file.stat().st_size for file in options.root.rglob("*") if file.is_file())
    Console().print(f"demo corpus with features in {options.root} ({size / 2**20:.0f} MB)")


def extract(options: argparse.Namespace) -> None:
    """Extract features of the user's own images or videos."""
    if options.batch_size < 1 or options.workers < 0:
        raise ConfigError("--batch-size must be at least 1, and --workers not negative")
    if options.accept_truncated and options.kind == "videos":
        raise ConfigError("--accept-truncated is for images; a video that ends too early is listed as unreadable")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no GPU that this torch can use")
    settings = {"batch_size": options.batch_size, "workers": options.workers}
    settings["dtype"] = getattr(torch, options.precision) if options.precision else None
    if options.kind == "images":
        settings["accept_truncated"] = options.accept_truncated
    encoder = load_encoder(options.encoder, options.weights).to(device)
    _extract_folder(options.source, options.out, options.kind, encoder, **settings)


def _track(items: Iterable[Any], total: int) -> Iterable[Any]:
    return track(items, total=total, description="features")


def pack_folder(options: argparse.Namespace) -> None:
    """Pack a feature folder."""
    out = options.out or options.source.with_name(options.source.name + PackedStore.suffix)
    count = pack(options.source, out, options.pool, options.dtype, _track)
    Console().print(f"{count:,} keys packed to {out} ({out.stat().st_size / 2**20:.0f} MB)", soft_wrap=True)


def verify_packed(options: argparse.Namespace) -> None:
    """Check a packed file."""
    Console().print(f"{options.source}: {verify(options.source):,} keys, checksum as packed", soft_wrap=True)


def unpack_file(options: argparse.Namespace) -> None:
    """Unpack a packed file."""
    count = unpack(options.source, options.out, options.kind == "videos", _track)
    Console().print(f"{count:,} files written to {options.out}", soft_wrap=True)


def score_file(options: argparse.Namespace) -> None:
    """Print the official scores of a file of predictions."""
    if options.benchmark not in BENCHMARKS:
        raise ConfigError(f"There is no benchmark '{options.benchmark}'; there are {', '.join(BENCHMARKS)}.")
    benchmark = BENCHMARKS[options.benchmark]
    parser = ArgumentParser(prog=f"vl-peft data score --benchmark {options.benchmark}")
    parser.add_class_arguments(benchmark)
    arguments = parser.instantiate_classes(parser.parse_args(options.rest)).as_dict()
    result = score(options.predictions, benchmark(**arguments), options.references, options.split, options.partial)
    if options.json:
        print(json.dumps(result._asdict(), indent=2))
    else:
        Console().print(_score_table(options.benchmark, result))


def _score_table(name: str, result: Scores) -> Table:
    """For the screen; the headline stands out."""
    table = Table("metric", title=f"{name}: {result.examples:,} examples", caption="\n".join(result.notes) or None)
    table.add_column("score", justify="right")
    for metric, value in result.scores.items():
        bold = "[bold]" if metric == result.headline else ""
        table.add_row(f"{bold}{metric}", f"{bold}{value:.2f}")
    return table


DATA: dict[str, Callable[[argparse.Namespace], None]] = {
    "demo": write_demo,
    "extract": extract,
    "pack": pack_folder,
    "verify": verify_packed,
    "unpack": unpack_file,
    "score": score_file,
}


def _extract_folder(source: Path, out: Path, kind: str, encoder: VisionEncoder, **settings: Any) -> None:
    files = _media(source, kind)
    run: Callable[..., ExtractReport] = extract_images if kind == "images" else extract_videos
    report = run(files, out, encoder, **settings)
    summary = f"{source}: {len(report.done)} {kind} extracted to {out}"
    if report.skipped:
        summary += f", {len(report.skipped)} were there"
    Console().print(summary, soft_wrap=True)
    if report.failed:
        listed = "\n".join(f"  {key}: {reason}" for key, reason in list(report.failed.items())[:10])
        problem = f"{len(report.failed)} {kind} could not be read (all are listed in {out / UNREADABLE}):\n{listed}"
        raise DataError(source, problem, remedy="Replace them and run this again; what is done is kept.")


def _media(source: Path, kind: str) -> dict[str, Path]:
    """The image or video files below a folder by key, sorted by path: names up to the first dot, or to the last one.

    The first is the published rule for images; names of videos may have dots in them.
    """
    every = [f for f in sorted(source.rglob("*")) if f.is_file()]
    files = [f for f in every if f.suffix.lower() in SUFFIXES[kind] and not f.name.startswith(".")]
    if not files:
        raise DataError(source, f"no {kind} here", remedy=f"Looked for {', '.join(SUFFIXES[kind])}.")
    if len(files) < len(every):
        others = Counter(f.suffix.lower() or f.name for f in sorted(set(every) - set(files)))
        listed = ", ".join(f"{count} {name}" for name, count in others.most_common(5))
        Console().print(f"{source}: {len(every) - len(files)} other files are left out ({listed})", soft_wrap=True)
    keyed: dict[str, Path] = {}
    for file in files:
        key = file.name.partition(".")[0] if kind == "images" else file.stem
        if key in keyed:
            remedy = "Rename or move one of them."
            raise DataError(source, f"{keyed[key]} and {file} would have the same features' file", key, remedy)
        keyed[key] = file
    return keyed


def build_meta(config: Namespace, feature_dim: int) -> Backbone:
    """The tuned backbone of a parsed configuration on the meta device: shapes without values."""
    model, data = config.model.as_dict(), config.data.as_dict()
    changes = {"random_init": True, "feature_dim": feature_dim}
    with torch.device("meta"):
        return build({**model, "tasks": task_names(data)}, **changes)


def _show(folder: Path) -> None:
    description, tensors = read_adapters(folder)
    title = " with ".join(str(description[part]["class_path"]).rpartition(".")[2] for part in ("backbone", "tuning"))
    Console().print(f"{folder}", soft_wrap=True, highlight=False)
    table = Table("part", title=title, caption=f"tasks: {', '.join(description['tasks'])}")
    for heading in ("tensors", "parameters"):
        table.add_column(heading, justify="right")
    rows = listing(tensors, description["tasks"])
    for group, count, size in [*rows, ("all", sum(r[1] for r in rows), sum(r[2] for r in rows))]:
        table.add_row(group, f"{count:,}", f"{size:,}")
    Console().print(table)


def _export(options: argparse.Namespace) -> None:
    _show(export_adapters(options.source, options.out, options.ckpt))


def _add(options: argparse.Namespace) -> None:
    backbone, (description, _) = load_adapters(options.source), read_adapters(options.source)
    trained = set(trainable(backbone))
    add_task(backbone, options.task, options.like)
    kept = {name: p.data for name, p in backbone.named_parameters() if name in trained or p.requires_grad}
    _show(save_adapters({**description, "tasks": list(backbone.route.tasks)}, kept, options.out))


def _merge(options: argparse.Namespace) -> None:
    backbone = load_adapters(options.source)
    count = merge(backbone)
    backbone.save_pretrained(options.out)
    Console().print(f"{count} corrections merged; backbone written to {options.out}", soft_wrap=True)


def _import(options: argparse.Namespace) -> None:
    out = import_published(read_published(options.source), options.backbone, options.out)
    Console().print(f"backbone written to {out / 'backbone'}", soft_wrap=True)
    if (out / "adapter_config.json").exists():
        _show(out)


ADAPTERS: dict[str, Callable[[argparse.Namespace], None]] = {
    "export": _export,
    "inspect": lambda options: _show(options.source),
    "add": _add,
    "merge": _merge,
    "import": _import,
}
