"""Makes feature files: one HDF5 per image, one npz per video, in the published layout.

A run can be stopped and started again: files that exist are skipped, and none is ever seen half-written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vl_peft.features.encoders import VisionEncoder
from vl_peft.features.video import read_frames

CHUNK = 256  # pictures through the encoder at a time: bounds memory when a batch holds long videos


@dataclass
class ExtractReport:
    """What became of each input.

    Attributes:
        done: keys written in this run.
        skipped: keys whose file existed already.
        failed: keys of inputs that could not be used, with the reason; no file is written for them.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def extract_images(
    files: Mapping[str, str | Path],
    out: str | Path,
    encoder: VisionEncoder,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = True,
) -> ExtractReport:
    """Writes ``out/<key>.h5`` with the dataset ``<key>/features``, float16 ``[n, F]``, for each image.

    Args:
        files: image file of each key.
        out: folder to write to; made when absent.
        encoder: gives the grid; it runs on the device its weights are on.
        batch_size: images per step.
        workers: processes that decode; 0 decodes in this one.
        progress: whether to show a progress bar.

    Returns:
        Which keys were done, skipped or failed; an unreadable image never stops the run.
    """
    kind = _Kind("images", ".h5", partial(_read_image, encoder), encoder.grid, _write_image)
    return _extract(kind, files, Path(out), batch_size, workers, progress, _device(encoder))


def extract_videos(
    files: Mapping[str, str | Path],
    out: str | Path,
    encoder: VisionEncoder,
    batch_size: int = 8,
    workers: int = 0,
    progress: bool = True,
) -> ExtractReport:
    """Writes ``out/<key>.npz`` with the array ``features``, float16 ``[T, F]``, for each video: a row per 1.5 seconds.

    Arguments and result as for ``extract_images``; ``batch_size`` counts videos.
    """
    kind = _Kind("videos", ".npz", partial(_read_video, encoder), encoder.pooled, _write_video)
    return _extract(kind, files, Path(out), batch_size, workers, progress, _device(encoder))


@dataclass(frozen=True)
class _Kind:
    """What differs between images and videos."""

    name: str
    suffix: str
    read: Callable[[Path], Tensor]  # a file to uint8 [n, 3, S, S]: one picture, or the frames
    encode: Callable[[Tensor], Tensor]
    write: Callable[[Path, str, np.ndarray], None]


class _Inputs(Dataset[tuple[str, "Tensor | str"]]):
    """Reads and prepares one input at a time: its key, and its pictures or the reason why there are none."""

    def __init__(self, files: list[tuple[str, Path]], read: Callable[[Path], Tensor]) -> None:
        self.files, self.read = files, read

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[str, Tensor | str]:
        key, path = self.files[i]
        try:
            return key, self.read(path)
        except Exception as error:  # decoders raise nearly anything on broken files; the reason goes into the report
            return key, str(error) or repr(error)


def _read_image(encoder: VisionEncoder, path: Path) -> Tensor:
    with Image.open(path) as image:
        return encoder.prepare_image(image)[None]


def _read_video(encoder: VisionEncoder, path: Path) -> Tensor:
    return torch.stack([encoder.prepare_frame(frame) for frame in read_frames(path)])


def _write_image(file: Path, key: str, features: np.ndarray) -> None:
    with h5py.File(file, "w") as h5:
        h5[f"{key}/features"] = features[0]


def _write_video(file: Path, key: str, features: np.ndarray) -> None:
    with file.open("wb") as stream:  # given a name, savez would append its own suffix
        np.savez(stream, features=features)


def _collate(items: list[tuple[str, Tensor | str]]) -> tuple[list[tuple[str, int]], dict[str, str], Tensor]:
    """(key, number of pictures) of the good inputs, reasons of the others, all pictures uint8 ``[N, 3, S, S]``."""
    good = [(key, x) for key, x in items if isinstance(x, Tensor)]
    failed = {key: x for key, x in items if isinstance(x, str)}
    pictures = torch.cat([x for _, x in good]) if good else torch.empty(0, dtype=torch.uint8)
    return [(key, len(x)) for key, x in good], failed, pictures


def _device(encoder: VisionEncoder) -> torch.device:
    return next(encoder.parameters()).device


@torch.inference_mode()
def _extract(
    kind: _Kind,
    files: Mapping[str, str | Path],
    out: Path,
    batch_size: int,
    workers: int,
    progress: bool,
    device: torch.device,
) -> ExtractReport:
    out.mkdir(parents=True, exist_ok=True)
    targets = {key: out / f"{key}{kind.suffix}" for key in files}
    report = ExtractReport(skipped=[key for key, target in targets.items() if target.exists()])
    todo = _Inputs([(key, Path(file)) for key, file in files.items() if not targets[key].exists()], kind.read)
    loader = DataLoader(todo, batch_size, num_workers=workers, collate_fn=_collate)
    with _bar(progress) as bar:
        task = bar.add_task(kind.name, total=len(todo), failed=0)
        for good, failed, pictures in loader:
            report.failed.update(failed)
            chunks = [kind.encode(chunk.to(device)) for chunk in pictures.split(CHUNK)] if good else []
            rows = torch.cat(chunks).half().cpu().split([n for _, n in good]) if good else ()
            for (key, _), features in zip(good, rows, strict=True):
                if features.isfinite().all():
                    _write(targets[key], key, features.numpy(), kind.write)
                    report.done.append(key)
                else:
                    report.failed[key] = "the features are not finite in float16"
            bar.update(task, advance=len(good) + len(failed), failed=len(report.failed))
    return report


def _write(target: Path, key: str, features: np.ndarray, write: Callable[[Path, str, np.ndarray], None]) -> None:
    """Under a temporary name first, its own for each process, so that several may extract into one folder."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        write(temporary, key, features)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


class _Speed(ProgressColumn):
    """Inputs per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.0f}/s")


def _bar(visible: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[failed]} failed"), disable=not visible)
