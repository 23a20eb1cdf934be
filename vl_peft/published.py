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
from vl_peft.errors import ConfigError, DataError
from vl_peft.tuning import (
    Adapter,
    Combined,
    Compacter,
    Hyperformer,
    LoRA,
    LowRankAdapter,
    PromptTuning,
    Sharing,
    Tuning,
    VisualEmbeddingOnly,
)

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
        return _delta_names(*found.groups(), tasks)  # type: ignore[arg-type]
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
        raise DataError(path, f"no checkpoint of tensors alone ({str(error).splitlines()[0]})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(path, "holds more than a state dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_published(backbone: Backbone, state: Mapping[str, Tensor]) -> None:
    """Copy a published state dict into a backbone with its tuning strategy attached.

    Raises:
        ConfigError: if a tensor is missing, left over, of another shape, or differs between tasks that should share it.
    """
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
            f"The checkpoint is of another configuration. Missing there: {_listed(missing)}. Unknown here: {_listed(left)}."
        )
    backbone.load_state_dict(new)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"


def infer_tuning(state: Mapping[str, Tensor]) -> tuple[Tuning, tuple[str, ...]]:
    """The strategy whose parameters a published state dict holds, and its tasks.

    LoRA's alpha cannot be seen in a state dict: the published 32 is taken. What of the backbone trained cannot be seen
    either; the strategies' own defaults are taken.
    """
    tasks = tuple(dict.fromkeys(m[1] for name in state if (m := re.search(r"\.(?:adapters|prompts|task_to_embeddings|lora_As)\.(\w+)", name))))
    strategies = [s for s in (_bottleneck(state), _hyperformer(state), _lora(state), _prompts(state)) if s is not None]
    if not strategies:
        return VisualEmbeddingOnly(), ("any",)
    return (strategies[0] if len(strategies) == 1 else Combined(strategies)), tasks


def _sharing(state: Mapping[str, Tensor], down: str, up: str) -> Sharing:
    """Which of two parts all tasks share, given patterns of the tensors' names with ``(task)``."""

    def shared(pattern: str) -> bool:
        groups: dict[str, list[Tensor]] = {}
        for name, tensor in state.items():
            if found := re.fullmatch(pattern, name):
                groups.setdefault(name[: found.start(1)] + name[found.end(1) :], []).append(tensor)
        return all(torch.equal(group[0], tensor) for group in groups.values() for tensor in group)

    kinds: dict[tuple[bool, bool], Sharing] = {(True, True): "single", (True, False): "shared_down", (False, True): "shared_up"}
    return kinds.get((shared(down), shared(up)), "multiple")


def _bottleneck(state: Mapping[str, Tensor]) -> Tuning | None:
    halves = [name for name in state if ".down_sampler." in name]
    if not halves:
        return None
    first = halves[0].rpartition(".")[0]
    bias = state.get(f"{first}.bias", state.get(f"{first}.b"))
    up = state.get(f"{first.replace('.down_', '.up_')}.bias", state.get(f"{first.replace('.down_', '.up_')}.b"))
    assert bias is not None and up is not None
    rule = r"(?!phm_rule)\w+"
    options: dict[str, Any] = {
        "reduction_factor": len(up) // len(bias),
        "sharing": _sharing(state, rf".*\.adapters\.(\w+)\.down_sampler\.{rule}", rf".*\.adapters\.(\w+)\.up_sampler\.{rule}"),
        "blocks": ("self", "cross", "ff") if any(".enc_attn_adapter." in n for n in halves) else ("self", "ff"),
        "norm_before": any(".pre_layer_norm." in name for name in state),
        "norm_after": any(".post_layer_norm." in name for name in state),
    }
    rules = {name: tensor for name, tensor in state.items() if name.endswith("_sampler.phm_rule")}
    left = state.get(f"{first}.W_left")
    if rules:
        values = list(rules.values())
        over_tasks = _sharing(state, r".*\.adapters\.(\w+)\.down_sampler\.phm_rule", r".*\.adapters\.(\w+)\.up_sampler\.phm_rule")
        one = all(torch.equal(values[0], v) for v in values)
        kind = "model" if one else "tasks" if over_tasks == "single" and options["sharing"] != "single" else "own"
        return Compacter(division=len(values[0]), rank=None if left is None else left.shape[-1], rule=kind, **options)  # type: ignore[arg-type]
    return Adapter(**options) if left is None else LowRankAdapter(rank=left.shape[-1], **options)


def _hyperformer(state: Mapping[str, Tensor]) -> Tuning | None:
    network = {n.partition("encoder.adapter_layers_hyper_net.")[2]: t for n, t in state.items()}
    if "LayerNorm.weight" not in network:
        return None
    efficient = "adapters_block_type.weight" in network
    half = "" if efficient else "feed_forward_"
    sizes = [len(network[f"{half}{way}_sampler_hyper_net.bias_generator.0.bias"]) for way in ("up", "down")]
    return Hyperformer(
        reduction_factor=sizes[0] // sizes[1],
        efficient=efficient,
        projected_dim=len(network["LayerNorm.weight"]),
        embedding_dim=network["layer_id_embeddings.weight"].shape[1],
        hidden_dim=len(network["task_hypernet.task_embeding_generator.0.bias"]),
    )


def _lora(state: Mapping[str, Tensor]) -> Tuning | None:
    ranks = [len(tensor) for name, tensor in state.items() if ".lora_As." in name]
    if not ranks:
        return None
    return LoRA(rank=ranks[0], sharing=_sharing(state, r".*\.lora_As\.(\w+)", r".*\.lora_Bs\.(\w+)"))


def _prompts(state: Mapping[str, Tensor]) -> Tuning | None:
    tables = {n: t for n, t in state.items() if n.endswith("prefix_embedding.0.weight")}
    if not tables:
        return None
    lengths = {stack: next((len(t) for n, t in tables.items() if f"{stack}.prompt_modules" in n), 0) for stack in ("encoder", "decoder")}
    hidden = next(len(t) for n, t in state.items() if n.endswith("prefix_embedding.1.bias"))
    parts = _sharing(state, r".*\.prompts\.(\w+)\.prefix_embedding.*", r".*\.prompts\.(\w+)\.prefix_embedding.*")
    return PromptTuning(lengths["encoder"], lengths["decoder"], hidden, "single" if parts == "single" else "multiple")
