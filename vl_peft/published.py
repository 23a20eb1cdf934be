"""Checkpoints of the published VL-Adapter, VL-T5 and VL-BART code: their names for our parameters, and back.

What tasks share is one tensor here and stands there under the name of every task.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vl_peft.backbones.base import Backbone
from vl_peft.backbones.vl_bart import VLBart
from vl_peft.checkpoint import build, fingerprint, save_adapters
from vl_peft.errors import ConfigError, DataError
from vl_peft.published_tuning import infer_tuning

_VISUAL = {"feature": "feat_embedding", "box": "absolute_vis_pos_embedding", "image": "img_order_embedding"}
_SITES = {  # where an adapter's controller stands, by stack and Linear
    ("encoder", "self_attn.out_proj"): "attn_adapter",
    ("decoder", "self_attn.out_proj"): "self_attn_adapter",
    ("decoder", "encoder_attn.out_proj"): "enc_attn_adapter",
    ("encoder", "fc2"): "ff_adapter",
    ("decoder", "fc2"): "ff_adapter",
    ("encoder", "SelfAttention.o"): "attn_adapter",
    ("decoder", "SelfAttention.o"): "attn_adapter",
    ("decoder", "EncDecAttention.o"): "enc_attn_adapter",
    ("encoder", "DenseReluDense.wo"): "ff_adapter",
    ("decoder", "DenseReluDense.wo"): "ff_adapter",
}
_TENSORS = {"matrices": "W", "rule": "phm_rule", "left": "W_left", "right": "W_right"}
_HYPER_BLOCKS = {"ff": "feed_forward_", "self": "self_attention_", "cross": "cross_attention_", "all": ""}
_HYPER = {
    "layers.weight": "layer_id_embeddings.weight",
    "blocks.weight": "adapters_block_type.weight",
    "mlp": "task_hypernet.task_embeding_generator",  # as it is spelt there
    "norm": "LayerNorm",
}
_DELTA = re.compile(r"(.*?(encoder|decoder)\.(?:layers|block)\.\d+(?:\.layer\.\d)?)\.([\w.]+)\.delta\.(.+)")
_HALF = re.compile(r"(down|up)\.parts\.(\w+)\.(\w+)")


def published_names(name: str, tasks: Sequence[str], bart: bool) -> list[str]:
    """All names that a parameter of a tuned backbone has in the published code.

    Args:
        name: in our state dict.
        tasks: those of the strategy; a part that all share is there under each of them.
        bart: whether the backbone is VL-BART.
    """
    prefix = "model." if bart else ""
    name = name.removeprefix("lm.")
    if name.startswith("text_"):
        ours, _, rest = name.partition(".")
        return [f"model.encoder.{'embed_positions' if ours == 'text_positions' else 'layernorm_embedding'}.{rest}"]
    if found := _DELTA.fullmatch(name):
        layer, stack, linear, part = found.groups()
        return _delta_names(layer, stack, linear, part, tasks)
    if name == f"{prefix}shared.weight":
        return [name, f"{prefix}encoder.visual_embedding.obj_order_embedding.weight"]
    if found := re.fullmatch(r"visual_embedding\.(\w+)\.(.+)", name):
        return [f"{prefix}encoder.visual_embedding.{_VISUAL[found[1]]}.{found[2]}"]
    if found := re.fullmatch(r"added\.(encoder|decoder)_prompt\.parts\.(\w+)\.(table|mlp\.\d)\.(\w+)", name):
        stack, task, place, tensor = found.groups()
        index = {"table": 0, "mlp.0": 1, "mlp.2": 3}[place]
        module = f"{prefix}{stack}.prompt_modules.prompts"
        return [f"{module}.{t}.prefix_embedding.{index}.{tensor}" for t in _tasks(task, tasks)]
    return [name]


def _delta_names(layer: str, stack: str, linear: str, part: str, tasks: Sequence[str]) -> list[str]:
    if part.startswith("network."):
        return _hyper_names(layer.partition(stack)[0], stack, part.removeprefix("network."))
    if (stack, linear) not in _SITES or linear.endswith(("q_proj", "v_proj", "k_proj")):
        half, task, _ = _HALF.fullmatch(part).groups()  # type: ignore[union-attr]
        return [f"{layer}.{linear}.lora_{'As' if half == 'down' else 'Bs'}.{t}" for t in _tasks(task, tasks)]
    site = f"{layer}.{_SITES[stack, linear]}"
    if found := _HALF.fullmatch(part):
        half, task, tensor = found.groups()
        model = ["phm_rule"] if tensor == "rule" else []  # one that the whole model shares is there at the top as well
        names = [f"{site}.adapters.{t}.{half}_sampler.{_TENSORS.get(tensor, tensor)}" for t in _tasks(task, tasks)]
        return names + model
    place, tensor = part.split(".")
    return [f"{site}.{'pre' if place == 'before' else 'post'}_layer_norm.{tensor}"]


def _tasks(part: str, tasks: Sequence[str]) -> Sequence[str]:
    return tasks if part == "shared" else [part]


def _hyper_names(prefix: str, stack: str, part: str) -> list[str]:
    if part.startswith("tasks."):
        task = part.removeprefix("tasks.")
        owners = ("shared_task_embed", f"{stack}.task_embed")
        return [f"{prefix}{owner}.task_to_embeddings.{task}" for owner in owners]
    network = f"{prefix}{stack}.adapter_layers_hyper_net"
    if found := re.fullmatch(r"generators\.(\w+)\.linears\.(down|up)_(weight|bias)\.(\w+)", part):
        block, half, kind, tensor = found.groups()
        return [f"{network}.{_HYPER_BLOCKS[block]}{half}_sampler_hyper_net.{kind}_generator.0.{tensor}"]
    for ours, theirs in _HYPER.items():
        if part.startswith(ours):
            return [f"{network}.{theirs}{part.removeprefix(ours)}"]
    raise ValueError(part)


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without the ``module.`` that DDP puts before every name.

    Raises:
        DataError: if the file is no checkpoint, or holds anything but tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(path, "no such checkpoint") from error
    except Exception as error:  # whatever a foreign file makes the unpickler say
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(path, f"no checkpoint of tensors alone ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(path, "holds more than a state dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_published(backbone: Backbone, state: Mapping[str, Tensor]) -> None:
    """Copy a published state dict into a backbone with its tuning strategy attached.

    Raises:
        ConfigError: if a tensor is missing, left over, of another shape, or differs between tasks that should share it.
    """
    state = _normalised(state)
    left, new, missing = dict(state), {}, []
    for own, tensor in backbone.state_dict().items():
        names = published_names(own, backbone.route.tasks, isinstance(backbone, VLBart))
        found = [state[name] for name in names if name in state]
        if not found:
            missing.append(f"{own} ({names[0]})")
            continue
        for name, value in zip(names, found, strict=False):
            if value.shape != tensor.shape:
                raise ConfigError(f"{name} has the shape {tuple(value.shape)}, {own} {tuple(tensor.shape)}.")
            if not torch.equal(value, found[0]):
                raise ConfigError(f"{name} differs from {names[0]}: the tasks do not share this part.")
        new[own] = found[0]
        for name in names:
            left.pop(name, None)
    if missing or left:
        raise ConfigError(
            f"The checkpoint is of another configuration. Missing there: {_listed(missing)}. "
            f"Unknown here: {_listed(left)}."
        )
    backbone.load_state_dict(new)


def _normalised(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's prompts under one name, wherever in the model their controller stands."""
    prefix = "model.decoder" if any(name.startswith("model.encoder.") for name in state) else "decoder"

    def rename(name: str) -> str:
        found = re.fullmatch(r"(.*)prompts\.(\w+\.prefix_embedding\..+)", name)
        if not found or "encoder.prompt_modules" in found[1]:
            return name
        return f"{prefix}.prompt_modules.prompts.{found[2]}"

    return {rename(name): tensor for name, tensor in state.items()}


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"


