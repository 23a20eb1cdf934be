"""Files that appear in a folder only when they are complete, and what is left of runs that were killed."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

UNREADABLE = "unreadable.tsv"
DAY = 24 * 60 * 60  # seconds


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """A folder within ``out`` for files that are being written, gone afterwards; others may write to ``out``, too.

    ``out`` is made when absent. What killed runs left is removed: of this machine at once, of others after a day.
    """
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".unfinished-*"):
        if _abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = out / f".unfinished-{os.getpid()}-{platform.node()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    _, process, machine = folder.name.split("-", 2)
    if machine != platform.node():
        return time.time() - folder.stat().st_mtime > DAY
    if int(process) == os.getpid():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody else's, and alive
    return False


def replace(target: Path, folder: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write(file)`` with a file in ``folder``, which then becomes ``target``."""
    file = folder / f"{target.name}.tmp"
    write(file)
    file.replace(target)


def list_unreadable(out: Path, folder: Path, files: Mapping[str, str | Path], failed: Mapping[str, str]) -> None:
    """Writes ``out/unreadable.tsv``: key, file and reason of each of ``files`` that failed; none failed, no list.

    What it says of keys that are not among ``files`` stays: images of several folders may go to one.
    """
    target = out / UNREADABLE
    lines = target.read_text().splitlines() if target.exists() else []
    lines = [line for line in lines if line.partition("\t")[0] not in files]
    lines += ["\t".join((key, str(files[key]), " ".join(reason.split()))) for key, reason in failed.items()]
    if lines:
        text = "".join(f"{line}\n" for line in sorted(lines))
        replace(target, folder, lambda file: file.write_text(text))
    else:
        target.unlink(missing_ok=True)
