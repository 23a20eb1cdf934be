"""The errors a user can cause and mend. The command line prints their message alone, without a traceback."""

from __future__ import annotations

from os import PathLike


class UserError(Exception):
    """Something outside the code is wrong: data, files or configuration. The message says what and how to mend it."""


class ConfigError(UserError):
    """A setting that cannot work: an unknown task, a value out of range, two options that exclude each other."""


class DataError(UserError):
    """A file or one of its records cannot be used.

    Args:
        file: the file (or folder) concerned.
        problem: what is wrong, in a few words.
        record: which record of the file: a line number, id or key; ``None`` for the file as a whole.
        remedy: what the user can do about it.
    """

    def __init__(self, file: str | PathLike[str], problem: str, record: object | None = None, remedy: str = "") -> None:
        where = f"{file}" if record is None else f"{file}, record {record}"
        super().__init__(f"{where}: {problem}." + (f" {remedy}" if remedy else ""))
        self.file, self.problem, self.record, self.remedy = str(file), problem, record, remedy

    def __reduce__(self) -> tuple[type[DataError], tuple[object, ...]]:
        # Raised in DataLoader workers, so it must survive pickling with all its arguments.
        return DataError, (self.file, self.problem, self.record, self.remedy)