def import_published(state: Mapping[str, Tensor], plain: str, out: Path) -> Path:
    """Write a published state dict as a backbone folder ``out/backbone`` and, if it has any, adapters in ``out``.

    The backbone holds everything that is not the strategy's own: language model, extra token rows, visual embedding.

    Args:
        state: see :func:`read_published`.
        plain: folder or hub name of the backbone it began from, for shape and tokenizer.
        out: folder to write.

    Raises:
        ConfigError: if the state dict does not fit that backbone.
    """
    kind = "VLBart" if any(name.startswith("model.encoder.") for name in state) else "VLT5"
    state = _normalised(state)
    projection = next((t for n, t in state.items() if n.endswith("visual_embedding.feat_embedding.0.weight")), None)
    if projection is None:
        raise ConfigError("The checkpoint has no visual embedding: it is not of VL-T5, VL-BART or VL-Adapter.")
    arguments: dict[str, Any] = {"pretrained": plain, "feature_dim": projection.shape[1]}
    backbone = {"class_path": f"vl_peft.backbones.{kind}", "init_args": arguments}
    tuning, tasks = infer_tuning(state)
    model = build({"backbone": backbone, "tuning": tuning, "tasks": tasks}, random_init=True)
    load_published(model, state)
    folder = out / "backbone"
    own = {n: p.data.clone() for n, p in model.named_parameters() if ".delta." in n or n.startswith("added.")}
    model.save_untuned(folder)
    if own:
        arguments["pretrained"] = str(folder)
        description = {"backbone": backbone, "tuning": tuning, "tasks": list(tasks), "fingerprint": fingerprint(model)}
        save_adapters(description, own, out)
    return out
