"""Extraction: files in the right layout, resumable, and no input lost in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from tests.features.conftest import Maker, picture
from vl_peft.features import DemoEncoder, ImageFolderStore, VideoFolderStore, extract_images, extract_videos
from vl_peft.features import extract as module
from vl_peft.features.encoders import PACKAGED


@pytest.fixture(scope="module")
def encoder() -> DemoEncoder:
    return DemoEncoder.from_pretrained(PACKAGED)


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    files = {f"i{i}": tmp_path / f"i{i}.png" for i in range(5)}
    for i, file in enumerate(files.values()):
        Image.fromarray(picture(10 * i)).save(file)
    return files


@pytest.mark.parametrize("workers", [0, 2])
def test_images(encoder: DemoEncoder, images: dict[str, Path], tmp_path: Path, workers: int) -> None:
    report = extract_images(images, tmp_path / "out", encoder, batch_size=2, workers=workers, progress=False)
    store = ImageFolderStore(tmp_path / "out")
    assert (report.done, report.skipped, report.failed) == (list(images), [], {})
    assert (store.keys(), store.dim, store.read("i3").dtype) == (sorted(images), 128, np.float16)
    with Image.open(images["i3"]) as image, torch.inference_mode():
        want = encoder.grid(encoder.prepare_image(image)[None])[0]
    np.testing.assert_allclose(store.read("i3"), want, rtol=2e-3, atol=2e-3)
    assert all(f.suffix == ".h5" for f in (tmp_path / "out").iterdir())  # no temporary file is left


def test_batches_are_those_of_all_files() -> None:
    """Those of which something is missing, whole."""
    keys = list("abcdefg")
    assert module._batches(keys, 3, set()) == [[0, 1, 2], [3, 4, 5], [6]]
    assert module._batches(keys, 3, set("abcdg")) == [[3, 4, 5]]


def test_resume_skips_what_exists(encoder: DemoEncoder, images: dict[str, Path], tmp_path: Path) -> None:
    first = dict(list(images.items())[:2])
    extract_images(first, tmp_path / "out", encoder, progress=False)
    times = [(tmp_path / "out" / f"{key}.h5").stat().st_mtime_ns for key in first]
    report = extract_images(images, tmp_path / "out", encoder, progress=False)
    assert (report.skipped, report.done) == (["i0", "i1"], ["i2", "i3", "i4"])
    assert [(tmp_path / "out" / f"{key}.h5").stat().st_mtime_ns for key in first] == times


def test_unreadable_images_are_reported(encoder: DemoEncoder, images: dict[str, Path], tmp_path: Path) -> None:
    images["i1"].write_bytes(images["i1"].read_bytes()[:200])
    images["i2"].write_text("no image")
    images["gone"] = tmp_path / "gone.png"
    report = extract_images(images, tmp_path / "out", encoder, progress=True)
    assert report.done == ["i0", "i3", "i4"]
    assert set(report.failed) == {"i1", "i2", "gone"}
    assert all(report.failed.values())
    assert "gone.png" in report.failed["gone"]


def test_nothing_readable(encoder: DemoEncoder, tmp_path: Path) -> None:
    report = extract_images({"a": tmp_path / "a.png"}, tmp_path / "out", encoder, progress=False)
    assert list(report.failed) == ["a"]
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["unreadable.tsv"]


def test_list_of_unreadable_files(encoder: DemoEncoder, images: dict[str, Path], tmp_path: Path) -> None:
    """It says what is the case after the last run, also of other folders whose features go here."""
    listed, good = tmp_path / "out" / "unreadable.tsv", images["i1"].read_bytes()
    images["i1"].write_text("no image")
    other = {"other": tmp_path / "other.png"}
    extract_images(images, tmp_path / "out", encoder, progress=False)
    extract_images(other, tmp_path / "out", encoder, progress=False)
    lines = [line.split("\t") for line in listed.read_text().splitlines()]
    assert [line[:2] for line in lines] == [["i1", str(images["i1"])], ["other", str(other["other"])]]
    assert "cannot identify image file" in lines[0][2]
    images["i1"].write_bytes(good)
    extract_images(images, tmp_path / "out", encoder, progress=False)
    assert listed.read_text().startswith("other\t")
    Image.fromarray(picture()).save(other["other"])
    extract_images(other, tmp_path / "out", encoder, progress=False)
    assert not listed.exists()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_image(encoder: DemoEncoder, tmp_path: Path, suffix: str) -> None:
    """By default unreadable; accepted, the same pixels as with PIL's own switch, which is not touched."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{suffix}")
    files = {"a": tmp_path / f"a.{suffix}"}
    files["a"].write_bytes(files["a"].read_bytes()[:20_000])
    assert "truncated" in extract_images(files, tmp_path / "out", encoder, progress=False).failed["a"]
    report = extract_images(files, tmp_path / "out", encoder, progress=False, accept_truncated=True)
    assert (report.done, ImageFile.LOAD_TRUNCATED_IMAGES) == (["a"], False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        with Image.open(files["a"]) as image:
            want = encoder.prepare_image(image)
    assert torch.equal(module._read_image(encoder.size, True, files["a"])[0], want)


@pytest.mark.parametrize("workers", [0, 1])
def test_videos(encoder: DemoEncoder, make_video: Maker, tmp_path: Path, workers: int) -> None:
    files = {f"v{n}": make_video(f"v{n}.mp4", [picture(i) for i in range(n)]) for n in (4, 48, 100)}
    (tmp_path / "bad.mp4").write_text("no video")
    files["bad"] = tmp_path / "bad.mp4"
    report = extract_videos(files, tmp_path / "out", encoder, workers=workers, progress=False)
    store = VideoFolderStore(tmp_path / "out")
    assert (report.done, list(report.failed)) == (["v4", "v48", "v100"], ["bad"])
    assert [store.read(key).shape for key in report.done] == [(2, 128), (8, 128), (17, 128)]
    assert store.read("v4").dtype == np.float16


def test_interrupted_write_leaves_nothing(
    encoder: DemoEncoder, images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(key: str, features: np.ndarray, file: Path) -> None:
        file.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_image", write)
    with pytest.raises(KeyboardInterrupt):
        extract_images(images, tmp_path / "out", encoder, progress=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_values_beyond_float16_are_reported(images: dict[str, Path], tmp_path: Path) -> None:
    huge = DemoEncoder().eval()
    torch.nn.init.constant_(huge.trunk[-1].norm2.bias, 1e6)
    report = extract_images(images, tmp_path / "out", huge, progress=False)
    assert set(report.failed.values()) == {"the features are not finite in float16"}
