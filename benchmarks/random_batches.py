"""Image-text tasks of random words and features at real shapes, and VL-BART of bart-base's size, for benchmarks."""

from __future__ import annotations

import math
import tempfile
from types import SimpleNamespace

import torch
from lightning import LightningDataModule
from torch.utils.data import Dataset
from transformers import BartConfig

from vl_peft.backbones import VLBart
from vl_peft.batch import Batch, Task
from vl_peft.sampling import Draw, Schedule, TaskLoader, TaskSampler

# Visual tokens V, images, text tokens L and target tokens T of a row, as VL-Adapter's tasks have them.
SHAPES = {"vqa": (36, 1, 20, 3), "gqa": (36, 1, 20, 3), "nlvr": (72, 2, 30, 3), "caption": (36, 1, 8, 20)}
BASE = {"vocab_size": 50265, "d_model": 768, "layers": 6, "heads": 12, "ffn": 3072, "features": 2048}
TINY = {"vocab_size": 1200, "d_model": 64, "layers": 2, "heads": 4, "ffn": 128, "features": 128}


def random_bart(size: dict[str, int]) -> VLBart:
    """VL-BART with random weights and the demo backbone's tokenizer."""
    both = {
        f"{side}_{name}": size[key]
        for side in ("encoder", "decoder")
        for name, key in (("layers", "layers"), ("attention_heads", "heads"), ("ffn_dim", "ffn"))
    }
    with tempfile.TemporaryDirectory() as folder:
        BartConfig(vocab_size=size["vocab_size"], d_model=size["d_model"], **both).save_pretrained(folder)
        VLBart("demo").tokenizer.hf.save_pretrained(folder)
        return VLBart(folder, feature_dim=size["features"], random_init=True)


class RandomBatches(Dataset[Batch]):
    """Maps a draw to a batch: a function of its rows, so that a run can be repeated."""

    def __init__(self, features: int) -> None:
        self.features = features

    def __getitem__(self, draw: Draw) -> Batch:
        visual, images, text, target = SHAPES[draw.task]
        generator = torch.Generator().manual_seed(hash((draw.epoch, *draw.rows)))
        rows = len(draw.rows)
        words = torch.randint(4, 900, (rows, text + target), generator=generator)
        place = torch.arange(visual).expand(rows, visual)
        return Batch(
            task=draw.task,
            ids=[str(row) for row in draw.rows],
            input_ids=words[:, :text],
            attention_mask=torch.ones(rows, text, dtype=torch.long),
            visual=torch.randn(rows, visual, self.features, generator=generator),
            visual_mask=torch.ones(rows, visual, dtype=torch.long),
            image_index=place // (visual // images),
            object_index=place % (visual // images),
            boxes=torch.zeros(rows, visual, 4),
            labels=words[:, text:],
            weights=torch.ones(rows),
        )


class RandomTasks(LightningDataModule):
    """The four tasks, drawn by the sampler of real runs.

    Args:
        features: size F of the visual features.
        batch_size: rows per step and process.
        steps: of an epoch.
        num_workers: of the loader.
    """

    def __init__(self, features: int, batch_size: int, steps: int, num_workers: int = 2) -> None:
        super().__init__()
        self.features, self.batch_size, self.steps, self.num_workers = features, batch_size, steps, num_workers
        self.tasks = {name: Task(name, reduction="token" if name == "caption" else "sequence") for name in SHAPES}
        self.loading = SimpleNamespace(seed=0, batch="per_process")
        self._loader: TaskLoader | None = None
        self._position: dict[str, int] = {}

    def train_dataloader(self) -> TaskLoader:
        """One loader over the four tasks."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        size = self.batch_size * world
        schedule = Schedule(
            sizes=dict.fromkeys(SHAPES, 100 * size),
            batch_sizes=dict.fromkeys(SHAPES, size),
            temperature=math.inf,
            steps_per_epoch=self.steps,
            world=world,
        )
        dataset, sampler = RandomBatches(self.features), TaskSampler(schedule, rank)
        self._loader = TaskLoader(dataset, sampler, num_workers=self.num_workers, pin_memory=torch.cuda.is_available())
        if self._position:
            self._loader.load_state_dict(self._position)
        return self._loader

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands."""
        return self._loader.state_dict() if self._loader else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from there."""
        self._position = state_dict
