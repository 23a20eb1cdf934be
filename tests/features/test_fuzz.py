"""Damaged feature files: a right answer or one of our own errors, whatever bytes have changed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from vl_peft.errors import DataError
from vl_peft.features import FeatureStore, ImageFolderStore, PackedStore, RegionStore, VideoFolderStore
from vl_peft.features.packed import pack, verify

RNG = np.random.default_rng(0)
GRID = RNG.standard_normal((9, 6)).astype(np.float16)
BOXES = np.sort(RNG.random((9, 2, 2)).astype(np.float32), axis=1).reshape(9, 4) * 100


def image(folder: Path) -> tuple[Path, FeatureStore]:
    """One HDF5 per image."""
    with h5py.File(folder / "k.h5", "w") as h5:
        h5["k/features"] = GRID
    return folder / "k.h5", ImageFolderStore(folder)


def video(folder: Path) -> tuple[Path, FeatureStore]:
    """One npz per video."""
    np.savez(folder / "k.npz", features=GRID)
    return folder / "k.npz", VideoFolderStore(folder)


def packed(folder: Path) -> tuple[Path, FeatureStore]:
    """All of a folder in one file."""
    (folder / "all").mkdir()
    image(folder / "all")
    pack(folder / "all", folder / "all.packed.h5")
    return folder / "all.packed.h5", PackedStore(folder / "all.packed.h5")


def regions(folder: Path) -> tuple[Path, FeatureStore]:
    """VL-T5's file of groups."""
    with h5py.File(folder / "x_obj36.h5", "w") as h5:
        h5["k/features"], h5["k/boxes"] = GRID.astype(np.float32), BOXES
        h5["k/img_w"], h5["k/img_h"] = 100, 100
    return folder / "x_obj36.h5", RegionStore([folder / "x_obj36.h5"])


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, a piece cut out, doubled or zeroed, or the end cut off."""
    data, kind = bytearray(content), draw.randrange(5)
    start = draw.randrange(len(data))
    end = min(len(data), start + draw.choice((1, 4, 16, 300)))
    if kind == 0:
        for place in draw.sample(range(len(data)), draw.randint(1, 8)):
            data[place] = draw.randrange(256)
    elif kind == 1:
        del data[start:end]
    elif kind == 2:
        data[start:start] = data[start:end]
    elif kind == 3:
        data[start:end] = bytes(end - start)
    else:
        del data[start:]
    return bytes(data)


@pytest.mark.parametrize("make", [image, video, packed, regions])
def test_mutated_feature_files(make: Callable[[Path], tuple[Path, FeatureStore]], tmp_path: Path) -> None:
    """150 of each kind, 600 in all; what a packed file's rows say is checked by its checksum alone."""
    file, store = make(tmp_path)
    content, draw = file.read_bytes(), random.Random(make.__name__)
    refused = 0
    for _ in range(150):
        file.write_bytes(mutated(content, draw))
        fresh = type(store)([file] if make is regions else store.path)  # type: ignore[arg-type]
        try:
            keys = fresh.keys()
            features = fresh.read("k")
            boxes = fresh.boxes("k")
            if make is packed:
                verify(file)
        except DataError as error:
            assert str(file) in str(error) or str(file.parent) in str(error)
            refused += 1
        else:
            assert "k" in keys and features.ndim == 2 and np.isfinite(features.astype(np.float32)).all()
            assert boxes is None or (boxes.shape == (len(features), 4) and 0 <= boxes.min() <= boxes.max() <= 1)
    assert refused > 20
