"""Tuning strategies: which parameters are added to a frozen backbone, and which train."""

from vl_peft.tuning.adapter import Adapter
from vl_peft.tuning.base import PerTask, Route, Sharing, Site, Tuning
from vl_peft.tuning.combined import Combined
from vl_peft.tuning.compacter import Compacter, LowRankAdapter
from vl_peft.tuning.full import BitFit, FullFineTuning, LayerNormTuning, LMHeadAdapter, VisualEmbeddingOnly
from vl_peft.tuning.hyperformer import Hyperformer
from vl_peft.tuning.ladder import LadderSideTuning
from vl_peft.tuning.library import LibraryTuning
from vl_peft.tuning.lora import LoRA
from vl_peft.tuning.prompt import PromptTuning

__all__ = [
    "Adapter",
    "BitFit",
    "Combined",
    "Compacter",
    "FullFineTuning",
    "Hyperformer",
    "LMHeadAdapter",
    "LadderSideTuning",
    "LayerNormTuning",
    "LibraryTuning",
    "LoRA",
    "LowRankAdapter",
    "PerTask",
    "PromptTuning",
    "Route",
    "Sharing",
    "Site",
    "Tuning",
    "VisualEmbeddingOnly",
]
