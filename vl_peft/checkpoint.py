"""What trained, as a folder of its own: ``adapter_config.json`` and ``adapter_model.safetensors``, a few MB.

folder = export_adapters(Path("runs/video/version_0"), Path("my_adapters"))
backbone = load_adapters(folder)                     # on a fresh pretrained backbone: identical outputs
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vl_peft.backbones.base import Backbone
from vl_peft.checkpoint_io import read_checkpoint
from vl_peft.errors import ConfigError, DataError
from vl_peft.tuning.base import PerTask, TunedLinear, Tuning, trainable
from vl_peft.tuning.hyperformer import HyperNetwork
from vl_peft.tuning.library import LibraryLinear
from vl_peft.tuning.lora import LoRADelta

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def build(description: Mapping[str, Any], **changes: Any) -> Backbone:
    """A fresh backbone with the strategy that a description names.

    Args:
        description: ``backbone`` and ``tuning`` as in a configuration (``class_path``, ``init_args``), and ``tasks``.
        changes: other ``init_args`` of the backbone, such as ``pretrained``.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Backbone, "backbone")
    parser.add_subclass_arguments(Tuning, "tuning")
    backbone = copy.deepcopy(dict(description["backbone"]))
    backbone["init_args"] = {**backbone.get("init_args", {}), **changes}
    config = parser.parse_object({"backbone": backbone, "tuning": copy.deepcopy(description["tuning"])})
    built: Namespace = parser.instantiate_classes(config)
    built.tuning.attach(built.backbone, description["tasks"])
    model: Backbone = built.backbone
    return model


def export_adapters(run: Path, out: Path, checkpoint: Path | None = None) -> Path:
    """Write what trained in a run to a folder.

    Args:
        run: its folder, with ``config.yaml`` and ``checkpoints/``.
        out: folder to write.
        checkpoint: the run's last one if not given.

    Raises:
        DataError: if the run has no configuration, or no checkpoint that can be read.
        ConfigError: if its vision encoder trained too.
    """
    config_file, checkpoint = run / "config.yaml", checkpoint or run / "checkpoints" / "last.ckpt"
    for file in (config_file, checkpoint):
        if not file.is_file():
            raise DataError(file, "not there", remedy="Give the folder of a finished run, such as runs/NAME/version_0.")
    config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    state = read_checkpoint(checkpoint)["state_dict"]
    if any(name.startswith("vision.") for name in state):
        raise ConfigError(
            f"{checkpoint} holds a trained vision encoder (model.train_vision), which a folder of adapters has no "
            "place for: use the checkpoint itself."
        )
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    tasks = task_names(config["data"])
    backbone = config["model"]["backbone"]
    backbone.setdefault("init_args", {})["feature_dim"] = tensors_feature_dim(tensors)
    description = {"backbone": backbone, "tuning": config["model"]["tuning"], "tasks": tasks}
    description["fingerprint"] = fingerprint(build(description))
    return save_adapters(description, tensors, out)


def fingerprint(backbone: Backbone) -> str:
    """A hash of what is frozen: the start of every tensor. Adapters belong to the backbone they were trained on."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(backbone.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode() + parameter.data.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def task_names(data: Mapping[str, Any]) -> list[str]:
    """Names of the tasks of a configuration's ``data``: several benchmarks, or one that is used alone."""
    benchmarks = data["init_args"].get("benchmarks")
    if benchmarks is not None:
        return list(benchmarks)
    module, _, name = data["class_path"].rpartition(".")
    task: str = getattr(import_module(module), name).task.name
    return [task]


def tensors_feature_dim(tensors: Mapping[str, Tensor]) -> int | None:
    """Size of the visual features, if the visual embedding is among the tensors."""
    weight = tensors.get("visual_embedding.feature.0.weight")
    return None if weight is None else weight.shape[1]


def save_adapters(description: Mapping[str, Any], tensors: Mapping[str, Tensor], out: Path) -> Path:
    """Write both files; each is complete or not there."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f"{WEIGHTS}.tmp"
    save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)
    temporary.replace(out / WEIGHTS)
    temporary = out / f"{CONFIG}.tmp"
    temporary.write_text(json.dumps({"format": 1, **description}, indent=2) + "\n", encoding="utf-8")
    temporary.replace(out / CONFIG)
    return out


def read_adapters(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a folder.

    Raises:
        DataError: if a file is missing or damaged.
    """
    try:
        description = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return description, load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise DataError(folder, f"no {Path(error.filename or WEIGHTS).name}", remedy="Export a run first.") from error
    except (json.JSONDecodeError, SafetensorError) as error:
        raise DataError(folder, f"damaged ({error})", remedy="Export the run again.") from error


