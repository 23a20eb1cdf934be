"""Parity with the published code: the same parameters and inputs give the outputs that it gave.

Every ``*.json`` with its ``*.safetensors`` in the folder ``VL_PEFT_GOLDEN`` (default: ``../shared/reference/golden``)
is a case; the model is built from the json's configuration.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vl_peft.batch import Batch, Generation
from vl_peft.checkpoint import load_adapters
from vl_peft.module import VLModule
from vl_peft.published import import_published, load_published, read_published

FOLDER = Path(os.environ.get("VL_PEFT_GOLDEN", Path(__file__).parents[3] / "shared/reference/golden"))
FILES = sorted(file.stem for file in FOLDER.glob("*.json") if file.with_suffix(".safetensors").exists())
TASKS = ("vqa", "gqa", "nlvr", "caption")


class Golden:
    """A model with the published parameters, and what it has to give."""

    def __init__(
        self, name: str, draw: str, build: Callable[[dict[str, Any]], VLModule], as_batch: Callable[..., Batch]
    ) -> None:
        self.as_batch = as_batch
        self.name, self.facts = name, json.loads((FOLDER / f"{name}.json").read_text())
        self.config = config = self.facts["config"]
        tensors = load_file(FOLDER / f"{name}.safetensors")
        self.inputs, self.out = self.below(tensors, "inputs"), self.below(tensors, f"{draw}.out")
        self.variant, state = self.facts["variants"][draw], self.below(tensors, f"{draw}.state")
        self.state = state | {alias: state[target] for alias, target in self.facts["aliases"].items()}
        self.t5 = config["model_type"] == "t5"
        self.module = build(config).eval()
        self.backbone = self.module.backbone
        load_published(self.backbone, self.state)

    @staticmethod
    def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}

    def batch(self, task: str) -> Batch:
        prefix = "nlvr_" if task == "nlvr" else ""
        tensors = {
            "input_ids": self.inputs["input_ids"],
            "target_ids": self.inputs["labels"],
            "vis_feats": self.inputs[f"{prefix}vis_feats"],
            "boxes": self.inputs[f"{prefix}boxes"],
        }
        return self.as_batch(self.config, task, tensors | ({"scores": self.inputs["scores"]} if task == "vqa" else {}))


@pytest.fixture(scope="module")
def golden(
    request: pytest.FixtureRequest, build: Callable[[dict[str, Any]], VLModule], as_batch: Callable[..., Batch]
) -> Golden:
    return Golden(*request.param, build, as_batch)


@pytest.fixture
def compared(golden: Golden, record_property: Any) -> Any:
    """``compared(n)``: n tensors were compared."""
    return lambda count: record_property("compared", ("golden files", golden.name, count))


CASES = [(name, draw) for name in FILES for draw in ("std05", "strong")]
pytestmark = pytest.mark.parametrize(
    "golden",
    CASES or [pytest.param(("", ""), marks=pytest.mark.skip(reason=f"no golden files in {FOLDER}"))],
    indirect=True,
    ids="-".join,
)
tasks = pytest.mark.parametrize("task", ["vqa", "gqa", "nlvr"])


def assert_equal(actual: Tensor, wanted: Tensor) -> None:
    """Within 1e-5 of the largest magnitude."""
    assert actual.shape == wanted.shape
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


@tasks
@torch.no_grad()
def test_encoder_states_logits_and_losses(golden: Golden, task: str, compared: Any) -> None:
    out = Golden.below(golden.out, task)
    if not out:
        pytest.skip("the published code gives no output here")
    batch, backbone = golden.batch(task), golden.backbone
    encoded, mask = backbone.encode(batch)
    assert_equal(encoded, out["encoder_last_hidden_state"])
    start, pad = golden.config["decoder_start_token_id"], golden.config["pad_token_id"]
    labels = batch.labels.masked_fill(batch.labels == -100, pad)
    inputs = torch.cat([torch.full((len(batch), 1), start), labels[:, :-1]], dim=1)
    assert_equal(backbone.logits(backbone.decode(inputs, encoded, mask)), out["logits"])
    assert_equal(backbone(batch), out["token_loss"])
    compared(3)


@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_loss_of_a_step(golden: Golden, task: str, compared: Any) -> None:
    if f"{task}.train_step_loss" not in golden.variant:
        pytest.skip("the published code gives no output here")
    loss = golden.module.loss(golden.batch(task)).item()
    assert loss == pytest.approx(golden.variant[f"{task}.train_step_loss"], rel=1e-5)
    compared(1)


@torch.no_grad()
def test_candidates(golden: Golden) -> None:
    """NLVR2's answer is the likelier of two first tokens; here those with which the file's were made are unknown."""
    if "nlvr.logits" not in golden.out:
        pytest.skip("the published code gives no output here")
    place = len(golden.backbone.answer_start) - 1
    logits = golden.out["nlvr.logits"][:, place]
    names = ["w5", "w9"]
    ids = [golden.backbone.tokenizer.first_token(name) for name in names]
    labels = golden.inputs["labels"]
    if golden.t5 or (labels[:, 0] == golden.config["bos_token_id"]).all():
        wanted = [names[i] for i in logits[:, ids].argmax(dim=1).tolist()]
        assert golden.backbone.choose(golden.batch("nlvr"), names) == wanted


def log_probability(golden: Golden, batch: Batch, sequences: Tensor) -> Tensor:
    """Of each sequence ``[B, T]`` up to its end, in float64 ``[B]``."""
    backbone = copy.deepcopy(golden.backbone).double()
    batch = replace(batch, visual=batch.visual.double(), boxes=batch.boxes.double())
    encoded, mask = backbone.encode(batch)
    scores = backbone.logits(backbone.decode(sequences[:, :-1], encoded, mask)).log_softmax(dim=-1)
    ended = (sequences[:, 1:] == golden.config["eos_token_id"]).cumsum(dim=1).cumsum(dim=1) > 1
    return scores.gather(-1, sequences[:, 1:, None]).squeeze(-1).masked_fill(ended, 0).sum(dim=1)


@tasks
@pytest.mark.parametrize("key", ["generate_greedy_plain", "generate_greedy", "generate_beam5"])
@torch.no_grad()
def test_generated_tokens(golden: Golden, task: str, key: str, compared: Any, record_property: Any) -> None:
    """The same tokens; of two beams whose float64 probabilities agree to 1e-6, either may have won by rounding."""
    if f"{task}.{key}" not in golden.out:
        pytest.skip("the published code gives no output here")
    ngram, early = golden.config["no_repeat_ngram_size"], golden.config["early_stopping"]
    generation = {
        "generate_greedy_plain": Generation(max_length=11),
        "generate_greedy": Generation(max_length=11, no_repeat_ngram_size=ngram),
        "generate_beam5": Generation(num_beams=5, max_length=12, no_repeat_ngram_size=ngram, early_stopping=early),
    }[key]
    batch, wanted = golden.batch(task), golden.out[f"{task}.{key}"]
    actual = golden.backbone.generate_ids(batch, generation)
    if key == "generate_beam5" and actual.shape == wanted.shape and not torch.equal(actual, wanted):
        torch.testing.assert_close(
            log_probability(golden, batch, actual), log_probability(golden, batch, wanted), rtol=1e-6, atol=0
        )
        record_property("tie", f"{golden.name} {task}")
    else:
        assert actual.tolist() == wanted.tolist()
    compared(1)


def test_counts(golden: Golden) -> None:
    parameters = list(golden.backbone.parameters())
    assert sum(p.numel() for p in parameters) == golden.facts["counts"]["total"]
    assert sum(p.numel() for p in parameters if p.requires_grad) == golden.facts["counts"]["trainable"]


@torch.no_grad()
def test_a_published_checkpoint_is_imported(golden: Golden, tmp_path: Path) -> None:
    """What DDP saved becomes a backbone folder and an adapter folder; loaded again they give the same losses."""
    torch.save({f"module.{name}": tensor for name, tensor in golden.state.items()}, tmp_path / "LAST.pth")
    plain = str(golden.backbone.tokenizer.hf.name_or_path)
    out = import_published(read_published(tmp_path / "LAST.pth"), plain, tmp_path / "out")
    task = "gqa"
    if (out / "adapter_config.json").exists():
        backbone = load_adapters(out).eval()
    else:
        backbone, task = type(golden.backbone)(str(out / "backbone")).eval(), "any"
    batch = golden.batch("gqa")
    assert torch.equal(backbone(replace(batch, task=task)), golden.backbone(batch))
