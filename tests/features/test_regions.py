"""VL-T5's files of image regions, and how a benchmark finds its features."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl_peft.errors import ConfigError, DataError
from vl_peft.features import CachedStore, ImageFolderStore, PackedStore, RegionStore, find_store, found_encoders

GRIDS = "COCO/clip_features/data_clip_{encoder}_att"


def put(file: Path, key: str, boxes: Any, size: tuple[int, int] = (100, 50), fill: float = 1.0) -> None:
    """Adds an image of that size whose regions have features of 3 and these boxes in pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "a") as h5:
        boxes = np.asarray(boxes, np.float32)
        h5[f"{key}/features"] = np.full((len(boxes), 3), fill, np.float32)
        h5[f"{key}/boxes"], h5[f"{key}/img_w"], h5[f"{key}/img_h"] = boxes, *size


@pytest.fixture
def store(tmp_path: Path) -> RegionStore:
    train, val = (tmp_path / f"COCO/features/{name}_obj36.h5" for name in ("train2014", "val2014"))
    put(train, "a", [[0, 0, 100, 50], [50, 25, 60, 30]], fill=1)
    put(val, "a", [[0, 0, 1, 1]], fill=2)
    put(val, "b", [[10, 10, 20, 20]], fill=3)
    return RegionStore([train, val])


def test_several_files_are_read_as_one(store: RegionStore) -> None:
    assert (store.keys(), store.dim, "b" in store, "c" in store) == (["a", "b"], 3, True, False)
    assert store.read("a").tolist() == [[1] * 3] * 2 and store.read("b").tolist() == [[3] * 3]
    np.testing.assert_allclose(store.boxes("a"), [[0, 0, 1, 1], [0.5, 0.5, 0.6, 0.6]], rtol=1e-6)
    assert store.boxes("a").dtype == np.float32
    cached = CachedStore(store, 10**6)
    assert cached.boxes("a") is cached.boxes("a") is not cached.read("a")


@given(
    size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    corners=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=4),
)
def test_boxes_of_any_image_lie_in_the_unit_square(
    tmp_path_factory: pytest.TempPathFactory, size: tuple[int, int], corners: list[tuple[float, ...]]
) -> None:
    file = tmp_path_factory.mktemp("boxes") / "x_obj36.h5"
    put(file, "a", np.array(corners) * np.array([*size, *size]), size)
    boxes = RegionStore([file]).boxes("a")
    assert boxes.min() >= 0 and boxes.max() <= 1
    np.testing.assert_allclose(boxes, corners, atol=1e-6)


def test_boxes_that_reach_out_of_the_image(store: RegionStore, tmp_path: Path) -> None:
    file = tmp_path / "x_obj36.h5"
    put(file, "slightly", [[-0.0005, 0, 100.0009, 50]])
    put(file, "far", [[0, 0, 100.01, 50]])
    put(file, "before", [[0, -0.01, 100, 50]])
    put(file, "nan", [[np.nan, 0, 100, 50]])
    put(file, "flat", [[0, 0, 0, 0]], size=(0, 0))
    store = RegionStore([file])
    assert store.boxes("slightly").tolist() == [[0, 0, 1, 1]]
    for key, problem in {
        "far": "to 1.0001",
        "before": "from -0.0002",
        "nan": "from nan",
        "flat": "image of 0x0",
    }.items():
        with pytest.raises(DataError, match=rf"x_obj36\.h5, record {key}: has boxes .*{problem}"):
            store.boxes(key)


def test_what_is_missing(store: RegionStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"record c: no features of this image in train2014_obj36\.h5, val2014_obj36"):
        store.read("c")
    with h5py.File(store.files[0], "a") as h5:
        del h5["a/features"], h5["a/img_w"]
    for read in (store.read, store.boxes):
        with pytest.raises(DataError, match=r"train2014_obj36\.h5, record a: the file has no features under this key"):
            read("a")
    file = tmp_path / "x_obj36.h5"
    file.write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"x_obj36\.h5.*cannot be read"):
        RegionStore([file]).keys()


def _in_worker(store: RegionStore, inherited: Any) -> tuple[Any, bool, bool]:
    x = store.read("b")
    return x.tolist(), bool(inherited), store._opened(store.files[1]) is inherited


def test_a_forked_worker_opens_files_of_its_own(store: RegionStore) -> None:
    """Also where its parent has the file open; the parent's stays open."""
    store.read("b")
    inherited = store._open[store.files[1]]
    answers = multiprocessing.get_context("fork").SimpleQueue()
    worker = multiprocessing.get_context("fork").Process(target=lambda: answers.put(_in_worker(store, inherited)))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert answers.get() == ([[3] * 3], False, False), "the inherited file is closed, and another is read"
    assert store.read("b").tolist() == [[3] * 3] and store._open[store.files[1]]


def test_a_spawned_worker_opens_files_of_its_own(store: RegionStore) -> None:
    """The store goes to it by pickle, without its open files."""
    store.read("b")
    assert not pickle.loads(pickle.dumps(store))._open
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as workers:
        assert workers.submit(store.read, "b").result(timeout=60).tolist() == [[3] * 3]


# -- finding features -------------------------------------------------------------------------------------------------


def test_finding_features(store: RegionStore, tmp_path: Path) -> None:
    def find(encoder: str | None) -> Any:
        return find_store(tmp_path, GRIDS, encoder, ImageFolderStore)

    assert found_encoders(tmp_path, GRIDS) == ["butd"]
    assert isinstance(find(None), RegionStore) and find(None).keys() == ["a", "b"]
    folder = tmp_path / GRIDS.format(encoder="RN101")
    folder.mkdir(parents=True)
    folder.with_name("data_clip_ViT_att.packed.h5").touch()
    assert found_encoders(tmp_path, GRIDS) == ["RN101", "ViT", "butd"]
    with pytest.raises(ConfigError, match=r"RN101, ViT, butd.*--data\.encoder"):
        find(None)
    assert isinstance(find("butd"), RegionStore) and isinstance(find("ViT"), PackedStore)
    assert isinstance(find("RN101"), ImageFolderStore)
    with pytest.raises(DataError, match=r"data_clip_RN50_att: no such feature folder"):
        find("RN50").keys()
    with pytest.raises(DataError, match="vl-peft data demo"):
        find_store(tmp_path, GRIDS.replace("COCO", "VG"), None, ImageFolderStore)
