"""What the guards notice: each fault is made on purpose, in a run that is otherwise well."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from datamodules import TVC, TVQA, MultiTask
from vl_peft.backbones import VLBart
from vl_peft.batch import Batch
from vl_peft.callbacks import Guards
from vl_peft.errors import UserError
from vl_peft.module import VLModule
from vl_peft.sampling import worker_death
from vl_peft.tuning import Adapter


class Fault(Callback):
    """Calls a function with the module and the step's number before each step."""

    def __init__(self, do: Callable[[VLModule, int], None]) -> None:
        self.do = do

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.do(pl_module, batch_idx)


@pytest.fixture
def fit(demo_root: Path, tmp_path: Path) -> Callable[..., VLModule]:
    """``fit(do, guards, workers, steps)``: train a few steps on two video benchmarks."""

    def run(
        do: Callable[[VLModule, int], None] = lambda module, step: None,
        guards: Guards | None = None,
        workers: int = 0,
        steps: int = 6,
        accumulate: int = 1,
    ) -> VLModule:
        benchmarks = {"tvqa": TVQA(batch_size=4), "tvc": TVC(batch_size=4)}
        data = MultiTask(benchmarks, root=str(demo_root), steps_per_epoch=steps, num_workers=workers)
        module = VLModule(VLBart("demo", feature_dim=data.feature_dim), Adapter(sharing="multiple"), data.tasks)
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            logger=False,
            limit_val_batches=0,
            accumulate_grad_batches=accumulate,
            default_root_dir=tmp_path,
            callbacks=[Fault(do), guards or Guards()],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(module, datamodule=data)
        return module

    return run


def test_a_good_run_is_left_alone(fit: Callable[..., VLModule], recwarn: pytest.WarningsRecorder) -> None:
    fit()
    assert not [w for w in recwarn if "gradient" in str(w.message) or "left out" in str(w.message)]


def test_a_frozen_parameter_that_changes(fit: Callable[..., VLModule]) -> None:
    def change(module: VLModule, step: int) -> None:
        if step == 3:
            next(p for n, p in module.named_parameters() if n.endswith("fc1.weight")).data[5, 3] += 1e-6

    with pytest.raises(UserError, match=r"1 frozen parameters have changed, first .*fc1"):
        fit(change)


def test_a_parameter_without_gradient(fit: Callable[..., VLModule], monkeypatch: pytest.MonkeyPatch) -> None:
    attach = Adapter.attach

    def attach_more(self: Adapter, backbone: VLBart, tasks: list[str]) -> None:
        attach(self, backbone, tasks)
        backbone.register_parameter("idle", torch.nn.Parameter(torch.zeros(3)))

    monkeypatch.setattr(Adapter, "attach", attach_more)
    with pytest.warns(UserWarning, match=r"1 parameters train but never had a gradient, first backbone\.idle"):
        fit()


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], Callable[[VLModule, int], None]]:
    """``poisoned(steps)``: the losses of these steps are not finite."""
    loss = VLModule.loss

    def make(steps: set[int]) -> Callable[[VLModule, int], None]:
        now = {"step": -1}
        monkeypatch.setattr(
            VLModule, "loss", lambda self, batch: loss(self, batch) * (float("nan") if now["step"] in steps else 1.0)
        )
        return lambda module, step: now.update(step=step)

    return make


def test_an_update_of_several_batches_is_left_out_once(
    fit: Callable[..., VLModule], poisoned: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="left out") as warned:
        fit(poisoned({3, 6}), Guards(max_skipped=3), steps=9, accumulate=3)
    assert len([w for w in warned if "left out" in str(w.message)]) == 2, "the updates of batches 3-5 and 6-8"
    lines = (tmp_path / "skipped_batches_0.jsonl").read_text().splitlines()
    assert len(lines) == 6 and len({tuple(json.loads(line)["ids"]) for line in lines}) == 6


def test_steps_without_a_finite_loss_change_nothing(
    fit: Callable[..., VLModule], poisoned: Callable[..., Any], tmp_path: Path
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    mark = poisoned({2, 4})

    def do(module: VLModule, step: int) -> None:
        mark(module, step)
        seen.append({n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad})

    with pytest.warns(UserWarning, match=r"Step \d .*left out"):
        module = fit(do)
    seen.append({n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad})
    moved = [any(not torch.equal(before[n], after[n]) for n in before) for before, after in pairwise(seen)]
    assert moved == [True, True, False, True, False, True]
    assert all(torch.isfinite(p).all() for p in module.parameters())
    lines = [json.loads(line) for line in (tmp_path / "skipped_batches_0.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 5] and all(len(line["ids"]) == 4 for line in lines)


def test_too_many_of_them_stop_the_run(fit: Callable[..., VLModule], poisoned: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"3 steps in a row .*skipped_batches_0.jsonl"), pytest.warns(UserWarning):
        fit(poisoned({1, 2, 3, 4}), Guards(max_skipped=3))


def test_what_was_seen_before_a_resume_counts(
    fit: Callable[..., VLModule], poisoned: Callable[..., Any], recwarn: pytest.WarningsRecorder
) -> None:
    """Steps left out in a row go on being counted, and what had a gradient before is not idle."""
    first, second = Guards(), Guards(max_skipped=3)
    fit(poisoned({4, 5}), first)
    state = json.loads(json.dumps(first.state_dict()))
    assert state == {"in_a_row": 2, "tasks": ["tvc", "tvqa"], "without_gradient": []}
    second.load_state_dict(state)
    with pytest.raises(UserError, match="3 steps in a row"):
        fit(poisoned({0}), second)
    third = Guards()
    third.load_state_dict(state)
    fit(guards=third, steps=1)  # of one task only
    assert not [w for w in recwarn if "never had a gradient" in str(w.message)]


def test_a_worker_that_dies(fit: Callable[..., VLModule]) -> None:
    def shoot(module: VLModule, step: int) -> None:
        if step == 1:
            for worker in module.trainer.train_dataloader._loader._iterator._workers:
                os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(RuntimeError, match="killed by signal") as error:
        fit(shoot, workers=2, steps=40)
    assert re.search(r"A data worker has died .*--data.num_workers", str(worker_death(error.value)))