def load_adapters(folder: Path, backbone: Backbone | None = None) -> Backbone:
    """Put exported weights on a backbone.

    Args:
        folder: see :func:`export_adapters`.
        backbone: one with its strategy attached; a fresh one as described in the folder if not given.

    Raises:
        ConfigError: if the backbone differs from the one that the weights belong to, naming what differs.
    """
    description, tensors = read_adapters(folder)
    backbone = build(description) if backbone is None else backbone
    state = backbone.state_dict()
    wanted = {name: p.shape for name, p in trainable(backbone).items()}
    theirs = {name: t.shape for name, t in tensors.items()}
    missing_tasks = [task for task in backbone.route.tasks if task not in description["tasks"]]
    if missing_tasks and any(isinstance(m, PerTask) and not m.shared for m in backbone.modules()):
        have = ", ".join(description["tasks"])
        raise ConfigError(f"{folder} has no task '{missing_tasks[0]}', only {have}. Add it with vl-peft adapters add.")
    for name in sorted(wanted.keys() | theirs.keys()):
        if theirs.get(name) != (wanted.get(name) or (state[name].shape if name in state else None)):
            mine = tuple(wanted[name]) if name in wanted else "nothing of that name that trains"
            there = tuple(theirs[name]) if name in theirs else "nothing of that name"
            raise ConfigError(
                f"{folder} belongs to {_name(description['backbone'])} with {_name(description['tuning'])}: "
                f"'{name}' is {there} there and {mine} here."
            )
    if description.get("fingerprint") not in (None, fingerprint(backbone)):
        raise ConfigError(
            f"{folder} belongs to {_name(description['backbone'])}: the frozen weights of this backbone are others, "
            "though of the same shapes."
        )
    backbone.load_state_dict(tensors, strict=False)
    return backbone


def _name(part: Mapping[str, Any]) -> str:
    kind = str(part["class_path"]).rpartition(".")[2]
    pretrained = part.get("init_args", {}).get("pretrained")
    return f"{kind} ({pretrained})" if pretrained else kind


def add_task(backbone: Backbone, task: str, like: str) -> None:
    """Give a tuned backbone one more task whose own parts begin as another task's; nothing else trains from here on.

    So the other tasks' outputs stay bit-identical, whatever is trained.

    Args:
        backbone: with its strategy attached.
        task: the new name.
        like: a task it has.

    Raises:
        ConfigError: if the name is taken, ``like`` is unknown, or all tasks share everything.
    """
    route = backbone.route
    if task in route.tasks or like not in route.tasks:
        raise ConfigError(f"A new task '{task}' like '{like}': the model has {', '.join(route.tasks)}.")
    if any(isinstance(module, LibraryLinear) and not module.shared for module in backbone.modules()):
        raise ConfigError("LibraryTuning takes its tasks when it is built; a task cannot be added to it later.")
    owners: list[nn.ModuleDict | nn.ParameterDict] = []
    for module in backbone.modules():
        if isinstance(module, PerTask) and not module.shared:
            owners.append(module.parts)
        elif isinstance(module, HyperNetwork) and module.tasks not in owners:
            owners.append(module.tasks)
    if not owners:
        raise ConfigError(f"All tasks share everything in this strategy: there is nothing of its own for '{task}'.")
    backbone.requires_grad_(False)
    for parts in owners:
        if task not in parts:
            parts[task] = copy.deepcopy(parts[like])  # type: ignore[assignment]
            parts[task].requires_grad_(True)
    route.tasks = (*route.tasks, task)


def merge(backbone: Backbone) -> int:
    """Add every correction that is a change of weights (LoRA that all tasks share) to its Linear; returns how many.

    Raises:
        ConfigError: if the strategy has others.
    """
    sites = [site for site in (*backbone.sites(), backbone.head()) if isinstance(site.linear, TunedLinear)]
    weights = [_merged(site.linear) for site in sites]
    if not sites or len(backbone.added) or any(weight is None for weight in weights):
        raise ConfigError("Only LoRA with sharing: single can be merged into the backbone's weights.")
    for site, weight in zip(sites, weights, strict=True):
        linear = site.linear.plain()  # type: ignore[operator]
        linear.weight.data += weight
        setattr(site.owner, site.name, linear)
    return len(sites)


def _merged(tuned: nn.Linear) -> Tensor | None:
    delta = tuned.delta
    return delta.merged() if isinstance(delta, LoRADelta) else None


def listing(tensors: Mapping[str, Tensor], tasks: Sequence[str]) -> list[tuple[str, int, int]]:
    """What a folder holds: rows of group, number of tensors and number of values."""
    groups: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        owner = next((task for task in tasks if f".{task}." in name or name.endswith(f".{task}")), None)
        if ".delta." in name or name.startswith("added."):
            group = f"strategy, task {owner}" if owner else "strategy, all tasks"
        else:
            group = "visual embedding" if name.startswith("visual_embedding.") else "language model"
        groups.setdefault(group, []).append(tensor.numel())
    return [(group, len(sizes), sum(sizes)) for group, sizes in groups.items()]
