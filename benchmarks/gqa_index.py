"""The index of GQA's train_all: seconds and memory to write it, and to open it afterwards.

    python benchmarks/gqa_index.py                       # 14.3 million questions, about 20 GB of JSON to index
    python benchmarks/gqa_index.py --questions 100000 --shards 2

Writes one shard of made-up records of the official structure and size to a temporary place and links it under the names
of all shards. Prints the time against ``json.load`` of one shard, and the memory of all processes together: what they
hold of their own, and with the pages of mapped files.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datamodules.gqa import GQA
from datamodules.gqa_index import IndexedQuestions

NOUNS = ("sky", "car", "person", "table", "shirt", "tree", "building", "window", "grass", "street", "horse", "plate")
COLORS = ("dark", "red", "blue", "white", "green", "brown", "black", "yellow", "orange", "gray")


def question(rng: random.Random, key: int) -> dict[str, Any]:
    """A record with the fields and about the length of an official one."""
    noun, other, color = rng.choice(NOUNS), rng.choice(NOUNS), rng.choice(COLORS)
    object_, subject = rng.randrange(10**6, 5 * 10**6), rng.randrange(10**6, 5 * 10**6)
    steps = [("select", noun, object_), ("relate", f"{other},to the left of,s", subject)]
    steps += [(f"verify {color}", color, 0), (f"verify {noun}", noun, 0), ("or", "", 0)]
    return {
        "semantic": [
            {"operation": operation, "dependencies": [i - 1] if i else [], "argument": f"{argument} ({place})"}
            for i, (operation, argument, place) in enumerate(steps)
        ],
        "entailed": [f"{key + i:08d}" for i in range(1, rng.randrange(2, 15))],
        "equivalent": [f"{key:08d}", f"{key + 20:08d}"],
        "question": f"Is the {other} that is to the left of the {noun} {color} or {rng.choice(COLORS)}?",
        "imageId": str(2_300_000 + rng.randrange(72_140)),
        "isBalanced": rng.random() < 0.07,
        "groups": {"global": None if rng.random() < 0.5 else "color", "local": f"06-{noun}_{color}"},
        "answer": rng.choice((color, noun, "yes", "no")),
        "semanticStr": "->".join(f"{operation}: {argument} ({place})" for operation, argument, place in steps),
        "annotations": {
            "answer": {},
            "question": {"2": str(object_), "5": str(subject)},
            "fullAnswer": {"1": str(object_), "6": str(subject)},
        },
        "types": {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify"},
        "fullAnswer": f"Yes, the {other} to the left of the {noun} is {color}.",
    }


def write_shards(folder: Path, count: int, shards: int) -> Path:
    """One file of ``count`` questions under the names of all shards; returns the first."""
    folder.mkdir(parents=True)
    rng, first = random.Random(0), folder / "train_all_questions_0.json"
    with first.open("w") as file:
        for i in range(count):
            file.write(f'{", " if i else "{"}"{i:08d}": {json.dumps(question(rng, i))}')
        file.write("}")
    for shard in range(1, shards):
        os.link(first, folder / f"train_all_questions_{shard}.json")
    return first


class Memory:
    """Watches this process and its children while it is open: most GB together, of their own and with mapped files."""

    def __enter__(self) -> Memory:
        self.own = self.all = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            processes = [os.getpid(), *(child for child in _children(os.getpid()))]
            sizes = [_sizes(process) for process in processes]
            self.own = max(self.own, sum(own for own, _ in sizes))
            self.all = max(self.all, sum(both for _, both in sizes))


def _children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def _sizes(process: int) -> tuple[float, float]:
    """GB of a process without and with mapped files; zeros once it is gone."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        own, mapped = (int(lines[name].split()[0]) / 2**20 for name in ("RssAnon", "RssFile"))
    except (OSError, KeyError):
        return 0.0, 0.0
    return own, own + mapped


def timed(work: Callable[[], Any]) -> tuple[float, Memory, Any]:
    """Seconds that the work takes, its memory, and what it returns."""
    with Memory() as memory:
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
    return seconds, memory, result


def load(file: Path) -> float:
    """Seconds that the plain way takes for a file."""
    with file.open() as text:
        start = time.perf_counter()
        json.load(text)
        return time.perf_counter() - start


def in_a_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of the work in a process of its own, which takes its memory along when it ends."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def indexed(root: Path) -> IndexedQuestions:
    """The training questions, without a look at features, which are not there."""
    gqa = GQA(root=str(root), train_splits=("train_all",))
    return gqa.indexed("train")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=14_300_000)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--folder", help="for the temporary files; they need a seventh of the JSON's size")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        root = Path(temporary)
        shard = write_shards(root / "GQA/train_all_questions", options.questions // options.shards, options.shards)
        size = shard.stat().st_size * options.shards
        print(f"{options.questions:,} questions, {options.shards} files, {size / 1e9:.1f} GB of JSON")
        seconds, memory, questions = timed(lambda: indexed(root))
        files = sum(file.stat().st_size for file in root.rglob("*.index"))
        print(
            f"write the index: {seconds:6.1f} s, {memory.own:.1f} GB in all processes ({memory.all:.1f} GB with mapped "
            f"files), {files / 1e9:.2f} GB on disk"
        )
        again, memory, _ = timed(lambda: indexed(root))
        reads, _, _ = timed(lambda: [questions[i] for i in random.Random(0).choices(range(len(questions)), k=100_000)])
        counts, _, images = timed(questions.images)
        print(f"open it:         {again:6.2f} s; images counted in {counts:.2f} s ({len(images):,} distinct)")
        print(f"read shuffled:   {100_000 / reads:8,.0f} examples a second")
        _, memory, plain = timed(lambda: in_a_process(load, shard))
        print(f"json.load of one file, in a process: {plain:.1f} s, {memory.own:.1f} GB")
        print(
            f"json.load of all files, one after the other, would be x {plain * options.shards / seconds:.1f} the time"
        )


if __name__ == "__main__":
    main()
