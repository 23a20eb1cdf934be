"""All features of a folder in one file that is read by row: ``vl-peft data pack``.

A packed file is HDF5 with the contiguous dataset ``rows [N, F]``, the sorted ``keys [n]`` and ``ends [n]`` (rows of key
i are ``ends[i - 1]`` to ``ends[i]``); its attributes hold the format, the checksum of the rows, and what they were
pooled to. Contiguous rows can be mapped into memory, and one open file serves all keys.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vl_peft.errors import DataError
from vl_peft.features.pooling import pool_grid, pool_time
from vl_peft.features.store import PACKED, FeatureStore, ImageFolderStore, VideoFolderStore

Progress = Callable[[Iterable[Any], int], Iterable[Any]]  # items and how many there are, to the same items
FORMAT = "vl_peft packed features 1"
REMEDY = "Delete it and pack the folder again."


class PackedStore(FeatureStore):
    """One packed file, memory-mapped. Pickled without the mapping, so that every worker opens its own.

    The rows were checked when they were packed; reading does not check them again (:func:`verify` does).

    Args:
        path: the file.
    """

    suffix = PACKED

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._opened: tuple[dict[str, int], NDArray[np.int64], NDArray[Any]] | None = None

    def _open(self) -> tuple[dict[str, int], NDArray[np.int64], NDArray[Any]]:
        if self._opened is None:
            try:
                with h5py.File(self.path, "r") as h5:
                    if h5.attrs.get("format") != FORMAT:
                        raise DataError(self.path, f"is not of the format '{FORMAT}'", remedy=REMEDY)
                    rows, ends = h5["rows"], np.asarray(h5["ends"][()])
                    keys = {key.decode(): i for i, key in enumerate(h5["keys"][()])}
                    offset, shape, dtype = rows.id.get_offset(), rows.shape, rows.dtype
            except FileNotFoundError:
                raise DataError(self.path, "no such packed file", remedy="Pack the folder first.") from None
            except (OSError, KeyError, ValueError) as error:
                raise DataError(self.path, f"cannot be read, perhaps truncated ({error})", remedy=REMEDY) from error
            if offset is None or len(ends) != len(keys) or (len(ends) and ends[-1] != shape[0]):
                raise DataError(self.path, "its index does not fit its rows", remedy=REMEDY)
            if offset + int(np.prod(shape)) * dtype.itemsize > self.path.stat().st_size:
                raise DataError(self.path, "is truncated", remedy=REMEDY)
            self._opened = keys, ends, np.memmap(self.path, dtype, "r", offset, shape)
        return self._opened

    def read(self, key: str) -> np.ndarray:
        """Rows of one image or video, ``[V, F]``; a read-only view of the file.

        Raises:
            DataError: if the file has no such key, or is no packed file.
        """
        keys, ends, rows = self._open()
        i = keys.get(key)
        if i is None:
            raise DataError(self.path, "has no features of this key", key, "Extract them and pack the folder again.")
        return np.asarray(rows[ends[i - 1] if i else 0 : ends[i]])

    def file(self, key: str) -> Path:
        """The one file."""
        return self.path

    @property
    def dim(self) -> int:
        """F."""
        return int(self._open()[2].shape[1])

    def keys(self) -> list[str]:
        """All keys, sorted."""
        return list(self._open()[0])

    def __contains__(self, key: str) -> bool:
        return key in self._open()[0]

    def _load(self, file: Path, key: str) -> np.ndarray:
        return self.read(key)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}


def folder_store(folder: Path) -> FeatureStore:
    """The store of a folder, by what its files are.

    Raises:
        DataError: if there are no feature files in it.
    """
    for kind in (ImageFolderStore, VideoFolderStore):
        store = kind(folder)
        if next(store._files(), None) is not None:
            return store
    raise DataError(folder, "no *.h5 or *.npz in this folder", remedy="Extract the features first.")


def pack(folder: Path, out: Path, pool_to: int | None = None, progress: Progress = lambda items, total: items) -> int:
    """Write a folder of feature files to one packed file, which is complete or not there; returns the number of keys.

    Args:
        folder: one HDF5 per image or one npz per video.
        out: the packed file.
        pool_to: shorten each to at most so many rows, as training would: grids and videos by their own rule.
        progress: wraps what is iterated over, to show how far it is.

    Raises:
        DataError: naming the first file that cannot be used.
    """
    store = folder_store(folder)
    shorten = pool_grid if isinstance(store, ImageFolderStore) else pool_time
    keys, dim = store.keys(), store.dim

    def arrays() -> Iterator[np.ndarray]:
        for key in keys:
            x = store.read(key)
            if x.shape[1] != dim:
                raise DataError(store.file(key), f"features have size {x.shape[1]}, the others {dim}", key)
            yield x if pool_to is None else shorten(x, pool_to)

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        ends: list[int] = []
        checksum, dtype = 0, store.read(keys[0]).dtype
        with temporary.with_suffix(".rows").open("wb") as rows:
            for x in progress(arrays(), len(keys)):
                data = np.ascontiguousarray(x, dtype=np.result_type(dtype, x.dtype))
                if data.dtype != dtype:
                    raise DataError(folder, f"has features of {dtype} and of {x.dtype}", remedy="Extract them alike.")
                ends.append((ends[-1] if ends else 0) + len(data))
                checksum = zlib.crc32(data.data, checksum)
                data.tofile(rows)
        _join(temporary, temporary.with_suffix(".rows"), keys, ends, (ends[-1], dim), dtype, checksum, pool_to)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_suffix(".rows").unlink(missing_ok=True)
    return len(keys)


def _join(
    file: Path,
    rows: Path,
    keys: list[str],
    ends: list[int],
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    checksum: int,
    pool_to: int | None,
) -> None:
    with h5py.File(file, "w") as h5:
        h5["keys"], h5["ends"] = np.array(keys, dtype=h5py.string_dtype()), np.array(ends, dtype=np.int64)
        h5.attrs.update({"format": FORMAT, "crc32": checksum, "pooled_to": pool_to or 0})
        written, source = h5.create_dataset("rows", shape, dtype), np.memmap(rows, dtype, "r", shape=shape)
        step = max(1, 2**26 // (shape[1] * dtype.itemsize))
        for start in range(0, shape[0], step):
            written[start : start + step] = source[start : start + step]


def verify(file: Path) -> int:
    """Compare the rows with their checksum; returns the number of keys.

    Raises:
        DataError: if they differ.
    """
    keys, _, rows = PackedStore(file)._open()
    checksum, step = 0, max(1, 2**26 // (rows.shape[1] * rows.dtype.itemsize))
    for start in range(0, len(rows), step):
        checksum = zlib.crc32(np.ascontiguousarray(rows[start : start + step]).data, checksum)
    with h5py.File(file, "r") as h5:
        if checksum != h5.attrs["crc32"]:
            raise DataError(file, "its rows are not those that were packed (checksum)", remedy=REMEDY)
    return len(keys)


def unpack(file: Path, folder: Path, videos: bool, progress: Progress = lambda items, total: items) -> int:
    """Write the features of a packed file as one file per key again, bit-equal; returns their number.

    Args:
        file: packed without pooling.
        folder: to write to.
        videos: npz per video instead of HDF5 per image.
        progress: see :func:`pack`.

    Raises:
        DataError: if it was pooled when it was packed.
    """
    store = PackedStore(file)
    with h5py.File(file, "r") as h5:
        if h5.attrs["pooled_to"]:
            raise DataError(file, f"was pooled to {h5.attrs['pooled_to']} rows; the original rows are not in it")
    folder.mkdir(parents=True, exist_ok=True)
    for key in progress(store.keys(), len(store.keys())):
        target = (VideoFolderStore if videos else ImageFolderStore)(folder).file(key)
        temporary = target.with_name(f".{target.name}.tmp")
        if videos:
            with temporary.open("wb") as stream:
                np.savez(stream, features=store.read(key))
        else:
            with h5py.File(temporary, "w") as h5:
                h5[f"{key}/features"] = store.read(key)
        temporary.replace(target)
    return len(store.keys())
