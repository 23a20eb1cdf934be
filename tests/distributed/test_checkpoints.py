"""What a run's checkpoint holds, and what the commands do with one that is not theirs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import runs
import torch

from vl_peft.checkpoint_io import read_checkpoint
from vl_peft.cli import main


@pytest.fixture(scope="module")
def finished(demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a run has ended."""
    folder = tmp_path_factory.mktemp("finished")
    assert runs.run(folder, demo_root).status == [0]
    return folder


def checkpoint(folder: Path) -> Path:
    return folder / "runs/experiment/version_0/checkpoints/last.ckpt"


def test_a_checkpoint_is_small(finished: Path) -> None:
    """Weights that train, AdamW's two moments of each, and where the run stands; nothing that is frozen."""
    content = read_checkpoint(checkpoint(finished))
    trained = sum(tensor.nbytes for tensor in content["state_dict"].values())
    moments = content["optimizer_states"][0]["state"].values()
    assert sum(state[name].nbytes for state in moments for name in ("exp_avg", "exp_avg_sq")) == 2 * trained
    assert {"lr_schedulers", "loops", "MultiTask"} <= content.keys() and content["MultiTask"]["yielded"] == 6
    tensors = len(content["state_dict"])
    assert 3 * trained < checkpoint(finished).stat().st_size < 3 * trained + 1500 * tensors + 100_000


def test_a_finished_run_is_left_alone(finished: Path, demo_root: Path) -> None:
    version = finished / "runs/experiment/version_0"
    files = {file: file.read_bytes() for file in version.rglob("*") if file.suffix in (".json", ".jsonl", ".ckpt")}
    ended = runs.run(finished, demo_root, "--ckpt_path=auto")
    assert ended.status == [0] and "This run is finished after 12 steps" in ended.said[0]
    assert len(files) == 4 and files == {file: file.read_bytes() for file in files}


class Malicious:
    """Unpickling this creates a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def truncated(whole: Path, file: Path) -> None:
    file.write_bytes(whole.read_bytes()[:-1000])


def foreign(whole: Path, file: Path) -> None:
    torch.save({"model": read_checkpoint(whole)["state_dict"]}, file)


def malicious(whole: Path, file: Path) -> None:
    torch.save(read_checkpoint(whole) | {"more": Malicious(file.with_name("code ran"))}, file)


BAD = {truncated: "perhaps truncated", foreign: "is not the checkpoint of a run", malicious: "could run code"}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_a_bad_checkpoint_is_refused_by_every_command(
    make: Callable[[Path, Path], None],
    finished: Path,
    demo_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "bad.ckpt"
    make(checkpoint(finished), bad)
    given = runs.arguments(tmp_path, demo_root, f"--ckpt_path={bad}")[1:]
    run = finished / "runs/experiment/version_0"
    export = ["adapters", "export", str(run), "out", "--ckpt", str(bad)]
    for command in (["fit", *given], ["validate", *given], export):
        assert main(command) == 2
        said = " ".join(capsys.readouterr().err.split()).partition("error: ")[2]
        assert str(bad) in said and BAD[make] in said and "Take another checkpoint" in said
    assert not (tmp_path / "code ran").exists() and not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_configuration(finished: Path, demo_root: Path, tmp_path: Path) -> None:
    option = f"--ckpt_path={checkpoint(finished)}"
    ended = runs.run(tmp_path, demo_root, option, "--model.tuning.sharing=single")
    assert ended.status == [2] and "The checkpoint is of another configuration" in ended.said[0]
