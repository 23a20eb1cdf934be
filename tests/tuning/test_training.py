"""Every strategy on both backbones is trained on the demo corpus by the Trainer, saved, and loaded again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from strategies import STRATEGIES
from transformers import T5Config

from datamodules import TVC, TVQA, MultiTask
from vl_peft.backbones import VLT5, Backbone, VLBart
from vl_peft.checkpoint import load_adapters, save_adapters
from vl_peft.module import VLModule
from vl_peft.tuning.base import trainable

STEPS = 16


@pytest.fixture(scope="module")
def data(demo_root: Path) -> MultiTask:
    """Two tasks of the demo corpus."""
    benchmarks = {"tvqa": TVQA(batch_size=6), "tvc": TVC(batch_size=6, max_target=40)}
    return MultiTask(benchmarks, root=str(demo_root), steps_per_epoch=STEPS, temperature=float("inf"))


@pytest.fixture(scope="module")
def make(data: MultiTask, tmp_path_factory: pytest.TempPathFactory) -> Callable[[type[Backbone]], Backbone]:
    """The demo VL-BART, and a tiny VL-T5 with its tokenizer and always the same random weights."""
    folder = tmp_path_factory.mktemp("t5")
    demo = VLBart("demo")
    ids = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    T5Config(
        vocab_size=len(demo.tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, **ids
    ).save_pretrained(folder)
    demo.tokenizer.hf.save_pretrained(folder)
    torch.manual_seed(0)
    VLT5(str(folder), data.feature_dim, random_init=True).save_pretrained(folder)
    return lambda kind: VLBart("demo") if kind is VLBart else VLT5(str(folder))


@pytest.mark.parametrize("kind", [VLBart, VLT5])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_trains_on_the_demo_corpus(
    data: MultiTask, make: Callable[[type[Backbone]], Backbone], strategy: str, kind: type[Backbone], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    backbone = make(kind)
    module = VLModule(backbone, STRATEGIES[strategy](), dict(data.tasks), lr=3e-3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(4), strict=False)]

    def losses() -> float:
        with torch.no_grad():
            return sum(module.eval().loss(batch).item() for batch in batches)

    first, options = losses(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        limit_val_batches=0,
        gradient_clip_val=5.0,
        default_root_dir=tmp_path,
        enable_model_summary=False,
        **options,  # type: ignore[arg-type]
    )
    trainer.fit(module.train(), datamodule=data)
    assert losses() < first

    names, state = set(trainable(module)), module.state_dict()
    assert all(
        torch.equal(state[name], tensor) for name, tensor in before.items() if name not in all_names(module, names)
    )
    tensors = {name: p.data for name, p in trainable(backbone).items()}
    description = {"backbone": {"class_path": "-"}, "tuning": {"class_path": "-"}, "tasks": list(data.tasks)}
    folder = save_adapters(description, tensors, tmp_path / "adapters")
    fresh = make(kind)
    STRATEGIES[strategy]().attach(fresh, list(data.tasks))
    load_adapters(folder, fresh).eval()
    with torch.no_grad():
        assert all(torch.equal(fresh(batch), backbone(batch)) for batch in batches)


def all_names(module: VLModule, names: set[str]) -> set[str]:
    """Names of what trains, also those under which it stands a second time."""
    trained = {id(p) for p in trainable(module).values()}
    everything: Any = module.named_parameters(remove_duplicate=False)
    return names | {name for name, p in everything if id(p) in trained}
