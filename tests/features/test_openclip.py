"""Models of open_clip with random weights, against open_clip's own ``encode_image`` and what a hook sees of a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vl_peft.errors import ConfigError
from vl_peft.features import load_encoder
from vl_peft.features.encoders import OpenClipEncoder

open_clip: Any = pytest.importorskip(
    "open_clip", reason="open_clip (extra `extract`) is not installed", exc_type=Exception
)


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = open_clip.create_model(name, pretrained=None).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bn3.weight"):  # zero in a new one: its residual branches would not matter
            nn.init.ones_(parameter)
    return model


def hooked(layer: nn.Module, model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What comes out of ``layer``, and what ``encode_image`` gives."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        vector = model.encode_image(pixels)
    handle.remove()
    return seen[0], vector


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "pooled_dim"), [("RN50", 1024), ("RN101", 512)])
def test_resnets(images: Tensor, name: str, pooled_dim: int) -> None:
    model: Any = make(name)
    encoder = OpenClipEncoder(model.visual, name)
    maps, vector = hooked(model.visual.layer4, model, encoder.pixels(images))
    with torch.inference_mode():
        grid, pooled = encoder.grid(images), encoder.pooled(images)
    assert torch.equal(grid, maps.flatten(2).transpose(1, 2))
    assert grid.min() == 0  # after the ReLU
    assert torch.equal(pooled, vector)
    assert (grid.shape, encoder.dim) == ((2, 49, 2048), 2048)
    assert (pooled.shape, encoder.pooled_dim) == ((2, pooled_dim), pooled_dim)


def test_rn50x4_at_224(images: Tensor) -> None:
    """The grid is layer4 at 224; positions of the attention pool are interpolated, and only they change."""
    model: Any = make("RN50x4")
    positions = model.visual.attnpool.positional_embedding.data
    positions[0], positions[1:] = -1, torch.arange(81.0)[:, None] // 9  # the row of each cell
    encoder = OpenClipEncoder(model.visual, "RN50x4")
    resized = model.visual.attnpool.positional_embedding.detach()
    maps, vector = hooked(model.visual.layer4, model, encoder.pixels(images))
    with torch.inference_mode():
        assert torch.equal(encoder.grid(images), maps.flatten(2).transpose(1, 2))
        assert torch.equal(encoder.pooled(images), vector)
    assert (encoder.size, encoder.dim, encoder.pooled_dim, maps.shape) == (224, 2560, 640, (2, 2560, 7, 7))
    assert (resized[0] == -1).all()
    rows = resized[1:, 0].reshape(7, 7)
    torch.testing.assert_close(rows, rows[:, :1].expand(7, 7))
    torch.testing.assert_close(rows[:, 0], (torch.arange(7) + 0.5) * 9 / 7 - 0.5, atol=0.2, rtol=0)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP"])
def test_vits(images: Tensor, name: str) -> None:
    model: Any = make(name)
    encoder = OpenClipEncoder(model.visual, name)
    clip = name == "ViT-B-32"
    layer = model.visual.transformer if clip else model.visual.trunk.norm
    tokens, vector = hooked(layer, model, encoder.pixels(images))
    with torch.inference_mode():
        grid, pooled = encoder.grid(images), encoder.pooled(images)
    torch.testing.assert_close(grid, tokens[:, 1:] if clip else tokens)
    assert torch.equal(pooled, vector)
    assert (encoder.size, grid.shape) == (224, (2, 49 if clip else 196, 768))


def test_checkpoint_file(images: Tensor, tmp_path: Path) -> None:
    """``--weights FILE``: what is loaded is what was saved, and the name tells it."""
    model: Any = make("ViT-S-32-alt")
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    encoder = load_encoder("ViT-S-32-alt", str(tmp_path / "mine.pt"))
    with torch.inference_mode():
        assert torch.equal(encoder.pooled(images), model.encode_image(encoder.pixels(images)))  # type: ignore[operator]
    assert encoder.name == "ViT-S-32-alt_mine"


def test_checkpoint_file_of_a_siglip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pixels are normalised as SigLIP's, not as CLIP's."""
    (tmp_path / "mine.pt").touch()
    monkeypatch.setattr(open_clip.factory, "load_checkpoint", lambda *args, **options: {})
    encoder: Any = load_encoder("ViT-B-32-SigLIP2-256", str(tmp_path / "mine.pt"))
    assert (encoder.mean.flatten().tolist(), encoder.size, encoder.dim) == ([0.5, 0.5, 0.5], 256, 768)


def test_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown vision encoder 'RN999'.*with a slash, \./RN999"):
        load_encoder("RN999")
    with pytest.raises(ConfigError, match="no weights 'mine' of RN50: a checkpoint file, or one of openai"):
        load_encoder("RN50", "mine")
    (tmp_path / "broken.pt").write_text("no weights")
    with pytest.raises(ConfigError, match=r"broken\.pt' of RN50 cannot be loaded"):
        load_encoder("RN50", str(tmp_path / "broken.pt"))


def test_weights_of_openai_have_their_own_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip itself would load them into a model with another activation, and only warn."""
    create, asked = open_clip.create_model, {}

    def without_download(name: str, pretrained: str, **options: Any) -> nn.Module:
        asked.update(options, pretrained=pretrained)
        made: nn.Module = create(name, pretrained=None, **options)
        return made

    monkeypatch.setattr(open_clip, "create_model", without_download)
    encoder: Any = load_encoder("ViT-B/32")
    assert (asked["pretrained"], asked["force_quick_gelu"]) == ("openai", True)
    assert type(encoder.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert encoder.name == "ViT-B-32"
