"""Where visual features come from: a key (image or video name) in, an array ``[V, F]`` out.

Here are two layouts of the published feature files, a folder with one HDF5 per image and a folder with one npz per
video, and the cache before them; ``packed.py`` and ``regions.py`` have the others. A store can be pickled and used in
any number of workers: what it opened stays behind.
"""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vl_peft.errors import DataError

PACKED = ".packed.h5"  # a file of the whole folder (packed.py), not of one key
REMEDY = "Delete the file and extract it again."

Shape = tuple[int, ...]


class FeatureStore(ABC):
    """Visual features by key.

    Args:
        path: the file or folder they are in.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @abstractmethod
    def read(self, key: str) -> np.ndarray:
        """Features of one image or video: float16 or float32 ``[V, F]``.

        Raises:
            DataError: there are none, or they cannot be used.
        """

    def boxes(self, key: str) -> np.ndarray | None:
        """Where each row is in its image, float32 ``[V, 4]``; ``None`` of grids and frames."""
        return None

    @property
    @abstractmethod
    def dim(self) -> int:
        """F; raises DataError when there are no features."""

    @abstractmethod
    def keys(self) -> list[str]:
        """All keys, sorted; raises DataError when the path is missing."""

    def __contains__(self, key: str) -> bool:
        return key in self.keys()


@contextmanager
def reading(file: Path, key: str) -> Iterator[None]:
    """Whatever goes wrong while the features of a key are read from a file, as a DataError that names both."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(file, "no such feature file", key, "Extract the features of this key first.") from None
    except KeyError:
        raise DataError(file, "the file has no features under this key", key, REMEDY) from None
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(file, f"cannot be read, perhaps truncated ({error})", key, REMEDY) from error


def check_form(file: Path, key: str, shape: Shape, dtype: np.dtype[Any]) -> None:
    """Raises DataError unless an array is ``[V, F]`` with V, F >= 1 and of float16 or float32."""
    if dtype not in (np.float16, np.float32):
        raise DataError(file, f"features are {dtype}, not float16 or float32", key, REMEDY)
    if len(shape) != 2 or 0 in shape:
        raise DataError(file, f"features have shape {shape}, not [V, F] with V, F >= 1", key, REMEDY)


def checked(file: Path, key: str, x: np.ndarray) -> np.ndarray:
    """The array itself; raises DataError when its form is wrong or it is not finite."""
    check_form(file, key, x.shape, x.dtype)
    if not np.isfinite(x).all():
        raise DataError(file, "features contain NaN or infinity", key, REMEDY)
    return x


def dataset(h5: h5py.File, name: str) -> h5py.Dataset:
    """The dataset of that name; raises KeyError when there is none."""
    data = h5[name]
    if not isinstance(data, h5py.Dataset):
        raise KeyError(name)
    return data


