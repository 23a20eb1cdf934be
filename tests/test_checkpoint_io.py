"""Checkpoint files: whole or not there, and data only."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from vl_peft.checkpoint_io import SafeCheckpointIO, read_checkpoint
from vl_peft.errors import DataError

CHECKPOINT = {"state_dict": {"w": torch.arange(4.0)}, "loops": {}, "global_step": 3}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good checkpoint."""
    SafeCheckpointIO().save_checkpoint(CHECKPOINT, tmp_path / "run" / "last.ckpt")
    return tmp_path / "run" / "last.ckpt"


def test_what_is_saved_is_loaded(file: Path) -> None:
    assert torch.equal(SafeCheckpointIO().load_checkpoint(file)["state_dict"]["w"], torch.arange(4.0))
    assert [f.name for f in file.parent.iterdir()] == ["last.ckpt"]


class Unwritable:
    """Fails in the middle of being saved, as a full disk does."""

    def __reduce__(self) -> str:
        raise OSError(28, "No space left on device")


def test_a_checkpoint_that_cannot_be_written_leaves_the_former_one(file: Path) -> None:
    before, io = file.read_bytes(), SafeCheckpointIO()
    with pytest.warns(UserWarning, match=r"last.ckpt could not be written .*the former checkpoint is kept"):
        io.save_checkpoint({**CHECKPOINT, "more": Unwritable()}, file)
    assert io.problem and file.read_bytes() == before and len(list(file.parent.iterdir())) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        io.save_checkpoint({**CHECKPOINT, "global_step": 4}, file)
    assert not io.problem and read_checkpoint(file)["global_step"] == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_leaves_the_former_one(file: Path) -> None:
    file.parent.chmod(0o500)
    io = SafeCheckpointIO()
    with pytest.warns(UserWarning, match="could not be written"):
        io.save_checkpoint({**CHECKPOINT, "global_step": 4}, file)
    assert read_checkpoint(file)["global_step"] == 3


def test_a_kill_in_the_middle_of_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    """The writer is killed at many moments; whatever file there is loads and is that of one step."""
    file = tmp_path / "last.ckpt"
    code = (
        "import torch, itertools\nfrom vl_peft.checkpoint_io import SafeCheckpointIO\nio = SafeCheckpointIO()\n"
        "for step in itertools.count():\n"
        "    state = {'w': torch.full((1 << 20,), float(step))}\n"
        f"    io.save_checkpoint({{'state_dict': state, 'loops': {{}}}}, {str(file)!r})\n"
        "    print(step, flush=True)\n"
    )
    for wait in (0.0, 0.003, 0.011, 0.02):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(3):
            writer.stdout.readline()
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        (value,) = read_checkpoint(file)["state_dict"]["w"].unique().tolist()
        assert value >= 2


class Malicious:
    """Unpickling this creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    trace, file = tmp_path / "code ran", tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "loops": {}, "evil": Malicious(trace)}, file)
    with pytest.raises(DataError, match=r"evil.ckpt: .*could run code"):
        read_checkpoint(file)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists(), "the file does what this test says it does"


@pytest.mark.parametrize("size", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(file: Path, size: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(size * len(content)) if 0 < size < 1 else int(size)])
    with pytest.raises(DataError, match=r"last\.ckpt"):
        read_checkpoint(file)


def test_foreign_files_are_named(tmp_path: Path) -> None:
    for name, content in {"text": b"hello", "pickle": pickle.dumps({"a": 1}), "list": None, "weights": None}.items():
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content)
        else:
            torch.save([1] if name == "list" else {"w": torch.ones(1)}, file)
        with pytest.raises(DataError, match=name):
            read_checkpoint(file)
    with pytest.raises(DataError, match="there is no such checkpoint"):
        read_checkpoint(tmp_path / "absent")
