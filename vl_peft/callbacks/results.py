"""After evaluation: predictions and scores as files, and the table of results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table

from vl_peft.metrics import SentenceMetric
from vl_peft.module import VLModule
from vl_peft.parameters import count_parts
from vl_peft.submission import RunPredictions

PACKAGES = ("vl_peft", "torch", "lightning", "transformers", "torchmetrics", "numpy")


class Results(Callback):
    """Writes ``results.json`` and ``predictions/<split>_<task>.jsonl`` into the run's folder and prints a table.

    The table compares each task's headline metric with that of always giving the commonest training target.

    Args:
        baseline: compute that comparison.
    """

    def __init__(self, baseline: bool = True) -> None:
        self.baseline = baseline
        self.before: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self._started, self._seconds_before = time.time(), 0.0
        self._train_seconds: float | None = None
        self._validated_at: int | None = None
        self._baselines: dict[str, dict[str, float]] = {}

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on still has to report at its end."""
        seconds = self._seconds_before + time.time() - self._started
        scores = {"before": self.before, "history": self.history, "validated_at": self._validated_at}
        return scores | {"seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.before, self.history = state_dict["before"], state_dict["history"]
        self._validated_at, self._seconds_before = state_dict["validated_at"], state_dict["seconds"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch's scores, and those from before training; outside ``fit`` this is the end."""
        metrics = cast(VLModule, pl_module).metrics
        scores = {task: m.compute()[m.headline] for task, m in metrics.items() if m.compute()}
        if trainer.sanity_checking:
            self.before = scores
        else:
            again = self._validated_at == trainer.global_step
            self.history[-1 if again else len(self.history) :] = [scores]
            self._validated_at = trainer.global_step
        if trainer.state.fn == "validate":
            self._finish(trainer, cast(VLModule, pl_module), "val")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The scores of a run are those of its end: validate it where ``max_steps`` or an interval left that out."""
        if trainer.enable_validation and self._validated_at != trainer.global_step:
            trainer.validating, loop = True, trainer.fit_loop.epoch_loop
            loop._batches_that_stepped -= 1  # Lightning has counted the last step; scores are logged as within it
            loop.val_loop.run()
            loop._batches_that_stepped += 1
            trainer.training = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the scores of the last validation."""
        self._train_seconds = self._seconds_before + time.time() - self._started
        self._finish(trainer, cast(VLModule, pl_module), "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the test scores."""
        self._finish(trainer, cast(VLModule, pl_module), "test")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the predictions."""
        self._finish(trainer, cast(VLModule, pl_module), "test")

    def _finish(self, trainer: Trainer, module: VLModule, split: str) -> None:
        fast_dev_run: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks the other processes, so before they leave
        if not trainer.is_global_zero or fast_dev_run or not module.metrics:
            return
        files = [_write_predictions(folder, split, task, metric) for task, metric in module.metrics.items()]
        baselines = self._constant_scores(trainer, module.metrics, split) if self.baseline else {}
        results = self._results(trainer, module, split, baselines)
        files.insert(0, _write(folder / "results.json", json.dumps(results, indent=2) + "\n"))
        console = Console()
        console.print(self._table(module.metrics, results, split))
        for task, notes in results["notes"].items():
            for note in notes:
                console.print(f"{task}: {note}", soft_wrap=True, highlight=False)
        for file in files:
            console.print(f"wrote {file}", soft_wrap=True, highlight=False)
        checkpoint = folder / "checkpoints" / "last.ckpt"
        if checkpoint.exists() and self._train_seconds is not None:
            console.print(f"wrote {os.path.relpath(checkpoint)}", soft_wrap=True, highlight=False)
        console.print(f"TensorBoard: tensorboard --logdir {folder.parent.parent}", soft_wrap=True, highlight=False)

    def _constant_scores(
        self, trainer: Trainer, metrics: Mapping[str, SentenceMetric], split: str
    ) -> dict[str, dict[str, float]]:
        """What the commonest training target would score as the answer to everything."""
        found = {}
        for task, metric in metrics.items():
            if metric.compute():
                benchmark = trainer.datamodule.benchmarks[task]  # type: ignore[attr-defined]
                answer, constant = benchmark.commonest_target(), benchmark.metric()
                ids = list(metric.records)
                records = [metric.records[key] for key in ids]
                constant.update(ids, [answer] * len(ids), [r.references for r in records], [r.meta for r in records])
                found[task] = {"answer": answer, "scores": constant.score(constant.records)}
        return found

    def _results(self, trainer: Trainer, module: VLModule, split: str, baselines: Mapping[str, Any]) -> dict[str, Any]:
        parts = count_parts(module.backbone, module.vision)
        return {
            "split": split,
            "scores": {task: m.compute() for task, m in module.metrics.items()},
            "headline": {task: m.headline for task, m in module.metrics.items()},
            "baseline": baselines,
            "notes": {task: list(m.notes) for task, m in module.metrics.items() if m.notes},
            "counts": {task: len(m.records) for task, m in module.metrics.items()},
            "before_training": self.before,
            "history": self.history,
            "parameters": {p.name: {"total": p.total, "trainable": p.trainable} for p in parts},
            "trainable_percent": 100 * parts[-1].trainable / parts[-1].total,
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "train_seconds": self._train_seconds,
            "ablate_visual": trainer.datamodule.loading.ablate_visual,  # type: ignore[attr-defined]
            "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "git_commit": _git_commit(),
        }

    def _table(self, metrics: Mapping[str, SentenceMetric], results: Mapping[str, Any], split: str) -> Table:
        seconds = results["train_seconds"]
        title = f"{split}: {results['trainable_percent']:.2f} % of the parameters trained"
        table = Table("task", "metric", title=title + (f", {seconds:.0f} s" if seconds is not None else ""))
        for heading in ("examples", "constant answer", *(["before training"] if self.before else []), "score"):
            table.add_column(heading, justify="right")
        for task, metric in metrics.items():
            constant, scores = results["baseline"].get(task), results["scores"][task]
            table.add_row(
                task,
                metric.headline,
                f"{len(metric.records):,}",
                f"{constant['scores'][metric.headline]:.2f}" if constant else "-",
                *([f"{self.before[task]:.2f}"] if self.before else []),
                f"[bold]{scores[metric.headline]:.2f}[/]" if scores else "no labels",
            )
        return table


def _write_predictions(folder: Path, split: str, task: str, metric: SentenceMetric) -> Path:
    text = RunPredictions().dump(dict(sorted(metric.records.items())))
    return _write(folder / "predictions" / f"{split}_{task}.jsonl", text)


def _write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(file.suffix + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
    return file


def _git_commit() -> str | None:
    """The commit of this package, if it is a git checkout."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
