"""Train with torchrun on two hosts, take one away in different ways, and compare with an undisturbed run.

    sudo python benchmarks/torchrun_two_hosts.py [--root data/demo]

The hosts are two network namespaces that only a cable (veth) connects, one process on each. Ended are: the training
process of one host with SIGKILL, which the two torchruns mend by themselves; torchrun on one host with SIGTERM, and a
whole host with SIGKILL, where torchrun is then started anew, as Kubernetes does. The end must be the same to the last
bit: trained weights, optimizer state, schedule, logged losses, scores and predictions. Exits with 1 otherwise; says why
and exits with 0 where namespaces are not permitted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from outcome import configuration, differences, outcome

REPOSITORY = Path(__file__).parents[1]
HOSTS = "vlpeft0", "vlpeft1"
ADDRESSES = "10.77.0.1", "10.77.0.2"


def call(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def missing() -> str:
    """Why namespaces cannot be had; empty if they can."""
    if not shutil.which("ip"):
        return "there is no ip command (Debian: iproute2)"
    made = subprocess.run(["ip", "netns", "add", HOSTS[0]], capture_output=True, text=True)
    if not made.returncode:
        call("ip", "netns", "delete", HOSTS[0])
    return made.stderr.strip()


@contextmanager
def network() -> Iterator[None]:
    """Two namespaces with a cable between them; its ends are called as the namespaces."""
    try:
        for host in HOSTS:
            call("ip", "netns", "add", host)
        call("ip", "link", "add", HOSTS[0], "netns", HOSTS[0], "type", "veth", "peer", HOSTS[1], "netns", HOSTS[1])
        for host, address in zip(HOSTS, ADDRESSES, strict=True):
            call("ip", "-n", host, "address", "add", f"{address}/24", "dev", host)
            for device in (host, "lo"):
                call("ip", "-n", host, "link", "set", device, "up")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "delete", host], check=False, capture_output=True)


def processes(host: int) -> list[int]:
    """All that runs on a host."""
    return [int(pid) for pid in call("ip", "netns", "pids", HOSTS[host]).split()]


@dataclass
class Training:
    """A run on both hosts."""

    folder: Path
    arguments: list[str]
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, host: int) -> None:
        """Run torchrun on a host; the first host is where the hosts meet."""
        torchrun = {"NNODES": 2, "NPROC_PER_NODE": 1, "MAX_RESTARTS": 3, "RDZV_BACKEND": "c10d"}
        torchrun |= {"RDZV_ENDPOINT": f"{ADDRESSES[0]}:29400"}
        # A host knows itself by its name, which both have from the machine: hence these two.
        torchrun |= {"RDZV_CONF": f"is_host={int(not host)}", "LOCAL_ADDR": ADDRESSES[host]}
        environment = {f"PET_{option}": str(value) for option, value in torchrun.items()}  # as Kubernetes operators do
        environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": HOSTS[host]}
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # with it a new torchrun waits in vain: docs/cluster.md
        program = [str(Path(sys.executable).parent / "torchrun"), "-m", "vl_peft.cli", "fit"]
        with (self.folder / f"host{host}.txt").open("ab") as log:
            command = ["ip", "netns", "exec", HOSTS[host], *program, *self.arguments]
            agent = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
        self.agents[host:] = [agent, *self.agents[host + 1 :]]

    def workers(self, host: int) -> list[int]:
        """The training processes of a host: the children of its torchrun."""
        return [pid for pid in processes(host) if pid != self.agents[host].pid]

    def saved(self) -> bool:
        """Whether there is a checkpoint."""
        return any(self.folder.glob("runs/experiment/version_*/checkpoints/last.ckpt"))

    def status(self) -> list[int]:
        """Wait until both torchruns have ended; their exit statuses."""
        return [agent.wait(600) for agent in self.agents]

    def said(self, text: str) -> int:
        """How often the hosts have said so, together."""
        return sum((self.folder / f"host{i}.txt").read_text(errors="replace").count(text) for i in range(2))


def lose_process(run: Training) -> str:
    """SIGKILL to the second host's training process; torchrun starts both processes again."""
    for pid in run.workers(1):
        os.kill(pid, signal.SIGKILL)
    return "its torchrun goes on"


def lose_torchrun(run: Training) -> str:
    """SIGTERM to the second host's torchrun, which passes it on; then a new one."""
    run.agents[1].send_signal(signal.SIGTERM)
    status = run.agents[1].wait(120)
    run.start(1)
    return f"torchrun ended with status {status}"


def lose_host(run: Training) -> str:
    """SIGKILL to all processes of the second host; then a new torchrun."""
    for pid in processes(1):
        os.kill(pid, signal.SIGKILL)
    run.agents[1].wait()
    run.start(1)
    return "all processes of the host are gone"


FAULTS = {
    "undisturbed": None,
    "kill -9 of a training process": lose_process,
    "kill of a torchrun": lose_torchrun,
    "kill -9 of a host": lose_host,
}


def compare(root: Path, folder: Path) -> bool:
    """All runs; whether they end alike."""
    expected, alike = None, True
    for name, fault in FAULTS.items():
        place = folder / name.replace(" ", "_")
        place.mkdir()
        arguments = [*configuration(place), f"--data.root={root.resolve()}", "--data.steps_per_epoch=100"]
        arguments += ["--trainer.max_epochs=2", "--trainer.num_nodes=2", "--trainer.devices=1", "--ckpt_path=auto"]
        arguments += [f"--trainer.logger.init_args.save_dir={place / 'runs'}"]
        run = Training(place, arguments)
        for host in range(2):
            run.start(host)
        seen = ""
        if fault:
            while not run.saved():
                time.sleep(0.1)
            time.sleep(2)
            seen = f"{fault(run)}; "
        status = run.status()
        resumed = run.said("Going on from")
        if any(status):
            return print(f"{name}: {seen}FAILED {status}\n{(place / 'host1.txt').read_text()[-3000:]}") or False
        found = outcome(place)
        expected = expected or found
        unequal = differences(expected, found)
        alike &= not unequal and bool(resumed) == bool(fault)
        print(f"{name}: {seen}resumed {resumed} times: {unequal[:3] if unequal else 'equal'}", flush=True)
    return alike


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/demo"))
    given = parser.parse_args()
    if reason := missing():
        sys.exit(print(f"skipped: {reason}"))
    with tempfile.TemporaryDirectory() as temporary, network():
        sys.exit(not compare(given.root, Path(temporary)))
