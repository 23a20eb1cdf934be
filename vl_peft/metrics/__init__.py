"""Official benchmark scores, exact under distributed evaluation: each is keyed by example id and given in percent."""

from vl_peft.metrics.accuracy import ExactMatch, NLVR2Accuracy
from vl_peft.metrics.base import Record, SentenceMetric
from vl_peft.metrics.caption import CaptionMetrics
from vl_peft.metrics.gqa import GQAAccuracy
from vl_peft.metrics.tokenizer import ptb_tokenize
from vl_peft.metrics.vqa import VQAAccuracy, normalise_answer, soft_scores

__all__ = [
    "CaptionMetrics",
    "ExactMatch",
    "GQAAccuracy",
    "NLVR2Accuracy",
    "Record",
    "SentenceMetric",
    "VQAAccuracy",
    "normalise_answer",
    "ptb_tokenize",
    "soft_scores",
]
