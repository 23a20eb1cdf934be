"""One packed file in place of a folder of feature files."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vl_peft.cli import main
from vl_peft.errors import DataError
from vl_peft.features import FeatureStore, ImageFolderStore, PackedStore, VideoFolderStore, pool_grid, pool_time
from vl_peft.features.packed import pack, unpack, verify

Kind = type[ImageFolderStore] | type[VideoFolderStore]
KEYS = ["b", "a.1", "c", "é", "z"]
kinds = pytest.mark.parametrize("kind", [ImageFolderStore, VideoFolderStore])


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., FeatureStore]:
    """``folder(kind)``: five feature files; videos of different lengths."""

    def make(kind: Kind) -> FeatureStore:
        store, rng = kind(tmp_path / "features"), np.random.default_rng(0)
        store.path.mkdir()
        for i, key in enumerate(KEYS):
            x = rng.normal(size=(49 if kind is ImageFolderStore else 10 * i + 1, 8)).astype(np.float16)
            if kind is VideoFolderStore:
                np.savez(store.file(key), features=x)
            else:
                with h5py.File(store.file(key), "w") as h5:
                    h5[f"{key}/features"] = x
        return store

    return make


@kinds
def test_packed_and_unpacked_features_are_bit_equal(folder: Any, kind: Kind, tmp_path: Path) -> None:
    store, file = folder(kind), tmp_path / "features.packed.h5"
    assert pack(store.path, file) == 5 == verify(file)
    packed = PackedStore(file)
    assert packed.keys() == store.keys() and packed.dim == store.dim and "c" in packed and "d" not in packed
    for key in KEYS:
        assert packed.read(key).dtype == np.float16
        np.testing.assert_array_equal(packed.read(key), store.read(key))
        assert not packed.read(key).flags.writeable
    again = pickle.loads(pickle.dumps(packed))
    np.testing.assert_array_equal(again.read("z"), store.read("z"))
    unpack(file, tmp_path / "again", videos=kind is VideoFolderStore)
    for key in KEYS:
        np.testing.assert_array_equal(kind(tmp_path / "again").read(key), store.read(key))


@kinds
def test_pooled_as_in_training(folder: Any, kind: Kind, tmp_path: Path) -> None:
    store, file = folder(kind), tmp_path / "pooled.packed.h5"
    pack(store.path, file, pool_to=9)
    shorten = pool_grid if kind is ImageFolderStore else pool_time
    for key in KEYS:
        np.testing.assert_array_equal(PackedStore(file).read(key), shorten(store.read(key), 9))
    with pytest.raises(DataError, match="was pooled to 9 rows"):
        unpack(file, tmp_path / "again", videos=kind is VideoFolderStore)


def test_a_broken_file_stops_packing_and_leaves_nothing(folder: Any, tmp_path: Path) -> None:
    store, file = folder(ImageFolderStore), tmp_path / "out" / "x.packed.h5"
    data = store.file("c").read_bytes()
    store.file("c").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"c\.h5, record c: cannot be read"):
        pack(store.path, file)
    assert list(file.parent.iterdir()) == []


def test_an_interrupted_packing_leaves_the_former_file(folder: Any, tmp_path: Path) -> None:
    store, file = folder(VideoFolderStore), tmp_path / "out" / "x.packed.h5"
    pack(store.path, file)
    before = file.read_bytes()

    def stop(items: Any, total: int) -> Any:
        yield next(iter(items))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(store.path, file, progress=stop)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), "no such packed file"),
        (lambda file: file.write_bytes(b"x" * 100), "cannot be read"),
        (lambda file: file.write_bytes(file.read_bytes()[:-200]), "truncated"),
    ],
)
def test_damaged_files(folder: Any, tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    file = tmp_path / "x.packed.h5"
    pack(folder(ImageFolderStore).path, file)
    spoil(file)
    with pytest.raises(DataError, match=message):
        PackedStore(file).read("b")


def test_other_files_and_keys(folder: Any, tmp_path: Path) -> None:
    store, file = folder(ImageFolderStore), tmp_path / "x.packed.h5"
    with pytest.raises(DataError, match="is not of the format"):
        PackedStore(store.file("b")).keys()
    pack(store.path, file)
    with pytest.raises(DataError, match=r"x\.packed\.h5, record nobody: has no features of this key"):
        PackedStore(file).read("nobody")
    with pytest.raises(DataError, match=r"no \*\.h5 or \*\.npz in this folder"):
        pack(tmp_path, file)


def test_a_changed_row_is_found_by_its_checksum(folder: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.packed.h5"
    pack(folder(ImageFolderStore).path, file)
    with h5py.File(file, "r+") as h5:
        h5["rows"][17, 3] += 1
    with pytest.raises(DataError, match="checksum"):
        verify(file)


def test_from_the_command_line(folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = folder(VideoFolderStore)
    assert main(["data", "pack", str(store.path)]) == 0
    file = f"{store.path}.packed.h5"
    assert main(["data", "verify", file]) == 0
    assert main(["data", "unpack", file, str(tmp_path / "again"), "--kind", "videos"]) == 0
    shown = capsys.readouterr().out
    assert "5 keys packed to" in shown and "5 keys, checksum as packed" in shown and "5 files written" in shown
