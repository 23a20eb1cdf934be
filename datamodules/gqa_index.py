"""Millions of GQA questions read by row: a compact index beside the official files, mapped into memory.

The index of a file is HDF5 with contiguous datasets, for n questions: ``records`` (uint8, one msgpack record after the
other: key, question and, for evaluated splits, types, entailed and groups), ``ends [n]`` (int64, where each record
ends), ``image [n]`` and ``answer [n]`` (int32, places in the lists ``images`` and ``answers``, -1 for a hidden answer),
and these two lists as JSON. Its attribute says which file it was made of: by name, size and time of change.
"""

from __future__ import annotations

import gzip
import json
import mmap
import zlib
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import msgspec
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from datamodules.packed import StoredExamples
from datamodules.records import DAMAGED, read_items
from vl_peft.batch import Example
from vl_peft.errors import ConfigError, DataError

FORMAT = "vl_peft GQA index 2"
PROCESSES = 2
"""Each holds the questions of one file, about 2.5 GB of a tenth of train_all, so no more at a time."""


FACTS = {"types": dict, "entailed": list, "groups": dict, "isBalanced": bool}
"""Further fields of a question that the official metrics ask for."""


class Question(NamedTuple):
    """What one question of a file says; ``facts`` are those of types, entailed and groups that it has."""

    key: str
    text: str
    image: str
    answer: str | None
    facts: Mapping[str, Any]


class IndexedQuestions(StoredExamples):
    """Examples over index files, which every process maps and none holds.

    Args:
        parts: the indices, one after the other.
        make: a question to its example.
    """

    def __init__(self, parts: Sequence[IndexedFile], make: Callable[[Question], Example]) -> None:
        self.parts, self.make = list(parts), make
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def example(self, row: int) -> Example:
        """Decodes the question."""
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self.make(self.parts[part].question(row - int(self._ends[part - 1]) if part else row))

    def images(self) -> Counter[str]:
        """How many questions there are of each image."""
        return sum((part.count("image") for part in self.parts), Counter[str]())

    def answers(self) -> Counter[str]:
        """How many questions have each answer."""
        return sum((part.count("answer") for part in self.parts), Counter[str]())

    def without(self, images: Container[str]) -> IndexedQuestions:
        """The questions that are not about these images."""
        return IndexedQuestions([part.without(images) for part in self.parts], self.make)


class IndexedFile:
    """One index, mapped into memory; a pickle has only its path, so that every worker maps it anew.

    Args:
        path: the index.
        rows: which of its questions, ``None`` for all.

    Raises:
        DataError: if it cannot be read.
    """

    def __init__(self, path: Path, rows: NDArray[np.int64] | None = None) -> None:
        self.path, self.rows = path, rows
        try:
            with h5py.File(path, "r") as h5:
                self._records, self._ends = _mapped(h5["records"]), _mapped(h5["ends"])
                self._columns = {name: _mapped(h5[name]) for name in ("image", "answer")}
                self._names = {name: json.loads(bytes(h5[f"{name}s"][()])) for name in ("image", "answer")}
        except (OSError, KeyError, ValueError) as error:
            raise DataError(path, f"cannot be read ({error})", remedy="Delete it; it is written anew.") from error

    def __len__(self) -> int:
        return len(self._ends) if self.rows is None else len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return IndexedFile, (self.path, self.rows)

    def question(self, row: int) -> Question:
        """The question of a row."""
        row = row if self.rows is None else int(self.rows[row])
        start = int(self._ends[row - 1]) if row else 0
        key, text, *facts = msgspec.msgpack.decode(self._records[start : self._ends[row]].data)
        image, answer = (self._columns[name][row] for name in ("image", "answer"))
        known = {name: fact for name, fact in zip(FACTS, facts, strict=False) if fact is not None}
        names = self._names["answer"]
        return Question(key, text, self._names["image"][image], names[answer] if answer >= 0 else None, known)

    def count(self, column: str) -> Counter[str]:
        """How many questions have each image or answer."""
        codes = self._columns[column] if self.rows is None else self._columns[column][self.rows]
        names = self._names[column]
        counts = np.bincount(codes[codes >= 0], minlength=len(names))
        return Counter({name: int(n) for name, n in zip(names, counts, strict=True) if n})

    def without(self, images: Container[str]) -> IndexedFile:
        """The questions that are not about these images."""
        kept = np.array([name not in images for name in self._names["image"]], dtype=bool)
        rows = np.arange(len(self._ends)) if self.rows is None else self.rows
        return IndexedFile(self.path, rows[kept[self._columns["image"][rows]]])


class _Training(msgspec.Struct, gc=False):
    question: str
    imageId: str  # noqa: N815 - the file's name for it
    answer: str | None = None


