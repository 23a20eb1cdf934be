"""Which strategy a state dict of the published code belongs to, seen from its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vl_peft.tuning import Sharing


def infer_tuning(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The strategy whose parameters a published state dict holds, as in a configuration, and its tasks.

    LoRA's alpha cannot be seen in a state dict: the published 32 is taken. Nor can what of the backbone trained: it is
    taken to be frozen.
    """
    places = r"\.(?:adapters|prompts|task_to_embeddings|lora_As)\.(\w+)"
    tasks = tuple(dict.fromkeys(match[1] for name in state if (match := re.search(places, name))))
    found = [d for d in (_bottleneck(state), _hyperformer(state), _lora(state), _prompts(state)) if d is not None]
    frozen = {"layer_norms": False, "visual_embedding": False}
    described = [
        {"class_path": f"vl_peft.tuning.{kind}", "init_args": {**options, **frozen}} for kind, options in found
    ]
    if len(described) == 1:
        return described[0], tasks
    if described:
        return {"class_path": "vl_peft.tuning.Combined", "init_args": {"strategies": described}}, tasks
    return {"class_path": "vl_peft.tuning.VisualEmbeddingOnly", "init_args": frozen}, ("any",)


Described = tuple[str, dict[str, Any]] | None  # class name and arguments


def _shared(state: Mapping[str, Tensor], pattern: str) -> bool:
    """Whether all tasks have equal tensors under the names that match a pattern with one group: the task."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        if found := re.fullmatch(pattern, name):
            groups.setdefault(name[: found.start(1)] + name[found.end(1) :], []).append(tensor)
    return all(torch.equal(group[0], tensor) for group in groups.values() for tensor in group)


def _sharing(state: Mapping[str, Tensor], down: str, up: str) -> Sharing:
    kinds: dict[tuple[bool, bool], Sharing] = {
        (True, True): "single",
        (True, False): "shared_down",
        (False, True): "shared_up",
    }
    return kinds.get((_shared(state, down), _shared(state, up)), "multiple")


def _bottleneck(state: Mapping[str, Tensor]) -> Described:
    halves = [name for name in state if ".down_sampler." in name]
    if not halves:
        return None
    first = halves[0].rpartition(".")[0]
    bias = {half: first.replace(".down_", f".{half}_") + ".b" for half in ("down", "up")}
    sizes = {half: len(state[name] if name in state else state[f"{name}ias"]) for half, name in bias.items()}
    pattern = r".*\.adapters\.(\w+)\.{}_sampler\.{}"
    own = r"(?!phm_rule)\w+"
    sharing = _sharing(state, pattern.format("down", own), pattern.format("up", own))
    options: dict[str, Any] = {
        "reduction_factor": sizes["up"] // sizes["down"],
        "sharing": sharing,
        "blocks": ["self", "cross", "ff"] if any(".enc_attn_adapter." in n for n in halves) else ["self", "ff"],
        "norm_before": any(".pre_layer_norm." in name for name in state),
        "norm_after": any(".post_layer_norm." in name for name in state),
    }
    left = state.get(f"{first}.W_left")
    rules = [tensor for name, tensor in state.items() if name.endswith("_sampler.phm_rule")]
    if rules:
        over_tasks = sharing != "single" and _shared(state, pattern.format(r"\w+", "phm_rule"))
        rule = "model" if all(torch.equal(rules[0], r) for r in rules) else "tasks" if over_tasks else "own"
        rank = None if left is None else left.shape[-1]
        return "Compacter", {"division": len(rules[0]), "rank": rank, "rule": rule, **options}
    return ("Adapter", options) if left is None else ("LowRankAdapter", {"rank": left.shape[-1], **options})


def _hyperformer(state: Mapping[str, Tensor]) -> Described:
    network = {n.partition("encoder.adapter_layers_hyper_net.")[2]: t for n, t in state.items()}
    if "LayerNorm.weight" not in network:
        return None
    efficient = "adapters_block_type.weight" in network
    half = "" if efficient else "feed_forward_"
    sizes = [len(network[f"{half}{way}_sampler_hyper_net.bias_generator.0.bias"]) for way in ("up", "down")]
    return "Hyperformer", {
        "reduction_factor": sizes[0] // sizes[1],
        "efficient": efficient,
        "projected_dim": len(network["LayerNorm.weight"]),
        "embedding_dim": network["layer_id_embeddings.weight"].shape[1],
        "hidden_dim": len(network["task_hypernet.task_embeding_generator.0.bias"]),
    }


def _lora(state: Mapping[str, Tensor]) -> Described:
    ranks = [len(tensor) for name, tensor in state.items() if ".lora_As." in name]
    if not ranks:
        return None
    sharing = _sharing(state, r".*\.lora_As\.(\w+)", r".*\.lora_Bs\.(\w+)")
    return "LoRA", {"rank": ranks[0], "sharing": sharing, "biases": False}


def _prompts(state: Mapping[str, Tensor]) -> Described:
    tables = {n: len(t) for n, t in state.items() if n.endswith("prefix_embedding.0.weight")}
    if not tables:
        return None
    lengths = {s: next((t for n, t in tables.items() if f"{s}.prompt_modules" in n), 0) for s in ("encoder", "decoder")}
    return "PromptTuning", {
        "length": lengths["encoder"],
        "decoder_length": lengths["decoder"],
        "hidden_dim": next(len(t) for n, t in state.items() if n.endswith("prefix_embedding.1.bias")),
        "sharing": "single" if _shared(state, r".*\.prompts\.(\w+)\.prefix_embedding.*") else "multiple",
    }
