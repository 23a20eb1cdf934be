from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vl_peft.backbones import VLBart
from vl_peft.batch import Batch
from vl_peft.errors import ConfigError
from vl_peft.parameters import count_parts
from vl_peft.tuning import Adapter, FullFineTuning, Route, Sharing, Tuning
from vl_peft.tuning.adapter import AdapterDelta
from vl_peft.tuning.base import trainable

SITES = 2 * 2 + 2 * 3  # two encoder layers with self and ff, two decoder layers with cross as well
DIM, BOTTLENECK = 32, 4
DOWN, UP = DIM * BOTTLENECK + BOTTLENECK, BOTTLENECK * DIM + DIM
TASKS = ["a", "b", "c"]

MakeBart = Callable[..., VLBart]
MakeBatch = Callable[..., Batch]
sharings = pytest.mark.parametrize("sharing", ["single", "multiple", "shared_down", "shared_up"])


def tuned(make_bart: MakeBart, tuning: Tuning, std: float = 0.25) -> VLBart:
    """A backbone with deltas that make a difference."""
    bart = make_bart()
    tuning.attach(bart, TASKS)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in bart.named_parameters():
        if ".delta." in name:
            parameter.data.normal_(std=std, generator=generator)
    return bart


def parts(bart: VLBart, owner: str) -> dict[str, nn.Parameter]:
    return {name: p for name, p in bart.named_parameters() if f".parts.{owner}." in name}


@torch.no_grad()
def losses(bart: VLBart, batch: Batch) -> Tensor:
    out: Tensor = bart(batch)
    return out


# -- the bottleneck -------------------------------------------------------------------------------------------------


def test_the_bottleneck_by_its_formula() -> None:
    down, up = nn.Linear(2, 1), nn.Linear(1, 2)
    delta = AdapterDelta(down, up, nn.GELU(approximate="tanh"), None, None)
    values = {down.weight: [[2.0, -1.0]], down.bias: [0.5], up.weight: [[3.0], [-1.0]], up.bias: [0.25, 0.0]}
    for parameter, value in values.items():
        parameter.data = torch.tensor(value)
    hidden = 2 * 0.3 - 0.7 + 0.5
    # gelu by its tanh approximation; the exact one differs in the fourth digit.
    gelu = 0.5 * hidden * (1 + math.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    out = delta(torch.full((1, 1, 5), torch.nan), torch.tensor([[[0.3, 0.7]]]))
    torch.testing.assert_close(out, torch.tensor([[[0.3 + 3 * gelu + 0.25, 0.7 - gelu]]]), rtol=1e-6, atol=1e-6)


def test_weights_begin_small_and_biases_at_zero() -> None:
    torch.manual_seed(0)
    linears = nn.ModuleList([Adapter().linear_maker(768, 96)(), Adapter().linear_maker(96, 768)()])
    for name, parameter in linears.named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02)
            assert abs(parameter.mean().item()) < 0.0005


def test_an_adapter_without_up_weights_is_the_identity(make_bart: MakeBart, make_batch: MakeBatch) -> None:
    plain = make_bart()
    plain.route = Route(["a"])
    bart = tuned(make_bart, Adapter())
    assert (losses(bart, make_batch()) - losses(plain, make_batch())).abs().min() > 1e-3
    for name, parameter in bart.named_parameters():
        if ".delta.up." in name:
            nn.init.zeros_(parameter)
    torch.testing.assert_close(losses(bart, make_batch()), losses(plain, make_batch()), rtol=0, atol=0)


# -- sharing and routing --------------------------------------------------------------------------------------------


@sharings
def test_number_of_parameters(make_bart: MakeBart, sharing: Sharing) -> None:
    n_down = {"single": 1, "shared_down": 1}.get(sharing, len(TASKS))
    n_up = {"single": 1, "shared_up": 1}.get(sharing, len(TASKS))
    bart = tuned(make_bart, Adapter(8, sharing))
    deltas = sum(p.numel() for name, p in bart.named_parameters() if ".delta." in name)
    assert deltas == SITES * (n_down * DOWN + n_up * UP)
    norms = (2 + 2 * 2 + 2 * 3) * 2 * DIM
    visual = (8 + 1 + 2) * DIM + (5 + 1 + 2) * DIM + 2 * DIM
    assert sum(p.numel() for p in trainable(bart).values()) == deltas + norms + visual
    assert {part.name: part.trainable for part in count_parts(bart)} == {
        "token embedding": 0,
        "language model weights": 0,
        "layer norms": norms,
        "visual embedding": visual,
        "tuning strategy": deltas,
        "total": deltas + norms + visual,
    }
    assert count_parts(bart)[-1].total == sum(p.numel() for p in bart.parameters())


