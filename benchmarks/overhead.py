"""What the engine costs: the step time of a bare loop against that of the Trainer with all that a run has, and between.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py [--root data/demo] [--steps 25] [--rounds 8]

All read the same batches of the four video benchmarks with two workers and train the demo backbone's single adapter:

* bare: a plain DataLoader, AdamW, clipping, schedule; no Lightning
* bare, exact: the same loop over TaskLoader and TaskSampler
* trainer, plain: Lightning's Trainer over the plain DataLoader
* trainer, exact: over TaskLoader and TaskSampler
* engine: that with Guards and LastCheckpoint

Runs alternate. A step is from the end of one to the end of the next, waiting for data included. Printed are, per step,
the median over the rounds, the mean of every step's smallest time, and the training process' own CPU time likewise:
where other programs use the machine, that is the one to trust. Ratios are to the baseline named. Last, what Lightning's
profiler finds in the hooks of the engine's callbacks, checkpoint and the look at all frozen parameters included.
"""

from __future__ import annotations

import argparse
import gc
import logging
import random
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import SimpleProfiler
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from datamodules import TVC, TVQA, YC2C, How2QA, MultiTask
from datamodules.loading import TaskDataset
from vl_peft.backbones import VLBart
from vl_peft.callbacks import Guards, LastCheckpoint
from vl_peft.module import VLModule, warmup_then_linear
from vl_peft.tuning import Adapter
from vl_peft.tuning.base import trainable

Moment = tuple[float, float]
WARM_UP, WORKERS = 5, 2
KINDS = ("bare", "bare, exact", "trainer, plain", "trainer, exact", "engine")
PAIRS = [("bare, exact", "bare"), ("trainer, exact", "trainer, plain"), ("engine", "trainer, exact")]
PAIRS += [("engine", "trainer, plain"), ("trainer, plain", "bare"), ("engine", "bare")]


class Data(MultiTask):
    """The four benchmarks, read by a plain DataLoader where that is asked for."""

    plain = False

    def train_dataloader(self) -> Any:
        """The same batches either way."""
        if not self.plain:
            return super().train_dataloader()
        draws = list(self.schedule().epoch(0))
        dataset = TaskDataset(self.benchmarks, "train")
        return DataLoader(dataset, sampler=draws, batch_size=None, num_workers=WORKERS)


class Clock(Callback):
    """Notes the end of every step; the last of the callbacks."""

    def __init__(self) -> None:
        self.ends: list[Moment] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Lightning does little after it."""
        self.ends.append(now())


def now() -> Moment:
    """Seconds on the wall, and of this process' CPU time."""
    return time.perf_counter(), time.process_time()


def bare(module: VLModule, batches: Iterable[Any], steps: int) -> list[Moment]:
    """The loop one would write by hand; returns when each step ended."""
    # Groups, rates and clipping as the module's own; nothing of Lightning.
    module._trainer = None
    groups = module._parameter_groups()
    optimizer = torch.optim.AdamW(groups, betas=module.betas, eps=module.eps, fused=True)
    schedule = LambdaLR(optimizer, lambda step: warmup_then_linear(step, steps // 10, steps))
    parameters, ends = list(trainable(module).values()), []
    module.train()
    for batch in batches:
        optimizer.zero_grad()
        module.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        ends.append(now())
    return ends


def under_trainer(
    module: VLModule, data: Data, folder: str, callbacks: list[Callback], profiler: SimpleProfiler | None
) -> list[Moment]:
    """Lightning's loop, without progress bar and loggers."""
    clock = Clock()
    options: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        gradient_clip_val=5.0,
        limit_val_batches=0,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(callback, LastCheckpoint) for callback in callbacks),
        callbacks=[*callbacks, clock],
        profiler=profiler,
        **options,
    ).fit(module, datamodule=data)
    return clock.ends


def run(kind: str, root: Path, steps: int, profiler: SimpleProfiler | None = None) -> list[Moment]:
    """Seconds, and CPU seconds, of each step after the first few; a profiler for the engine."""
    torch.manual_seed(0)
    video: dict[str, Any] = {"tvqa": TVQA, "how2qa": How2QA, "tvc": TVC, "yc2c": YC2C}
    benchmarks = {name: make(batch_size=32) for name, make in video.items()}
    data = Data(benchmarks, root=str(root), steps_per_epoch=steps + WARM_UP, num_workers=WORKERS)
    data.plain = kind in ("bare", "trainer, plain")
    module = VLModule(VLBart("demo", feature_dim=data.feature_dim), Adapter(), data.tasks)
    with tempfile.TemporaryDirectory() as folder:
        if kind.startswith("bare"):
            ends = bare(module, data.train_dataloader(), steps + WARM_UP)
        else:
            callbacks: list[Callback] = [Guards(), LastCheckpoint()] if kind == "engine" else []
            ends = under_trainer(module, data, folder, callbacks, profiler)
    pairs = zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)
    return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


def figures(runs: list[list[Moment]]) -> dict[str, float]:
    """Seconds per step of several runs of one kind, by how they are summed up."""
    wall, cpu = ([[moment[i] for moment in run] for run in runs] for i in (0, 1))
    return {
        "median": median(map(mean, wall)),
        "least": mean(map(min, zip(*wall, strict=True))),
        "CPU median": median(map(mean, cpu)),
        "CPU least": mean(map(min, zip(*cpu, strict=True))),
    }


def hooks_of(profiler: SimpleProfiler) -> dict[str, float]:
    """Seconds per step that a run has spent in the hooks of each of the engine's callbacks."""
    times = profiler.recorded_durations
    steps = len(times["run_training_batch"])
    return {
        callback.__name__: sum(sum(times[name]) for name in times if name.startswith(f"[Callback]{callback.__name__}."))
        / steps
        for callback in (Guards, LastCheckpoint)
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/demo"))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    runs: dict[str, list[list[Moment]]] = {kind: [] for kind in KINDS}
    for round_ in range(options.rounds):
        for kind in random.Random(round_).sample(KINDS, len(KINDS)):  # none is always the first
            runs[kind].append(run(kind, options.root, options.steps))
            gc.collect()  # the loader's workers, before the next run forks
    found = {kind: figures(kind_runs) for kind, kind_runs in runs.items()}
    print(f"{options.steps} steps, {options.rounds} rounds, {torch.get_num_threads()} thread(s), {WORKERS} workers")
    print(f"{'ms per step':34}" + "".join(f"{name:>14}" for name in found["bare"]))
    for kind, values in found.items():
        print(f"{kind:34}" + "".join(f"{1000 * value:14.1f}" for value in values.values()))
    for kind, baseline in PAIRS:
        ratios = (found[kind][name] / found[baseline][name] for name in found[kind])
        print(f"{kind:14} / {baseline:17}" + "".join(f"{'x':>9}{ratio:5.3f}" for ratio in ratios))
    profiler = SimpleProfiler()
    run("engine", options.root, options.steps, profiler)
    hooks = (f"{name} {1000 * seconds:.2f} ms" for name, seconds in hooks_of(profiler).items())
    print(f"in hooks, per step of a run of {options.steps + WARM_UP}: {', '.join(hooks)}")


if __name__ == "__main__":
    main()
