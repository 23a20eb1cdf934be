"""JSON files read one record at a time, plain or gzipped, with errors that name the file, the place and the remedy."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from vl_peft.errors import DataError

MISSING = "Set --data.root to the folder with the datasets, or write the demo corpus with `vl-peft data demo`."
DAMAGED = "Download the file again, or correct it there."
SKIP = f"{DAMAGED} To go on without such records, set --data.malformed skip."
CHUNK = 1 << 20
"""Characters read at a time from a file without lines."""


def locate(path: Path) -> Path | None:
    """The file itself, or its gzipped neighbour ``<path>.gz``, or ``None`` when there is neither."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


class MalformedError(DataError):
    """One record of a file cannot be used; the others may be. It comes back from a pickle as a DataError."""


def _fail(error: MalformedError) -> None:
    raise error


@dataclass(slots=True)
class Record:
    """A JSON object and where it stands, so that a fault can be found.

    Attributes:
        file: the file it was read from.
        where: its place there: ``"on line 3"``, ``"questions[2]"`` or its key.
        fields: the object.
    """

    file: Path
    where: str
    fields: dict[str, Any]

    def require(self, key: str, kind: type | tuple[type, ...] = object) -> Any:
        """The value of a field; raises MalformedError if it is missing, not a ``kind``, or no valid text."""
        if key not in self.fields:
            raise self.error(f"'{key}' is missing")
        value = self.fields[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool and kind is not object):
            kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise self.error(f"'{key}' is {type(value).__name__}, not {kinds}")
        if isinstance(value, str) and not is_text(value):
            raise self.error(f"'{key}' has half of a character (a lone surrogate)")
        return value

    def identifier(self, key: str) -> str:
        """A field that other files know the record by: a whole number, or a text that is not empty."""
        value = str(self.require(key, (int, str)))
        if not value:
            raise self.error(f"'{key}' is empty")
        return value

    def each(self, key: str) -> list[Record]:
        """The objects in the list under ``key``; raises MalformedError if there is no such list."""
        return [_record(self.file, f"{self.where}, {key}[{i}]", v) for i, v in enumerate(self.require(key, list))]

    def error(self, problem: str) -> MalformedError:
        """The error to raise when something is wrong with this record."""
        return MalformedError(self.file, problem, self.where, SKIP)


def read_json(path: Path) -> Any:
    """The whole of a small file; raises DataError if it is missing, unreadable or not JSON."""
    with _open(path) as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise DataError(path, f"not JSON ({error.msg})", f"on line {error.lineno}", DAMAGED) from error
        except (ValueError, RecursionError) as error:
            raise DataError(path, f"not JSON ({error})", remedy=DAMAGED) from error


def is_list(path: Path) -> bool:
    """True if the file is one JSON list, and not an object or lines; raises DataError if it is missing."""
    with _open(path) as file:
        return _Scanner(path, file).starts_with("[")


def read_lines(path: Path, reject: Callable[[MalformedError], None] = _fail) -> Iterator[Record]:
    """The records of a file with one JSON object per line; empty lines are passed over.

    Args:
        path: the file.
        reject: called with a line that is not a JSON object; the next one follows if it returns.

    Raises:
        DataError: the file is missing or unreadable.
    """
    with _open(path) as file:
        for number, text in enumerate(file, start=1):
            if text.strip():
                try:
                    record = _record(path, f"on line {number}", _parse(path, number, text))
                except MalformedError as error:
                    reject(error)
                else:
                    yield record


def read_list(path: Path, reject: Callable[[MalformedError], None] = _fail) -> Iterator[Record]:
    """The records of a file that is one JSON list, as :func:`read_items`; ``where`` is ``"item 3"``, from 0."""
    with _open(path) as file:
        yield from _records(path, ((f"item {i}", v) for i, v in enumerate(_Scanner(path, file).elements())), reject)


