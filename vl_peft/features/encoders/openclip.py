"""CLIP and SigLIP of the ``open_clip`` library (extra ``extract``), with OpenAI's ResNets among them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vl_peft.errors import ConfigError
from vl_peft.features.encoders.base import NormalisingEncoder

RESNET_SIZE = 224  # of the published features, whatever size the model was trained at


class OpenClipEncoder(NormalisingEncoder):
    """The image half of an ``open_clip`` model.

    Grid: of a ResNet the output of ``layer4``, after its ReLU and before the attention pool, 7x7 cells (F = 2048, of
    RN50x4 2560); of a ViT the patch tokens after the last layer, which SigLIP normalises and CLIP does not.
    Pooled: what ``encode_image`` gives, the projected embedding, not L2-normalised.

    A ResNet takes pictures of 224x224. RN50x4 was trained at 288, 9x9 cells, so the positions its attention pool adds
    to the grid are interpolated to 7x7 (bicubic), as ViTs' usually are; the grid does not depend on them.

    Args:
        visual: the model's ``visual``.
        name: see VisionEncoder.
    """

    def __init__(self, visual: nn.Module, name: str) -> None:
        pool = getattr(visual, "attnpool", None)
        settings: dict[str, Any] = visual.preprocess_cfg  # type: ignore[assignment]
        size = settings["size"] if isinstance(settings["size"], int) else settings["size"][0]
        super().__init__(name, RESNET_SIZE if pool is not None else size, settings["mean"], settings["std"])
        if pool is not None:
            pool.positional_embedding = nn.Parameter(_resize(pool.positional_embedding.detach(), RESNET_SIZE // 32))
        self.visual = visual
        # Only timm's SigLIP pools what it has normalised; CLIP's norm is for the class token.
        self.normalise = hasattr(visual, "trunk")
        with torch.inference_mode():
            blank = torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8)
            self.eval()
            self.dim, self.pooled_dim = self.grid(blank).shape[-1], self.pooled(blank).shape[-1]

    def grid(self, images: Tensor) -> Tensor:
        """uint8 ``[B, 3, S, S]`` to float ``[B, n, F]``."""
        maps = self.visual.forward_intermediates(  # type: ignore[operator]
            self.pixels(images), indices=1, normalize_intermediates=self.normalise, intermediates_only=True
        )
        cells: Tensor = maps["image_intermediates"][-1].flatten(2).transpose(1, 2)
        return cells

    def pooled(self, images: Tensor) -> Tensor:
        """uint8 ``[B, 3, S, S]`` to float ``[B, F]``."""
        output = self.visual(self.pixels(images))
        vectors: Tensor = output[0] if isinstance(output, tuple) else output  # CoCa gives its tokens, too
        return vectors

    @classmethod
    def from_pretrained(cls, name: str, weights: str) -> OpenClipEncoder:
        """A model of ``open_clip`` by name (``RN101``, ``ViT-B/32``) with weights: a tag or a checkpoint file.

        Raises:
            ConfigError: ``open_clip`` is not installed, or it has no such model or weights.
        """
        open_clip = _library(name)
        model = re.sub(r"@(\d+)px$", r"-\1", name).replace("/", "-")
        if model not in open_clip.list_models():
            raise ConfigError(
                f"unknown vision encoder {name!r}: neither 'demo' nor a model of open_clip "
                f"(RN50, RN101, RN50x4, ViT-B-32, ...); of a folder write the path with a slash, ./{name}"
            )
        tags = open_clip.list_pretrained_tags_by_model(model)
        if weights not in tags and not Path(weights).is_file():
            raise ConfigError(f"no weights {weights!r} of {model}: a checkpoint file, or one of {', '.join(tags)}")
        settings = open_clip.get_pretrained_cfg(model, weights if weights in tags else next(iter(tags), "")) or {}
        options = {
            # open_clip only warns when weights were trained with another GELU than the model's configuration says,
            "force_quick_gelu": weights in tags and settings.get("quick_gelu", False),
            # and takes CLIP's mean for any checkpoint file, SigLIP's too.
            "force_preprocess_cfg": {k: settings[k] for k in ("mean", "std") if k in settings},
        }
        try:
            visual = open_clip.create_model(model, pretrained=weights, **options).visual
        except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            raise ConfigError(f"weights {weights!r} of {model} cannot be loaded: {error}") from error
        return cls(visual, model if weights == "openai" else f"{model}_{Path(weights).stem}")


def _library(name: str) -> ModuleType:
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        raise ConfigError(
            f"the vision encoder {name!r} needs open_clip ({error}): pip install 'vl_peft[extract]'. "
            "Without it there are 'demo' and folders or hub names with a slash, read by transformers."
        ) from error
    module: ModuleType = open_clip
    return module


def _resize(positions: Tensor, side: int) -> Tensor:
    """Position embeddings ``[1 + m * m, F]``, the mean's first, to ``[1 + side * side, F]``."""
    first, cells = positions[:1], positions[1:]
    old = int(len(cells) ** 0.5)
    if old == side:
        return positions
    maps = cells.T.reshape(1, -1, old, old)
    maps = functional.interpolate(maps, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, maps.flatten(2)[0].T])
