"""One packed file in place of a folder of feature files."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vl_peft.cli import main
from vl_peft.errors import DataError
from vl_peft.features import FeatureStore, ImageFolderStore, PackedStore, VideoFolderStore, pool_grid, pool_time
from vl_peft.features.packed import from_bfloat16, pack, to_bfloat16, unpack, verify

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


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_converted(folder: Any, tmp_path: Path, dtype: Any, bits: int) -> None:
    """Every value is the nearest one of that type; one cannot go back, and is told so."""
    store, file = folder(VideoFolderStore), tmp_path / "x.packed.h5"
    np.savez(store.file("a.1"), features=store.read("a.1").astype(np.float32) + np.float32(1e-6))
    pack(store.path, file, dtype=dtype)
    packed = PackedStore(file)
    assert verify(file) == 5
    assert packed.read("z").dtype == (np.float32 if dtype == "bfloat16" else np.float16)
    for key in KEYS:
        wanted = torch.from_numpy(store.read(key)).to(getattr(torch, dtype)).float()
        np.testing.assert_array_equal(packed.read(key).astype(np.float32), wanted.numpy())
        np.testing.assert_allclose(packed.read(key), store.read(key), rtol=2.0**-bits, atol=1e-7)
    with pytest.raises(DataError, match=f"was packed as {dtype} from float16 float32; the original values"):
        unpack(file, tmp_path / "again", videos=True)
    assert not (tmp_path / "again").exists()


def test_what_is_not_converted_is_unpacked_bit_equal(folder: Any, tmp_path: Path) -> None:
    """float16 packed as float16 has not changed."""
    store, file = folder(ImageFolderStore), tmp_path / "x.packed.h5"
    pack(store.path, file, dtype="float16")
    unpack(file, tmp_path / "again", videos=False)
    assert ImageFolderStore(tmp_path / "again").read("z").tobytes() == store.read("z").tobytes()


@given(arrays(np.uint16, (3, 5)))
def test_bfloat16_is_what_torch_says(bits: np.ndarray) -> None:
    values = from_bfloat16(bits)
    wanted = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(values, wanted)  # NaN equals NaN here
    finite = np.isfinite(values)
    np.testing.assert_array_equal(to_bfloat16(values)[finite], bits[finite])


@given(arrays(np.float32, (2, 3), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_the_nearest_bfloat16(x: np.ndarray) -> None:
    error = np.abs(from_bfloat16(to_bfloat16(x)) - x)
    assert (error <= np.maximum(np.abs(x) * 2.0**-8, 2.0**-133)).all()


def test_dtypes_that_differ_and_values_that_do_not_fit(folder: Any, tmp_path: Path) -> None:
    store, file = folder(VideoFolderStore), tmp_path / "out/x.packed.h5"
    np.savez(store.file("c"), features=np.full((2, 8), 1e6, np.float32))
    with pytest.raises(DataError, match=r"features of float16 and of float32.*Give pack a --dtype"):
        pack(store.path, file)
    with pytest.raises(DataError, match=r"c\.npz, record c: has values too large for this dtype"):
        pack(store.path, file, dtype="float16")
    pack(store.path, file, dtype="bfloat16")
    assert PackedStore(file).read("c").tolist() == [[999424.0] * 8] * 2


def nan(file: Path) -> None:
    with h5py.File(file, "r+") as h5:
        h5["c/features"][3, 3] = np.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(lambda file: file.write_bytes(file.read_bytes()[:1000]), "cannot be read"), (nan, "contain NaN")],
)
def test_a_broken_file_stops_packing_and_leaves_nothing(
    folder: Any, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    store, file = folder(ImageFolderStore), tmp_path / "out" / "x.packed.h5"
    spoil(store.file("c"))
    with pytest.raises(DataError, match=rf"c\.h5, record c: .*{message}"):
        pack(store.path, file)
    assert list(tmp_path.glob("out/*")) == []


@pytest.mark.parametrize("rounds", [0, 1], ids=["among the headers", "among the features"])
def test_an_interrupted_packing_leaves_the_former_file(folder: Any, tmp_path: Path, rounds: int) -> None:
    store, file = folder(VideoFolderStore), tmp_path / "out" / "x.packed.h5"
    pack(store.path, file)
    before, started = file.read_bytes(), []

    def stop(items: Any, total: int) -> Any:
        started.append(total)
        for item in items:
            yield item
            if len(started) > rounds:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(store.path, file, progress=stop)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def test_a_killed_packing_leaves_nothing_to_the_next(folder: Any, tmp_path: Path) -> None:
    """After kill -9 in the middle, packing again gives the file of an undisturbed run and removes what was left."""
    store, file = folder(ImageFolderStore), tmp_path / "out" / "x.packed.h5"
    program = (
        "import os, pathlib, sys; from vl_peft.features.packed import pack\n"
        "def die(items, total):\n"
        "    for i, item in enumerate(items):\n"
        "        yield item\n"
        "        if i == 3 and list(out.parent.glob('*')): os.kill(os.getpid(), 9)\n"
        "out = pathlib.Path(sys.argv[2]); pack(pathlib.Path(sys.argv[1]), out, progress=die)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(store.path), str(file)], check=False)
    assert done.returncode == -9 and not file.exists() and list(file.parent.iterdir()), "something was left"
    pack(store.path, file)
    pack(store.path, tmp_path / "undisturbed.packed.h5")
    assert list(file.parent.iterdir()) == [file]
    assert file.read_bytes() == (tmp_path / "undisturbed.packed.h5").read_bytes()


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
    with pytest.raises(DataError, match="cannot pool 49 grid tokens to 35"):
        pack(store.path, tmp_path / "y.packed.h5", pool_to=35)
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
