"""Reading features: packed files against one HDF5 per image, and against a plain copy of the same bytes.

    python benchmarks/data.py

Writes a folder of random features to a temporary place and packs it as it is, as bfloat16 and pooled; writes a file of
image regions as VL-T5's are, too. Reads all of them in the same shuffled order, three times in turn, with 1 to 4 worker
processes. Prints seconds to pack, examples per second and worker, the ratios, and the memory that a million reads add.
What is read from bfloat16 is float32: its copy has twice the bytes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from vl_peft.features import FeatureStore, ImageFolderStore, PackedStore, RegionStore
from vl_peft.features.packed import Dtype, pack

FOLDER = "one file per image"


def write(folder: Path, images: int, dim: int) -> None:
    """Random features ``[49, dim]`` float16 as one HDF5 per image."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(images):
        with h5py.File(folder / f"{i}.h5", "w") as h5:
            h5[f"{i}/features"] = rng.random((49, dim), dtype=np.float32).astype(np.float16)


def write_regions(file: Path, images: int, dim: int) -> None:
    """Random features ``[36, dim]`` float32 and boxes as one HDF5 with a group for each image."""
    rng = np.random.default_rng(0)
    with h5py.File(file, "w") as h5:
        for i in range(images):
            h5[f"{i}/features"] = rng.random((36, dim), dtype=np.float32)
            h5[f"{i}/boxes"], h5[f"{i}/img_w"], h5[f"{i}/img_h"] = np.ones((36, 4), np.float32), 640, 480


def read(store: FeatureStore, count: int, seed: int) -> float:
    """Examples per second when a copy of each is made, as collating does."""
    keys = store.keys()
    order = np.random.default_rng(seed).integers(len(keys), size=count)
    out = np.empty_like(store.read(keys[0]))
    start = time.perf_counter()
    for i in order:
        np.copyto(out, store.read(keys[i]))
        store.boxes(keys[i])
    return count / (time.perf_counter() - start)


def copies(images: int, like: np.ndarray, count: int, seed: int) -> float:
    """Examples per second of copying as many bytes as ``like`` has from an array in memory."""
    source, out = np.ones((images, *like.shape), like.dtype), np.empty_like(like)
    order = np.random.default_rng(seed).integers(images, size=count)
    start = time.perf_counter()
    for i in order:
        np.copyto(out, source[i])
    return count / (time.perf_counter() - start)


def in_workers(store: FeatureStore, count: int, workers: int) -> float:
    """Examples per second and worker when several read at once."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return float(np.mean(pool.starmap(read, [(store, count, seed) for seed in range(workers)])))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--reads", type=int, default=10000, help="five of each image, as VQA asks (10000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        stores = make(Path(temporary), options.images, options.dim)
        print(f"{options.images} images of [49, {options.dim}] float16, {options.reads} shuffled reads, three rounds")
        for round_ in range(3):
            report(stores, options.images, options.reads, round_)
        for workers in (1, 2, 4):
            rates = {name: in_workers(store, options.reads, workers) for name, store in stores.items()}
            shown = "   ".join(f"{name} {rate:,.0f}/s = x {rate / rates[FOLDER]:.1f}" for name, rate in rates.items())
            print(f"{workers} workers, each: {shown}")
        small = stores["packed"]
        read(small, 10_000, 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in range(10):
            read(small, 100_000, seed)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"a million more reads: {(after - before) / 1024:.1f} MB more at the most")


def make(place: Path, images: int, dim: int) -> dict[str, FeatureStore]:
    """The same images in every layout, and regions of as many others."""
    folder = place / "features"
    write(folder, images, dim)
    write_regions(place / "x_obj36.h5", images, dim)
    stores: dict[str, FeatureStore] = {FOLDER: ImageFolderStore(folder)}
    ways: dict[str, tuple[int | None, Dtype]] = {
        "packed": (None, "keep"),
        "packed bfloat16": (None, "bfloat16"),
        "packed 36": (36, "keep"),
    }
    for name, (tokens, dtype) in ways.items():
        start = time.perf_counter()
        pack(folder, place / name, tokens, dtype)
        print(f"{name}: {images / (time.perf_counter() - start):,.0f} images packed per second")
        stores[name] = PackedStore(place / name)
    return stores | {"regions": RegionStore([place / "x_obj36.h5"])}


def report(stores: dict[str, FeatureStore], images: int, reads: int, seed: int) -> None:
    """Read from each and print a line for each."""
    rates = {name: read(store, reads, seed) for name, store in stores.items()}
    for name, store in stores.items():
        copy = copies(images, store.read("0"), reads, seed)
        rate = rates[name]
        print(
            f"{name:20} {rate:9,.0f}/s = x {rate / rates[FOLDER]:5.1f} of a folder; "
            f"memory copy {copy:9,.0f}/s = x {copy / rate:5.2f}"
        )


if __name__ == "__main__":
    main()