@sharings
def test_which_parts_tasks_share(make_bart: MakeBart, sharing: Sharing) -> None:
    bart = tuned(make_bart, Adapter(8, sharing))
    delta = bart.lm.model.decoder.layers[1].encoder_attn.out_proj.delta
    shared = {"single": {"down", "up"}, "multiple": set(), "shared_down": {"down"}, "shared_up": {"up"}}[sharing]
    for half in ("down", "up"):
        assert set(getattr(delta, half).parts) == ({"shared"} if half in shared else set(TASKS))
    assert {id(p) for p in delta.parameters()}.isdisjoint(
        id(p) for p in bart.lm.model.decoder.layers[0].encoder_attn.out_proj.delta.parameters()
    )


@pytest.mark.parametrize("sharing", ["multiple", "shared_down", "shared_up"])
def test_a_tasks_own_parts_concern_only_this_task(make_bart: MakeBart, make_batch: MakeBatch, sharing: Sharing) -> None:
    bart = tuned(make_bart, Adapter(8, sharing))
    before = {task: losses(bart, make_batch(task)) for task in TASKS}
    assert not before["a"].allclose(before["b"])
    for parameter in parts(bart, "b").values():
        parameter.data *= -1  # adding a number to all would be undone by the norm that follows
    after = {task: losses(bart, make_batch(task)) for task in TASKS}
    assert after["a"].equal(before["a"])
    assert after["c"].equal(before["c"])
    assert (after["b"] - before["b"]).abs().min() > 1e-3


@pytest.mark.parametrize("sharing", ["single", "shared_down", "shared_up"])
def test_shared_parts_concern_every_task(make_bart: MakeBart, make_batch: MakeBatch, sharing: Sharing) -> None:
    bart = tuned(make_bart, Adapter(8, sharing))
    before = {task: losses(bart, make_batch(task)) for task in TASKS}
    for parameter in parts(bart, "shared").values():
        parameter.data *= -1  # adding a number to all would be undone by the norm that follows
    for task in TASKS:
        assert (losses(bart, make_batch(task)) - before[task]).abs().min() > 1e-3


def test_a_single_adapter_does_not_tell_tasks_apart(make_bart: MakeBart, make_batch: MakeBatch) -> None:
    bart = tuned(make_bart, Adapter())
    assert losses(bart, make_batch("a")).equal(losses(bart, make_batch("b")))


