"""Reading features: one packed file against one HDF5 per image, and against a plain copy of the same bytes.

    python benchmarks/data.py

Writes a folder of random features to a temporary place, packs it, and reads both in the same shuffled order, three
times in turn, with 1 to 4 worker processes. Prints examples per second and worker, the ratios, and the memory that a
million reads add.
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

from vl_peft.features import FeatureStore, ImageFolderStore, PackedStore
from vl_peft.features.packed import pack


def write(folder: Path, images: int, dim: int) -> None:
    """Random features ``[49, dim]`` float16 as one HDF5 per image."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(images):
        with h5py.File(folder / f"{i}.h5", "w") as h5:
            h5[f"{i}/features"] = rng.random((49, dim), dtype=np.float32).astype(np.float16)


def read(store: FeatureStore, count: int, seed: int) -> float:
    """Examples per second when a copy of each is made, as collating does."""
    keys = store.keys()
    order = np.random.default_rng(seed).integers(len(keys), size=count)
    out = np.empty_like(store.read(keys[0]))
    start = time.perf_counter()
    for i in order:
        np.copyto(out, store.read(keys[i]))
    return count / (time.perf_counter() - start)


def copies(images: int, dim: int, count: int, seed: int) -> float:
    """Examples per second of copying as many bytes from an array in memory."""
    source, out = np.ones((images, 49, dim), np.float16), np.empty((49, dim), np.float16)
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
        folder, file = Path(temporary) / "features", Path(temporary) / "features.packed.h5"
        write(folder, options.images, options.dim)
        pack(folder, file)
        single, packed = ImageFolderStore(folder), PackedStore(file)
        print(f"{options.images} images of [49, {options.dim}] float16, {options.reads} shuffled reads, three rounds")
        for round_ in range(3):
            one, many = read(single, options.reads, round_), read(packed, options.reads, round_)
            copy = copies(options.images, options.dim, options.reads, round_)
            print(
                f"one file per image {one:9,.0f}/s   packed {many:9,.0f}/s = x {many / one:5.1f}   "
                f"memory copy {copy:9,.0f}/s = x {copy / many:4.2f} of packed"
            )
        for workers in (1, 2, 4):
            one, many = (in_workers(store, options.reads, workers) for store in (single, packed))
            print(f"{workers} workers, each:  {one:9,.0f}/s   packed {many:9,.0f}/s = x {many / one:5.1f}")
        small = PackedStore(file)
        read(small, 10_000, 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in range(10):
            read(small, 100_000, seed)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"a million more reads: {(after - before) / 1024:.1f} MB more at the most")


if __name__ == "__main__":
    main()
