"""All features of a folder in one file that is read by row: ``vl-peft data pack``.

A packed file is HDF5 with the contiguous dataset ``rows [N, F]``, the sorted ``keys`` as JSON, and ``ends [n]`` (rows
of key i are ``ends[i - 1]`` to ``ends[i]``); ``facts`` are JSON too: the format, checksums of the rows and of the
index, what the rows were pooled to, and the dtype they have and had. Contiguous rows can be mapped into memory, and one
open file serves all keys.

Rows of bfloat16, a type that neither NumPy nor HDF5 has, are stored as uint16: the upper half of a float32.
"""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from vl_peft.errors import DataError
from vl_peft.features.pooling import pool_grid, pool_time
from vl_peft.features.store import PACKED, FeatureStore, FolderStore, ImageFolderStore, VideoFolderStore

Progress = Callable[[Iterable[Any], int], Iterable[Any]]  # items and how many there are, to the same items
FORMAT = "vl_peft packed features 2"
REMEDY = "Delete it and pack the folder again."
BLOCK = 2**26  # bytes that are checked at a time

Dtype = Literal["keep", "float16", "bfloat16"]


@dataclass(frozen=True)
class Index:
    """What is known of a packed file when it is open.

    Attributes:
        keys: place of each key, in order.
        ends: int64 ``[n]``.
        rows: ``[N, F]``, mapped into memory: float16, float32, or uint16 that stands for bfloat16.
        facts: checksums, what the rows were made of.
        mapped: the whole file; it knows how long the file is now.
    """

    keys: dict[str, int]
    ends: NDArray[np.int64]
    rows: NDArray[Any]
    facts: Mapping[str, Any]
    mapped: mmap.mmap


class PackedStore(FeatureStore):
    """One packed file, memory-mapped. Pickled without the mapping, so that every worker opens its own.

    The rows were checked when they were packed; reading does not check them again (:func:`verify` does).

    Args:
        path: the file.
    """

    suffix = PACKED

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        """What is in the file, opened at first use; raises DataError if it is no packed file, or damaged."""
        if self._index is None:
            try:
                with h5py.File(self.path, "r") as h5:
                    self._index = self._open(h5)
            except FileNotFoundError:
                raise DataError(self.path, "no such packed file", remedy="Pack the folder first.") from None
            except DataError:
                raise
            except Exception as error:  # h5py raises nearly anything on damaged files
                raise DataError(self.path, f"cannot be read, perhaps truncated ({error})", remedy=REMEDY) from error
        return self._index

    def _open(self, h5: h5py.File) -> Index:
        facts = json.loads(bytes(h5["facts"][()])) if "facts" in h5 else {}
        if facts.get("format") != FORMAT:
            raise DataError(self.path, f"is not of the format '{FORMAT}'", remedy=REMEDY)
        rows, ends, names = h5["rows"], np.asarray(h5["ends"][()]), json.loads(bytes(h5["keys"][()]))
        keys = {name: i for i, name in enumerate(names)}
        offset = rows.id.get_offset()
        if offset is None or facts["crc32_index"] != _index_checksum(names, ends) or rows.shape[0] != ends[-1]:
            raise DataError(self.path, "its index is damaged or does not fit its rows", remedy=REMEDY)
        if offset + rows.nbytes > self.path.stat().st_size:
            raise DataError(self.path, "is truncated", remedy=REMEDY)
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        values = np.frombuffer(mapped, rows.dtype, rows.size, offset)
        return Index(keys, ends, values.reshape(rows.shape), facts, mapped)

    def read(self, key: str) -> np.ndarray:
        """Rows of one image or video, ``[V, F]``; a read-only view of the file, or float32 made from bfloat16.

        Raises:
            DataError: if the file has no such key, is no packed file, or was cut off since it was opened.
        """
        index = self.index
        if index.mapped.size() < len(index.mapped):  # what is gone cannot be touched: it would end the process (SIGBUS)
            raise DataError(self.path, "was cut off while it was in use", key, REMEDY)
        i = index.keys.get(key)
        if i is None:
            raise DataError(self.path, "has no features of this key", key, "Extract them and pack the folder again.")
        rows = np.asarray(index.rows[index.ends[i - 1] if i else 0 : index.ends[i]])
        return from_bfloat16(rows) if index.facts["dtype"] == "bfloat16" else rows

    @property
    def dim(self) -> int:
        """F."""
        return int(self.index.rows.shape[1])

    def keys(self) -> list[str]:
        """All keys, sorted."""
        return list(self.index.keys)

    def __contains__(self, key: str) -> bool:
        return key in self.index.keys

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_index": None}


def to_bfloat16(x: NDArray[Any]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 of each value (ties to even), of the shape of ``x``."""
    return torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values of such bits, exactly: a bfloat16 is a float32 without the lower half of its bits."""
    return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)


def folder_store(folder: Path) -> FolderStore:
    """The store of a folder, by what its files are.

    Raises:
        DataError: if there are no feature files in it.
    """
    for kind in (ImageFolderStore, VideoFolderStore):
        store = kind(folder)
        if next(store._files(), None) is not None:
            return store
    raise DataError(folder, "no *.h5 or *.npz in this folder", remedy="Extract the features first.")


