"""Features of image regions in the files of VL-T5 and LXMERT (``--data.encoder butd``): objects that a detector found.

One HDF5 holds the images of a split: ``<image>/features [n, F]``, ``<image>/boxes [n, 4]`` in pixels as (x1, y1, x2,
y2), ``<image>/img_w`` and ``<image>/img_h``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vl_peft.errors import DataError
from vl_peft.features.store import REMEDY, FeatureStore, checked, dataset, reading

SLACK = 1e-5  # how far beyond the image a box may reach: what float32 makes of a box that ends at its edge


class RegionStore(FeatureStore):
    """One or several files of a benchmark, read as one. An image that several have is read from the first.

    A file is opened by the process that reads from it, at its first read, and closed nowhere: opening it costs more
    than reading an image.

    Args:
        files: the files.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(files[0] if len(files) == 1 else files[0].parent)
        self.files = list(files)
        self._open: dict[Path, h5py.File] = {}
        self._owner = 0

    @cached_property
    def _file_of(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for file in self.files:
            with reading(file, "(all)"), h5py.File(file, "r") as h5:
                for key in h5:
                    found.setdefault(key, file)
        return found

    def read(self, key: str) -> np.ndarray:
        """As :meth:`FeatureStore.read`, the regions in the order of the file."""
        file = self._find(key)
        with reading(file, key):
            x = np.asarray(dataset(self._opened(file), f"{key}/features")[()])
        return checked(file, key, x)

    def boxes(self, key: str) -> np.ndarray:
        """(x1, y1, x2, y2) of each region in the unit square, float32 ``[n, 4]``: pixels over the image's size.

        Raises:
            DataError: there are none, or one reaches further than 1e-5 out of the image; less is cut off.
        """
        file = self._find(key)
        with reading(file, key):
            h5 = self._opened(file)
            width, height = (np.float32(dataset(h5, f"{key}/{side}")[()]) for side in ("img_w", "img_h"))
            pixels = np.asarray(dataset(h5, f"{key}/boxes")[()], dtype=np.float32)
            rows = len(dataset(h5, f"{key}/features"))
        if pixels.shape != (rows, 4) or not (width > 0 and height > 0):
            problem = f"has boxes {pixels.shape} of {rows} regions in an image of {width:g}x{height:g}"
            raise DataError(file, problem, key, REMEDY)
        boxes = pixels / np.array([width, height, width, height])
        if not (boxes.min() >= -SLACK and boxes.max() <= 1 + SLACK):  # false of NaN too
            problem = f"has boxes from {boxes.min():.6g} to {boxes.max():.6g} of the image's size, not from 0 to 1"
            raise DataError(file, problem, key, REMEDY)
        clamped: np.ndarray = np.clip(boxes, 0, 1, out=boxes)
        return clamped

    @property
    def dim(self) -> int:
        """F, of the first image; raises DataError when there is none."""
        key = next(iter(self._file_of), None)
        if key is None:
            raise DataError(self.path, "has no images", remedy=REMEDY)
        file = self._file_of[key]
        with reading(file, key), h5py.File(file, "r") as h5:
            return int(dataset(h5, f"{key}/features").shape[1])

    def keys(self) -> list[str]:
        """All keys, sorted."""
        return sorted(self._file_of)

    def __contains__(self, key: str) -> bool:
        return key in self._file_of

    def _find(self, key: str) -> Path:
        file = self._file_of.get(key)
        if file is None:
            names = ", ".join(file.name for file in self.files)
            raise DataError(self.path, f"no features of this image in {names}", key, "Extract them first.")
        return file

    def _opened(self, file: Path) -> h5py.File:
        """The open file. What a forked worker inherits is closed: HDF5 would go on using its parent's descriptor."""
        if self._owner != os.getpid():
            for inherited in self._open.values():
                inherited.close()
            self._open, self._owner = {}, os.getpid()
        if file not in self._open:
            self._open[file] = h5py.File(file, "r")
        return self._open[file]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}
