"""One process of a training run in float64 whose gradients and weights are kept for comparison.

    LOCAL_RANK=0 WORLD_SIZE=2 ... python gradients.py DATA BACKBONE OUT [bypass]

For each strategy: 30 steps of two tasks by Lightning's Trainer, the same global batches for any number of processes.
Process 0 writes to OUT, per strategy, the gradients of the first steps and the weights after the last one. ``bypass``
leaves out the synchronisation of gradients, as the published code does by accident.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch.nn.parallel import DistributedDataParallel

from datamodules import TVC, TVQA, MultiTask
from vl_peft import tuning
from vl_peft.backbones import VLBart
from vl_peft.module import VLModule

STRATEGIES: dict[str, Any] = {
    "full": tuning.FullFineTuning,
    "adapters": lambda: tuning.Adapter(sharing="multiple"),
    "lora": lambda: tuning.LoRA(rank=4, dropout=0.0),
    "hyperformer": tuning.Hyperformer,
    "prompts": lambda: tuning.PromptTuning(4, sharing="multiple"),
    "accumulated": lambda: tuning.Adapter(sharing="multiple"),  # an update has batches of both tasks
}
STEPS, KEPT, GLOBAL_BATCH = 30, 4, 8


class Keep(Callback):
    """Switches dropout off and keeps the gradients of the first steps."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Dropout differs between processes, as it should."""
        pl_module.eval()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        """After the processes have shared them."""
        if len(self.gradients) < KEPT:
            named = pl_module.named_parameters()
            self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def train(name: str, root: str, folder: str, world: int) -> dict[str, Any]:
    """Gradients and weights of one strategy."""
    torch.manual_seed(0)
    size = GLOBAL_BATCH // world
    benchmarks = {"tvqa": TVQA(batch_size=size), "tvc": TVC(batch_size=size)}
    data = MultiTask(benchmarks, root=root, tokenizer=folder, steps_per_epoch=STEPS)
    # A large epsilon: Adam blows rounding noise up to whole steps where gradients are all but 0.
    backbone = VLBart(folder, feature_dim=data.feature_dim, random_init=True)
    module = VLModule(backbone, STRATEGIES[name](), data.tasks, eps=1e-3, warmup=0.0)
    keep = Keep()
    Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=world,
        accumulate_grad_batches=3 if name == "accumulated" else 1,
        precision="64-true",
        gradient_clip_val=5.0,
        limit_val_batches=0,
        callbacks=[keep],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, datamodule=data)
    weights = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    return {"gradients": keep.gradients, "weights": weights}


def main() -> None:
    """All strategies one after the other."""
    root, folder, out, *bypass = sys.argv[1:]
    torch.set_num_threads(1)
    world = int(os.environ["WORLD_SIZE"])
    if bypass:
        forward = DistributedDataParallel.forward

        def unsynchronised(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> Any:
            with self.no_sync():
                return forward(self, *args, **kwargs)

        DistributedDataParallel.forward = unsynchronised  # type: ignore[method-assign]
    results = {name: train(name, root, folder, world) for name in (["adapters"] if bypass else STRATEGIES)}
    if os.environ["LOCAL_RANK"] == "0":
        torch.save(results, Path(out))


if __name__ == "__main__":
    main()
