"""Two processes under DDP against one, on as many cores as processes: examples per second at bart-base's size.

    python benchmarks/ddp.py [--steps 8] [--batch-size 8] [--rounds 2] [--full]

VL-BART with random weights and a single adapter (``--full``: everything trains) on random image-text batches; the batch
per process is the same, every process has one thread. Runs alternate. For the reason behind the ratio, two processes
without any communication run side by side too: what they lose is the machine's (memory bandwidth, other programs), what
DDP loses against them is its communication.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from statistics import median
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from random_batches import BASE, RandomTasks, random_bart

from vl_peft.module import VLModule
from vl_peft.tuning import Adapter, FullFineTuning

WARM_UP = 2


class Clock(Callback):
    """Notes the end of every step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """The optimizer has stepped."""
        self.ends.append(time.perf_counter())


def train(options: argparse.Namespace) -> None:
    """One process of a run; prints the median seconds of a step."""
    torch.set_num_threads(1)
    world, clock = int(os.environ.get("WORLD_SIZE", "1")), Clock()
    torch.manual_seed(0)
    data = RandomTasks(BASE["features"], options.batch_size, options.steps + WARM_UP, num_workers=0)
    module = VLModule(random_bart(BASE), FullFineTuning() if options.full else Adapter(), data.tasks)
    Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        max_epochs=1,
        gradient_clip_val=5.0,
        limit_val_batches=0,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, datamodule=data)
    steps = [after - before for before, after in zip(clock.ends[WARM_UP - 1 :], clock.ends[WARM_UP:], strict=False)]
    print(json.dumps(median(steps)))


def run(world: int, together: bool) -> float:
    """Seconds of a step of ``world`` processes, each on its own or together under DDP; the slower one's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ddp = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
    command = [sys.executable, *sys.argv, "--process"]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | (ddp | {"LOCAL_RANK": str(rank)} if together else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(world)
    ]
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a process failed; run it with --process to see why")
    return max(float(text.splitlines()[-1]) for text in said)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        train(options)
        return
    kinds = {"one process": (1, False), "two, not connected": (2, False), "two under DDP": (2, True)}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(options.rounds):
        for name, kind in kinds.items():
            times[name].append(run(*kind))
    least = {name: min(seconds) for name, seconds in times.items()}
    rate = {name: kinds[name][0] * options.batch_size / seconds for name, seconds in least.items()}
    print(f"{os.cpu_count()} cores, one thread per process, batch of {options.batch_size} per process, "
          f"{options.rounds} rounds of {options.steps} steps, the best of each")  # fmt: skip
    for name in kinds:
        ratio = rate[name] / rate["one process"]
        print(f"{name:20}{least[name]:8.3f} s per step{rate[name]:8.2f} examples/s   x {ratio:.2f}")
    share = 1 - least["two, not connected"] / least["two under DDP"]
    print(f"communication and waiting: {share:.1%} of a step under DDP")


if __name__ == "__main__":
    main()
