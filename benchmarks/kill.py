"""Kill training runs with SIGKILL at random moments, go on until they are done, and compare with undisturbed runs.

    python benchmarks/kill.py --root data/demo [--runs 60] [--seed 0]

For 0 and 2 loader workers and 1 and 2 processes: one undisturbed run, then runs killed one to three times. The end must
be the same to the last bit: trained weights, optimizer state, schedule, logged losses, scores and predictions.
Prints where the kills fell, and exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from outcome import configuration, differences, outcome

from vl_peft import checkpoint_io
from vl_peft.cli import main

WRITING = "writing a checkpoint"
FORK = multiprocessing.get_context("fork")  # libraries are imported once, not in every run


class Trace(Callback):
    """Writes what a process does at the moment to the file that ``KILL_TRACE`` names."""

    def setup(self, *_: Any, **__: Any) -> None:
        """Follow the writing of checkpoints too."""
        write = checkpoint_io.SafeCheckpointIO.save_checkpoint

        def traced(*args: Any, **kwargs: Any) -> None:
            note(WRITING)
            write(*args, **kwargs)
            note("training")

        checkpoint_io.SafeCheckpointIO.save_checkpoint = traced  # type: ignore[method-assign]

    def on_train_batch_start(self, *_: Any) -> None:
        """Between these two is a step."""
        note("training")

    def on_validation_start(self, *_: Any) -> None:
        """Generating answers and scoring them."""
        note("validation")

    def on_fit_end(self, *_: Any) -> None:
        """Results are written."""
        note("writing results")


def note(what: str) -> None:
    """Say what this process does."""
    Path(os.environ["KILL_TRACE"]).write_text(what)


def child(arguments: list[str], folder: Path, rank: int, world: int, port: int) -> None:
    """One process of a run; both of a pair are started from outside, as torchrun does."""
    os.setsid()
    os.chdir(folder)
    environment = {"KILL_TRACE": str(folder / f"trace{rank}"), "OMP_NUM_THREADS": "1"}
    if world > 1:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        environment |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    os.environ.update(environment)
    torch.set_num_threads(1)
    output = (folder / f"log{rank}.txt").open("a")
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    note("starting")
    os._exit(_status(arguments))


def _status(arguments: list[str]) -> int:
    try:
        status = main(arguments)
    except SystemExit as error:
        status = int(error.code or 0)
    sys.stdout.flush()
    return status


def start(arguments: list[str], folder: Path, world: int) -> list[BaseProcess]:
    """The processes of a run that goes on where it can."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "trace0").unlink(missing_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [FORK.Process(target=child, args=(arguments, folder, rank, world, port)) for rank in range(world)]
    for process in processes:
        process.start()
    return list(processes)


def doing(folder: Path) -> str:
    """What the first process of a run does."""
    trace = folder / "trace0"
    return (trace.read_text() if trace.exists() else "") or "starting"


def kill(processes: list[BaseProcess], folder: Path) -> str:
    """End all processes and their workers at once; returns what the first one was doing."""
    what = doing(folder)
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
    for process in processes:
        process.join()
    return what


def finish(processes: list[BaseProcess], folder: Path) -> None:
    """Wait for a run to end well."""
    for process in processes:
        process.join(600)
    if any(process.exitcode for process in processes):
        kill(processes, folder)
        sys.exit(f"a run failed:\n{(folder / 'log0.txt').read_text()[-3000:]}")


def wait_for_the_moment(processes: list[BaseProcess], folder: Path, draw: random.Random, seconds: float) -> bool:
    """A random moment of a run that takes so long; every third one is within the writing of the next checkpoint.

    False if the run is over before.
    """
    deadline = time.monotonic() + draw.uniform(0, seconds)
    writing = not draw.randrange(3)
    while all(process.is_alive() for process in processes):
        if time.monotonic() > deadline and (not writing or doing(folder) == WRITING):
            time.sleep(draw.uniform(0, 0.01) if writing else 0)
            return True
        time.sleep(0.0005)
    return False


def kill_and_go_on(arguments: list[str], folder: Path, world: int, draw: random.Random, seconds: float) -> list[str]:
    """A run that is killed one to three times; returns what it was doing then."""
    fell: list[str] = []
    times = draw.randint(1, 3)
    while len(fell) < times:
        processes = start(arguments, folder, world)
        if wait_for_the_moment(processes, folder, draw, seconds):
            fell.append(kill(processes, folder))
        else:
            finish(processes, folder)
            if fell:
                return fell
            shutil.rmtree(folder)  # too late: once more
    finish(start(arguments, folder, world), folder)
    return fell


def benchmark(root: Path, runs: int, seed: int, folder: Path) -> int:
    """All runs; returns how many ended otherwise than the undisturbed one."""
    draw, fell, wrong, done = random.Random(seed), Counter[str](), 0, 0
    kinds = [(workers, world) for workers in (0, 2) for world in (1, 2)]
    base = ["fit", *configuration(folder, {"class_path": "kill.Trace"}), f"--data.root={root.resolve()}"]
    base += ["--data.steps_per_epoch=10", "--trainer.max_epochs=2", "--ckpt_path=auto"]
    for i, (workers, world) in enumerate(kinds):
        arguments = [*base, f"--data.num_workers={workers}", f"--trainer.devices={world}"]
        whole = folder / f"whole{i}"
        begun = time.monotonic()
        finish(start(arguments, whole, world), whole)
        seconds = time.monotonic() - begun
        expected = outcome(whole)
        for run in range(runs // len(kinds)):
            place = folder / f"killed{i}_{run}"
            here = kill_and_go_on(arguments, place, world, draw, seconds)
            unequal = differences(expected, outcome(place))
            fell.update(here)
            done, wrong = done + 1, wrong + bool(unequal)
            verdict = f"DIFFERS in {len(unequal)}: {unequal[:3]}" if unequal else "equal"
            print(f"{workers} workers, {world} processes: killed in {', '.join(here)}: {verdict}", flush=True)
            shutil.rmtree(place)
    print(f"{done} runs, {fell.total()} kills: {', '.join(f'{what} {n}' for what, n in fell.most_common())}")
    print(f"{done - wrong} of {done} ended bit-identical to the undisturbed run")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/demo"))
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(bool(benchmark(options.root, options.runs, options.seed, Path(temporary))))