def pack(
    folder: Path,
    out: Path,
    pool_to: int | None = None,
    dtype: Dtype = "keep",
    progress: Progress = lambda items, total: items,
) -> int:
    """Write a folder of feature files to one packed file, which is complete or not there; returns the number of keys.

    Goes over the folder twice: over the files' headers, which tell how many rows there will be and thus where each key
    belongs in a contiguous dataset, then over their features, which are written there at once.

    Args:
        folder: one HDF5 per image or one npz per video.
        out: the packed file.
        pool_to: shorten each to at most so many rows, as training would: grids and videos by their own rule.
        dtype: of the rows: the files' own, or one of two bytes. float16 keeps 11 significant bits of values up to
            65504, bfloat16 8 of any size.
        progress: wraps what is iterated over, to show how far it is.

    Raises:
        DataError: naming the first file that cannot be used.
    """
    store = folder_store(folder)
    keys = store.keys()
    lengths, dim, found = _headers(store, progress(keys, len(keys)))
    if dtype == "keep" and len(found) > 1:
        raise DataError(folder, f"has features of {' and of '.join(found)}", remedy="Give pack a --dtype.")
    rows_as = found[0] if dtype == "keep" else dtype
    ends = np.cumsum(np.minimum(lengths, pool_to or max(lengths)))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")  # always the same: what a killed run left there is overwritten
    try:
        with h5py.File(temporary, "w") as h5:
            h5["keys"], h5["ends"] = _json(keys), ends
            rows = h5.create_dataset("rows", (ends[-1], dim), np.uint16 if rows_as == "bfloat16" else rows_as)
            checksum = _write(rows, store, progress(zip(keys, ends, strict=True), len(keys)), pool_to)
            facts = {"format": FORMAT, "crc32": checksum, "crc32_index": _index_checksum(keys, ends)}
            facts |= {"pooled_to": pool_to, "dtype": rows_as, "packed_from": " ".join(found)}
            h5["facts"] = _json(facts)
        temporary.replace(out)
    except OSError as error:
        raise DataError(out, f"cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return len(keys)


def _json(value: object) -> NDArray[np.uint8]:
    """As bytes: libhdf5 can go in circles for ever when it reads strings of a damaged file."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _index_checksum(keys: Iterable[str], ends: NDArray[np.int64]) -> int:
    return zlib.crc32(np.ascontiguousarray(ends, dtype=np.int64).data, zlib.crc32("\0".join(keys).encode()))


def _headers(store: FolderStore, keys: Iterable[str]) -> tuple[list[int], int, list[str]]:
    """Rows of each key, F of all of them, and the dtypes there are."""
    lengths, dim, dtypes = [], store.dim, set()
    for key in keys:
        (length, size), dtype = store.header(key)
        if size != dim:
            raise DataError(store.file(key), f"features have size {size}, the others {dim}", key)
        lengths.append(length)
        dtypes.add(str(dtype))
    return lengths, dim, sorted(dtypes)


def _write(rows: h5py.Dataset, store: FolderStore, places: Iterable[tuple[str, int]], pool_to: int | None) -> int:
    """Write the features of each key up to where it ends; returns their checksum."""
    shorten = pool_grid if isinstance(store, ImageFolderStore) else pool_time
    start = checksum = 0
    for key, end in places:
        x = store.read(key)
        try:
            x = x if pool_to is None else shorten(x, pool_to)
        except ValueError as error:
            raise DataError(store.file(key), str(error), key) from None
        x = _as_stored(x, rows.dtype, store.file(key), key)
        if x.shape != (end - start, rows.shape[1]):
            raise DataError(store.file(key), "has changed while the folder was packed", key, "Pack it again.")
        rows[start:end] = x
        checksum, start = zlib.crc32(x.data, checksum), end
    return checksum


def _as_stored(x: np.ndarray, dtype: np.dtype[Any], file: Path, key: str) -> np.ndarray:
    if dtype == np.uint16:
        bits = to_bfloat16(np.ascontiguousarray(x))
        finite, x = np.isfinite(from_bfloat16(bits)).all(), bits
    else:
        with np.errstate(over="ignore"):
            x = np.ascontiguousarray(x, dtype)
        finite = np.isfinite(x).all()
    if not finite:
        raise DataError(file, "has values too large for this dtype", key, "Pack with --dtype keep.")
    return x


def verify(file: Path) -> int:
    """Compare the rows with their checksum; returns the number of keys.

    Raises:
        DataError: if they differ.
    """
    index = PackedStore(file).index
    rows, checksum = index.rows, 0
    step = max(1, BLOCK // (rows.shape[1] * rows.dtype.itemsize))
    for start in range(0, len(rows), step):
        checksum = zlib.crc32(np.ascontiguousarray(rows[start : start + step]).data, checksum)
    if checksum != index.facts.get("crc32"):
        raise DataError(file, "its rows are not those that were packed (checksum)", remedy=REMEDY)
    return len(index.keys)


def unpack(file: Path, folder: Path, videos: bool, progress: Progress = lambda items, total: items) -> int:
    """Write the features of a packed file as one file per key again, bit-equal; returns their number.

    Args:
        file: packed without pooling and with the features' own dtype.
        folder: to write to.
        videos: npz per video instead of HDF5 per image.
        progress: see :func:`pack`.

    Raises:
        DataError: if it was pooled or converted when it was packed.
    """
    store = PackedStore(file)
    keys, facts = store.keys(), store.index.facts
    if facts["pooled_to"]:
        raise DataError(file, f"was pooled to {facts['pooled_to']} rows; the original rows are not in it")
    if facts["dtype"] != facts["packed_from"]:
        what = f"was packed as {facts['dtype']} from {facts['packed_from']}; the original values are not in it"
        raise DataError(file, what)
    folder.mkdir(parents=True, exist_ok=True)
    for key in progress(keys, len(keys)):
        target = (VideoFolderStore if videos else ImageFolderStore)(folder).file(key)
        temporary = target.with_name(f".{target.name}.tmp")
        if videos:
            with temporary.open("wb") as stream:
                np.savez(stream, features=store.read(key))
        else:
            with h5py.File(temporary, "w") as h5:
                h5[f"{key}/features"] = store.read(key)
        temporary.replace(target)
    return len(keys)
