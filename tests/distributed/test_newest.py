"""All processes go on with the same checkpoint, whatever each of them sees of the folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_process_0_decides(tmp_path: Path) -> None:
    for rank, version in ((0, 3), (1, 1)):
        file = tmp_path / f"{rank}/run/version_{version}/checkpoints/last.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "tests/distributed/newest.py"), str(tmp_path)]
    processes = [
        subprocess.Popen(command, env=os.environ | common | {"LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    said = [process.communicate(timeout=120)[0].splitlines()[-1] for process in processes]
    assert said == [f"{tmp_path}/0/run/version_3/checkpoints/last.ckpt 3"] * 2
