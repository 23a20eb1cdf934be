"""Makes feature files: one HDF5 per image, one npz per video, in the published layout.

A run can be stopped, or killed, and started again: what is finished is kept, no file is ever seen half-written, and in
the end every byte is as if nothing had happened. For that the batches of a run and of the one that goes on with it are
the same: a batch of which some files exist is encoded again as a whole, and only what is missing is written.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vl_peft.errors import DataError
from vl_peft.features.encoders import VisionEncoder, centre, squash
from vl_peft.features.unfinished import list_unreadable, replace, unfinished
from vl_peft.features.video import map_frames


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
    dtype: torch.dtype | None = None,
    accept_truncated: bool = False,
) -> ExtractReport:
    """Writes ``out/<key>.h5`` with the dataset ``<key>/features``, float16 ``[n, F]``, for each image.

    Args:
        files: image file of each key.
        out: folder to write to; made when absent. What cannot be used is listed there in ``unreadable.tsv``.
        encoder: gives the grid; it runs on the device its weights are on.
        batch_size: images through the encoder at a time.
        workers: processes that decode; 0 decodes in this one.
        progress: whether to show a progress bar.
        dtype: in which the encoder calculates (autocast); by default float16 on CUDA and float32 elsewhere.
        accept_truncated: whether of an image file that ends too early what is there is taken, as by the published code,
            the rest grey or black. Otherwise it is unreadable.

    Returns:
        Which keys were done, skipped or failed; an unreadable image never stops the run.
    """
    read = partial(_read_image, encoder.size, accept_truncated)
    kind = _Kind("images", ".h5", batch_size, read, _Encode(encoder, encoder.grid, batch_size, dtype), _write_image)
    return _extract(kind, files, Path(out), workers, progress)


def extract_videos(
    files: Mapping[str, str | Path],
    out: str | Path,
    encoder: VisionEncoder,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = True,
    dtype: torch.dtype | None = None,
) -> ExtractReport:
    """Writes ``out/<key>.npz`` with the array ``features``, float16 ``[T, F]``, for each video: a row per 1.5 seconds.

    Arguments and result as for ``extract_images``; ``batch_size`` counts frames, all of one video.
    """
    read, encode = partial(_read_video, encoder.size), _Encode(encoder, encoder.pooled, batch_size, dtype)
    return _extract(_Kind("videos", ".npz", 1, read, encode, _write_video), files, Path(out), workers, progress)


@dataclass(frozen=True)
class _Kind:
    """What differs between images and videos."""

    name: str
    suffix: str
    together: int  # files of one batch
    read: Callable[[Path], Tensor]  # a file to uint8 [n, 3, S, S]: one picture, or the frames
    encode: _Encode
    write: Callable[[str, np.ndarray, Path], None]


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
        except DataError as error:
            return key, error.problem  # the report names the file
        except Exception as error:  # decoders raise nearly anything on broken files
            return key, str(error) or repr(error)


def _read_image(size: int, accept_truncated: bool, path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            return squash(image, size)[None]
    except OSError as error:
        if not accept_truncated or isinstance(error, UnidentifiedImageError):
            raise
    # What PIL's own switch for this does, which would hold for the whole process: the missing part is grey in a JPEG,
    # which gets its end mark, and black in others.
    data = path.read_bytes()
    with Image.open(io.BytesIO(data + b"\xff\xd9" if data.startswith(b"\xff\xd8") else data)) as image:
        with suppress(OSError):
            image.load()
        image.tile = []  # nothing left to decode
        return squash(image, size)[None]


def _read_video(size: int, path: Path) -> Tensor:
    return torch.stack(map_frames(path, partial(centre, size=size)))


def _write_image(key: str, features: np.ndarray, file: Path) -> None:
    with h5py.File(file, "w") as h5:
        h5[f"{key}/features"] = features[0]


def _write_video(key: str, features: np.ndarray, file: Path) -> None:
    with file.open("wb") as stream:  # given a name, savez would append its own suffix
        np.savez(stream, features=features)


class _Encode:
    """Pictures to features, a batch at a time.

    Args:
        encoder: tells the device.
        encode: its ``grid`` or ``pooled``.
        batch_size: pictures at a time.
        dtype: of autocast; by default float16 on CUDA and float32, which is none, elsewhere.
    """

    def __init__(
        self, encoder: VisionEncoder, encode: Callable[[Tensor], Tensor], batch_size: int, dtype: torch.dtype | None
    ) -> None:
        self.device, self.encode, self.batch_size = next(encoder.parameters()).device, encode, batch_size
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """float16 ``[n, ...]`` of each key, from its pictures uint8 ``[n, 3, S, S]``."""
        chunks = torch.cat(list(inputs.values())).split(self.batch_size)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            encoded = [self.encode(chunk.to(self.device)).half().cpu() for chunk in chunks]
        split = torch.cat(encoded).split([len(x) for x in inputs.values()])
        return {key: x.numpy() for key, x in zip(inputs, split, strict=True)}


def _batches(keys: list[str], together: int, there: set[str]) -> list[list[int]]:
    """Rows of ``keys`` in batches as if none was finished, without the batches of which all are."""
    batches = [list(range(i, min(i + together, len(keys)))) for i in range(0, len(keys), together)]
    return [batch for batch in batches if not all(keys[i] in there for i in batch)]


@torch.inference_mode()
def _extract(kind: _Kind, files: Mapping[str, str | Path], out: Path, workers: int, progress: bool) -> ExtractReport:
    keys, targets = list(files), {key: out / f"{key}{kind.suffix}" for key in files}
    report = ExtractReport(skipped=[key for key in keys if targets[key].exists()])
    there = set(report.skipped)
    inputs = _Inputs([(key, Path(file)) for key, file in files.items()], kind.read)
    batches = _batches(keys, kind.together, there)
    with unfinished(out) as folder, _bar(progress) as bar:
        task = bar.add_task(kind.name, total=len(keys) - len(there), failed=0)
        for batch in DataLoader(inputs, batch_sampler=batches, num_workers=workers, collate_fn=list):
            report.failed |= {key: x for key, x in batch if isinstance(x, str)}
            good = {key: x for key, x in batch if isinstance(x, Tensor)}
            for key, features in kind.encode(good).items() if good.keys() - there else ():
                if key in there:
                    continue
                if np.isfinite(features).all():
                    replace(targets[key], folder, partial(kind.write, key, features))
                    report.done.append(key)
                else:
                    report.failed[key] = "the features are not finite in float16"
            bar.update(task, advance=sum(key not in there for key, _ in batch), failed=len(report.failed))
        list_unreadable(out, folder, files, report.failed)
    return report


class _Speed(ProgressColumn):
    """Inputs per second: of late, or, when all came at once, since the start."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or task.completed / (task.elapsed or 1)
        return Text(f"{speed:.1f}/s")


def _bar(visible: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[failed]} failed"), disable=not visible)
