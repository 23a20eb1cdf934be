"""``vl-peft params`` against the counts of the published code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import BartConfig, T5Config

from vl_peft.cli import main

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SHAPES = {
    "bart-base": BartConfig(
        vocab_size=50265,
        d_model=768,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=12,
        decoder_attention_heads=12,
        encoder_ffn_dim=3072,
        decoder_ffn_dim=3072,
    ),
    "t5-base": T5Config(
        vocab_size=32128, d_model=768, d_ff=3072, num_layers=12, num_heads=12, decoder_start_token_id=0
    ),
}
YAMLS = {"full_finetuning": "full", "half_shared_up": "half_shared_adapters"}
SHARED_DOWN = ("--model.tuning.sharing=shared_down",)
# Configurations of the published counts that no YAML is for: the YAML that comes nearest, and what differs.
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "frozen_lm_visual_only": ("single_adapter", ("--model.tuning=VisualEmbeddingOnly",)),
    "half_shared_down": ("half_shared_adapters", SHARED_DOWN),
    "half_shared_up": ("half_shared_adapters", ()),
    "hyperformer_efficient_unique_hyper_net_dim8": ("hyperformer", ("--model.tuning.efficient=true",)),
    "single_adapter_no_layer_norms": ("single_adapter", ("--model.tuning.layer_norms=false",)),
    "single_adapter_plus_multiple_prompts40": ("adapter_and_prompts", ()),
    "single_compacter_defaults_r16": (
        "single_compacter",
        (
            "--model.tuning.reduction_factor=16",
            "--model.tuning.division=4",
            "--model.tuning.rank=1",
            "--model.tuning.rule=model",
        ),
    ),
}


def published_on_t5(yaml: str, options: tuple[str, ...]) -> tuple[str, ...]:
    """What the published code does on T5 instead of what it says: no norm is unfrozen, and there is no LoRA."""
    if yaml == "adapter_and_prompts":
        strategies = [
            {"class_path": "Adapter", "init_args": {"layer_norms": False}},
            {"class_path": "PromptTuning", "init_args": {"sharing": "multiple"}},
        ]
        return (f"--model.tuning.strategies={json.dumps(strategies)}",)
    if yaml == "full" or "VisualEmbeddingOnly" in "".join(options):
        return options
    lora = ("--model.tuning.roles=[]", "--model.tuning.position_bias=true") if "lora" in yaml else ()
    return (*options, "--model.tuning.layer_norms=false", *lora)


@pytest.fixture(scope="module")
def folders(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shape and real tokenizer of both backbones."""
    made = {}
    for name, config in SHAPES.items():
        made[name] = tmp_path_factory.mktemp(name)
        config.save_pretrained(made[name])
        for file in (shared / "tokenizers" / name).iterdir():
            shutil.copy(file, made[name])
    return made


def count(folder: Path, t5: bool, modality: str, yaml: str, options: tuple[str, ...]) -> list[str]:
    base = ["base", f"{modality}/base", *([f"{modality}/t5"] if t5 else []), f"{modality}/{yaml}"]
    configs = [part for name in base for part in ("--config", str(EXPERIMENTS / f"{name}.yaml"))]
    features = "2048" if modality == "image" else "512"
    place = ["--model.backbone.init_args.pretrained", str(folder)]
    return ["params", "--json", "--feature-dim", features, *configs, *place, *options]


@pytest.fixture(scope="module")
def records(shared: Path) -> list[dict[str, Any]]:
    """The published counts."""
    found: list[dict[str, Any]] = json.loads((shared / "reference/param_counts.json").read_text())
    return found


def test_every_published_count(
    records: list[dict[str, Any]], folders: dict[str, Path], capsys: pytest.CaptureFixture[str], subtests: Any
) -> None:
    assert len(records) >= 42
    for record in records:
        name, t5 = record["name"], record["backbone"] == "t5-base"
        yaml, options = VARIANTS.get(name, (YAMLS.get(Path(name).stem, Path(name).stem), ()))
        if t5:
            options = published_on_t5(yaml, options)
        folder = folders["t5-base" if t5 else "bart-base"]
        with subtests.test(name=name, backbone=record["backbone"]):
            assert main(count(folder, t5, record["modality"], yaml, options)) == 0
            parts = json.loads(capsys.readouterr().out)
            assert parts["total"] == {"total": record["total"], "trainable": record["trainable"]}


def test_the_default_on_t5_is_what_is_meant(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """Norms train where they train on BART, and LoRA is there."""
    assert main(count(folders["t5-base"], True, "image", "single_adapter", ())) == 0
    assert json.loads(capsys.readouterr().out)["layer norms"] == {"total": 47_616, "trainable": 47_616}
    assert main(count(folders["t5-base"], True, "image", "single_lora", ())) == 0
    sites = 12 * 2 + 12 * 2 * 2  # q and v of each attention
    assert json.loads(capsys.readouterr().out)["tuning strategy"]["trainable"] == sites * 2 * 768 * 128


def test_table(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = count(folders["bart-base"], False, "image", "single_adapter", ())
    arguments.remove("--json")
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "VLBart, Adapter, 4 tasks" in shown and "6,081,600" in shown and "4.18%" in shown
