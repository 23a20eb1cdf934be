"""What is odd in the data: counted while it is read, and told in a few lines afterwards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from datamodules.records import MalformedError, Record
from vl_peft.batch import Example

SHOWN = 3
"""How many places are named of each kind."""

UNUSABLE = "records cannot be used; left out"
"""The kind of those that end a run where malformed records are not to be left out."""


@dataclass(frozen=True)
class Finding:
    """One kind of irregularity: what it is and what was done about it, how often it was met, and where first."""

    what: str
    count: int
    places: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.places) else ""
        return f"{self.count} {self.what} ({'; '.join(self.places)}{more})"


class Findings:
    """Counts irregularities by kind, and remembers where the first few are.

    Args:
        malformed: a record that cannot be used ends the run (``"fail"``) or is left out and counted (``"skip"``).
    """

    def __init__(self, malformed: Literal["fail", "skip"] = "fail") -> None:
        self.malformed = malformed
        self._ids: set[str] = set()
        self._noted: list[tuple[str, str]] = []  # of the present record
        self._counts: dict[str, int] = defaultdict(int)
        self._places: dict[str, list[str]] = defaultdict(list)

    def note(self, what: str, where: object) -> None:
        """Count one more of a kind; ``what`` says what it is and what was done about it."""
        place = f"{where.file.name} {where.where}" if isinstance(where, Record) else str(where)
        self._noted.append((what, place))

    def reject(self, error: MalformedError) -> None:
        """Raise the error, or count its record as left out."""
        if self.malformed == "fail":
            raise error
        self.note(UNUSABLE, f"{error.file}, {error.record}: {error.problem}")

    def examples(self, records: Iterable[Record], make: Callable[[Record], Iterable[Example]]) -> Iterator[Example]:
        """The examples made of each record; all or none of one.

        Of those with the same id the first is kept, because metrics and submissions know them by it. Nothing else is
        told of what is left out.
        """
        for record in records:
            self._settle()
            try:
                made = list(make(record))
            except MalformedError as error:
                self._noted.clear()
                self.reject(error)
                continue
            new = [example for example in made if example.id not in self._ids]
            self._ids.update(example.id for example in new)
            if len(new) < len(made):
                self._noted.clear()
                self.note("records repeat the id of an earlier one; left out", record)
            yield from new

    def kinds(self) -> list[Finding]:
        """What was found of each kind, in the order of their first appearance."""
        self._settle()
        return [Finding(what, count, tuple(self._places[what])) for what, count in self._counts.items()]

    def _settle(self) -> None:
        for what, place in self._noted:
            self._counts[what] += 1
            if len(self._places[what]) < SHOWN:
                self._places[what].append(place)
        self._noted.clear()
