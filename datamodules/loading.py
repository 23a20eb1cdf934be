"""Loaders over one or several benchmarks: what is set once for a whole run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import torch
from lightning import LightningDataModule
from torch.utils.data import Dataset

from vl_peft.batch import Batch, Task
from vl_peft.errors import ConfigError, UserError
from vl_peft.sampling import Draw, Schedule, SequentialTaskSampler, TaskLoader, TaskSampler

if TYPE_CHECKING:
    from datamodules.base import Benchmark

Split = Literal["train", "val", "test"]
Form = Literal["official", "processed"]
"""As a benchmark's own site has them, or as LXMERT and VL-T5 (COCO: Karpathy) wrote them anew."""


@dataclass(frozen=True)
class Size:
    """How many examples the whole of a split has; ``exact`` if they were counted in its files, not read in papers."""

    count: int
    exact: bool = True


@dataclass(frozen=True)
class Loading:
    """How examples become batches; the same for all benchmarks of a run. See :class:`TaskData` for the fields."""

    root: str = "data/demo"
    encoder: str | None = None
    raw: str | None = None
    tokenizer: str = "demo"
    batch: Literal["per_process", "global"] = "per_process"
    temperature: float = 1.0
    steps_per_epoch: int | None = None
    seed: int = 42
    num_workers: int = 0
    cache_gb: float = 1.0
    missing_features: Literal["fail", "skip"] = "fail"
    unreadable_features: Literal["fail", "zeros"] = "fail"
    malformed: Literal["fail", "skip"] = "fail"
    ablate_visual: bool = False
    prompt_position: Literal["front", "end"] = "front"
    cut: Literal["context", "end"] = "context"
    mask_padding: bool = True