def read_items(
    path: Path, member: str | None = None, reject: Callable[[MalformedError], None] = _fail
) -> Iterator[Record]:
    """The records within one large JSON object, without holding more than a piece of the file.

    Some question files have more than a gigabyte and no line break, and every process of a run reads them.

    Args:
        path: the file: one JSON object.
        member: read the list under this key; ``None`` reads the members of the object, ``where`` being their key.
        reject: called with an item that is not an object; the next one follows if it returns.

    Raises:
        DataError: the file is missing, unreadable or not JSON, or has no such list.
    """
    with _open(path) as file:
        scanner = _Scanner(path, file)
        if member is None:
            yield from _records(path, ((key, scanner.value()) for key in scanner.members()), reject)
            return
        for key in scanner.members():
            if key == member:
                items = ((f"{key}[{i}]", value) for i, value in enumerate(scanner.elements()))
                yield from _records(path, items, reject)
                return
            scanner.value()
    raise DataError(path, f"the list '{member}' is missing", remedy=DAMAGED)


def _records(
    path: Path, items: Iterator[tuple[str, Any]], reject: Callable[[MalformedError], None]
) -> Iterator[Record]:
    for where, value in items:
        try:
            record = _record(path, where, value)
        except MalformedError as error:
            reject(error)
        else:
            yield record


def _record(path: Path, where: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise MalformedError(path, f"a JSON object was expected, not {type(value).__name__}", where, SKIP)
    return Record(path, where, value)


def _parse(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # besides JSONDecodeError: a number of 5,000 digits, endless lists
        problem = f"not JSON ({getattr(error, 'msg', error)})"
        raise MalformedError(path, problem, f"on line {number}", SKIP) from error


def is_text(value: str) -> bool:
    """False of a text that cannot be encoded, and so neither tokenized nor printed."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    found = locate(path)
    if found is None:
        raise DataError(path, "no such file", remedy=MISSING)
    try:
        with gzip.open(found, "rt", encoding="utf-8") if found.suffix == ".gz" else found.open(encoding="utf-8") as f:
            yield f
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise DataError(found, f"cannot be read ({error})", remedy=DAMAGED) from error


class _Scanner:
    """Takes JSON values off the front of a text file, a piece at a time."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.text, self.at, self.lines = "", 0, 1
        self.decode = json.JSONDecoder().raw_decode

    def starts_with(self, character: str) -> bool:
        """What the first character is that is not white space."""
        return self._peek() == character

    def members(self) -> Iterator[str]:
        """Keys of the object that starts here; the caller takes the value after each."""
        for _ in self._until("{", "}"):
            key = self.value()
            if not isinstance(key, str):
                raise self._error("a key in double quotes was expected")
            self._take(":")
            yield key

    def elements(self) -> Iterator[Any]:
        """Values of the list that starts here."""
        return (self.value() for _ in self._until("[", "]"))

    def value(self) -> Any:
        """The value that starts here."""
        self._peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # Either the piece ends within the value, or the file is damaged: only more text can tell.
                if not self._more():
                    raise self._error(error.msg) from error
                continue
            except (ValueError, RecursionError) as error:
                raise self._error(str(error)) from error
            if end < len(self.text) or not self._more():  # a number could go on in the next piece
                self.at = end
                return value

    def _until(self, opening: str, closing: str) -> Iterator[None]:
        self._take(opening)
        if self._peek() != closing:
            yield
            while self._peek() == ",":
                self._take(",")
                yield
        self._take(closing)

    def _peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at].isspace():
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def _take(self, character: str) -> None:
        if self._peek() != character:
            raise self._error(f"'{character}' was expected")
        self.at += 1

    def _more(self) -> bool:
        """Read on; at least as much as is held, so that a long value is not tried again for every piece."""
        piece = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.lines += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + piece, 0
        return bool(piece)

    def _error(self, problem: str) -> DataError:
        line = self.lines + self.text.count("\n", 0, self.at)
        return DataError(self.path, f"not JSON ({problem})", f"on line {line}", DAMAGED)
