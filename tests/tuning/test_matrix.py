"""What every strategy does on every backbone."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from strategies import STRATEGIES, TASKS, padded
from torch import Tensor

from vl_peft import tuning
from vl_peft.backbones import VLT5, Backbone, VLBart
from vl_peft.batch import Batch, Generation
from vl_peft.errors import ConfigError
from vl_peft.tuning.base import trainable

PER_TASK = [
    "adapters",
    "half_shared",
    "compacter",
    "low_rank",
    "hyperformer",
    "loras",
    "prompts",
    "ladders",
    "ia3s",
    "dora",
    "head",
    "combined",
]
MakeModel = Callable[..., Backbone]
strategies = pytest.mark.parametrize("strategy", STRATEGIES)
backbones = pytest.mark.parametrize("kind", [VLBart, VLT5])


@pytest.fixture(scope="module")
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """``make(kind, strategy, **options)``: a tiny tuned backbone with strong random weights."""
    folders: dict[type[Backbone], str] = {}

    def build(kind: type[Backbone], strategy: str, **options: Any) -> Backbone:
        if kind not in folders:
            write = request.getfixturevalue("write_bart" if kind is VLBart else "write_t5")
            folders[kind] = str(write(tmp_path_factory.mktemp(kind.__name__)))
        backbone = kind(folders[kind], feature_dim=8, random_init=True, **options)
        STRATEGIES[strategy]().attach(backbone, TASKS)
        request.getfixturevalue("redraw")(backbone, std=0.3)
        return backbone.double()

    return build


def mixed(batches: list[Batch], order: list[tuple[int, int]]) -> Batch:
    """One batch of the rows ``(batch, row)``."""

    def join(name: str) -> Tensor:
        return torch.stack([getattr(batches[i], name)[row] for i, row in order])

    names = (
        "input_ids",
        "attention_mask",
        "visual",
        "visual_mask",
        "image_index",
        "object_index",
        "boxes",
        "labels",
        "weights",
    )
    return replace(
        batches[0],
        task="a+b+c",
        ids=[batches[i].ids[row] for i, row in order],
        row_tasks=tuple(batches[i].task for i, _ in order),
        **{name: join(name) for name in names},
    )


ORDERS = {
    "sorted": [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)],
    "shuffled": [(2, 1), (0, 0), (1, 2), (0, 1), (2, 0)],
}


@pytest.mark.parametrize("order", ORDERS)
@backbones
@strategies
def test_rows_of_mixed_tasks_are_as_by_themselves(
    make: MakeModel, make_batch: Callable[..., Batch], strategy: str, kind: type[Backbone], order: str
) -> None:
    backbone, batches = make(kind, strategy), [padded(make_batch(t, seed=i)) for i, t in enumerate(TASKS)]
    rows = ORDERS[order]
    together = backbone(mixed(batches, rows))
    apart = [backbone(batch) for batch in batches]
    torch.testing.assert_close(together, torch.stack([apart[i][row] for i, row in rows]), rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad(together.sum(), list(trainable(backbone).values()), allow_unused=True)
    total = sum(apart[i][row].sum() for i, row in rows)
    wanted = torch.autograd.grad(total, list(trainable(backbone).values()), allow_unused=True)
    for name, one, other in zip(trainable(backbone), gradients, wanted, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("beams", [1, 3])
@backbones
@strategies
def test_generation_of_mixed_tasks_is_as_by_themselves(
    make: MakeModel, make_batch: Callable[..., Batch], strategy: str, kind: type[Backbone], beams: int
) -> None:
    backbone, batches = make(kind, strategy).eval(), [padded(make_batch(t, seed=i)) for i, t in enumerate(TASKS)]
    rows, generation = ORDERS["shuffled"], Generation(num_beams=beams, max_length=6)
    apart = [backbone.generate(batch, generation) for batch in batches]
    assert backbone.generate(mixed(batches, rows), generation) == [apart[i][row] for i, row in rows]
    candidates = ["w5", "w9", "w30"]
    chosen = [backbone.choose(batch, candidates) for batch in batches]
    assert backbone.choose(mixed(batches, rows), candidates) == [chosen[i][row] for i, row in rows]


@backbones
@pytest.mark.parametrize("strategy", PER_TASK)
def test_tasks_differ(make: MakeModel, make_batch: Callable[..., Batch], strategy: str, kind: type[Backbone]) -> None:
    backbone, batch = make(kind, strategy), padded(make_batch("a"))
    one, other = backbone(batch), backbone(replace(batch, task="b"))
    assert ((one - other).abs() > 1e-3).all()
    with pytest.raises(ConfigError, match="Unknown task 'z'"):
        backbone(replace(batch, task="z"))


@backbones
@strategies
def test_only_what_is_declared_trains(
    make: MakeModel, make_batch: Callable[..., Batch], strategy: str, kind: type[Backbone]
) -> None:
    """Three steps lower the loss and leave every other tensor bit-identical."""
    backbone, batch = make(kind, strategy), padded(make_batch("a"))
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    names = set(trainable(backbone))
    frozen = {id(p) for p in backbone.parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD(trainable(backbone).values(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = backbone(batch).sum()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert {id(p) for p in backbone.parameters() if not p.requires_grad} == frozen
    changed = {name for name, tensor in backbone.state_dict().items() if not torch.equal(tensor, before[name])}
    aliases = {id(p): name for name, p in trainable(backbone).items()}
    same = {name: aliases.get(id(p)) for name, p in backbone.named_parameters(remove_duplicate=False)}
    assert changed and {same.get(name) for name in changed} <= names


@backbones
@strategies
def test_gradient_checkpointing_changes_nothing(
    make: MakeModel, make_batch: Callable[..., Batch], strategy: str, kind: type[Backbone]
) -> None:
    plain, other = make(kind, strategy).train(), make(kind, strategy, gradient_checkpointing=True).train()
    batches = [padded(make_batch(t, seed=i)) for i, t in enumerate(TASKS)]
    gradients = []
    for backbone in (plain, other):
        loss = backbone(mixed(batches, ORDERS["sorted"])).sum()
        loss.backward()
        gradients.append({name: p.grad for name, p in trainable(backbone).items()} | {"loss": loss.detach()})
    for name, wanted in gradients[0].items():
        if wanted is None:
            assert gradients[1][name] is None, name
        else:
            torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@backbones
@pytest.mark.parametrize("strategy", ["adapters", "hyperformer", "loras", "prompts"])
def test_compilation_changes_nothing(
    make: MakeModel, make_batch: Callable[..., Batch], strategy: str, kind: type[Backbone]
) -> None:
    plain, compiled = make(kind, strategy), make(kind, strategy)
    torch._dynamo.reset()
    compiled.compile(backend="aot_eager")
    for seed, task in enumerate(TASKS):
        results = []
        for backbone in (plain, compiled):
            loss = backbone(padded(make_batch(task, seed=seed))).sum()
            loss.backward()
            results.append({"loss": loss.detach()} | {n: p.grad for n, p in trainable(backbone).items()})
            backbone.zero_grad()
        for name, wanted in results[0].items():
            assert (wanted is None) == (results[1][name] is None), name
            if wanted is not None:
                torch.testing.assert_close(results[1][name], wanted, rtol=1e-8, atol=1e-10, msg=name)


@backbones
@strategies
def test_a_copy_owns_its_parameters(
    make: MakeModel, make_batch: Callable[..., Batch], strategy: str, kind: type[Backbone]
) -> None:
    backbone, batch = make(kind, strategy), padded(make_batch("b"))
    twin, wanted = copy.deepcopy(backbone), backbone(batch)
    assert torch.equal(twin(batch), wanted)
    for parameter in trainable(backbone).values():
        parameter.data.add_(1.0)
    assert torch.equal(twin(batch), wanted) and not torch.equal(backbone(batch), wanted)


@pytest.mark.parametrize(
    ("method", "message"),
    [("PrefixTuningConfig", "PrefixTuningConfig cannot be used here"), ("Nonsense", "peft has no 'Nonsense'")],
)
def test_methods_of_the_library_that_change_no_linears(
    make_bart: Callable[..., VLBart], method: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tuning.LibraryTuning(method).attach(make_bart(), TASKS)


@backbones
def test_no_gradient_goes_through_the_backbone_beside_a_ladder(
    make: MakeModel, make_batch: Callable[..., Batch], kind: type[Backbone]
) -> None:
    backbone, seen = make(kind, "ladder").train(), []
    for site in backbone.sites():
        site.linear.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    backbone(padded(make_batch())).sum().backward()
    assert len(seen) >= len(list(backbone.sites())) and not any(seen)
    assert all(p.grad is not None for p in trainable(backbone).values())


@pytest.mark.parametrize("kind", [tuning.Hyperformer, tuning.LadderSideTuning, tuning.LMHeadAdapter, tuning.Compacter])
def test_reduction_factor_below_one(kind: Any) -> None:
    with pytest.raises(ConfigError, match="reduction_factor must be at least 1, not 0"):
        kind(reduction_factor=0)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((tuning.Adapter, tuning.Hyperformer), "Two tuning strategies want the same site: encoder layer 0, self out"),
        ((tuning.PromptTuning, tuning.PromptTuning), "Two tuning strategies want the encoder prompt"),
    ],
)
def test_strategies_that_collide(make_bart: Callable[..., VLBart], pair: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tuning.Combined([kind() for kind in pair]).attach(make_bart(), TASKS)


def test_gradients_of_two_processes_are_those_of_one(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The published code does not synchronise them at all (FACTS, bug 3)."""
    folders = [
        (kind, str(request.getfixturevalue(write)(tmp_path / kind)))
        for kind, write in (("VLBart", "write_bart"), ("VLT5", "write_t5"))
    ]
    (tmp_path / "models.json").write_text(json.dumps(folders))
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, str(script), str(tmp_path / "rendezvous"), str(tmp_path / "models.json")]
    running = [
        subprocess.Popen(
            command,
            env={**os.environ, "RANK": str(rank), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        out, error = process.communicate(timeout=600)
        assert process.returncode == 0, error[-3000:]
        assert out.strip().endswith(f"{2 * len(STRATEGIES)} models")
