"""What trained as a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vl_peft.backbones import Backbone
from vl_peft.batch import Batch
from vl_peft.checkpoint import add_task, build, fingerprint, load_adapters, merge, read_adapters, save_adapters
from vl_peft.errors import ConfigError, DataError
from vl_peft.tuning.base import trainable

TASKS = ["a", "b", "c"]
PROMPTS = {"length": 3, "decoder_length": 2, "hidden_dim": 5, "sharing": "multiple"}
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("FullFineTuning", {}),
    "visual": ("VisualEmbeddingOnly", {}),
    "bitfit": ("BitFit", {}),
    "adapter": ("Adapter", {}),
    "adapters": ("Adapter", {"sharing": "multiple", "norm_before": True}),
    "compacter": ("Compacter", {"rank": 1, "rule": "model", "division": 4}),
    "low_rank": ("LowRankAdapter", {"rank": 2, "sharing": "shared_down"}),
    "hyperformer": ("Hyperformer", {"embedding_dim": 6, "hidden_dim": 5}),
    "lora": ("LoRA", {"rank": 2, "alpha": 2}),
    "loras": ("LoRA", {"rank": 2, "alpha": 2, "sharing": "multiple"}),
    "prompts": ("PromptTuning", PROMPTS),
    "head": ("LMHeadAdapter", {"sharing": "multiple"}),
    "combined": (
        "Combined",
        {
            "strategies": [
                {"class_path": "vl_peft.tuning.Adapter", "init_args": {"sharing": "multiple"}},
                {"class_path": "vl_peft.tuning.PromptTuning", "init_args": PROMPTS},
            ]
        },
    ),
}
Describe = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def pretrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pretrained backbones with weights, of each kind."""
    folders = {}
    for kind, fixture in (("VLBart", "write_bart"), ("VLT5", "write_t5")):
        shape = request.getfixturevalue(fixture)(tmp_path_factory.mktemp(f"{kind}-shape"))
        description = {"class_path": f"vl_peft.backbones.{kind}", "init_args": {"pretrained": str(shape)}}
        tuning = {"class_path": "vl_peft.tuning.FullFineTuning"}
        backbone = build({"backbone": description, "tuning": tuning, "tasks": ["any"]}, random_init=True, feature_dim=8)
        request.getfixturevalue("redraw")(backbone)
        folders[kind] = tmp_path_factory.mktemp(kind)
        backbone.save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="module")
def describe(pretrained: dict[str, Path]) -> Describe:
    def make(strategy: str, kind: str = "VLBart", tasks: list[str] = TASKS) -> dict[str, Any]:
        name, arguments = STRATEGIES[strategy]
        return {
            "backbone": {
                "class_path": f"vl_peft.backbones.{kind}",
                "init_args": {"pretrained": str(pretrained[kind]), "feature_dim": 8},
            },
            "tuning": {"class_path": f"vl_peft.tuning.{name}", "init_args": arguments},
            "tasks": tasks,
        }

    return make


@pytest.fixture
def trained(describe: Describe, tmp_path: Path) -> Callable[..., tuple[Backbone, Path]]:
    """``trained(strategy, kind)``: a backbone whose trained parameters moved, and the folder they were saved to."""

    def make(strategy: str, kind: str = "VLBart") -> tuple[Backbone, Path]:
        description, generator = describe(strategy, kind), torch.Generator().manual_seed(1)
        backbone = build(description).eval()
        for parameter in trainable(backbone).values():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
        tensors = {name: p.data for name, p in trainable(backbone).items()}
        return backbone, save_adapters(
            {**description, "fingerprint": fingerprint(backbone)}, tensors, tmp_path / "adapters"
        )

    return make


