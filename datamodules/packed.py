"""Millions of examples in two arrays instead of millions of Python objects."""

from __future__ import annotations

import pickle
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from vl_peft.batch import Example


class StoredExamples(Sequence[Example]):
    """An immutable sequence whose examples are made anew whenever they are read."""

    @abstractmethod
    def example(self, row: int) -> Example:
        """The example of a row from 0 to ``len(self) - 1``."""

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.example(index % len(self))


class PackedExamples(StoredExamples):
    """Examples serialised into one byte array.

    Worker processes share the arrays: there are no reference counts in them to write to, which is what makes lists of
    objects grow in every forked worker.
    """

    def __init__(self, examples: Iterable[Example]) -> None:
        data, ends = bytearray(), [0]
        for example in examples:
            data += pickle.dumps(example, protocol=pickle.HIGHEST_PROTOCOL)
            ends.append(len(data))
        self._data, self._ends = np.frombuffer(bytes(data), dtype=np.uint8), np.array(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def example(self, row: int) -> Example:
        """Unpickles it."""
        start, end = self._ends[row : row + 2]
        example: Example = pickle.loads(self._data[start:end].data)
        return example
