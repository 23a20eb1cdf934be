"""The features part of ``vl-peft data check``: which are missing, and what some of them, or all, are like."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from datamodules.base import Benchmark
from datamodules.loading import Split
from vl_peft.collate import shortened
from vl_peft.errors import DataError
from vl_peft.features.store import CachedStore, FeatureStore

SHOWN = 10
"""How many keys are named."""
MANY = 2000
"""From so many files on, worker processes read them."""

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]  # items, how many and what they are, to the same items


@dataclass(frozen=True)
class Depth:
    """How far a check looks.

    Attributes:
        sample: images or videos of each split whose features are read; of texts, ten times as many are measured.
        full: read and measure all.
        missing: folder for lists of the keys without features, ``<benchmark>_<split>.txt``; ``None`` writes none.
        workers: processes that read features, where there are many.
        progress: wraps what is iterated over, to show how far it is.
    """

    sample: int = 200
    full: bool = False
    missing: Path | None = None
    workers: int = 2
    progress: Progress = lambda items, total, what: items

    def rows(self, count: int, sample: int, seed: int) -> Sequence[int]:
        """Which of ``count`` things to look at, in order: all, or ``sample`` of them, drawn by the seed."""
        if self.full or count <= sample:
            return range(count)
        return sorted(random.Random(seed).sample(range(count), sample))


@dataclass
class Features:
    """The features of a split; of raw images and videos, the pictures.

    Attributes:
        path: file or folder they are in.
        needed: images or videos that the examples show.
        missing: how many of them have no features; ``missing_examples``: of how many examples.
        first_missing: the first ten of them; ``missing_list``: the file that has all, if one was asked for.
        read: how many were read.
        shapes: how many of these have each shape, as ``"49x2048"``; ``dtypes`` likewise.
        sizes: how many have each F.
        unusable: what is wrong with each that cannot be used, by key.
    """

    path: str
    needed: int
    missing: int = 0
    missing_examples: int = 0
    first_missing: list[str] = field(default_factory=list)
    missing_list: str | None = None
    read: int = 0
    shapes: dict[str, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)


class Look(NamedTuple):
    """What the features of one key are: their shape and dtype, or what is wrong with them."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    problem: str = ""


class FeatureCheck:
    """Checks the features of splits; folders that they share are listed once, and no features are read twice.

    Args:
        depth: how far to look.
    """

    def __init__(self, depth: Depth) -> None:
        self.depth = depth
        self._known: dict[str, set[str]] = {}
        self._looks: dict[str, dict[str, Look]] = {}

    def features(self, benchmark: Benchmark, split: Split, usage: Mapping[str, int]) -> Features:
        """What there is for a split.

        Args:
            benchmark: whose.
            split: of it.
            usage: how many examples show each image or video.

        Raises:
            UserError: if there are no features at all.
        """
        store = benchmark.store(split)
        store = store.store if isinstance(store, CachedStore) else store
        place = benchmark.feature_folder(split)
        if benchmark.loading.raw is not None:
            place = benchmark.task.name  # its media
        if place not in self._known:
            self._known[place], self._looks[place] = set(store.keys()), {}
        missing = {key: count for key, count in usage.items() if key not in self._known[place]}
        report = Features(str(store.path), len(usage), len(missing), sum(missing.values()))
        report.first_missing = list(islice(missing, SHOWN))
        if self.depth.missing is not None:
            report.missing_list = _write(self.depth.missing / f"{benchmark.task.name}_{split}.txt", missing)
        there = sorted(usage.keys() - missing.keys())
        keys = [there[row] for row in self.depth.rows(len(there), self.depth.sample, benchmark.loading.seed)]
        look = partial(_look, store, benchmark.visual_kind, benchmark.visual_tokens)
        looks = self._looks[place]
        new = [key for key in keys if key not in looks]
        looks.update(self._read(look, new, f"{benchmark.task.name} {split} features"))
        _sum_up(report, {key: looks[key] for key in keys}, store)
        return report

    def _read(self, look: Callable[[str], Look], keys: Sequence[str], what: str) -> Iterable[tuple[str, Look]]:
        if len(keys) < MANY:
            return ((key, look(key)) for key in self.depth.progress(keys, len(keys), what))
        loader = DataLoader(_Looks(look, keys), batch_size=64, collate_fn=list, num_workers=self.depth.workers)
        return zip(keys, self.depth.progress(chain.from_iterable(loader), len(keys), what), strict=True)


class _Looks(Dataset[Look]):
    def __init__(self, look: Callable[[str], Look], keys: Sequence[str]) -> None:
        self.look, self.keys = look, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> Look:
        return self.look(self.keys[row])


def _look(store: FeatureStore, kind: Literal["grid", "frames"], tokens: int, key: str) -> Look:
    try:
        x = store.read(key)
        if x.ndim == 2:  # no pictures
            if not np.isfinite(x).all():  # a packed file was checked when it was written, not when it is read
                raise DataError(store.path, "features contain NaN or infinity", key)
            shortened(store, key, x, kind, tokens)
    except DataError as error:
        return Look(problem=str(error))
    return Look(x.shape, str(x.dtype))


def _sum_up(report: Features, looks: Mapping[str, Look], store: FeatureStore) -> None:
    """Count what was seen. Features of another size than most cannot be used with them."""
    report.read = len(looks)
    report.unusable = {key: look.problem for key, look in looks.items() if look.problem}
    sound = {key: look for key, look in looks.items() if not look.problem}
    report.shapes = _counts("x".join(map(str, look.shape)) for look in sound.values())
    report.dtypes = _counts(look.dtype for look in sound.values())
    report.sizes = _counts(look.shape[1] for look in sound.values() if len(look.shape) == 2)
    common = next(iter(report.sizes), None)
    for key, look in sound.items():
        if len(look.shape) == 2 and look.shape[1] != common:
            problem = f"features have size {look.shape[1]}, most others {common}"
            report.unusable[key] = str(DataError(store.path, problem, key))


def _counts(values: Iterable[Any]) -> dict[Any, int]:
    return dict(Counter(values).most_common())


def _write(file: Path, keys: Iterable[str]) -> str | None:
    """A list that is complete or not there; nothing is missing, no list."""
    lines = "".join(f"{key}\n" for key in keys)
    if not lines:
        file.unlink(missing_ok=True)
        return None
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(lines, encoding="utf-8")
    temporary.replace(file)
    return str(file)
