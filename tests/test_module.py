from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, Strategy
from torch import Tensor, nn

from vl_peft.backbones import VLBart
from vl_peft.batch import Batch, Example, Generation, Task
from vl_peft.errors import ConfigError
from vl_peft.module import VLModule, decays, warmup_then_linear
from vl_peft.sharding import Sharded, share_out
from vl_peft.tuning import FullFineTuning, Hyperformer, Route
from vl_peft.tuning.base import Tunable, Tuning
from vl_peft.zero import Zero

TASKS = {
    "vqa": Task("vqa", generation=Generation(num_beams=5)),
    "caption": Task("caption", reduction="token"),
    "nlvr": Task("nlvr", candidates=("true", "false")),
}
LOSSES = torch.tensor([[2.0, 4.0, 0.0], [3.0, 6.0, 9.0], [0.0, 0.0, 0.0]])
LABELS = torch.tensor([[5, 2, -100], [5, 6, 2], [-100, -100, -100]])
WEIGHTS = torch.tensor([0.3, 1.0, 1.0])


class Stub(nn.Module):
    """A backbone with given losses: those of the rows of ``LOSSES`` that the ids name, times ``scale``."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.linear, self.norm, self.visual_embedding = nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(2, 2)
        self.route = Route(["any"])

    def sites(self) -> Iterator[Any]:
        return iter(())

    def language_norms(self) -> Iterator[nn.Module]:
        yield self.norm

    def forward(self, batch: Batch) -> Tensor:
        return self.scale * LOSSES[[int(key[1:]) for key in batch.ids]]

    def generate(self, batch: Batch, generation: Generation) -> list[str]:
        return [f"{generation.num_beams} beams"] * len(batch)

    def choose(self, batch: Batch, candidates: Sequence[str]) -> list[str]:
        return [" or ".join(candidates)] * len(batch)


class NormsOnly(Tuning):
    """Adds nothing; norms and visual embedding train."""

    def extend(self, backbone: Tunable) -> None:
        """Nothing to add."""


class StubTrainer:
    """What the module asks of its trainer."""

    def __init__(self, **facts: Any) -> None:
        facts = {"precision": "bf16-mixed", "estimated_stepping_batches": 100, "current_epoch": 0} | facts
        vars(self).update(facts, global_rank=facts.get("global_rank", 0))


def module(tuning: Tuning | None = None, **options: Any) -> VLModule:
    torch.manual_seed(0)
    return VLModule(Stub(), tuning or FullFineTuning(), TASKS, **options)  # type: ignore[arg-type]


def batch(task: str, labels: Tensor = LABELS, rows: Sequence[int] = (0, 1, 2)) -> Batch:
    nothing = torch.zeros(len(rows), 1)
    examples = [Example(f"q{i}", "", (), references=(f"answer {i}",), meta={"type": i}) for i in rows]
    ids, picked = [e.id for e in examples], list(rows)
    return Batch(task, ids, *[nothing] * 7, labels=labels[picked], weights=WEIGHTS[picked], examples=examples)


# -- the loss -------------------------------------------------------------------------------------------------------


def test_sequence_loss_is_the_weighted_mean_over_examples() -> None:
    # Means 3, 6 and none; the weights scale each, the number of examples divides, also for one without labels.
    assert module().loss(batch("vqa")).item() == pytest.approx((0.3 * 3 + 1.0 * 6 + 0) / 3)


def test_token_loss_is_the_mean_over_all_tokens() -> None:
    assert module().loss(batch("caption")).item() == pytest.approx((2 + 4 + 3 + 6 + 9) / 5)


@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_a_batch_without_any_label_has_no_loss(task: str) -> None:
    model = module()
    model.backbone.scale.data.zero_()
    assert model.loss(batch(task, labels=torch.full((3, 3), -100))).item() == 0


@pytest.mark.parametrize(("task", "counts"), [("vqa", (1, 2)), ("caption", (2, 3))])
def test_processes_average_to_the_loss_of_the_global_batch(task: str, counts: tuple[int, int]) -> None:
    model, seen = module(), []

    def reduce(count: Tensor, reduce_op: str) -> Tensor:
        assert reduce_op == "mean"
        seen.append(count.item())
        return torch.tensor(sum(counts) / 2)

    parts = []
    for rows in ((0,), (1, 2)):
        trainer = StubTrainer(world_size=2, strategy=SimpleNamespace(reduce=reduce))
        model._trainer = trainer  # type: ignore[assignment]
        parts.append(model.loss(batch(task, rows=rows)).item())
    assert tuple(seen) == counts
    assert sum(parts) / 2 == pytest.approx(module().loss(batch(task)).item())


def test_the_loss_reaches_the_backbone() -> None:
    model = module()
    model.loss(batch("vqa")).backward()
    assert model.backbone.scale.grad.item() == pytest.approx(2.3)


# -- the optimizer --------------------------------------------------------------------------------------------------


def test_warmup_then_linear() -> None:
    assert [warmup_then_linear(step, 4, 12) for step in (0, 1, 4, 8, 12, 13)] == [0, 0.25, 1, 0.5, 0, 0]
    assert [warmup_then_linear(step, 0, 4) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert warmup_then_linear(1, 1, 1) == 0


def test_which_parameters_decay() -> None:
    matrix, vector = torch.zeros(2, 2), torch.zeros(2)
    table = {
        ("linear.weight", matrix): (True, True),
        ("linear.bias", vector): (False, False),
        ("norm.weight", vector): (False, True),  # the published code decays the weights of norms
        ("relative_attention_bias.weight", matrix): (True, False),
    }
    for (name, tensor), (matrices, all_but_bias) in table.items():
        assert decays(name, tensor, "matrices") is matrices
        assert decays(name, tensor, "all_but_bias") is all_but_bias


@pytest.mark.parametrize("decay", ["matrices", "all_but_bias"])
def test_the_optimizer_holds_what_trains_in_two_groups(decay: str) -> None:
    model = module(NormsOnly(), lr=0.02, weight_decay=0.1, decay=decay, betas=(0.8, 0.9), eps=1e-5)
    model._trainer = StubTrainer()  # type: ignore[assignment]
    optimizer = model.configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]
    names = {id(p): name.removeprefix("backbone.") for name, p in model.named_parameters()}
    groups = {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}
    decayed = {"visual_embedding.weight"} | ({"norm.weight"} if decay == "all_but_bias" else set())
    spared = {"norm.weight", "norm.bias", "visual_embedding.bias"} - decayed
    assert groups == {0.1: decayed, 0.0: spared}
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.8, 0.9), 1e-5)


def test_the_learning_rate_of_each_step() -> None:
    model = module(lr=0.02, warmup=0.25)
    model._trainer = StubTrainer(estimated_stepping_batches=8)  # type: ignore[assignment]
    plan = model.configure_optimizers()
    optimizer, scheduler = plan["optimizer"], plan["lr_scheduler"]["scheduler"]  # type: ignore[index, call-overload]
    assert plan["lr_scheduler"]["interval"] == "step"  # type: ignore[index, call-overload]
    rates = []
    for _ in range(9):
        rates.append(optimizer.param_groups[0]["lr"] / 0.02)
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])


@pytest.mark.parametrize(
    ("scaling", "batch", "factor"),
    [
        ("none", "per_process", 1),
        ("linear", "per_process", 8),
        ("sqrt", "per_process", 8**0.5),
        ("linear", "global", 2),
    ],
)
def test_the_learning_rate_grows_with_the_batch_where_that_is_asked_for(
    scaling: str, batch: str, factor: float
) -> None:
    """Four processes, two batches accumulated."""
    data = SimpleNamespace(loading=SimpleNamespace(batch=batch))
    model = module(lr=0.02, lr_scaling=scaling, warmup=0.0)
    model._trainer = StubTrainer(world_size=4, accumulate_grad_batches=2, datamodule=data)  # type: ignore[assignment]
    optimizer = model.configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02 * factor] * 2)


@pytest.mark.parametrize("warmup", [-0.1, 1.0, math.nan])
def test_warmup_out_of_range(warmup: float) -> None:
    with pytest.raises(ConfigError, match=r"model\.warmup is a share of all steps"):
        module(warmup=warmup)


# None of DeepSpeed's can be made without it.
@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (FSDPStrategy(), r"its checkpoints are others; take experiments/sharded\.yaml"),
        (DeepSpeedStrategy.__new__(DeepSpeedStrategy), r"its checkpoints are others; take experiments/zero\.yaml"),
        (Zero.__new__(Zero), "would update tasks' own parts in other tasks' steps; take ddp"),
    ],
)
def test_strategies_that_are_refused(strategy: Strategy, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = module()
    monkeypatch.setattr(VLModule, "_tasks_own_parts", True)
    model._trainer = StubTrainer(strategy=strategy)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=said):
        model.setup("fit")


def test_weights_of_another_configuration_are_refused_before_they_are_shared_out(tmp_path: Path) -> None:
    strategy, file = Sharded(), tmp_path / "last.ckpt"
    strategy._lightning_module = module()
    torch.save({"state_dict": {"other": torch.zeros(2)}, "loops": {}}, file)
    with pytest.raises(ConfigError, match=r"of another configuration: .* differ"):
        strategy.load_checkpoint(file)


def test_parameters_that_layers_share_cannot_be_shared_out() -> None:
    backbone = VLBart("demo")
    Hyperformer().attach(backbone, ["a", "b"])
    with pytest.raises(ConfigError, match=r"several layers share 'lm\..*take ddp"):
        share_out(backbone, None)  # type: ignore[arg-type]


def test_half_precision_is_refused() -> None:
    model = module()
    model._trainer = StubTrainer(precision="16-mixed")  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="use bf16-mixed"):
        model.configure_optimizers()


@pytest.mark.parametrize(("limit", "after"), [(None, 13.0), (0.0, 13.0), (26.0, 13.0), (2.6, 2.6)])
def test_clipping(limit: float | None, after: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, logged = module(), {}
    model._trainer = StubTrainer(strategy=None)  # type: ignore[assignment]
    monkeypatch.setattr(model, "log", logged.__setitem__)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    model.backbone.scale.grad = torch.tensor([5.0])
    model.backbone.norm.bias.grad = torch.tensor([0.0, 12.0, 0.0])
    model.configure_gradient_clipping(optimizer, limit, "norm")
    assert logged["train/grad_norm"].item() == pytest.approx(13)
    assert model.backbone.scale.grad.item() == pytest.approx(5 * after / 13, rel=1e-5)
    assert model.backbone.norm.bias.grad.tolist() == pytest.approx([0, 12 * after / 13, 0], rel=1e-5)
    with pytest.raises(ConfigError, match="gradient_clip_algorithm must be norm, not value"):
        model.configure_gradient_clipping(optimizer, 1.0, "value")


def test_dropout_is_a_function_of_seed_epoch_step_and_process() -> None:
    def noise(seed: int = 0, epoch: int = 0, step: int = 0, rank: int = 0) -> float:
        model = module()
        data = SimpleNamespace(loading=SimpleNamespace(seed=seed))
        model._trainer = StubTrainer(datamodule=data, current_epoch=epoch, global_rank=rank)  # type: ignore[assignment]
        model.on_train_batch_start(batch("vqa"), step)
        return torch.rand(1).item()

    assert noise() == noise()
    places = [noise(), noise(seed=1), noise(epoch=1), noise(step=1), noise(rank=1), noise(step=1, rank=1)]
    assert len(set(places)) == len(places)


# -- answers --------------------------------------------------------------------------------------------------------


def test_answers_are_generated_or_chosen() -> None:
    model = module()
    assert model.answer(batch("vqa")) == ["5 beams"] * 3
    assert model.answer(batch("nlvr")) == ["true or false"] * 3


class StubMetric:
    """Notes what it gets."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def update(self, *columns: list[Any]) -> None:
        self.seen += zip(*columns, strict=True)

    def compute(self) -> dict[str, float]:
        return {"n": float(len(self.seen))}


