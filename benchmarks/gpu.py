"""Training on a GPU: bf16-mixed under ddp on one device, memory, throughput, and a resume that is equal to the bit.

    python benchmarks/gpu.py                            # CUDA: bart-base size, 200 steps; writes benchmarks/results/
    python benchmarks/gpu.py --device cpu --steps 6     # the same with a tiny model, to see that it runs

VL-BART with a single adapter trains on four image-text tasks of random words and features at real shapes, with the
guards on and deterministic algorithms. A second run goes on from the checkpoint of the middle; its trained weights,
optimizer state and losses must be those of the first. Exits with 1 if they are not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from random_batches import BASE, TINY, RandomTasks, random_bart

from vl_peft.callbacks import Guards
from vl_peft.checkpoint_io import SafeCheckpointIO
from vl_peft.module import VLModule
from vl_peft.tuning import Adapter

RESULTS = Path(__file__).parent / "results/gpu.json"


class Watch(Callback):
    """Losses of all steps, and when each ended."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Wait for the device only as often as the clock is read."""
        self.losses.append(outputs["loss"].detach())
        if batch_idx % 10 == 9 or batch_idx + 1 == trainer.num_training_batches:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())


def train(options: argparse.Namespace, folder: Path, checkpoint: Path | None = None) -> tuple[VLModule, Watch, Trainer]:
    """One run, which keeps the checkpoint of its middle and of its end."""
    size = BASE if options.device == "cuda" else TINY
    torch.manual_seed(0)
    data = RandomTasks(size["features"], options.batch_size, options.steps)
    module, watch = VLModule(random_bart(size), Adapter(), data.tasks, lr=1e-4), Watch()
    half = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=options.steps // 2)
    trainer = Trainer(
        accelerator=options.device,
        devices=1,
        strategy="ddp",
        precision="bf16-mixed",
        deterministic=True,
        max_epochs=1,
        gradient_clip_val=5.0,
        limit_val_batches=0,
        callbacks=[Guards(), half, watch],
        plugins=[SafeCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return module, watch, trainer


def unequal(one: Any, other: Any) -> int:
    """How many tensors and numbers of two optimizer or module states differ."""
    if isinstance(one, torch.Tensor):
        return int(not torch.equal(one, other))
    if isinstance(one, dict):
        return sum(unequal(value, other[key]) for key, value in one.items()) + len(one.keys() ^ other.keys())
    if isinstance(one, (list, tuple)):
        return sum(map(unequal, one, other)) + abs(len(one) - len(other))
    return int(one != other)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both runs, compared and in figures."""
    module, whole, trainer = train(options, folder / "whole")
    memory = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else None
    resumed, rest, again = train(options, folder / "resumed", folder / f"whole/step={options.steps // 2}.ckpt")
    states = [[m.state_dict(), t.optimizers[0].state_dict()] for m, t in ((module, trainer), (resumed, again))]
    losses = [torch.stack(watch.losses[-len(rest.losses) :]).cpu() for watch in (whole, rest)]
    seconds, timed = whole.ends[-1] - whole.ends[0], options.steps - min(10, options.steps)
    return {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "precision": "bf16-mixed",
        "steps": options.steps,
        "batch_size": options.batch_size,
        "examples_per_s": round(timed * options.batch_size / seconds, 1) if timed else None,
        "peak_memory_gib": memory and round(memory, 2),
        "resumed_at": options.steps // 2,
        "differences_after_resume": unequal(*states) + unequal(*losses),
        "last_loss": float(losses[0][-1]),
    }


def main() -> int:
    """Measure, print, and write the figures of a GPU down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, help="rows per step (256; 4 on a CPU)")
    options = parser.parse_args()
    options.batch_size = options.batch_size or (256 if options.device == "cuda" else 4)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products need it
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here; --device cpu --steps 6 runs the same with a tiny model.")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    print(json.dumps(found, indent=2))
    if options.device == "cuda":
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    return int(found["differences_after_resume"] > 0)


if __name__ == "__main__":
    sys.exit(main())