class _Evaluated(_Training, gc=False):
    types: dict[str, str | None] | None = None
    entailed: list[str] | None = None
    groups: dict[str, str | None] | None = None
    isBalanced: bool | None = None  # noqa: N815


def indexed(
    sources: Sequence[Path], folder: Path | None, hidden: bool, report: Callable[[str], None]
) -> list[IndexedFile]:
    """The indices of question files, which are written first where they are not there or older than the file.

    Args:
        sources: official question files, plain or gzipped.
        folder: where the indices are; ``None`` is beside each file.
        hidden: whether the answers are (else a question without one is an error).
        report: is told when there is something to write.

    Raises:
        ConfigError: if the folder cannot be written to.
        DataError: if a file cannot be used, naming the question or the byte.
    """
    targets = {source: (folder or source.parent) / f"{source.name}.index" for source in sources}
    if any(not _is_fresh(*pair) for pair in targets.items()):
        place = next(iter(targets.values())).parent
        try:
            place.mkdir(parents=True, exist_ok=True)
            with FileLock(place / ".index.lock"):  # the processes of a run all come here
                stale = {source: target for source, target in targets.items() if not _is_fresh(source, target)}
                if stale:
                    report(f"writing the index of {len(stale)} files to {place}, once")
                    with ProcessPoolExecutor(min(PROCESSES, len(stale))) as pool:
                        list(pool.map(partial(write, hidden=hidden), stale, stale.values()))
        except OSError as error:
            raise ConfigError(
                f"The index of {len(sources)} GQA files cannot be written to {place} ({error}). "
                "Name a folder for it with the option index_folder of GQA."
            ) from error
    return [IndexedFile(target) for target in targets.values()]


def write(source: Path, target: Path, hidden: bool = False) -> None:
    """Write the index of a file; it is complete or not there. Files called ``train...`` are indexed without facts."""
    questions = _decoded(source, _Training if source.name.startswith("train") else _Evaluated)
    encode = msgspec.msgpack.Encoder().encode_into
    records, ends = bytearray(), []
    names: dict[str, dict[str, int]] = {"image": {}, "answer": {}}
    image, answer = [], []
    for key, question in questions.items():
        facts = [getattr(question, name) for name in FACTS] if isinstance(question, _Evaluated) else []
        encode((key, question.question, *facts), records, -1)
        ends.append(len(records))
        image.append(names["image"].setdefault(question.imageId, len(names["image"])))
        if question.answer is not None:
            answer.append(names["answer"].setdefault(question.answer, len(names["answer"])))
        elif hidden:
            answer.append(-1)
        else:
            raise DataError(source, "'answer' is missing", key, DAMAGED)
    temporary = target.with_name(f".{target.name}.tmp")
    with h5py.File(temporary, "w") as h5:
        h5["records"], h5["ends"] = np.frombuffer(records, np.uint8), np.array(ends, np.int64)
        h5["image"], h5["answer"] = np.array(image, np.int32), np.array(answer, np.int32)
        for name, places in names.items():
            h5[f"{name}s"] = np.frombuffer(json.dumps(list(places)).encode(), np.uint8)
        h5.attrs["source"] = _signature(source)
    temporary.replace(target)


def _decoded(source: Path, kind: type[_Training]) -> dict[str, _Training]:
    """All questions of a file at once: a typed decoder passes over what is not asked for at 0.9 GB a second."""
    try:
        return msgspec.json.decode(_bytes(source), type=dict[str, kind])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        for record in read_items(source):  # a slow reader that can tell which question it is
            for name in ("question", "imageId", "answer"):
                if name in record.fields or name != "answer":
                    record.require(name, str)
        raise DataError(source, f"is not a file of GQA questions ({error})", remedy=DAMAGED) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(source, f"not JSON ({error})", remedy=DAMAGED) from error


def _bytes(source: Path) -> bytes | mmap.mmap:
    try:
        if source.suffix == ".gz":
            return gzip.decompress(source.read_bytes())
        with source.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: it is empty
        raise DataError(source, f"cannot be read ({error})", remedy=DAMAGED) from error


def _mapped(dataset: h5py.Dataset) -> NDArray[Any]:
    offset = dataset.id.get_offset()  # None of an empty one
    if offset is None:
        return np.zeros(dataset.shape, dataset.dtype)
    return np.memmap(dataset.file.filename, dataset.dtype, "r", offset, dataset.shape)


def _signature(source: Path) -> str:
    stat = source.stat()
    return f"{FORMAT}: {source.name}, {stat.st_size} bytes, {stat.st_mtime_ns}"


def _is_fresh(source: Path, target: Path) -> bool:
    try:
        with h5py.File(target, "r") as h5:
            return bool(h5.attrs.get("source") == _signature(source))
    except OSError:
        return False
