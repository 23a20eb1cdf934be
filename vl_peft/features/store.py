"""Where visual features come from: a key (image or video name) in, an array ``[V, F]`` out.

Two layouts, those of the published feature files: a folder with one HDF5 per image and a folder with one npz per video.
A store holds no open file, so it can be pickled and used in any number of workers.
"""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vl_peft.errors import DataError

PACKED = ".packed.h5"  # a file of the whole folder (packed.py), not of one key
REMEDY = "Delete the file and extract it again."


class FeatureStore(ABC):
    """A folder of feature files, one per key.

    Args:
        path: the folder.
    """

    suffix: str

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @abstractmethod
    def _load(self, file: Path, key: str) -> np.ndarray:
        """The array in ``file``; raises KeyError when it is absent, OSError or ValueError when unreadable."""

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
        try:
            x = self._load(file, key)
        except FileNotFoundError:
            raise DataError(file, "no such feature file", key, "Extract the features of this key first.") from None
        except KeyError:
            raise DataError(file, "the file has no features under this key", key, REMEDY) from None
        except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise DataError(file, f"cannot be read, perhaps truncated ({error})", key, REMEDY) from error
        if x.dtype not in (np.float16, np.float32):
            raise DataError(file, f"features are {x.dtype}, not float16 or float32", key, REMEDY)
        if x.ndim != 2 or 0 in x.shape:
            raise DataError(file, f"features have shape {x.shape}, not [V, F] with V, F >= 1", key, REMEDY)
        if not np.isfinite(x).all():
            raise DataError(file, "features contain NaN or infinity", key, REMEDY)
        return x

    @property
    def dim(self) -> int:
        """F, read from any one file; raises DataError when the folder is missing or empty."""
        file = next(self._files(), None)
        if file is None:
            raise DataError(self.path, f"no *{self.suffix} in this folder", remedy="Extract the features first.")
        return int(self.read(self._key(file)).shape[1])

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


class ImageFolderStore(FeatureStore):
    """One ``<key>.h5`` per image with the dataset ``<key>/features``: ``[49, F]``, a 7x7 grid in row-major order."""

    suffix = ".h5"

    def _load(self, file: Path, key: str) -> np.ndarray:
        with h5py.File(file, "r") as h5:
            data = h5[f"{key}/features"]
            if not isinstance(data, h5py.Dataset):
                raise KeyError(key)
            return np.asarray(data[()])


class VideoFolderStore(FeatureStore):
    """One ``<key>.npz`` per video with the array ``features``: ``[T, F]``, one row per 1.5 seconds."""

    suffix = ".npz"

    def _load(self, file: Path, key: str) -> np.ndarray:
        with np.load(file, allow_pickle=False) as arrays:
            return np.asarray(arrays["features"])


class CachedStore(FeatureStore):
    """Keeps in memory what was read, until ``max_bytes`` are used; what comes later is read from disk each time.

    The cache is left behind when the store is pickled, so that a worker starts with an empty one of its own.

    Args:
        store: the store to read from.
        max_bytes: limit of the cache in bytes, per process.
    """

    def __init__(self, store: FeatureStore, max_bytes: int) -> None:
        super().__init__(store.path)
        self.store, self.suffix, self.max_bytes = store, store.suffix, max_bytes
        self._cache: dict[str, np.ndarray] = {}
        self._bytes = 0

    def read(self, key: str) -> np.ndarray:
        """As ``FeatureStore.read``; the array is shared with the cache and therefore read-only."""
        if key in self._cache:
            return self._cache[key]
        x = self.store.read(key)
        if self._bytes + x.nbytes <= self.max_bytes:
            x.flags.writeable = False
            self._cache[key] = x
            self._bytes += x.nbytes
        return x

    def _load(self, file: Path, key: str) -> np.ndarray:
        return self.store._load(file, key)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}, "_bytes": 0}
