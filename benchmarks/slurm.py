"""Train over two nodes of a SLURM cluster, preempt the job in different ways, and compare with an undisturbed one.

    python benchmarks/slurm.py [--root data/demo] [--minutes 20]

Submits ``experiments/slurm/train.sbatch`` with two nodes of one CPU process each. The end must be the same to the last
bit: trained weights, optimizer state, schedule, logged losses, scores and predictions; a job that is cancelled must not
come back. Exits with 1 otherwise; says why and exits with 0 where there is no such cluster.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outcome import configuration, differences, outcome

REPOSITORY = Path(__file__).parents[1]
OVER = "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"


def call(*command: str, **options: Any) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout.strip()


def missing() -> str:
    """Why there is no cluster to try; empty if there is."""
    if not shutil.which("sbatch"):
        return "SLURM is not installed (Debian: slurm-wlm and munge)"
    try:
        nodes = call("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N", timeout=20).split()
    except subprocess.SubprocessError as error:
        return f"sinfo does not answer: {error}"
    return "" if len(nodes) > 1 else f"{len(nodes)} nodes are idle, two are needed"


@dataclass(frozen=True)
class Job:
    """A submitted training job."""

    folder: Path
    number: str

    @property
    def run(self) -> str:
        """What train.sbatch calls it."""
        return f"vl-peft-{self.number}"

    @property
    def said(self) -> str:
        """Its output, of all its starts."""
        file = self.folder / f"{self.run}.out"
        return file.read_text() if file.exists() else ""

    def shown(self, field: str) -> str:
        """A field of ``scontrol show job``."""
        found = re.search(rf"\b{field}=(\S+)", call("scontrol", "show", "job", "--oneliner", self.number))
        return found[1] if found else ""

    def saved(self) -> bool:
        """Whether it has written a checkpoint."""
        return any(self.folder.glob(f"runs/{self.run}/version_*/checkpoints/last.ckpt"))

    def over(self) -> bool:
        """Whether it has ended and does not come back."""
        return self.shown("JobState") in OVER


def wait(condition: Callable[[], bool], minutes: float) -> None:
    """Until it holds, or so long."""
    deadline = time.monotonic() + 60 * minutes
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)


@dataclass(frozen=True)
class Way:
    """How a job is disturbed, in which state it has to end, and how often it may be queued again.

    ``{}`` in a command is the job's number; ``then`` is called when the job is in the queue again.
    """

    name: str
    command: str = ""
    then: str = ""
    state: str = "COMPLETED"
    restarts: int = 1


WAYS = (
    Way("undisturbed", restarts=0),
    Way("scontrol requeue", "scontrol requeue {}"),
    Way("scancel --signal=USR1", "scancel --signal=USR1 {}"),
    Way("time limit", "scontrol update JobId={} TimeLimit=1", "scontrol update JobId={} TimeLimit=10"),
    Way("scancel", "scancel {}", state="CANCELLED", restarts=0),
)


def submit(folder: Path, root: Path) -> Job:
    """Two nodes, one process on each; the nodes of a cluster on one host are all at this address."""
    arguments = [*configuration(folder), f"--data.root={root.resolve()}", "--data.steps_per_epoch=200"]
    arguments += ["--trainer.max_epochs=2", f"--trainer.logger.init_args.save_dir={folder / 'runs'}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    if len(set(call("sinfo", "--noheader", "--Node", "--format=%o").split())) == 1:
        environment["MASTER_ADDR"] = call("sinfo", "--noheader", "--Node", "--format=%o").split()[0]
    script = str(REPOSITORY / "experiments/slurm/train.sbatch")
    output = f"--output={folder}/%x-%j.out"
    number = call("sbatch", "--parsable", "--nodes=2", "--time=10", output, script, *arguments, env=environment)
    return Job(folder, number)


@dataclass(frozen=True)
class End:
    """What has become of a job; SLURM forgets it after some minutes."""

    state: str
    restarts: int
    resumed: int
    saved: list[str]
    outcome: dict[str, Any]


def ride(root: Path, folder: Path, way: Way, minutes: float) -> End:
    """A job from its submission to its end, preempted a while after its first checkpoint."""
    job = submit(folder, root)
    if way.command:
        wait(job.saved, minutes)
        time.sleep(2)
        call(*way.command.format(job.number).split())
    if way.then:
        wait(lambda: job.shown("Restarts") == "1", minutes)
        call(*way.then.format(job.number).split())
    wait(job.over, minutes)
    time.sleep(10)  # a job that comes back by mistake does so at once
    state, said = job.shown("JobState"), job.said
    signals = [line.split(":")[0] for line in said.splitlines() if "the checkpoint is written" in line]
    ended = outcome(folder, job.run) if state == "COMPLETED" else {}
    return End(state, int(job.shown("Restarts")), said.count("Going on from"), signals, ended)


def faults(way: Way, end: End, expected: End) -> list[str]:
    """What is not as it should be; prints how it went."""
    found = [] if end.state == way.state else [f"{end.state}, not {way.state}"]
    if end.restarts != way.restarts or end.resumed != end.restarts:
        found.append(f"{end.restarts} restarts, {end.resumed} times resumed")
    found += differences(expected.outcome, end.outcome) if end.outcome else []
    verdict = found[:3] or ("equal" if end.outcome else "as it should be")
    print(f"{way.name}: {end.state}, saved on {end.saved or 'no signal'}, queued again {end.restarts} times: {verdict}")
    return found


def compare(root: Path, folder: Path, minutes: float) -> bool:
    """All jobs; they wait for each other in the queue, and for SLURM, which starts one again after two minutes."""
    with ThreadPoolExecutor() as pool:
        ends = list(pool.map(lambda way: ride(root, folder, way, minutes), WAYS))
    bad = [faults(way, end, ends[0]) for way, end in zip(WAYS, ends, strict=True)]
    strays = [*Path.cwd().glob("hpc_ckpt_*"), *folder.rglob("hpc_ckpt_*")]
    print(f"checkpoints that Lightning wrote on signals of its own accord: {len(strays)}")
    return any(bad) or bool(strays)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/demo"))
    parser.add_argument("--minutes", type=float, default=20, help="within which all jobs have to end (20)")
    given = parser.parse_args()
    if reason := missing():
        sys.exit(print(f"skipped: {reason}"))
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(compare(given.root, Path(temporary), given.minutes))