class TaskData(LightningDataModule, ABC):
    """Loaders over one or several benchmarks.

    Args:
        root: the folder that holds the benchmarks' folders (``COCO``, ``GQA``, ``nlvr``, ``vqa``, ``video``).
        encoder: name of the vision encoder in the features' folder names; ``None`` takes the only one there is.
        raw: name of the vision encoder that is to encode the images and videos themselves, inside the model; no feature
            files are read. Its preprocessing is done here.
        tokenizer: that of the backbone (the command line sets it).
        batch: whose examples ``batch_size`` of a benchmark counts: those of each process (``"per_process"``), or of
            all processes together (``"global"``), which then train on the same batches whatever their number. The
            trainer's ``accumulate_grad_batches`` multiplies either.
        temperature: 1 draws tasks in proportion to their size, infinity (``.inf``) uniformly.
        steps_per_epoch: ``None`` for one pass over every task.
        seed: of the order of the data and of the answers drawn (the command line sets it from ``seed_everything``).
        num_workers: worker processes of a loader; 0 loads in the training process.
        cache_gb: keep features (or pictures) in memory up to this size, per process and benchmark.
        missing_features: ``"fail"``, or ``"skip"`` the examples whose images or videos have none, and say how many.
        unreadable_features: features that are there but damaged or not finite end the run (``"fail"``), or zeros take
            their place (``"zeros"``) and each such key is named once. (Images and videos read by ``raw``: ``"fail"``.)
        malformed: a record that cannot be used (not JSON, a field missing or of a wrong type, no annotation, no
            captions) ends the run (``"fail"``), or is left out and counted (``"skip"``).
        ablate_visual: replace all visual features by zeros, to see how much of a score comes from the text alone.
        prompt_position: where a task's prompt stands (the published code puts it at the end for video).
        cut: what a text over the limit loses: ``"context"``, its subtitles, or ``"end"``, whatever comes last.
        mask_padding: ``False`` pads each video with zero frames that are attended to, as the published code does.
    """

    def __init__(
        self,
        root: str = "data/demo",
        encoder: str | None = None,
        raw: str | None = None,
        tokenizer: str = "demo",
        batch: Literal["per_process", "global"] = "per_process",
        temperature: float = 1.0,
        steps_per_epoch: int | None = None,
        seed: int = 42,
        num_workers: int = 0,
        cache_gb: float = 1.0,
        missing_features: Literal["fail", "skip"] = "fail",
        unreadable_features: Literal["fail", "zeros"] = "fail",
        malformed: Literal["fail", "skip"] = "fail",
        ablate_visual: bool = False,
        prompt_position: Literal["front", "end"] = "front",
        cut: Literal["context", "end"] = "context",
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        given = locals()
        self.loading = Loading(**{f.name: given[f.name] for f in fields(Loading)})
        self._train_loader: TaskLoader | None = None
        self._position: dict[str, int] = {}
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer examples to evaluate than processes

    @property
    @abstractmethod
    def benchmarks(self) -> Mapping[str, Benchmark]:
        """The benchmarks by task name."""

    @property
    def tasks(self) -> dict[str, Task]:
        """What the model has to know of each benchmark."""
        return {name: benchmark.task for name, benchmark in self.benchmarks.items()}

    @property
    def feature_dim(self) -> int:
        """Size F of the visual features, the same for all benchmarks.

        Raises:
            ConfigError: if the benchmarks disagree.
        """
        dims = {name: benchmark.feature_size("train") for name, benchmark in self.benchmarks.items()}
        if len(set(dims.values())) > 1:
            raise ConfigError(
                f"The visual features differ in size ({dims}): benchmarks trained together need the same."
            )
        return next(iter(dims.values()))

    def setup(self, stage: str) -> None:
        """Read the annotations that the stage needs, so that mistakes in them show before anything runs."""
        splits: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("train", "val"),  # the score of a constant answer comes from the training answers
            "test": ("train", "test"),
            "predict": ("test",),
        }
        for benchmark in self.benchmarks.values():
            for split in splits[stage]:
                benchmark.examples(split)

    def schedule(self, world: int = 1) -> Schedule:
        """The training plan on ``world`` processes.

        Raises:
            ConfigError: the batches are to be the same on any number of processes, and this number is too large.
        """
        as_one = self.loading.batch == "global"
        schedule = Schedule(
            sizes={name: len(b.examples("train")) for name, b in self.benchmarks.items()},
            batch_sizes={name: b.batch_size * (1 if as_one else world) for name, b in self.benchmarks.items()},
            temperature=self.loading.temperature,
            steps_per_epoch=self.loading.steps_per_epoch,
            seed=self.loading.seed,
            world=world,
        )
        for task, size in schedule.sizes.items() if as_one else ():
            batch_size = schedule.batch_sizes[task]
            if schedule.batches_per_pass(task) < math.ceil(size / batch_size):
                raise ConfigError(
                    f"data.batch global: {world} processes cannot share the batches of task '{task}' ({batch_size} of "
                    f"{size} examples), of which each needs one: raise its batch_size, or take fewer processes."
                )
        return schedule

    def train_dataloader(self) -> TaskLoader:
        """One loader over the union of the tasks: one pool of workers, every batch of one task."""
        rank, world = self._rank_and_world()
        overfit = bool(self.trainer and self.trainer.overfit_batches)  # type: ignore[attr-defined]
        self._train_loader = self._loader("train", TaskSampler(self.schedule(world), rank, repeat=overfit))
        if self._position:
            self._train_loader.load_state_dict(self._position)
        return self._train_loader

    def state_dict(self) -> dict[str, int]:
        """Where the training data stands; part of every checkpoint.

        Lightning would ask the loader itself, but restores it only if nothing has looked at it before, and the
        learning rate schedule has: it needs the number of steps.
        """
        return self._train_loader.state_dict() if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Make the training loader go on from there."""
        self._position = state_dict
        if self._train_loader:  # a strategy that shares weights out asks for it before a checkpoint is read
            self._train_loader.load_state_dict(state_dict)

    def val_dataloader(self) -> list[TaskLoader]:
        """One loader for each benchmark's validation split."""
        return self._evaluation_loaders("val")

    def test_dataloader(self) -> list[TaskLoader]:
        """One loader for each benchmark's test split."""
        return self._evaluation_loaders("test")

    def predict_dataloader(self) -> list[TaskLoader]:
        """The test split, whose labels are not needed."""
        return self._evaluation_loaders("test")

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Tell which features could not be read. Workers only note it: they do not know what was told before."""
        if batch.unreadable:
            self.benchmarks[batch.task].report_unreadable(batch.unreadable)
        return batch

    def teardown(self, stage: str) -> None:
        """Sum up which features could not be read."""
        for benchmark in self.benchmarks.values():
            if benchmark.unreadable:
                benchmark.report(f"{len(benchmark.unreadable)} keys had features that cannot be read", everywhere=True)

    def _evaluation_loaders(self, split: Split) -> list[TaskLoader]:
        rank, world = self._rank_and_world()
        in_step = getattr(self.trainer and self.trainer.strategy, "in_step", False)
        return [
            self._loader(
                split,
                SequentialTaskSampler(
                    name, len(b.examples(split)), b.eval_batch_size or b.batch_size, rank, world, in_step
                ),
            )
            for name, b in self.benchmarks.items()
        ]

    def _loader(self, split: Split, sampler: TaskSampler | SequentialTaskSampler) -> TaskLoader:
        workers = self.loading.num_workers
        return TaskLoader(
            TaskDataset(self.benchmarks, split),
            sampler,
            num_workers=workers,
            persistent_workers=workers > 0 and split == "train",
            pin_memory=torch.cuda.is_available(),
        )

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


class TaskDataset(Dataset[Batch | UserError]):
    """Maps a :class:`Draw` to its Batch; made once per split over all benchmarks.

    The user's mistakes are returned, for the loader to raise: torch would wrap what a worker raises in a traceback.
    """

    def __init__(self, benchmarks: Mapping[str, Benchmark], split: Split) -> None:
        self.benchmarks, self.split = benchmarks, split

    def __getitem__(self, draw: Draw) -> Batch | UserError:
        try:
            return self.benchmarks[draw.task].load(self.split, draw)
        except UserError as error:
            return error
