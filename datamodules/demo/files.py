"""Writing files so that they are either whole or absent, and the unit of work that is spread over processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MINIMUM = 8  # items that every split keeps when the corpus is scaled down


@dataclass(frozen=True)
class Job:
    """A call that writes ``items`` items called ``kind``; ``run`` is a module-level function, so it can be pickled."""

    kind: str
    items: int
    run: Callable[..., None]
    args: tuple[Any, ...]


def scaled(count: int, scale: float) -> int:
    """``count`` times ``scale``, but at least ``MINIMUM``."""
    return max(MINIMUM, round(count * scale))


def chunks(count: int, size: int) -> Iterator[range]:
    """``range(count)`` in consecutive pieces of at most ``size``."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def unfinished(path: Path) -> Path:
    """Where to write what will become ``path``: hidden, and of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file and put it in place when complete; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = unfinished(path)
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write one JSON value."""
    write_text(path, json.dumps(value, indent=indent))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value per line."""
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def write_image(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write uint8 ``[H, W, 3]`` RGB as JPEG or PNG, by the suffix; its folder must exist."""
    part = unfinished(path)
    if path.suffix == ".jpg":
        Image.fromarray(pixels).save(part, "JPEG", quality=90)
    else:
        Image.fromarray(pixels).save(part, "PNG")
    part.replace(path)
