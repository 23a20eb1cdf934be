"""METEOR and SPICE: Java programs, run from the package ``pycocoevalcap``, with a time limit.

What is needed is often not there, so every failure is a :class:`JavaError` with one sentence for the results.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Other processes of a distributed evaluation wait meanwhile; they give up after half an hour.
LIMIT = 600.0
_PIPES: dict[str, Any] = {
    "stdin": subprocess.PIPE,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.DEVNULL,
    "encoding": "utf-8",
}


class JavaError(Exception):
    """A Java program could not be run; the message says why."""


def _folder(program: str) -> Path:
    """Where ``pycocoevalcap`` has a program.

    Raises:
        JavaError: there is no Java, or the package is not installed.
    """
    if shutil.which("java") is None:
        raise JavaError(f"{program} was left out: there is no java command; install a Java runtime (8 or later)")
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise JavaError(f"{program} was left out: pip install pycocoevalcap (extra: caption)")
    return Path(spec.submodule_search_locations[0]) / program.lower()


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]], limit: float = LIMIT) -> float:
    """METEOR 1.5 of the whole set in [0, 1] (Denkowski and Lavie 2014); 5 seconds to start, 2 GB of memory.

    Args:
        predictions: a tokenized caption per item.
        references: tokenized captions per item.
        limit: seconds after which the program is stopped.

    Raises:
        JavaError: it is not there, fails, or takes longer.
    """
    command = ["java", "-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    start = time.monotonic()
    try:
        with subprocess.Popen(command, cwd=_folder("METEOR"), **_PIPES) as process:
            timer = threading.Timer(limit, process.kill)
            timer.start()
            try:
                return _converse(process, predictions, references)
            finally:
                timer.cancel()
                process.kill()
    except (OSError, ValueError) as error:  # a dead program gives a broken pipe, or no number
        why = f"took more than {limit:g} s" if time.monotonic() - start > limit else f"failed ({error})"
        raise JavaError(f"METEOR was left out: its Java program {why}") from error


def _converse(process: subprocess.Popen[str], predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Ask METEOR for the statistics of each item, then for the score of all of them."""
    assert process.stdin is not None and process.stdout is not None
    statistics = []
    for prediction, texts in zip(predictions, references, strict=True):
        words = prediction.replace("|||", "").replace("  ", " ")  # as the official wrapper does
        print(" ||| ".join(("SCORE", *texts, words)), file=process.stdin, flush=True)
        statistics.append(process.stdout.readline().strip())
    print(" ||| ".join(("EVAL", *statistics)), file=process.stdin, flush=True)
    return [float(process.stdout.readline()) for _ in range(len(statistics) + 1)][-1]


def spice(predictions: Sequence[str], references: Sequence[Sequence[str]], limit: float = LIMIT) -> float:
    """SPICE in [0, 1] (Anderson et al. 2016), mean F over items; arguments and errors as :func:`meteor`, 8 GB."""
    folder = _folder("SPICE")
    if not (folder / "lib/stanford-corenlp-3.6.0-models.jar").exists():
        raise JavaError("SPICE was left out: its models are missing; python -m pycocoevalcap.spice.get_stanford_models")
    items = [
        {"image_id": i, "test": prediction, "refs": list(texts)}
        for i, (prediction, texts) in enumerate(zip(predictions, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as temporary:
        given, out = Path(temporary) / "in.json", Path(temporary) / "out.json"
        given.write_text(json.dumps(items), encoding="utf-8")
        command = ["java", "-jar", "-Xmx8G", "spice-1.0.jar", str(given), "-out", str(out), "-silent"]
        try:
            subprocess.run(command, cwd=folder, capture_output=True, timeout=limit, check=True)
            scores = [item["scores"]["All"]["f"] for item in json.loads(out.read_text(encoding="utf-8"))]
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            raise JavaError(f"SPICE was left out: its Java program failed ({type(error).__name__})") from error
    return float(sum(scores) / len(scores))