@sharings
def test_gradients_reach_what_trains_and_the_batch_used(
    make_bart: MakeBart, make_batch: MakeBatch, sharing: Sharing
) -> None:
    bart = tuned(make_bart, Adapter(8, sharing))
    bart(make_batch("b")).sum().backward()
    others = parts(bart, "a") | parts(bart, "c")
    used = trainable(bart).keys() - others.keys()
    moved = {name for name, p in bart.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == used
    assert all(p.grad is None for p in others.values())
    assert all(p.grad is None for p in bart.parameters() if not p.requires_grad)


# -- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [("self",), ("cross",), ("ff",), ("self", "ff")])
def test_blocks(make_bart: MakeBart, blocks: tuple[str, ...]) -> None:
    bart = tuned(make_bart, Adapter(blocks=blocks))  # type: ignore[arg-type]
    places = {name.removesuffix(".delta") for name, _ in bart.named_modules() if name.endswith(".delta")}
    linears = {"self": "self_attn.out_proj", "cross": "encoder_attn.out_proj", "ff": "fc2"}
    assert places == {
        f"lm.model.{stack}.layers.{i}.{linears[block]}"
        for stack in ("encoder", "decoder")
        for i in range(2)
        for block in blocks
        if (stack, block) != ("encoder", "cross")
    }


@pytest.mark.parametrize("layer_norms", [True, False])
@pytest.mark.parametrize("visual_embedding", [True, False])
def test_norms_and_visual_embedding(make_bart: MakeBart, layer_norms: bool, visual_embedding: bool) -> None:
    bart = tuned(make_bart, Adapter(layer_norms=layer_norms, visual_embedding=visual_embedding))
    names = [name for name in trainable(bart) if ".delta." not in name]
    visual = [name for name in names if name.startswith("visual_embedding.")]
    norms = [name for name in names if "norm" in name]
    assert len(visual) == (9 if visual_embedding else 0)
    assert len(norms) == (24 if layer_norms else 0)
    assert len(names) == len(visual) + len(norms)


def test_two_strategies_on_one_site(make_bart: MakeBart) -> None:
    bart = tuned(make_bart, Adapter(blocks=("cross",)))
    with pytest.raises(ConfigError, match="Two tuning strategies want the same site: decoder layer 0, cross out"):
        Adapter().attach(bart, TASKS)


@pytest.mark.parametrize("factor", [0, -8])
def test_reduction_factor_below_one(factor: int) -> None:
    with pytest.raises(ConfigError, match=f"reduction_factor must be at least 1, not {factor}"):
        Adapter(factor)


def test_reduction_factor_without_units(make_bart: MakeBart) -> None:
    Adapter(DIM).attach(make_bart(), TASKS)
    with pytest.raises(ConfigError, match="reduction_factor 33 leaves no unit of 32"):
        Adapter(DIM + 1).attach(make_bart(), TASKS)


def test_full_fine_tuning(make_bart: MakeBart, make_batch: MakeBatch) -> None:
    bart = make_bart()
    FullFineTuning().attach(bart, TASKS)
    assert set(trainable(bart)) == {name for name, _ in bart.named_parameters()}
    bart(make_batch("c")).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in bart.parameters())
    adapter = make_bart()
    Adapter().attach(adapter, TASKS)
    FullFineTuning().attach(adapter, TASKS)
    assert len(trainable(adapter)) == len(list(adapter.parameters()))


# -- bart-base ------------------------------------------------------------------------------------------------------

COUNTED: dict[str, tuple[int, Callable[[], Tuning]]] = {
    "scripts/image/full_finetuning.sh": (2048, FullFineTuning),
    "scripts/video/full_finetuning.sh": (512, FullFineTuning),
    "scripts/image/single_adapter.sh": (2048, Adapter),
    "scripts/video/single_adapter.sh": (512, Adapter),
    "scripts/image/multiple_adapters.sh": (2048, lambda: Adapter(sharing="multiple")),
    "half_shared_up": (2048, lambda: Adapter(sharing="shared_up")),
    "half_shared_down": (2048, lambda: Adapter(sharing="shared_down")),
    "single_adapter_no_layer_norms": (2048, lambda: Adapter(layer_norms=False)),
    "frozen_lm_visual_only": (2048, lambda: Adapter(blocks=(), layer_norms=False)),
}
PARTS = {
    "token embedding": ("lm_embedding",),
    "language model weights": ("lm_weight", "lm_bias"),
    "layer norms": ("lm_layer_norm",),
    "visual embedding": ("visual_embedding",),
    "tuning strategy": ("adapter",),
}


@pytest.mark.parametrize("name", COUNTED)
def test_counts_of_bart_base(name: str, shared: Path, write_bart: Callable[..., Path], tmp_path: Path) -> None:
    records = json.loads((shared / "reference/param_counts.json").read_text())
    (wanted,) = (r for r in records if r["name"] == name and r["backbone"] in ("bart", "facebook/bart-base"))
    stacks = {f"{stack}_{k}": v for stack in ("encoder", "decoder") for k, v in BART_BASE.items()}
    folder = write_bart(tmp_path, vocab_size=50465, d_model=768, max_position_embeddings=1024, **stacks)
    feature_dim, tuning = COUNTED[name]
    with torch.device("meta"):
        bart = VLBart(str(folder), feature_dim=feature_dim, random_init=True)
        tuning().attach(bart, ["vqa", "gqa", "nlvr", "caption"])
    counts = {part.name: part for part in count_parts(bart)}
    assert counts["total"].total == wanted["total"]
    assert counts["total"].trainable == wanted["trainable"]
    for part, keys in PARTS.items():
        assert counts[part].trainable == sum(wanted["breakdown_trainable"].get(key, 0) for key in keys)


BART_BASE = {"layers": 6, "attention_heads": 12, "ffn_dim": 3072}
