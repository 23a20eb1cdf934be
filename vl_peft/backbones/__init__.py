"""Backbones: language models that read visual tokens."""

from vl_peft.backbones.base import Backbone
from vl_peft.backbones.vl_bart import VLBart
from vl_peft.backbones.vl_t5 import VLT5

__all__ = ["VLT5", "Backbone", "VLBart"]
