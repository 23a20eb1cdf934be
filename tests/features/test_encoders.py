"""The demo encoder: shapes, shipped weights, and features that do not depend on the container of the picture."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.features.conftest import Maker, picture
from vl_peft.errors import ConfigError, DataError
from vl_peft.features import DemoEncoder, load_encoder, read_frames


@pytest.fixture(scope="module")
def encoder() -> DemoEncoder:
    return load_encoder("demo")


def test_shapes(encoder: DemoEncoder) -> None:
    images = torch.stack([encoder.prepare_frame(picture(i)) for i in (10, 60)])
    with torch.inference_mode():
        grid, pooled = encoder.grid(images), encoder.pooled(images)
    assert (encoder.name, encoder.dim, encoder.training) == ("demo", 128, False)
    assert (images.shape, images.dtype) == ((2, 3, 112, 112), torch.uint8)
    assert (grid.shape, pooled.shape) == ((2, 49, 128), (2, 128))
    assert grid.min() >= 0
    assert max(grid.max(), pooled.abs().max()) < 1000  # far inside float16


def test_grid_is_row_major(encoder: DemoEncoder) -> None:
    """A change in the top right corner of the picture changes the cells there most."""
    frames = [picture(), picture()]
    frames[1][:14, -14:] = 0
    with torch.inference_mode():
        first, second = encoder.grid(torch.stack([encoder.prepare_frame(f) for f in frames]))
    change = (first - second).abs().sum(1).reshape(7, 7)
    assert divmod(int(change.argmax()), 7) in {(0, 6), (0, 5), (1, 6), (1, 5)}


def test_loading_is_deterministic_and_round_trips(encoder: DemoEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path, seed=7)
    again = DemoEncoder.from_pretrained(tmp_path)
    images = encoder.prepare_frame(picture())[None]
    with torch.inference_mode():
        assert torch.equal(encoder.pooled(images), load_encoder("demo").pooled(images))
        assert torch.equal(encoder.pooled(images), again.pooled(images))
    assert json.loads((tmp_path / "encoder.json").read_text())["seed"] == 7
    assert sorted(f.name for f in tmp_path.iterdir()) == ["encoder.json", "encoder.safetensors"]


def test_unknown_encoder_and_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'RN999'"):
        load_encoder("RN999")
    with pytest.raises(DataError, match="no usable encoder weights"):
        DemoEncoder.from_pretrained(tmp_path)


def test_which_library_a_name_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for name in ("RN101", "ViT-B/32", "ViT-L/14@336px", "ViT-B-32"):
        with pytest.raises(ConfigError, match=r"needs open_clip.*pip install 'vl_peft\[extract\]'"):
            load_encoder(name)
    with pytest.raises(ConfigError, match=r"hub name, '\./none'"):
        load_encoder("./none")
    with pytest.raises(ConfigError, match="has its own"):
        load_encoder("./none", weights="openai")


def test_weights_that_do_not_fit(encoder: DemoEncoder, tmp_path: Path) -> None:
    DemoEncoder(widths=(8, 8, 16)).save_pretrained(tmp_path)
    encoder.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "encoder.json").replace(tmp_path / "encoder.json")
    with pytest.raises(DataError, match="no usable encoder weights"):
        DemoEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_images_of_any_mode_are_squashed(encoder: DemoEncoder, mode: str) -> None:
    assert encoder.prepare_image(Image.new(mode, (300, 40))).shape == (3, 112, 112)


def test_longer_side_is_rounded_down(encoder: DemoEncoder) -> None:
    """113 rows to 112 make 150.67 columns of 152: 150, of which 19 fall away at the left."""
    frame = np.random.default_rng(0).integers(0, 256, (113, 152, 3), dtype=np.uint8)
    want = Image.fromarray(frame).resize((150, 112), Image.Resampling.BICUBIC).crop((19, 0, 131, 112))
    assert np.array_equal(encoder.prepare_frame(frame).permute(1, 2, 0), np.asarray(want))


@pytest.mark.parametrize(("height", "width"), [(40, 300), (301, 113), (112, 112), (720, 1280)])
def test_frames_keep_their_centre(encoder: DemoEncoder, height: int, width: int) -> None:
    frame = np.zeros((height, width, 3), np.uint8)
    cut = (max(height, width) - min(height, width)) // 2
    frame[:, :cut] = frame[:, width - cut :] = 255 if width > height else 0
    assert encoder.prepare_frame(frame).shape == (3, 112, 112)
    assert encoder.prepare_frame(frame).float().mean() < 5


def test_same_features_from_jpeg_and_mp4(encoder: DemoEncoder, make_video: Maker) -> None:
    """What compression changes is small beside what the content changes."""
    buffer = io.BytesIO()
    Image.fromarray(picture(20)).save(buffer, "JPEG", quality=90)
    frame = read_frames(make_video("v.mp4", [picture(20)] * 8))[0]
    same, video = encoder.prepare_image(Image.open(buffer)), encoder.prepare_frame(frame)
    moved = encoder.prepare_frame(picture(70))
    with torch.inference_mode():
        a, b, c = encoder.pooled(torch.stack([same, video, moved]))
    assert (a - b).norm() < 0.25 * (a - c).norm()