class FolderStore(FeatureStore):
    """A folder of feature files, one per key."""

    suffix: str

    @abstractmethod
    def _load(self, file: Path, key: str) -> np.ndarray:
        """The array in ``file``; raises KeyError when it is absent, OSError or ValueError when unreadable."""

    @abstractmethod
    def _header(self, file: Path, key: str) -> tuple[Shape, np.dtype[Any]]:
        """Shape and dtype of that array, which is not read; raises likewise."""

    def file(self, key: str) -> Path:
        """The file that holds, or would hold, the features of ``key``."""
        return self.path / f"{key}{self.suffix}"

    def read(self, key: str) -> np.ndarray:
        """Features of one image or video.

        Returns:
            ``[V, F]``, float16 or float32 as stored.

        Raises:
            DataError: the file is missing, truncated or lacks the key, or its array is not ``[V, F]`` with V >= 1,
                not of a floating type, or not finite.
        """
        file = self.file(key)
        with reading(file, key):
            x = self._load(file, key)
        return checked(file, key, x)

    def header(self, key: str) -> tuple[Shape, np.dtype[Any]]:
        """Shape ``(V, F)`` and dtype of one image's or video's features, which are not read; raises as ``read``."""
        file = self.file(key)
        with reading(file, key):
            shape, dtype = self._header(file, key)
        check_form(file, key, shape, dtype)
        return shape, dtype

    @property
    def dim(self) -> int:
        """F, read from any one file; raises DataError when the folder is missing or empty."""
        file = next(self._files(), None)
        if file is None:
            raise DataError(self.path, f"no *{self.suffix} in this folder", remedy="Extract the features first.")
        return self.header(self._key(file))[0][1]

    def keys(self) -> list[str]:
        """All keys, sorted; raises DataError when the folder is missing."""
        return sorted(map(self._key, self._files()))

    def __contains__(self, key: str) -> bool:
        return self.file(key).is_file()

    def _files(self) -> Iterator[Path]:
        if not self.path.is_dir():
            raise DataError(self.path, "no such feature folder", remedy="Extract the features first.")
        files = (f for f in self.path.iterdir() if f.suffix == self.suffix and not f.name.startswith("."))
        return (f for f in files if not f.name.endswith(PACKED))

    def _key(self, file: Path) -> str:
        return file.name.removesuffix(self.suffix)


class ImageFolderStore(FolderStore):
    """One ``<key>.h5`` per image with the dataset ``<key>/features``: ``[49, F]``, a 7x7 grid in row-major order."""

    suffix = ".h5"

    def _load(self, file: Path, key: str) -> np.ndarray:
        with h5py.File(file, "r") as h5:
            return np.asarray(dataset(h5, f"{key}/features")[()])

    def _header(self, file: Path, key: str) -> tuple[Shape, np.dtype[Any]]:
        with h5py.File(file, "r") as h5:
            data = dataset(h5, f"{key}/features")
            return data.shape, data.dtype


class VideoFolderStore(FolderStore):
    """One ``<key>.npz`` per video with the array ``features``: ``[T, F]``, one row per 1.5 seconds."""

    suffix = ".npz"

    def _load(self, file: Path, key: str) -> np.ndarray:
        with np.load(file, allow_pickle=False) as arrays:
            return np.asarray(arrays["features"])

    def _header(self, file: Path, key: str) -> tuple[Shape, np.dtype[Any]]:
        with zipfile.ZipFile(file) as arrays, arrays.open("features.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
            return shape, dtype


class CachedStore(FeatureStore):
    """Keeps in memory what was read, until ``max_bytes`` are used; what comes later is read from disk each time.

    The cache is left behind when the store is pickled, so that a worker starts with an empty one of its own.

    Args:
        store: the store to read from.
        max_bytes: limit of the cache in bytes, per process.
    """

    def __init__(self, store: FeatureStore, max_bytes: int) -> None:
        super().__init__(store.path)
        self.store, self.max_bytes = store, max_bytes
        self._cache: dict[tuple[str, str], np.ndarray] = {}
        self._bytes = 0

    def read(self, key: str) -> np.ndarray:
        """As the store's; the array is shared with the cache and therefore read-only."""
        x = self._kept("features", key, self.store.read)
        assert x is not None
        return x

    def boxes(self, key: str) -> np.ndarray | None:
        """As the store's; read-only too."""
        return self._kept("boxes", key, self.store.boxes)

    def _kept(self, what: str, key: str, read: Callable[[str], np.ndarray | None]) -> np.ndarray | None:
        if (what, key) in self._cache:
            return self._cache[what, key]
        x = read(key)
        if x is not None and self._bytes + x.nbytes <= self.max_bytes:
            x.flags.writeable = False
            self._cache[what, key] = x
            self._bytes += x.nbytes
        return x

    @property
    def dim(self) -> int:
        """F."""
        return self.store.dim

    def keys(self) -> list[str]:
        """All keys, sorted."""
        return self.store.keys()

    def __contains__(self, key: str) -> bool:
        return key in self.store

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}, "_bytes": 0}