@pytest.mark.parametrize("kind", ["VLBart", "VLT5"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@torch.no_grad()
def test_loaded_on_a_fresh_backbone_they_give_identical_outputs(
    trained: Any, make_batch: Callable[..., Batch], strategy: str, kind: str
) -> None:
    backbone, folder = trained(strategy, kind)
    fresh = load_adapters(folder).eval()
    for task in TASKS:
        batch = make_batch(task)
        assert torch.equal(fresh(batch), backbone(batch))
    size = (folder / "adapter_model.safetensors").stat().st_size
    assert size < 4.3 * sum(p.numel() for p in trainable(backbone).values()) + 50_000


@pytest.mark.parametrize("strategy", ["adapters", "low_rank", "hyperformer", "loras", "prompts", "head", "combined"])
def test_a_new_task_leaves_the_others_bit_identical(
    trained: Any, make_batch: Callable[..., Batch], strategy: str
) -> None:
    backbone, _ = trained(strategy)
    with torch.no_grad():
        before = [backbone(make_batch(task)) for task in TASKS]
    add_task(backbone, "new", like="b")
    batch = make_batch("b")
    assert torch.equal(backbone(replace(batch, task="new")), before[1])
    optimizer = torch.optim.AdamW(trainable(backbone).values(), lr=0.1)
    for _ in range(3):
        loss = backbone(replace(batch, task="new")).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert not torch.equal(backbone(replace(batch, task="new")), before[1])
        assert all(torch.equal(backbone(make_batch(t)), was) for t, was in zip(TASKS, before, strict=True))


@pytest.mark.parametrize(("task", "like"), [("a", "b"), ("new", "z")])
def test_names_of_a_new_task(trained: Any, task: str, like: str) -> None:
    with pytest.raises(ConfigError, match="the model has a, b, c"):
        add_task(trained("adapters")[0], task, like)


def test_a_shared_strategy_has_nothing_for_a_new_task(trained: Any) -> None:
    with pytest.raises(ConfigError, match="All tasks share everything"):
        add_task(trained("adapter")[0], "new", "a")


@torch.no_grad()
def test_merged_lora_is_the_same_model_without_deltas(trained: Any, make_batch: Callable[..., Batch]) -> None:
    backbone, _ = trained("lora")
    batch = make_batch()
    before = backbone(batch)
    assert merge(backbone) == 2 * 2 + 2 * 4
    assert not any(".delta." in name for name in backbone.state_dict())
    torch.testing.assert_close(backbone(batch), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", ["adapter", "loras", "prompts", "full"])
def test_others_cannot_be_merged(trained: Any, strategy: str) -> None:
    with pytest.raises(ConfigError, match="Only LoRA with sharing: single"):
        merge(trained(strategy)[0])


@pytest.mark.parametrize(
    ("other", "kind", "tasks", "message"),
    [
        ("adapters", "VLT5", TASKS, r"belongs to VLBart \(.*\) with Adapter: 'lm\.decoder.* is nothing of that name"),
        ("adapter", "VLBart", TASKS, r"with Adapter: .*before\.bias' is .* there and nothing of that name that trains"),
        ("adapters", "VLBart", ["a", "d"], "has no task 'd', only a, b, c"),
    ],
)
def test_another_model(trained: Any, describe: Describe, other: str, kind: str, tasks: list[str], message: str) -> None:
    _, folder = trained("adapters")
    with pytest.raises(ConfigError, match=message):
        load_adapters(folder, build(describe(other, kind, tasks)))


def test_another_backbone_of_the_same_shape(trained: Any, describe: Describe) -> None:
    _, folder = trained("adapter")
    other = build(describe("adapter"))
    next(other.sites()).linear.weight.data[0, 0] += 1e-3
    with pytest.raises(ConfigError, match="the frozen weights of this backbone are others"):
        load_adapters(folder, other)


def test_damaged_files(trained: Any, tmp_path: Path) -> None:
    _, folder = trained("adapter")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DataError, match="damaged"):
        read_adapters(folder)
    weights.unlink()
    with pytest.raises(DataError, match=r"no adapter_model\.safetensors"):
        read_adapters(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        read_adapters(folder)
    with pytest.raises(DataError, match=r"no adapter_config\.json"):
        read_adapters(tmp_path / "nowhere")


def test_the_description_is_readable(trained: Any) -> None:
    _, folder = trained("combined")
    description = json.loads((folder / "adapter_config.json").read_text())
    assert description["format"] == 1 and description["tasks"] == TASKS
    assert not list(folder.glob("*.tmp"))
