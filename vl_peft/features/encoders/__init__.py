"""Vision encoders that make the features: a grid per image, one vector per video frame."""

from __future__ import annotations

import re

from vl_peft.errors import ConfigError
from vl_peft.features.encoders.base import NormalisingEncoder, VisionEncoder, centre, squash
from vl_peft.features.encoders.demo import PACKAGED, DemoEncoder
from vl_peft.features.encoders.hub import HubEncoder
from vl_peft.features.encoders.openclip import OpenClipEncoder

__all__ = [
    "PACKAGED",
    "DemoEncoder",
    "HubEncoder",
    "NormalisingEncoder",
    "OpenClipEncoder",
    "VisionEncoder",
    "centre",
    "load_encoder",
    "squash",
]

OPENAI_VIT = re.compile(r"ViT-\w/\d+(@\d+px)?")


def load_encoder(name: str, weights: str | None = None) -> VisionEncoder:
    """The pretrained encoder of that name, in evaluation mode.

    Args:
        name: ``demo``, the encoder in the package; or, with a slash, a hub name or folder of a CLIP or SigLIP for
            ``transformers`` (``openai/clip-vit-base-patch32``, ``./my_clip``); or else a model of ``open_clip``:
            ``RN50``, ``RN101``, ``RN50x4``, ``ViT-B-32`` and so on. OpenAI's own spelling ``ViT-B/32`` is the last too.
        weights: for ``open_clip`` a tag or a checkpoint, by default ``openai``; for ``demo`` another folder.

    Raises:
        ConfigError: there is no such model, no such weights, or the library for them is not installed.
        DataError: weights are there but do not fit.
    """
    if name == "demo":
        return DemoEncoder.from_pretrained(weights)
    if "/" not in name or OPENAI_VIT.fullmatch(name):
        return OpenClipEncoder.from_pretrained(name, weights or "openai")
    if weights is not None:
        raise ConfigError(f"weights {weights!r}: the folder or hub name {name!r} has its own; leave them out")
    return HubEncoder.from_pretrained(name)
