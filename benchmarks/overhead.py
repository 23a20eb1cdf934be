"""What the engine costs: the step time of a bare loop against that of the Trainer with all that a run has, and between.

    python benchmarks/overhead.py [--root data/demo] [--steps 60] [--rounds 3]

All read the same batches of the four video benchmarks with two workers and train the demo backbone's single adapter:

* bare: a plain DataLoader, AdamW, clipping, schedule; no Lightning
* bare, exact: the same loop over TaskLoader and TaskSampler
* trainer, plain: Lightning's Trainer over the plain DataLoader
* trainer, exact: over TaskLoader and TaskSampler
* engine: that with Guards and LastCheckpoint

Each is measured against a bare loop that runs in the same process, in a thread of its own: the two take turns, one step
each, so that whatever slows the machine slows both. They have one computing thread and one heap, and every measurement
is a new process. A step is from the turn's begin to the step's end, waiting for data included. Printed are the median
step, and the geometric mean of the steps' own ratios with the rounds' least and largest, by time on the wall and by the
process' CPU time; "bare" against "bare" says what the measurement itself does. Last, what Lightning's profiler finds in
the hooks of the engine's callbacks, checkpoint and the look at all frozen parameters included.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context, set_start_method
from pathlib import Path
from statistics import fmean, median
from threading import Semaphore
from typing import Any, TypeVar

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

WARM_UP, WORKERS = 5, 2
KINDS = ("bare", "bare, exact", "trainer, plain", "trainer, exact", "engine")
MEASURED, BASELINE = 0, 1

T = TypeVar("T")
Moment = tuple[float, float]  # seconds on the wall, and of this process' CPU time


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


class Turns:
    """Lets two loops of one process run by turns, one step each, and notes how long a step takes.

    Attributes:
        seconds: that the steps of each of the two took.
    """

    def __init__(self) -> None:
        self.seconds: tuple[list[Moment], list[Moment]] = [], []
        self._turn = Semaphore(1), Semaphore(0)

    def begin(self, who: int) -> None:
        """Wait until the other's step has ended."""
        if not self._turn[who].acquire(timeout=300):
            raise RuntimeError("the other loop has stopped")
        self._began = time.perf_counter(), time.process_time()

    def end(self, who: int) -> None:
        """Note the step, and let the other run."""
        wall, cpu = self._began
        self.seconds[who].append((time.perf_counter() - wall, time.process_time() - cpu))
        self._turn[1 - who].release()


class Clock(Callback):
    """Gives the turn away after every step; the last of the callbacks."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_batch_end(self, *_: Any) -> None:
        """Lightning does little after it."""
        self.turns.end(MEASURED)
        self.turns.begin(MEASURED)


def bare(module: VLModule, data: Data, turns: Turns, who: int) -> None:
    """The loop one would write by hand."""
    # Groups, rates and clipping as the module's own; nothing of Lightning.
    module._trainer = None
    groups = module._parameter_groups()
    optimizer = torch.optim.AdamW(groups, betas=module.betas, eps=module.eps, fused=True)
    parameters = list(trainable(module).values())
    module.train()
    turns.begin(who)
    loader = data.train_dataloader()
    steps = len(loader)
    schedule = LambdaLR(optimizer, lambda step: warmup_then_linear(step, steps // 10, steps))
    for batch in loader:
        optimizer.zero_grad()
        module.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        turns.end(who)
        turns.begin(who)
    turns.end(who)


def under_trainer(module: VLModule, data: Data, folder: str, callbacks: list[Callback], profiler: Any = None) -> None:
    """Lightning's loop, without progress bar and loggers."""
    options: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        gradient_clip_val=5.0,
        limit_val_batches=0,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(callback, LastCheckpoint) for callback in callbacks),
        callbacks=callbacks,
        profiler=profiler,
        **options,
    ).fit(module, datamodule=data)


