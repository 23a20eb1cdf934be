"""Training steps as the published code takes them: the same losses, gradient norms and final parameters.

Every ``*.json`` with its ``*.safetensors`` in the folder ``VL_PEFT_TRAJECTORY`` (default:
``../shared/reference/trajectory``) is a case. Losses, what trains, weight decay, clipping and schedule are the
product's; only the optimizer is the test's own: the published one adds eps and decays at other places than torch's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from vl_peft.backbones import VLBart
from vl_peft.batch import Batch
from vl_peft.module import VLModule
from vl_peft.published import load_published, published_names
from vl_peft.tuning.base import trainable

FOLDER = Path(os.environ.get("VL_PEFT_TRAJECTORY", Path(__file__).parents[3] / "shared/reference/trajectory"))
FILES = sorted(file.stem for file in FOLDER.glob("*.json") if file.with_suffix(".safetensors").exists())


class OldAdamW(torch.optim.Optimizer):
    """AdamW of transformers 4.2.1: eps joins the uncorrected root, and weights decay after the update."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            (first, second), lr = group["betas"], group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
                state["step"] += 1
                state["m"].lerp_(p.grad, 1 - first)
                state["v"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
                size = lr * math.sqrt(1 - second ** state["step"]) / (1 - first ** state["step"])
                p.addcdiv_(state["m"], state["v"].sqrt() + group["eps"], value=-size)
                p.sub_(lr * group["weight_decay"] * p)
        return loss


class Steps(LightningDataModule):
    """The recorded batches in their order."""

    def __init__(self, batches: list[Batch]) -> None:
        super().__init__()
        self.batches, self.loading = batches, SimpleNamespace(seed=0)

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


class Recorder(Callback):
    """What each step was."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.losses.append(trainer.callback_metrics["train/loss"].item())
        self.norms.append(trainer.callback_metrics["train/grad_norm"].item())

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    "name", FILES or [pytest.param("", marks=pytest.mark.skip(reason=f"no trajectories in {FOLDER}"))]
)
def test_trajectory(
    name: str,
    build: Callable[..., VLModule],
    as_batch: Callable[..., Batch],
    record_property: Any,
    tmp_path: Path,
) -> None:
    facts = json.loads((FOLDER / f"{name}.json").read_text())
    tensors, config, training = load_file(FOLDER / f"{name}.safetensors"), facts["config"], facts["training"]
    decay = "all_but_bias" if facts["decayed_although_ndim_below_2"] else "matrices"
    module = build(
        config,
        lr=training["lr"],
        weight_decay=training["weight_decay"],
        decay=decay,
        betas=tuple(training["adam_betas"]),
        eps=training["adam_eps"],
        warmup=training["warmup_ratio"],
    )
    state = {k.removeprefix("init."): v for k, v in tensors.items() if k.startswith("init.")}
    load_published(module.backbone, state | {alias: state[target] for alias, target in facts["aliases"].items()})
    own_names = {id(p): name.removeprefix("backbone.") for name, p in trainable(module).items()}
    configure, made = module.configure_optimizers, []

    def with_old_optimizer() -> Any:
        chosen: Any = configure()
        groups = [
            {"params": group["params"], "weight_decay": group["weight_decay"]}
            for group in chosen["optimizer"].param_groups
        ]
        made.append(OldAdamW(groups, training["lr"], tuple(training["adam_betas"]), training["adam_eps"]))
        factors = chosen["lr_scheduler"]["scheduler"].lr_lambdas[0]
        schedule = torch.optim.lr_scheduler.LambdaLR(made[0], factors)
        return {"optimizer": made[0], "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module.configure_optimizers = with_old_optimizer  # type: ignore[method-assign]
    batches = [
        as_batch(
            config, task, {k.removeprefix(f"step{i}."): v for k, v in tensors.items() if k.startswith(f"step{i}.")}
        )
        for i, task in enumerate(training["tasks"])
    ]
    recorder = Recorder()
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        gradient_clip_val=max(training["clip_grad_norm"], 0) or None,
        callbacks=[recorder],
        default_root_dir=tmp_path,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, datamodule=Steps(batches))

    wanted = facts["steps"]
    assert recorder.rates == pytest.approx([step["lr"] for step in wanted], abs=1e-12)
    assert recorder.losses == pytest.approx([step["loss"] for step in wanted], abs=5e-5)
    assert recorder.norms == pytest.approx([step["grad_norm"] for step in wanted], rel=5e-4)

    bart, tasks = isinstance(module.backbone, VLBart), module.backbone.route.tasks
    decays = {id(p): group["weight_decay"] for group in made[0].param_groups for p in group["params"]}
    seen: set[str] = set()
    for parameter in trainable(module).values():
        names = published_names(own_names[id(parameter)], tasks, bart)
        stored = next(n for n in (facts["aliases"].get(n, n) for n in names) if f"final.{n}" in tensors)
        seen.add(stored)
        torch.testing.assert_close(parameter.data, tensors[f"final.{stored}"], rtol=0, atol=2e-5)
        assert decays[id(parameter)] == facts["weight_decay"][stored], stored
        assert made[0].state[parameter]["step"] == facts["adam_steps"][stored], stored
    assert seen == {k.removeprefix("final.") for k in tensors if k.startswith("final.")}
    record_property("compared", ("trajectories", name, len(seen) + 2 * len(wanted)))
