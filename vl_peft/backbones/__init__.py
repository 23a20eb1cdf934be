"""Backbones: language models that read visual tokens."""

from vl_peft.backbones.base import Backbone
from vl_peft.backbones.vl_bart import VLBart

__all__ = ["Backbone", "VLBart"]