@pytest.mark.parametrize(("stage", "hook"), [("val", "validation"), ("test", "test")])
def test_every_benchmark_has_scores_of_its_own(stage: str, hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, logged = module(), {}
    model._trainer = StubTrainer(strategy=None)  # type: ignore[assignment]
    benchmarks = {name: SimpleNamespace(metric=StubMetric) for name in ("vqa", "nlvr")}
    model._trainer = StubTrainer(  # type: ignore[assignment]
        datamodule=SimpleNamespace(benchmarks=benchmarks),
        state=SimpleNamespace(fn="test" if stage == "test" else "fit"),
    )
    monkeypatch.setattr(model, "log_dict", logged.update)
    for _ in range(2):  # the second evaluation begins from nothing
        getattr(model, f"on_{hook}_epoch_start")()
        getattr(model, f"{hook}_step")(batch("vqa"), 0)
        getattr(model, f"{hook}_step")(batch("nlvr"), 0, 1)
        getattr(model, f"{hook}_step")(batch("nlvr"), 1, 1)
        getattr(model, f"on_{hook}_epoch_end")()
    assert logged == {f"{stage}/vqa/n": 3, f"{stage}/nlvr/n": 6}
    assert [metric.thorough for metric in model.metrics.values()] == [stage == "test"] * 2
    assert model.metrics["vqa"].seen[1] == ("q1", "5 beams", ("answer 1",), {"type": 1})  # type: ignore[attr-defined]


# -- checkpoints ----------------------------------------------------------------------------------------------------


def saved(model: VLModule) -> dict[str, Any]:
    checkpoint = {"state_dict": dict(model.state_dict())}
    model.on_save_checkpoint(checkpoint)
    return checkpoint


def test_a_checkpoint_holds_what_trains_and_restores_it() -> None:
    model, fresh = module(NormsOnly()), module(NormsOnly())
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    checkpoint = saved(model)
    assert set(checkpoint["state_dict"]) == {
        f"backbone.{part}.{kind}" for part in ("norm", "visual_embedding") for kind in ("weight", "bias")
    }
    fresh.on_load_checkpoint(checkpoint)
    fresh.load_state_dict(checkpoint["state_dict"], strict=fresh.strict_loading)
    assert fresh.backbone.norm.weight.eq(0.5).all()
    assert not fresh.backbone.linear.weight.eq(0.5).any()


def test_a_checkpoint_of_another_configuration_is_refused() -> None:
    norms, full = module(NormsOnly()), module()
    with pytest.raises(ConfigError, match=r"3 of its trained parameters differ .*'backbone\.linear\.bias'"):
        full.on_load_checkpoint(saved(norms))
    with pytest.raises(ConfigError, match=r"3 of its trained parameters differ .*'backbone\.linear\.bias'"):
        norms.on_load_checkpoint(saved(full))
    other = saved(norms)
    other["state_dict"]["backbone.visual_embedding.weight"] = torch.zeros(2, 9)
    with pytest.raises(ConfigError, match=r"1 of .*visual_embedding\.weight' \(checkpoint .*2, 9.*, model .*2, 2"):
        norms.on_load_checkpoint(other)
    norms.on_load_checkpoint(saved(norms))
