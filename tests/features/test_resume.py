"""Extraction that is killed and goes on ends with the same bytes as one that nobody disturbed; and its command."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vl_peft.features
from tests.features.conftest import Maker, picture
from vl_peft.cli import main
from vl_peft.features import load_encoder
from vl_peft.features.unfinished import unfinished


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty pictures and one that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"i{i:02}.v1.png")
    (folder / "broken.jpg").write_text("no image")
    return folder


@pytest.fixture
def videos(tmp_path: Path, make_video: Maker) -> Path:
    """Thirty videos and an empty one."""
    (tmp_path / "videos").mkdir()
    for i in range(30):
        make_video(f"videos/-v_{i}.a.mp4", [picture(i + j) for j in range(8 + i)])
    (tmp_path / "videos" / "empty.mp4").touch()
    return tmp_path / "videos"


SCRIPT = """
import sys
from pathlib import Path
import vl_peft.features as features
files = {file.stem: file for file in sorted(Path(sys.argv[2]).iterdir())}
extract = getattr(features, f"extract_{sys.argv[1]}")
extract(files, sys.argv[3], features.load_encoder("demo"), batch_size=3, workers=1, progress=False)
"""


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", ["images", "videos"])
def test_killed_and_run_again(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source, whole, out = request.getfixturevalue(kind), tmp_path / "whole", tmp_path / "out"
    files = {file.stem: file for file in sorted(source.iterdir())}
    extract = getattr(vl_peft.features, f"extract_{kind}")
    extract(files, whole, load_encoder("demo"), batch_size=3, workers=1, progress=False)
    assert "unreadable.tsv" in content(whole)
    chance, seen = random.Random(0), []
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, kind, str(source), str(out)])
        before = len(content(out))
        while process.poll() is None and len(content(out)) <= before + 1:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(len(content(out)))
        for file, data in content(out).items():
            assert ".unfinished-" in file or content(whole)[file] == data
    assert min(seen) < len(content(whole))  # it was in the middle at least once
    extract(files, out, load_encoder("demo"), batch_size=3, workers=1, progress=False)
    assert content(out) == content(whole)
    assert not [f for f in out.iterdir() if f.is_dir()]


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    """Of this machine at once; what another machine, or a living process here, writes stays."""
    node, gone = os.uname().nodename, subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (f"{gone.pid}-{node}", f"{os.getppid()}-{node}", f"{gone.pid}-elsewhere", "1-long-ago"):
        (tmp_path / f".unfinished-{name}").mkdir()
    os.utime(tmp_path / ".unfinished-1-long-ago", (0, 0))
    with unfinished(tmp_path) as folder:
        assert folder.is_dir()
        left = {f.name for f in tmp_path.iterdir()} - {folder.name}
    assert left == {f".unfinished-{os.getppid()}-{node}", f".unfinished-{gone.pid}-elsewhere"}
    assert not folder.exists()


def test_bytes_do_not_depend_on_the_time(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither HDF5 nor the zip file of an npz has the time in it."""
    main(["data", "extract", str(images), str(tmp_path / "one"), "--kind", "images", "--workers", "0"])
    monkeypatch.setattr(time, "time", lambda: 0.0)
    time.sleep(1.1)  # HDF5 asks the system itself
    main(["data", "extract", str(images), str(tmp_path / "two"), "--kind", "images", "--workers", "0"])
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_same_key_twice(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "i07.v2.JPG").write_bytes((images / "i07.v1.png").read_bytes())
    assert main(["data", "extract", str(images), str(tmp_path / "out"), "--kind", "images"]) == 2
    error = capsys.readouterr().err
    assert "i07.v1.png" in error
    assert "i07.v2.JPG" in error
    assert not (tmp_path / "out").exists()


def test_keys_and_other_files(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of videos may begin with a dash and have dots in them; what is no video is counted."""
    (videos / "notes.txt").touch()
    (videos / "._-v_1.a.mp4").touch()
    assert main(["data", "extract", str(videos), str(tmp_path / "out"), "--kind", "videos"]) == 2
    captured = capsys.readouterr()
    assert "2 other files are left out (1 .mp4, 1 .txt)" in captured.out
    assert "30 videos extracted" in captured.out
    assert "1 videos could not be read" in captured.err
    assert "  empty: the video file is empty" in captured.err
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert names == {*(f"-v_{i}.a.npz" for i in range(30)), "unreadable.tsv"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--kind", "videos", "--accept-truncated"], "is for images"),
        (["--encoder", "./none"], "no vision encoder"),
        (["--device", "cuda"], "there is no GPU"),
    ],
)
def test_mistakes(
    options: list[str],
    message: str,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["data", "extract", str(images), str(tmp_path / "out"), "--kind", "images", *options]) == 2
    assert message in capsys.readouterr().err


def test_precision(images: Path, tmp_path: Path) -> None:
    """In bfloat16 features are near those in float32, and not the same."""
    for precision in ("float32", "bfloat16"):
        out = str(tmp_path / precision)
        main(["data", "extract", str(images), out, "--kind", "images", "--workers", "0", "--precision", precision])
    one, two = (content(tmp_path / precision) for precision in ("float32", "bfloat16"))
    assert one.keys() == two.keys()
    assert one["i00.h5"] != two["i00.h5"]
