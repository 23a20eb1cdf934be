"""Every strategy on tiny backbones, for tests in one process and in several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vl_peft import tuning
from vl_peft.batch import Batch
from vl_peft.tuning import Tuning

TASKS = ("a", "b", "c")
# Every strategy, with as few parameters as show what it does.
STRATEGIES: dict[str, Callable[[], Tuning]] = {
    "full": tuning.FullFineTuning,
    "visual": tuning.VisualEmbeddingOnly,
    "norms": tuning.LayerNormTuning,
    "bitfit": tuning.BitFit,
    "adapter": tuning.Adapter,
    "adapters": lambda: tuning.Adapter(sharing="multiple", norm_before=True, norm_after=True),
    "half_shared": lambda: tuning.Adapter(sharing="shared_up", stacks=["encoder"], activation="relu"),
    "compacter": lambda: tuning.Compacter(sharing="multiple", rule="tasks"),
    "compacter_factorized": lambda: tuning.Compacter(rank=1, rule="model", division=4),
    "low_rank": lambda: tuning.LowRankAdapter(rank=2, sharing="multiple"),
    "hyperformer": lambda: tuning.Hyperformer(embedding_dim=6, hidden_dim=5),
    "hyperformer_efficient": lambda: tuning.Hyperformer(efficient=True, embedding_dim=6, hidden_dim=5),
    "lora": lambda: tuning.LoRA(rank=2, alpha=2, dropout=0.0),
    "loras": lambda: tuning.LoRA(rank=2, alpha=2, dropout=0.0, sharing="multiple", roles=["q", "k", "v", "in", "out"]),
    "prompt": lambda: tuning.PromptTuning(3, hidden_dim=5),
    "prompts": lambda: tuning.PromptTuning(3, 2, hidden_dim=5, sharing="multiple"),
    "ladder": lambda: tuning.LadderSideTuning(4, heads=2, dropout=0.0),
    "ladders": lambda: tuning.LadderSideTuning(4, heads=2, dropout=0.0, sharing="multiple"),
    "ia3": lambda: tuning.LibraryTuning(roles=["k", "v"]),
    "ia3s": lambda: tuning.LibraryTuning("peft.IA3Config", sharing="multiple"),
    "dora": lambda: tuning.LibraryTuning("LoraConfig", {"use_dora": True, "r": 2}, sharing="multiple"),
    "loha": lambda: tuning.LibraryTuning("LoHaConfig", {"r": 2}, roles=["out"], sharing="multiple"),
    "vera": lambda: tuning.LibraryTuning("VeraConfig", {"r": 4}),
    "head": lambda: tuning.LMHeadAdapter(sharing="multiple"),
    "combined": lambda: tuning.Combined(
        [tuning.Adapter(sharing="multiple"), tuning.PromptTuning(3, 2, 5, "multiple"), tuning.LoRA(2, 2, dropout=0.0)]
    ),
}


def padded(batch: Batch, seed: int = 0) -> Batch:
    """The batch in float64, the end of its first row's text masked."""
    batch.attention_mask[0, -2:] = 0
    return replace(batch, visual=batch.visual.double(), boxes=batch.boxes.double(), weights=batch.weights.double())
