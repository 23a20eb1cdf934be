"""CLIP and SigLIP of transformers, tiny and random, against what transformers itself makes of the same pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from tests.features.conftest import picture
from vl_peft.errors import ConfigError, DataError
from vl_peft.features import load_encoder

TEXT = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 48,
    "patch_size": 16,
}


@pytest.fixture(params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder, square = tmp_path / request.param, {"height": 48, "width": 48}
    if request.param == "clip":
        vision = {**VISION, "projection_dim": 12}
        model: PreTrainedModel = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=12))
        CLIPImageProcessorPil(size=square, do_center_crop=False).save_pretrained(folder)
    else:
        model = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))
        SiglipImageProcessorPil(size=square, image_mean=[0.4, 0.5, 0.6], resample=3).save_pretrained(folder)
    for parameter in model.parameters():  # as they come, a random SigLIP hardly looks at its pictures
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def test_equals_transformers(folder: Path) -> None:
    """The processor of the library squashes, too, when told to; the tokens it gives are the grid."""
    clip, image = folder.name == "clip", Image.fromarray(picture(50)).resize((200, 90))
    processor = (CLIPImageProcessorPil if clip else SiglipImageProcessorPil).from_pretrained(folder)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    model = (CLIPModel if clip else SiglipModel).from_pretrained(folder).eval()
    encoder = load_encoder(str(folder))
    images = encoder.prepare_image(image)[None]
    with torch.inference_mode():
        want, pooled, grid = model.get_image_features(pixels), encoder.pooled(images), encoder.grid(images)
        tokens = model.vision_model(pixels).last_hidden_state
    torch.testing.assert_close(encoder.pixels(images), pixels, atol=1e-5, rtol=0)  # type: ignore[operator]
    torch.testing.assert_close(pooled, want.pooler_output, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grid, tokens[:, 1:] if clip else tokens, atol=1e-4, rtol=1e-4)
    assert (encoder.name, encoder.size, encoder.training) == (folder.name, 48, False)
    assert (grid.shape, pooled.shape) == ((1, 9, encoder.dim), (1, encoder.pooled_dim))
    assert encoder.pooled_dim == (12 if clip else 24)


def test_grid_is_row_major(folder: Path) -> None:
    encoder = load_encoder(str(folder))
    images = torch.full((2, 3, 48, 48), 128, dtype=torch.uint8)
    images[1, :, 16:32, 32:] = 0  # row 1, column 2
    with torch.inference_mode():
        first, second = encoder.grid(images)
    assert int((first - second).abs().sum(1).argmax()) == 5


def test_learns(folder: Path) -> None:
    encoder = load_encoder(str(folder))
    encoder.pooled(torch.zeros(1, 3, 48, 48, dtype=torch.uint8)).sum().backward()
    assert all(p.grad is not None for name, p in encoder.named_parameters() if "patch_embedding" in name)


def test_missing_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    kept = {name: x for name, x in load_file(file).items() if "layers.1.mlp.fc1" not in name}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(DataError, match=r"weights are missing: .*layers\.1\.mlp\.fc1"):
        load_encoder(str(folder))


def test_other_models(tmp_path: Path) -> None:
    BartConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a bart, not one of: clip, siglip"):
        load_encoder(str(tmp_path))