def make(root: Path, steps: int, plain: bool) -> tuple[VLModule, Data]:
    """The same module and the same batches every time."""
    torch.manual_seed(0)
    video: dict[str, Any] = {"tvqa": TVQA, "how2qa": How2QA, "tvc": TVC, "yc2c": YC2C}
    benchmarks = {name: make(batch_size=32) for name, make in video.items()}
    data = Data(benchmarks, root=str(root), steps_per_epoch=steps + WARM_UP, num_workers=WORKERS)
    data.plain = plain
    return VLModule(VLBart("demo", feature_dim=data.feature_dim), Adapter(), data.tasks), data


def measure(kind: str, root: Path, steps: int) -> list[tuple[Moment, Moment]]:
    """Seconds of each step of a kind and of the bare loop beside it, but for the first few."""
    turns = Turns()
    module, data = make(root, steps, kind in ("bare", "trainer, plain"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as beside:
        baseline = beside.submit(bare, *make(root, steps, plain=True), turns, BASELINE)
        if kind.startswith("bare"):
            bare(module, data, turns, MEASURED)
        else:
            callbacks: list[Callback] = [Guards(), LastCheckpoint()] if kind == "engine" else []
            turns.begin(MEASURED)
            under_trainer(module, data, folder, [*callbacks, Clock(turns)])
            turns.end(MEASURED)
        baseline.result()
    return list(zip(*turns.seconds, strict=False))[WARM_UP : WARM_UP + steps]


def hooks(root: Path, steps: int) -> dict[str, float]:
    """Seconds per step that a run spends in the hooks of each of the engine's callbacks."""
    profiler = SimpleProfiler()
    with tempfile.TemporaryDirectory() as folder:
        under_trainer(*make(root, steps, plain=False), folder, [Guards(), LastCheckpoint()], profiler)
    times = profiler.recorded_durations
    return {
        callback.__name__: sum(sum(times[name]) for name in times if name.startswith(f"[Callback]{callback.__name__}."))
        / len(times["run_training_batch"])
        for callback in (Guards, LastCheckpoint)
    }


def ratio(rounds: list[list[tuple[Moment, Moment]]], clock: int) -> str:
    """Geometric mean of the steps' ratios, and the rounds' least and largest."""
    means = [fmean(math.log(one[clock] / other[clock]) for one, other in steps) for steps in rounds]
    return f"x{math.exp(fmean(means)):.4f} ({math.exp(min(means)):.4f} .. {math.exp(max(means)):.4f})"


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(alone, function, *arguments).result()


def alone(function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns, without a word of Lightning; loaders fork their workers, as in other programs."""
    set_start_method("fork", force=True)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return function(*arguments)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/demo"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    # For the processes to come: a second heap, as a thread has, makes steps 1-3 % slower or faster.
    os.environ |= {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    runs: dict[str, list[list[tuple[Moment, Moment]]]] = {kind: [] for kind in KINDS}
    for round_ in range(options.rounds):
        for kind in random.Random(round_).sample(KINDS, len(KINDS)):
            runs[kind].append(apart(measure, kind, options.root, options.steps))
    spent = apart(hooks, options.root, options.steps)
    print(f"{options.rounds} rounds of {options.steps} steps by turns with a bare loop, {WORKERS} workers each")
    print(f"{'ms per step':16}{'':>8}{'bare':>8}{'ratio':>29}{'of CPU time':>29}")
    for kind, rounds in runs.items():
        one, other = (1000 * median(pair[who][0] for steps in rounds for pair in steps) for who in (0, 1))
        print(f"{kind:16}{one:8.1f}{other:8.1f}{ratio(rounds, 0):>29}{ratio(rounds, 1):>29}")
    found = ", ".join(f"{name} {1000 * seconds:.2f} ms" for name, seconds in spent.items())
    print(f"in hooks, per step of a run of {options.steps + WARM_UP}: {found}")


if __name__ == "__main__":
    main()
