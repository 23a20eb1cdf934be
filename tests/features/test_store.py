"""Feature stores: reading, and a clear error for each way a file can be wrong."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from vl_peft.errors import DataError
from vl_peft.features import CachedStore, FeatureStore, ImageFolderStore, VideoFolderStore


def put(store: FeatureStore, key: str, x: np.ndarray, name: str | None = None) -> Path:
    """Writes ``x`` where ``store`` expects ``key``, under another ``name`` in the file if one is given."""
    file = store.file(key)
    if isinstance(store, VideoFolderStore):
        np.savez(file, **{name or "features": x})
    else:
        with h5py.File(file, "w") as h5:
            h5[name or f"{key}/features"] = x
    return file


@pytest.fixture(params=[ImageFolderStore, VideoFolderStore])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    return request.param(tmp_path)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(49, 8)).astype(np.float16)


def test_reads_what_was_written(store: FeatureStore, x: np.ndarray) -> None:
    put(store, "b.1", x.astype(np.float32))
    put(store, "a", x)
    (store.path / ".a.tmp").touch()
    np.testing.assert_array_equal(store.read("a"), x)
    assert (store.read("a").dtype, store.read("b.1").dtype) == (np.float16, np.float32)
    assert (store.dim, store.keys(), "a" in store, "c" in store) == (8, ["a", "b.1"], True, False)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (np.full((3, 2), np.nan, np.float32), "NaN"),
        (np.full((3, 2), np.inf, np.float16), "NaN or infinity"),
        (np.zeros((0, 2), np.float32), r"shape \(0, 2\)"),
        (np.zeros((7, 7, 2), np.float32), r"shape \(7, 7, 2\)"),
        (np.zeros((3, 2), np.int64), "int64"),
    ],
)
def test_bad_arrays(store: FeatureStore, bad: np.ndarray, problem: str) -> None:
    file = put(store, "a", bad)
    with pytest.raises(DataError, match=problem) as caught:
        store.read("a")
    assert (caught.value.file, caught.value.record) == (str(file), "a")


def test_missing_file_and_missing_key(store: FeatureStore, x: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"no such feature file.*Extract"):
        store.read("a")
    put(store, "a", x, name="other")
    with pytest.raises(DataError, match=r"record a: .*no features under this key"):
        store.read("a")


def test_group_instead_of_dataset(tmp_path: Path, x: np.ndarray) -> None:
    store = ImageFolderStore(tmp_path)
    put(store, "a", x, name="a/features/deeper")
    with pytest.raises(DataError, match="no features under this key"):
        store.read("a")


@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_truncated_file(store: FeatureStore, x: np.ndarray, keep: float) -> None:
    file = put(store, "a", x)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match="truncated"):
        store.read("a")


def test_folder_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such feature folder"):
        ImageFolderStore(tmp_path / "none").keys()
    with pytest.raises(DataError, match=r"no \*\.h5"):
        _ = ImageFolderStore(tmp_path).dim


def test_cache_reads_once_and_respects_its_limit(store: FeatureStore, x: np.ndarray) -> None:
    for key in "abc":
        put(store, key, x)
    cached = CachedStore(store, max_bytes=2 * x.nbytes)
    first = [cached.read(key) for key in "abc"]
    for key in "abc":
        store.file(key).unlink()
    assert cached.read("a") is first[0]
    assert cached.read("b") is first[1]
    with pytest.raises(DataError, match="no such feature file"):
        cached.read("c")
    with pytest.raises(ValueError, match="read-only"):
        first[0][:] = 0


def test_pickle_leaves_the_cache_behind(store: FeatureStore, x: np.ndarray) -> None:
    put(store, "a", x)
    cached = CachedStore(store, max_bytes=10**6)
    empty = len(pickle.dumps(cached))
    np.testing.assert_array_equal(cached.read("a"), x)
    assert len(pickle.dumps(cached)) == empty
    copy = pickle.loads(pickle.dumps(cached))
    np.testing.assert_array_equal(copy.read("a"), x)
    assert (copy.dim, copy.keys()) == (8, ["a"])
