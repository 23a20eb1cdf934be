"""Models of the published code's configurations, built from what the product has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BartConfig, PretrainedConfig, T5Config

from vl_peft import tuning as strategies
from vl_peft.backbones import VLT5, Backbone, VLBart
from vl_peft.batch import Batch, Task
from vl_peft.features.pooling import pool_grid
from vl_peft.module import VLModule
from vl_peft.tuning import Combined, Sharing, Tuning

BART_SHAPE = (
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "max_position_embeddings",
    "vocab_size",
    "activation_function",
    "dropout",
    "attention_dropout",
    "activation_dropout",
)
T5_SHAPE = (
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "vocab_size",
    "feed_forward_proj",
    "layer_norm_epsilon",
    "decoder_start_token_id",
    "dropout_rate",
)


def sharing_of(config: dict[str, Any]) -> Sharing:
    """The published flags as our one option."""
    if config["use_single_adapter"]:
        return "single"
    return "shared_up" if config["share_up_sampler"] else "shared_down" if config["share_down_sampler"] else "multiple"


def strategies_of(config: dict[str, Any]) -> Iterator[Tuning]:
    """The strategies that the published flags turn on."""
    t5 = config["model_type"] == "t5"
    # The published code never unfreezes T5's norms, and trains its position bias when it means to train biases.
    norms = config["unfreeze_layer_norms"] and not t5
    bottleneck = {
        "reduction_factor": config["reduction_factor"],
        "sharing": sharing_of(config),
        "blocks": ("self", "cross", "ff") if config["add_adapter_cross_attn"] else ("self", "ff"),
        "norm_before": config["add_layer_norm_before_adapter"],
        "norm_after": config["add_layer_norm_after_adapter"],
        "layer_norms": norms,
    }
    if config["unfreeze_language_model"]:
        yield strategies.FullFineTuning()
    if config["use_adapter"]:
        yield strategies.Adapter(**bottleneck)
    if config["use_lradapter"]:
        yield strategies.LowRankAdapter(rank=config["low_rank_rank"], **bottleneck)
    if config["use_compacter"]:
        tasks = config["shared_phm_rule_over_tasks"]
        yield strategies.Compacter(
            division=config["hypercomplex_division"],
            rank=config["phm_rank"] if config["factorized_phm"] else None,
            rule="model" if config["shared_phm_rule"] else "tasks" if tasks else "own",
            **bottleneck,
        )
    if config["use_hyperformer"]:
        yield strategies.Hyperformer(
            config["reduction_factor"],
            efficient=config["efficient_unique_hyper_net"],
            projected_dim=config["adapter_config"]["projected_task_embedding_dim"],
            embedding_dim=config["adapter_config"]["task_embedding_dim"],
            hidden_dim=config["adapter_config"]["task_hidden_dim"],
            layer_norms=norms,
        )
    if config["use_lora"]:
        yield strategies.LoRA(
            config["lora_dim"],
            config["lora_alpha"],
            config.get("lora_config", {}).get("lora_dropout", 0.1),
            sharing="single" if config["use_single_lora"] else "multiple",
            roles=() if t5 else ("q", "v"),
            layer_norms=norms,
            position_bias=t5,
        )
    if config["encoder_prompt_len"] or config["decoder_prompt_len"]:
        yield strategies.PromptTuning(
            config["encoder_prompt_len"],
            config["decoder_prompt_len"],
            config["mid_dim"],
            "single" if config["use_single_prompt"] else "multiple",
            layer_norms=norms,
        )
    yield strategies.VisualEmbeddingOnly(layer_norms=norms, lm_head=config["unfreeze_lm_head"])


@pytest.fixture(scope="session")
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., VLModule]:
    """``build(config, **options)``: the module of a published configuration with random weights."""
    write_tokenizer = request.getfixturevalue("write_tokenizer")

    def make(config: dict[str, Any], **options: Any) -> VLModule:
        t5, folder = config["model_type"] == "t5", tmp_path_factory.mktemp("published")
        shape: type[PretrainedConfig] = T5Config if t5 else BartConfig
        shape(**{key: config[key] for key in (T5_SHAPE if t5 else BART_SHAPE)}).save_pretrained(folder)
        write_tokenizer(folder, t5=t5)
        kind: type[Backbone] = VLT5 if t5 else VLBart
        backbone = kind(str(folder), feature_dim=config["feat_dim"], random_init=True)
        tasks = {name: Task(name, "token" if name == "caption" else "sequence") for name in config["tasks"].split(",")}
        return VLModule(backbone, Combined(list(strategies_of(config))), tasks, **options)

    return make


@pytest.fixture(scope="session")
def as_batch() -> Callable[[dict[str, Any], str, dict[str, Tensor]], Batch]:
    """``as_batch(config, task, tensors)``: recorded inputs as a batch of ours."""

    def make(config: dict[str, Any], task: str, tensors: dict[str, Tensor]) -> Batch:
        ids, features, tokens = tensors["input_ids"], tensors["vis_feats"], config["n_boxes"]
        images = 2 if task == "nlvr" else 1
        features = features.reshape(len(ids), images, -1, features.shape[-1])
        boxes = tensors["boxes"].reshape(len(ids), images, -1, 4)[:, :, :tokens]  # cut off there, not pooled
        pooled = [torch.cat([torch.from_numpy(pool_grid(x.numpy(), tokens)) for x in example]) for example in features]
        shape = (len(ids), images * tokens)
        return Batch(
            task=task,
            ids=[str(i) for i in range(len(ids))],
            input_ids=ids,
            attention_mask=(ids != config["pad_token_id"]).long(),
            visual=torch.stack(pooled),
            visual_mask=torch.ones(shape, dtype=torch.long),
            image_index=torch.arange(images).repeat_interleave(tokens).expand(shape),
            object_index=torch.arange(tokens).repeat(images).expand(shape),
            boxes=boxes.flatten(1, 2),
            labels=tensors["target_ids"],
            weights=tensors.get("scores", torch.ones(len(ids))),
        )

    return make
