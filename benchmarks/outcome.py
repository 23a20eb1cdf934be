"""A small training run, what it ends with, and where two such ends differ: for runs interrupted on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def configuration(folder: Path, *callbacks: dict[str, Any]) -> list[str]:
    """Options for two tasks with LoRA of their own (it has dropout), temperature and VQA's draw of answers.

    These callbacks come last.
    """
    file = folder / "run.json"
    sizes = {"batch_size": 4, "eval_batch_size": 8}
    benchmarks = {
        "vqa": {"class_path": "datamodules.VQAv2", "init_args": sizes | {"max_source": 40}},
        "caption": {"class_path": "datamodules.COCO", "init_args": sizes | {"max_target": 50}},
    }
    data = {"class_path": "datamodules.MultiTask", "init_args": {"benchmarks": benchmarks, "temperature": 2.0}}
    last = {"class_path": "vl_peft.callbacks.LastCheckpoint", "init_args": {"every_n_steps": 3}}
    trainer = {"callbacks": [{"class_path": "vl_peft.callbacks.Results"}, last, *callbacks]}
    trainer |= {
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "limit_val_batches": 1,
        "accelerator": "cpu",
    }
    file.write_text(json.dumps({"data": data, "trainer": trainer}))
    configs = [EXPERIMENTS / f"{name}.yaml" for name in ("base", "image/base", "image/multiple_lora", "demo/image")]
    return [part for config in (*configs, file) for part in ("--config", str(config))]


def outcome(folder: Path, name: str = "experiment") -> dict[str, Any]:
    """All that has to be equal of the only run with this name: it has always gone on in the same folder."""
    (run,) = (file.parent for file in folder.glob(f"runs/{name}/version_*/results.json"))
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
