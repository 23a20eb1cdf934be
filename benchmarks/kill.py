"""Kill training runs with SIGKILL at random moments, go on until they are done, and compare with undisturbed runs.

    python benchmarks/kill.py --root data/demo [--runs 60] [--seed 0]

For 0 and 2 loader workers and 1 and 2 processes: one undisturbed run, then runs killed up to three times. The end must
be the same to the last bit: trained weights, optimizer state, schedule, logged losses, scores and predictions.
Prints where the kills fell, and exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vl_peft import checkpoint_io
from vl_peft.cli import main

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
FORK = multiprocessing.get_context("fork")  # libraries are imported once, not in every run


def configuration(folder: Path) -> list[str]:
    """Two tasks with adapters of their own, dropout and temperature; two epochs with validation."""
    file = folder / "kill.json"
    benchmarks = {
        "tvqa": {"class_path": "datamodules.TVQA", "init_args": {"batch_size": 4, "eval_batch_size": 32}},
        "tvc": {"class_path": "datamodules.TVC", "init_args": {"batch_size": 4, "eval_batch_size": 32}},
    }
    data = {"class_path": "datamodules.MultiTask", "init_args": {"benchmarks": benchmarks, "temperature": 2.0}}
    last = {"class_path": "vl_peft.callbacks.LastCheckpoint", "init_args": {"every_n_steps": 3}}
    callbacks = [{"class_path": "vl_peft.callbacks.Results"}, last, {"class_path": "kill.Trace"}]
    trainer = {"callbacks": callbacks, "enable_progress_bar": False, "log_every_n_steps": 1, "limit_val_batches": 1}
    file.write_text(json.dumps({"data": data, "trainer": trainer}))
    configs = [EXPERIMENTS / f"{name}.yaml" for name in ("base", "video/base", "video/multiple_adapters", "demo/video")]
    return ["fit", *(part for config in (*configs, file) for part in ("--config", str(config)))]


class Trace(Callback):
    """Writes what a process does at the moment to the file that ``KILL_TRACE`` names."""

    def setup(self, *_: Any, **__: Any) -> None:
        """Follow the writing of checkpoints too."""
        write = checkpoint_io.SafeCheckpointIO.save_checkpoint

        def traced(*args: Any, **kwargs: Any) -> None:
            note("writing a checkpoint")
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [FORK.Process(target=child, args=(arguments, folder, rank, world, port)) for rank in range(world)]
    for process in processes:
        process.start()
    return list(processes)


def kill(processes: list[BaseProcess], folder: Path) -> str:
    """End all processes and their workers at once; returns what the first one was doing."""
    trace = folder / "trace0"
    what = trace.read_text() if trace.exists() else ""
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
    for process in processes:
        process.join()
    return what or "starting"


def finish(processes: list[BaseProcess], folder: Path) -> None:
    """Wait for a run to end well."""
    for process in processes:
        process.join(600)
    if any(process.exitcode for process in processes):
        kill(processes, folder)
        sys.exit(f"a run failed:\n{(folder / 'log0.txt').read_text()[-3000:]}")


def outcome(folder: Path) -> dict[str, Any]:
    """All that has to be equal."""
    (run,) = (file.parent for file in folder.glob("runs/experiment/version_*/results.json"))
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    losses = {
        f"{tag} {event.step}": event.value  # of a step that was done twice the last counts
        for tag in events.Tags()["scalars"]
        if tag.startswith(("train/loss", "train/grad_norm", "val/"))
        for event in events.Scalars(tag)
    }
    results = json.loads((run / "results.json").read_text())
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    kept = {name: checkpoint[name] for name in names}
    kept |= {"losses": losses, "scores": results["scores"], "history": results["history"]}
    return kept | {file.name: file.read_text() for file in run.glob("predictions/val_*.jsonl")}


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two outcomes differ."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{path}: {sorted(map(str, one.keys() ^ other.keys()))[:3]}"]
        return [place for key in one for place in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        return [p for i, pair in enumerate(zip(one, other, strict=True)) for p in differences(*pair, f"{path}/{i}")]
    return [] if one == other else [path]


def benchmark(root: Path, runs: int, seed: int, folder: Path) -> int:
    """All runs; returns how many ended otherwise than the undisturbed one."""
    draw, fell, wrong, done = random.Random(seed), Counter[str](), 0, 0
    kinds = [(workers, world) for workers in (0, 2) for world in (1, 2)]
    base = [*configuration(folder), "--data.root", str(root.resolve()), "--data.steps_per_epoch=10"]
    base += ["--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--ckpt_path=auto"]
    for i, (workers, world) in enumerate(kinds):
        strategy = "ddp_find_unused_parameters_true" if world > 1 else "auto"
        arguments = [*base, f"--data.num_workers={workers}", f"--trainer.devices={world}"]
        arguments.append(f"--trainer.strategy={strategy}")
        whole = folder / f"whole{i}"
        begun = time.monotonic()
        finish(start(arguments, whole, world), whole)
        seconds = time.monotonic() - begun
        expected = outcome(whole)
        for run in range(runs // len(kinds)):
            place, here = folder / f"killed{i}_{run}", []
            for _ in range(draw.randint(1, 3)):
                processes = start(arguments, place, world)
                deadline = time.monotonic() + draw.uniform(0.1, seconds)
                while time.monotonic() < deadline and any(p.is_alive() for p in processes):
                    time.sleep(0.005)
                if all(p.is_alive() for p in processes):
                    here.append(kill(processes, place))
                else:
                    finish(processes, place)
            finish(start(arguments, place, world), place)
            unequal = differences(expected, outcome(place))
            fell.update(here)
            done, wrong = done + 1, wrong + bool(unequal)
            print(f"{workers} workers, {world} processes: killed {', '.join(here) or 'never'}: "
                  f"{'equal' if not unequal else f'DIFFERS in {len(unequal)}: {unequal[:3]}'}", flush=True)  # fmt: skip
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
