"""CLIP and SigLIP ViTs of the ``transformers`` library, from a folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vl_peft.errors import ConfigError, DataError
from vl_peft.features.encoders.base import NormalisingEncoder

# Where a folder has no preprocessor_config.json: what all published models of the family have.
MEAN_STD = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class HubEncoder(NormalisingEncoder):
    """The image half of a CLIP or SigLIP.

    Grid: ``last_hidden_state`` without CLIP's class token. Pooled: CLIP's ``image_embeds`` (512 of ViT-B/32), not
    L2-normalised; SigLIP's ``pooler_output``.

    Args:
        model: a ``CLIPVisionModelWithProjection`` or ``SiglipVisionModel``.
        name: see VisionEncoder.
        mean: of each colour.
        std: of each colour.
    """

    def __init__(self, model: nn.Module, name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        config: Any = model.config
        super().__init__(name, config.image_size, mean, std)
        self.model = model
        self.clip = hasattr(model, "visual_projection")
        self.dim = config.hidden_size
        self.pooled_dim = config.projection_dim if self.clip else config.hidden_size
        self.eval()

    def grid(self, images: Tensor) -> Tensor:
        """uint8 ``[B, 3, S, S]`` to float ``[B, n, F]``."""
        tokens: Tensor = self.model(self.pixels(images)).last_hidden_state
        return tokens[:, 1:] if self.clip else tokens

    def pooled(self, images: Tensor) -> Tensor:
        """uint8 ``[B, 3, S, S]`` to float ``[B, F]``."""
        output = self.model(self.pixels(images))
        vectors: Tensor = output.image_embeds if self.clip else output.pooler_output
        return vectors

    @classmethod
    def from_pretrained(cls, name: str) -> HubEncoder:
        """A whole CLIP or SigLIP or its image half alone, in a folder or under a hub name.

        Raises:
            ConfigError: there is none, or it is a model of another kind.
            DataError: it lacks some of the weights.
        """
        import transformers
        from transformers.image_processing_base import ImageProcessingMixin

        classes: dict[str, type[Any]] = {
            "clip": transformers.CLIPVisionModelWithProjection,
            "siglip": transformers.SiglipVisionModel,
        }
        try:
            kind = transformers.AutoConfig.from_pretrained(name).model_type.removesuffix("_vision_model")
            if kind not in classes:
                raise ConfigError(f"vision encoder {name!r} is a {kind}, not one of: {', '.join(classes)}")
            # A whole CLIP's text half is not wanted: no table of the weights that are left over.
            quiet: Any = type(kind, (classes[kind],), {"_keys_to_ignore_on_load_unexpected": ["text_", "logit_"]})
            model, report = quiet.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no vision encoder in the folder, or under the hub name, {name!r}: {error}") from error
        if report["missing_keys"]:
            raise DataError(name, f"weights are missing: {', '.join(sorted(report['missing_keys'])[:3])}, ...")
        try:
            settings = ImageProcessingMixin.get_image_processor_dict(name)[0]
        except OSError:
            settings = {}
        mean, std = MEAN_STD[kind]
        return cls(model, Path(name).name, settings.get("image_mean", mean), settings.get("image_std", std))
