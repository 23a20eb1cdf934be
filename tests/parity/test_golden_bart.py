"""Parity with the published code: the same parameters and inputs give the outputs that it gave."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vl_peft.backbones import VLBart
from vl_peft.batch import Batch, Generation, Task
from vl_peft.features.pooling import pool_grid
from vl_peft.module import VLModule
from vl_peft.tuning import Adapter, FullFineTuning, Tuning

TASKS = {
    "vqa": Task("vqa"),
    "gqa": Task("gqa"),
    "nlvr": Task("nlvr"),
    "caption": Task("caption", reduction="token"),
}
TUNINGS: dict[str, Callable[[], Tuning]] = {
    "bart_full": FullFineTuning,
    "bart_single_adapter": lambda: Adapter(8),
    "bart_multiple_adapters": lambda: Adapter(8, sharing="multiple"),
    "bart_half_shared_up": lambda: Adapter(8, sharing="shared_up"),
}
SHAPE = (
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "max_position_embeddings",
    "vocab_size",
)
TOKENS = 4  # visual tokens of an image after pooling

OUTSIDE = {
    "text_positions": "model.encoder.embed_positions",
    "text_norm": "model.encoder.layernorm_embedding",
    "visual_embedding.feature": "model.encoder.visual_embedding.feat_embedding",
    "visual_embedding.box": "model.encoder.visual_embedding.absolute_vis_pos_embedding",
    "visual_embedding.image": "model.encoder.visual_embedding.img_order_embedding",
}
ADAPTERS = {
    ("encoder", "self_attn.out_proj"): "attn_adapter",
    ("decoder", "self_attn.out_proj"): "self_attn_adapter",
    ("decoder", "encoder_attn.out_proj"): "enc_attn_adapter",
    ("encoder", "fc2"): "ff_adapter",
    ("decoder", "fc2"): "ff_adapter",
}
DELTA = re.compile(r"(model\.(\w+)\.layers\.\d)\.([\w.]+)\.delta\.(down|up)\.parts\.(\w+)\.(\w+)")


def published_name(name: str) -> str:
    """What the published code calls a parameter of ours."""
    for ours, theirs in OUTSIDE.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    name = name.removeprefix("lm.")
    if delta := DELTA.fullmatch(name):
        layer, stack, linear, half, part, kind = delta.groups()
        task = "vqa" if part == "shared" else part  # what tasks share is stored under the first one's name
        return f"{layer}.{ADAPTERS[stack, linear]}.adapters.{task}.{half}_sampler.{kind}"
    return name


class Golden:
    """A model with the published parameters, and what it has to give."""

    def __init__(self, name: str, draw: str, folder: Path, reference: Path) -> None:
        self.facts = json.loads((reference / f"{name}.json").read_text())
        tensors = load_file(reference / f"{name}.safetensors")
        self.inputs = self.below(tensors, "inputs")
        self.out = self.below(tensors, f"{draw}.out")
        self.variant = self.facts["variants"][draw]
        bart = VLBart(str(folder), feature_dim=self.facts["config"]["feat_dim"], random_init=True)
        self.module = VLModule(bart, TUNINGS[name](), TASKS).eval()
        self.bart = bart
        self.load(self.below(tensors, f"{draw}.state"))

    @staticmethod
    def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}

    def load(self, state: dict[str, Tensor]) -> None:
        aliases = self.facts["aliases"]
        names = {own: published_name(own) for own in self.bart.state_dict()}
        assert set(state) <= {aliases.get(name, name) for name in names.values()}, "a published parameter has no place"
        self.bart.load_state_dict({own: state[aliases.get(name, name)] for own, name in names.items()})

    def batch(self, task: str) -> Batch:
        ids, labels = self.inputs["input_ids"], self.inputs["labels"]
        prefix, images = ("nlvr_", 2) if task == "nlvr" else ("", 1)
        features = self.inputs[f"{prefix}vis_feats"].reshape(len(ids), images, -1, 48)
        boxes = self.inputs[f"{prefix}boxes"].reshape(len(ids), images, -1, 4)
        pooled = [torch.cat([torch.from_numpy(pool_grid(x.numpy(), TOKENS)) for x in example]) for example in features]
        shape = (len(ids), images * TOKENS)
        return Batch(
            task=task,
            ids=[str(i) for i in range(len(ids))],
            input_ids=ids,
            attention_mask=(ids != 1).long(),
            visual=torch.stack(pooled),
            visual_mask=torch.ones(shape, dtype=torch.long),
            image_index=torch.arange(images).repeat_interleave(TOKENS).expand(shape),
            object_index=torch.arange(TOKENS).repeat(images).expand(shape),
            boxes=boxes[:, :, :TOKENS].flatten(1, 2),  # the published code cuts boxes off, it does not pool them
            labels=labels,
            weights=self.inputs["scores"] if task == "vqa" else torch.ones(len(ids)),
        )


@pytest.fixture(scope="module")
def golden(
    request: pytest.FixtureRequest, shared: Path, write_bart: Callable[..., Path], tmp_path_factory: Any
) -> Golden:
    name, draw = request.param
    reference = shared / "reference/golden"
    config = json.loads((reference / f"{name}.json").read_text())["config"]
    folder = write_bart(tmp_path_factory.mktemp(name), **{key: config[key] for key in SHAPE})
    return Golden(name, draw, folder, reference)


pytestmark = pytest.mark.parametrize(
    "golden", [(name, draw) for name in TUNINGS for draw in ("std05", "strong")], indirect=True, ids="-".join
)
tasks = pytest.mark.parametrize("task", ["vqa", "gqa", "nlvr"])


def assert_equal(actual: Tensor, wanted: Tensor) -> None:
    """Within 1e-5 of the largest magnitude."""
    assert actual.shape == wanted.shape
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


@tasks
@torch.no_grad()
def test_encoder_states_logits_and_losses(golden: Golden, task: str) -> None:
    batch, out = golden.batch(task), Golden.below(golden.out, task)
    encoded, mask = golden.bart.encode(batch)
    assert_equal(encoded, out["encoder_last_hidden_state"])
    start = torch.full((3, 1), 2)
    inputs = torch.cat([start, batch.labels[:, :-1].masked_fill(batch.labels[:, :-1] == -100, 1)], dim=1)
    assert_equal(golden.bart.logits(golden.bart.decode(inputs, encoded, mask)), out["logits"])
    assert_equal(golden.bart(batch), out["token_loss"])


@pytest.mark.parametrize("task", list(TASKS))
@torch.no_grad()
def test_loss_of_a_step(golden: Golden, task: str) -> None:
    loss = golden.module.loss(golden.batch(task)).item()
    assert loss == pytest.approx(golden.variant[f"{task}.train_step_loss"], rel=1e-5)


@tasks
@pytest.mark.parametrize(
    ("key", "generation"),
    [
        ("generate_greedy_plain", Generation(max_length=11)),
        ("generate_greedy", Generation(max_length=11, no_repeat_ngram_size=3)),
        ("generate_beam5", Generation(num_beams=5, max_length=12, no_repeat_ngram_size=3, early_stopping=True)),
    ],
)
def test_generated_tokens(
    golden: Golden, task: str, key: str, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden.bart.tokenizer, "decode", Tensor.tolist)
    assert golden.bart.generate(golden.batch(task), generation) == golden.out[f"{task}.{key}"].tolist()


def test_counts(golden: Golden) -> None:
    parameters = list(golden.bart.parameters())
    assert sum(p.numel() for p in parameters) == golden.facts["counts"]["total"]
    assert sum(p.numel() for p in parameters if p.requires_grad) == golden.facts["counts"]["trainable"]
