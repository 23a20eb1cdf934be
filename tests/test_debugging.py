"""The trainer's own options for short, partial and watched runs, on the toy corpus with the callbacks of base.yaml."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vl_peft.callbacks import LastCheckpoint
from vl_peft.cli import main
from vl_peft.module import VLModule

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
Fit = Callable[..., int]


@pytest.fixture
def fit(demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """``fit(*options)``: the exit status of a run on two benchmarks, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    benchmarks = {
        "tvqa": {"class_path": "datamodules.TVQA", "init_args": {"batch_size": 4, "eval_batch_size": 4}},
        "how2qa": {"class_path": "datamodules.How2QA", "init_args": {"batch_size": 4, "eval_batch_size": 4}},
    }
    init = {"benchmarks": benchmarks, "root": str(demo_root)}
    tuning = {"class_path": "vl_peft.tuning.Adapter", "init_args": {"sharing": "multiple"}}
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "limit_val_batches": 1, "log_every_n_steps": 1}
    config = {"data": {"class_path": "datamodules.MultiTask", "init_args": init}, "trainer": trainer}
    Path("run.yaml").write_text(yaml.safe_dump(config | {"model": {"tuning": tuning}}))

    def run(*options: str) -> int:
        return main(["fit", "--config", str(EXPERIMENTS / "base.yaml"), "--config", "run.yaml", *options])

    return run


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[str, ...]]]:
    """Epoch and example ids of every training step."""
    seen: list[tuple[int, tuple[str, ...]]] = []
    step = VLModule.training_step

    def note(self: VLModule, batch: Any, batch_idx: int) -> Any:
        seen.append((self.current_epoch, tuple(batch.ids)))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(VLModule, "training_step", note)
    return seen


def newest() -> Path:
    """The folder of the newest run."""
    return max(Path("runs/experiment").iterdir(), key=lambda folder: int(folder.name.split("_")[1]))


def outcome() -> dict[str, Any]:
    """``results.json`` of the newest run."""
    results: dict[str, Any] = json.loads((newest() / "results.json").read_text())
    return results


def validated() -> list[int]:
    """The steps after which the newest run was validated."""
    events = EventAccumulator(str(newest()), size_guidance={"scalars": 0}).Reload()
    return [event.step + 1 for event in events.Scalars("val/tvqa/accuracy")]


def test_fast_dev_run_takes_one_step_and_writes_nothing(fit: Fit, drawn: list[Any], tmp_path: Path) -> None:
    assert fit("--trainer.fast_dev_run=true") == 0
    assert len(drawn) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(("limit", "steps"), [("3", 3), ("0.5", 5)])
def test_limited_batches(fit: Fit, drawn: list[Any], limit: str, steps: int) -> None:
    options = ("--data.steps_per_epoch=10", f"--trainer.limit_train_batches={limit}", "--trainer.limit_val_batches=0.5")
    assert fit(*options, "--trainer.max_epochs=2") == 0
    assert len(drawn) == 2 * steps and len({ids for _, ids in drawn}) == 2 * steps
    assert outcome()["steps"] == 2 * steps and validated() == [steps, 2 * steps]


@pytest.mark.parametrize(("interval", "after"), [("3", [3, 6, 8]), ("0.25", [2, 4, 6, 8])])
def test_validation_within_an_epoch(fit: Fit, interval: str, after: list[int]) -> None:
    assert fit("--data.steps_per_epoch=8", f"--trainer.val_check_interval={interval}") == 0
    assert validated() == after
    assert len(outcome()["history"]) == len(after)


def test_the_end_is_validated_where_max_steps_falls_within_an_epoch(fit: Fit) -> None:
    assert fit("--data.steps_per_epoch=6", "--trainer.max_epochs=-1", "--trainer.max_steps=8") == 0
    assert validated() == [6, 8]
    assert outcome()["steps"] == 8 and len(outcome()["history"]) == 2


def test_overfit_batches_repeats_its_draws(fit: Fit, drawn: list[Any]) -> None:
    assert fit("--trainer.overfit_batches=3", "--trainer.max_epochs=3") == 0
    epochs = [[ids for e, ids in drawn if e == epoch] for epoch in range(3)]
    assert len(epochs[0]) == 3 and epochs[0] == epochs[1] == epochs[2]


@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
def test_profilers(fit: Fit, profiler: str, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--data.steps_per_epoch=2", "--trainer.limit_val_batches=0", f"--trainer.profiler={profiler}")
    assert fit(*options) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.limit_val_batches=0.01"], "Please increase the `limit_val_batches` argument"),
        (["--trainer.val_check_interval=900"], "must be less than or equal to the number of the training batches"),
        (["--trainer.strategy=fsdp"], "The strategy `fsdp` requires a GPU"),
    ],
)
def test_what_lightning_refuses_is_one_message(
    fit: Fit, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--data.steps_per_epoch=4", *options) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_a_run_goes_on_from_any_step_around_its_validations(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints at a step without a validation, with one within an epoch, at the epoch's end, and at the very end."""
    options = ("--data.steps_per_epoch=6", "--trainer.max_epochs=2", "--trainer.val_check_interval=2")
    save = LastCheckpoint._save

    def copied(self: LastCheckpoint, trainer: Any) -> None:
        save(self, trainer)
        if not (copy := Path(f"{trainer.global_step}.ckpt")).exists():
            shutil.copy(self.file(trainer), copy)

    monkeypatch.setattr(LastCheckpoint, "_save", copied)
    monkeypatch.setattr(LastCheckpoint, "every_n_steps", property(lambda self: 1, lambda *_: None), False)

    def end() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        checkpoint = torch.load(newest() / "checkpoints/last.ckpt", weights_only=True)
        return {key: outcome()[key] for key in ("history", "scores", "steps")}, checkpoint["state_dict"]

    assert fit(*options) == 0
    results, weights = end()
    for step in (3, 4, 6, 12):
        assert fit(*options, f"--ckpt_path={step}.ckpt") == 0
        if step == 12:  # nothing was left to train: its results are written, the checkpoint stays where it is
            assert all(outcome()[key] == results[key] for key in ("scores", "steps"))
            continue
        again, resumed = end()
        assert again == results, f"from step {step}"
        assert all(torch.equal(resumed[name], tensor) for name, tensor in weights.items())
