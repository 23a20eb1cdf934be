"""A batch that mixes four tasks against one task's batch of the same size (bart-base size, multiple adapters).

    python benchmarks/mixed_batch.py

Prints the seconds of a training step of each and their ratio, measured in turn in one run; the smallest of several.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace

import torch
from transformers import BartConfig

from vl_peft.backbones import VLBart
from vl_peft.batch import Batch
from vl_peft.tuning import Adapter
from vl_peft.tuning.base import trainable

TASKS = ("vqa", "gqa", "nlvr", "caption")


def bart_base(device: str) -> VLBart:
    """VL-BART of bart-base's size with random weights and the demo backbone's tokenizer."""
    demo = VLBart("demo")
    with tempfile.TemporaryDirectory() as folder:
        BartConfig(
            vocab_size=50265,
            d_model=768,
            encoder_layers=6,
            decoder_layers=6,
            encoder_attention_heads=12,
            decoder_attention_heads=12,
            encoder_ffn_dim=3072,
            decoder_ffn_dim=3072,
        ).save_pretrained(folder)
        demo.tokenizer.hf.save_pretrained(folder)
        backbone = VLBart(folder, feature_dim=2048, random_init=True)
    Adapter(8, "multiple").attach(backbone, TASKS)
    return backbone.to(device)


def random_batch(size: int, device: str) -> Batch:
    """20 text tokens, 36 visual tokens, 5 target tokens."""
    shape = (size, 36)
    return Batch(
        task="vqa",
        ids=[str(i) for i in range(size)],
        input_ids=torch.randint(4, 900, (size, 20)),
        attention_mask=torch.ones(size, 20, dtype=torch.long),
        visual=torch.randn(size, 36, 2048),
        visual_mask=torch.ones(shape, dtype=torch.long),
        image_index=torch.zeros(shape, dtype=torch.long),
        object_index=torch.arange(36).expand(shape),
        boxes=torch.zeros(size, 36, 4),
        labels=torch.randint(4, 900, (size, 5)),
        weights=torch.ones(size),
    ).to(device)


def step(backbone: VLBart, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """Seconds of one training step."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    backbone(batch).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone, one = bart_base(device), random_batch(options.batch_size, device)
    optimizer = torch.optim.AdamW(trainable(backbone).values(), lr=1e-4, fused=True)
    quarter = options.batch_size // len(TASKS)
    mixed = replace(one, row_tasks=tuple(task for task in TASKS for _ in range(quarter)))
    shuffled = replace(one, row_tasks=tuple(TASKS[i % len(TASKS)] for i in range(options.batch_size)))
    kinds = {"one task (baseline)": one, "four tasks, sorted": mixed, "four tasks, alternating": shuffled}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for round_ in range(options.rounds + 1):
        for name, batch in kinds.items():
            seconds = step(backbone, optimizer, batch)
            if round_:  # the first is to warm up
                times[name].append(seconds)
    baseline = min(times["one task (baseline)"])
    print(f"{device}, batch of {options.batch_size}, smallest of {options.rounds}")
    for name, seconds in times.items():
        print(f"{name:26}{min(seconds):8.3f} s   x {min(seconds) / baseline:.3f}")


if __name__ == "__main__":
    main()
