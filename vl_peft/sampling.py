"""Which task and which of its rows each step trains on: a pure function of (seed, epoch, step).

Tasks with N examples are drawn in proportion to ``N ** (1 / temperature)``: 1 is proportional, infinity uniform.
Nothing here is communicated between processes; every rank computes the same schedule and takes its own rows.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from vl_peft.errors import ConfigError, UserError


class Draw(NamedTuple):
    """One batch to load: rows of one task, in one epoch."""

    task: str
    rows: tuple[int, ...]
    epoch: int = 0


@dataclass(frozen=True)
class Schedule:
    """The plan of an epoch.

    Attributes:
        sizes: number of training examples N of each task.
        batch_sizes: examples of each task per step, over all processes together.
        temperature: see the module's docstring; ``math.inf`` for uniform.
        steps_per_epoch: ``None`` for as many steps as one pass over every task takes.
        seed: all randomness derives from it.
        world: number of processes; only guarantees that every one gets at least one row of each batch.

    With temperature 1 and ``steps_per_epoch=None`` an epoch is every batch of every task exactly once.
    """

    sizes: Mapping[str, int]
    batch_sizes: Mapping[str, int]
    temperature: float = 1.0
    steps_per_epoch: int | None = None
    seed: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ConfigError("There is no task to train on: name at least one under data.tasks.")
        if not self.temperature > 0:
            raise ConfigError(f"data.temperature must be above 0, not {self.temperature}.")
        if self.steps_per_epoch is not None and self.steps_per_epoch < 1:
            raise ConfigError(f"data.steps_per_epoch must be at least 1, not {self.steps_per_epoch}.")
        for task, size in self.sizes.items():
            if size < self.world:
                raise ConfigError(f"Task '{task}' has {size} training examples: too few for {self.world} processes.")
            if self.batch_sizes[task] < 1:
                raise ConfigError(f"The batch size of task '{task}' must be at least 1, not {self.batch_sizes[task]}.")

    def batches_per_pass(self, task: str) -> int:
        """In how many batches, of sizes that differ by at most one, one pass over the task's rows is cut."""
        size = self.sizes[task]
        return max(1, min(math.ceil(size / self.batch_sizes[task]), size // self.world))

    def shares(self) -> dict[str, float]:
        """The ideal share of each task in the steps of an epoch; sums to 1."""
        weight = {
            task: self.batches_per_pass(task) * float(size) ** (1 / self.temperature - 1)
            for task, size in self.sizes.items()
        }
        total = sum(weight.values())
        return {task: w / total for task, w in weight.items()}

    def steps(self) -> dict[str, int]:
        """Whole steps of each task per epoch, by the largest remainder method."""
        total = self.steps_per_epoch or sum(self.batches_per_pass(task) for task in self.sizes)
        # Rounded, or float noise could move a quota that is whole (temperature 1) to the next number.
        quota = {task: round(share * total, 9) for task, share in self.shares().items()}
        steps = {task: math.floor(q) for task, q in quota.items()}
        missing = total - sum(steps.values())
        for task in sorted(quota, key=lambda t: steps[t] - quota[t])[:missing]:
            steps[task] += 1
        return steps

    def passes(self) -> dict[str, float]:
        """How many times an epoch goes over each task's rows."""
        return {task: steps / self.batches_per_pass(task) for task, steps in self.steps().items()}

    def epoch(self, epoch: int) -> Iterator[Draw]:
        """The batches of one epoch, all processes' rows together. A task goes on where its last epoch ended."""
        tasks = list(self.sizes)
        steps = self.steps()
        order = np.repeat(np.arange(len(tasks)), [steps[t] for t in tasks])
        np.random.default_rng([self.seed, epoch]).shuffle(order)
        taken = {task: epoch * steps[task] for task in tasks}
        for task in (tasks[i] for i in order):
            lap, place = divmod(taken[task], self.batches_per_pass(task))
            taken[task] += 1
            rows = _permutation(self.seed, tasks.index(task), lap, self.sizes[task])
            n, size = self.batches_per_pass(task), len(rows)
            yield Draw(task, tuple(rows[place * size // n : (place + 1) * size // n].tolist()), epoch)


@lru_cache(maxsize=32)  # one permutation per task is in use at a time; a million rows are 8 MB
def _permutation(seed: int, task: int, lap: int, size: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, task, lap, 1]).permutation(size)


class TaskSampler(Sampler[Draw]):
    """The rows that one process loads, step by step; ``set_epoch`` says of which epoch (Lightning calls it).

    Args:
        schedule: the plan of all processes.
        rank: the number of this one.
        repeat: draw the batches of epoch 0 in every epoch, to see whether a model can learn a few by heart.
    """

    def __init__(self, schedule: Schedule, rank: int = 0, repeat: bool = False) -> None:
        self.schedule, self.rank, self.repeat = schedule, rank, repeat
        self.epoch = 0
        self.done = (0, 0)  # an epoch, and how many of its steps a former run has done

    def set_epoch(self, epoch: int) -> None:
        """Make the next reading that of this epoch."""
        self.epoch = epoch

    @property
    def skip(self) -> int:
        """Steps of the current epoch that are not to be done again."""
        return self.done[1] if self.done[0] == self.epoch else 0

    def __iter__(self) -> Iterator[Draw]:
        for step, draw in enumerate(self.schedule.epoch(0 if self.repeat else self.epoch)):
            if step >= self.skip:
                yield draw._replace(rows=draw.rows[self.rank :: self.schedule.world])

    def __len__(self) -> int:
        return sum(self.schedule.steps().values())


class SequentialTaskSampler(Sampler[Draw]):
    """All rows of one task once, in order and without padding, for evaluation: rank r takes rows r, r + world, ...

    ``in_step`` gives all ranks as many batches, for strategies that need it: one that has fewer repeats its first rows,
    or another rank's if it has none. Metrics count an example once.
    """

    def __init__(
        self, task: str, size: int, batch_size: int, rank: int = 0, world: int = 1, in_step: bool = False
    ) -> None:
        self.task, self.rows, self.batch_size = task, range(rank, size, world), batch_size
        self.batches = math.ceil((math.ceil(size / world) if in_step else len(self.rows)) / batch_size)
        self.spare = self.rows[:batch_size] or range(min(size, 1))

    def __iter__(self) -> Iterator[Draw]:
        for start in range(0, self.batches * self.batch_size, self.batch_size):
            yield Draw(self.task, tuple(self.rows[start : start + self.batch_size] or self.spare))

    def __len__(self) -> int:
        return self.batches


def _leave_signals_to_parent(worker: int) -> None:
    """A cluster signals all processes of a job; workers have to live on until the training process ends them."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def worker_death(error: BaseException) -> UserError | None:
    """What to tell the user if an error says that a worker has died; torch raises it wherever the program is."""
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
        return None
    remedy = "Out of memory is the usual cause: lower --data.num_workers or --data.cache_gb."
    return UserError(f"A data worker has died ({error}). {remedy}")


def _end_workers() -> None:
    """At the exit of the training process: what multiprocessing does there, a SIGTERM, the workers do not hear."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise that they have died
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class TaskLoader:
    """Loads the batches that a sampler draws; knows how many it has handed out, and can go on there.

    It holds a DataLoader and is none: Lightning takes DataLoaders apart to put in samplers of its own (for several
    processes, for ``predict``, for ``overfit_batches``) and leaves any other iterable as it is. Reading begins with the
    first ``next``, because Lightning makes the iterator before it calls ``set_epoch``.

    Args:
        dataset: maps a :class:`Draw` to a batch, or to the UserError to raise.
        sampler: yields the draws; Lightning finds its ``set_epoch`` here.
        options: ``num_workers`` and the like, for the DataLoader.
    """

    batch_sampler = None  # Lightning asks every loader that has a sampler

    def __init__(self, dataset: Dataset[Any], sampler: TaskSampler | SequentialTaskSampler, **options: Any) -> None:
        self.sampler = sampler
        self._loader = DataLoader(
            dataset, sampler=sampler, batch_size=None, worker_init_fn=_leave_signals_to_parent, **options
        )
        self._yielded = 0
        if self._loader.num_workers:
            Finalize(None, _end_workers, exitpriority=0)  # atexit would not do: a child of multiprocessing skips it

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        self._yielded = self.sampler.skip if isinstance(self.sampler, TaskSampler) else 0
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            self._yielded += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The running epoch and how many of its batches were handed out; Lightning stores it in the checkpoint."""
        return {"epoch": getattr(self.sampler, "epoch", 0), "yielded": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches already seen, if that epoch is not over."""
        if isinstance(self.sampler, TaskSampler):
            self.sampler.done = state["epoch"], state["yielded"]
