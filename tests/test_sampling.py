from __future__ import annotations

import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import Dataset

from vl_peft.errors import ConfigError, DataError
from vl_peft.sampling import Draw, Schedule, SequentialTaskSampler, TaskLoader, TaskSampler

TEMPERATURES = st.sampled_from([0.5, 1.0, 2.0, 5.0, math.inf])


@st.composite
def schedules(
    draw: st.DrawFn,
    temperature: st.SearchStrategy[float] = TEMPERATURES,
    steps: st.SearchStrategy[int | None] = st.none() | st.integers(1, 40),  # noqa: B008
) -> Schedule:
    world = draw(st.integers(1, 4))
    tasks = "abcd"[: draw(st.integers(1, 4))]
    return Schedule(
        sizes={task: draw(st.integers(world, 60)) for task in tasks},
        batch_sizes={task: world * draw(st.integers(1, 9)) for task in tasks},
        temperature=draw(temperature),
        steps_per_epoch=draw(steps),
        seed=draw(st.integers(0, 2**32)),
        world=world,
    )


def by_task(draws: Iterable[Draw]) -> dict[str, list[tuple[int, ...]]]:
    rows = defaultdict(list)
    for draw in draws:
        rows[draw.task].append(draw.rows)
    return rows


# -- proportions ----------------------------------------------------------------------------------------------------


@given(schedules(temperature=st.just(1.0), steps=st.none()), st.integers(0, 5))
def test_a_proportional_epoch_is_every_row_of_every_task_once(schedule: Schedule, epoch: int) -> None:
    read = by_task(schedule.epoch(epoch))
    assert {task: sorted(chain(*rows)) for task, rows in read.items()} == {
        task: list(range(size)) for task, size in schedule.sizes.items()
    }


@pytest.mark.parametrize(
    ("temperature", "steps"),
    [(1, {"small": 100, "large": 800}), (3, {"small": 300, "large": 600}), (math.inf, {"small": 450, "large": 450})],
)
def test_temperature(temperature: float, steps: dict[str, int]) -> None:
    # N ** (1 / T) of 1,000 and 8,000 is 1 : 8, 10 : 20 and 1 : 1.
    schedule = Schedule({"small": 1000, "large": 8000}, {"small": 10, "large": 10}, temperature)
    assert schedule.steps() == steps


def test_temperature_counts_examples_not_steps() -> None:
    schedule = Schedule({"a": 600, "b": 600}, {"a": 10, "b": 20}, math.inf, steps_per_epoch=30)
    assert schedule.steps() == {"a": 20, "b": 10}
    assert schedule.passes() == {"a": pytest.approx(1 / 3), "b": pytest.approx(1 / 3)}


def test_temperature_between_tasks_with_ragged_batches() -> None:
    # 7 rows in batches of 4 are 2 batches of 3.5 on average, 20 rows in batches of 5 are 4 of 5: equal numbers of
    # examples take steps in proportion 1/3.5 : 1/5.
    shares = Schedule({"a": 7, "b": 20}, {"a": 4, "b": 5}, math.inf).shares()
    assert shares == {"a": pytest.approx(10 / 17), "b": pytest.approx(7 / 17)}


def test_largest_remainder() -> None:
    # Quotas 3.43, 3.06 and 0.51 of 7 steps: the step that is left goes to the last.
    schedule = Schedule({"a": 67, "b": 60, "c": 10}, dict.fromkeys("abc", 1), steps_per_epoch=7)
    assert schedule.steps() == {"a": 3, "b": 3, "c": 1}


@given(schedules(steps=st.integers(1, 500)))
def test_steps_sum_up_and_are_off_by_less_than_one(schedule: Schedule) -> None:
    steps, shares = schedule.steps(), schedule.shares()
    assert sum(steps.values()) == schedule.steps_per_epoch
    quota = {task: share * sum(steps.values()) for task, share in shares.items()}
    assert all(abs(steps[task] - quota[task]) < 1 for task in steps)
    raised = [quota[task] % 1 for task in steps if steps[task] > quota[task] + 1e-6]
    lowered = [quota[task] % 1 for task in steps if steps[task] < quota[task] - 1e-6]
    assert not raised or not lowered or min(raised) >= max(lowered) - 1e-6


@given(schedules(), st.integers(0, 3))
def test_an_epoch_has_the_planned_steps(schedule: Schedule, epoch: int) -> None:
    read = by_task(schedule.epoch(epoch))
    assert {task: len(read[task]) for task in schedule.sizes} == schedule.steps()


# -- order ----------------------------------------------------------------------------------------------------------


@given(schedules(), st.integers(0, 3))
def test_an_epoch_is_a_function_of_its_number(schedule: Schedule, epoch: int) -> None:
    twin = Schedule(**vars(schedule))
    assert [list(twin.epoch(e)) for e in range(epoch + 1)][epoch] == list(schedule.epoch(epoch))
    assert {draw.epoch for draw in schedule.epoch(epoch)} == {epoch}


@pytest.mark.parametrize("steps", [None, 7])
def test_epochs_and_seeds_differ(steps: int | None) -> None:
    plans = [Schedule({"a": 50, "b": 50}, {"a": 5, "b": 5}, steps_per_epoch=steps, seed=seed) for seed in range(3)]
    epochs = [[draw[:2] for draw in plan.epoch(e)] for plan in plans for e in range(3)]
    orders = ["".join(task for task, _ in epoch) for epoch in epochs]
    assert len({str(epoch) for epoch in epochs}) == len(epochs)
    assert len(set(orders)) > len(orders) / 2
    assert not any(order.startswith("aaaaabbbbb"[: len(order)]) for order in orders)


def test_tasks_of_one_size_have_orders_of_their_own() -> None:
    read = by_task(Schedule({"a": 50, "b": 50}, {"a": 5, "b": 5}).epoch(0))
    assert read["a"] != read["b"]


@given(schedules(), st.integers(1, 6))
def test_no_row_comes_twice_within_a_pass(schedule: Schedule, epochs: int) -> None:
    read = by_task(draw for epoch in range(epochs) for draw in schedule.epoch(epoch))
    for task, batches in read.items():
        n = schedule.batches_per_pass(task)
        passes = [sorted(chain(*batches[i : i + n])) for i in range(0, len(batches), n)]
        complete = len(batches) // n
        assert passes[:complete] == [list(range(schedule.sizes[task]))] * complete
        assert all(len(set(rows)) == len(rows) for rows in passes[complete:])


@given(schedules(), st.integers(0, 2))
def test_batch_sizes_differ_by_at_most_one(schedule: Schedule, epoch: int) -> None:
    for task, batches in by_task(schedule.epoch(epoch)).items():
        sizes = [len(rows) for rows in batches]
        assert max(sizes) - min(sizes) <= 1
        # Batches are as large as asked for, except where a smaller one would leave a process without a row.
        assert max(sizes) <= schedule.batch_sizes[task] or min(sizes) < 2 * schedule.world


@given(schedules(), st.integers(0, 2))
def test_ranks_share_each_batch(schedule: Schedule, epoch: int) -> None:
    samplers = [TaskSampler(schedule, rank) for rank in range(schedule.world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    steps = list(zip(*samplers, strict=True))
    assert len(steps) == len(samplers[0])
    for parts, whole in zip(steps, schedule.epoch(epoch), strict=True):
        assert {part.task for part in parts} == {whole.task}
        assert sorted(chain(*(part.rows for part in parts))) == sorted(whole.rows)  # none twice: whole has none twice
        sizes = [len(part.rows) for part in parts]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1


def test_the_same_draws_in_every_epoch() -> None:
    """For ``overfit_batches``: order, rows and the epoch that answers are drawn by."""
    sampler, other = TaskSampler(PLAN, repeat=True), TaskSampler(PLAN)
    first = list(sampler)
    for reader in (sampler, other):
        reader.set_epoch(3)
    assert list(sampler) == first == list(PLAN.epoch(0))
    assert list(other) != first


@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 5))
def test_evaluation_reads_every_row_once_in_order(size: int, batch_size: int, world: int) -> None:
    samplers = [SequentialTaskSampler("a", size, batch_size, rank, world) for rank in range(world)]
    rows = [[row for draw in sampler for row in draw.rows] for sampler in samplers]
    assert sorted(chain(*rows)) == list(range(size))
    assert all(r == sorted(r) for r in rows)
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    for sampler in samplers:
        batches = [len(draw.rows) for draw in sampler]
        assert len(batches) == len(sampler)
        assert set(batches[:-1]) <= {batch_size}
        assert not batches or 1 <= batches[-1] <= batch_size


@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 5))
def test_evaluation_in_step_gives_all_processes_as_many_batches(size: int, batch_size: int, world: int) -> None:
    samplers = [SequentialTaskSampler("a", size, batch_size, rank, world, in_step=True) for rank in range(world)]
    draws = [list(sampler) for sampler in samplers]
    assert [len(d) for d in draws] == [len(sampler) for sampler in samplers] == [len(draws[0])] * world
    assert {row for d in draws for draw in d for row in draw.rows} == set(range(size))
    assert all(1 <= len(draw.rows) <= batch_size for d in draws for draw in d)
    assert len(draws[0]) == -(-size // (batch_size * world)), "no more batches than the first process needs"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": {}}, "no task to train on"),
        ({"world": 8}, "'a' has 7 training examples: too few for 8 processes"),
        ({"batch_sizes": {"a": 0}}, "batch size of task 'a' must be at least 1, not 0"),
        ({"temperature": 0}, "temperature must be above 0, not 0"),
        ({"temperature": -1.0}, "temperature must be above 0, not -1.0"),
        ({"temperature": math.nan}, "temperature must be above 0, not nan"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, not 0"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule(**({"sizes": {"a": 7}, "batch_sizes": {"a": 2}} | options))


# -- the loader -----------------------------------------------------------------------------------------------------

PLAN = Schedule({"a": 20, "b": 9}, {"a": 4, "b": 3})  # 8 steps
workers = pytest.mark.parametrize("num_workers", [0, 2])


class Echo(Dataset[Any]):
    """Returns what it is asked for."""

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return {"x": torch.ones(len(draw.rows), 1), "draw": repr(tuple(draw))}


def loader(num_workers: int = 0, **options: Any) -> TaskLoader:
    return TaskLoader(Echo(), TaskSampler(PLAN), num_workers=num_workers, **options)


def draws(batches: Iterable[dict[str, Any]]) -> list[str]:
    return [batch["draw"] for batch in batches]


def expected(epoch: int) -> list[str]:
    return [repr(tuple(draw)) for draw in PLAN.epoch(epoch)]


@workers
def test_set_epoch_counts_until_the_first_batch(num_workers: int) -> None:
    reader = loader(num_workers)
    reader.sampler.set_epoch(1)
    iterator = iter(reader)
    reader.sampler.set_epoch(2)
    assert draws(iterator) == expected(2)


def interrupted(epoch: int, taken: int) -> dict[str, int]:
    """State of a loader after some batches. The iterator is not exhausted: Lightning never asks for one batch more."""
    reader = loader()
    reader.sampler.set_epoch(epoch)
    assert draws(islice(iter(reader), taken)) == expected(epoch)[:taken]
    return reader.state_dict()


@workers
@pytest.mark.parametrize("taken", [0, 1, 5])
def test_reading_goes_on_after_the_last_batch_handed_out(num_workers: int, taken: int) -> None:
    reader = loader(num_workers)
    reader.load_state_dict(interrupted(3, taken))
    reader.sampler.set_epoch(3)
    assert draws(reader) == expected(3)[taken:]
    reader.sampler.set_epoch(4)
    assert draws(reader) == expected(4)


def test_after_a_whole_epoch_the_next_one_is_whole() -> None:
    reader = loader()
    reader.load_state_dict(interrupted(3, 8))
    reader.sampler.set_epoch(4)
    assert draws(reader) == expected(4)


@workers
def test_a_run_can_be_interrupted_twice_in_one_epoch(num_workers: int) -> None:
    first, second = loader(num_workers), loader(num_workers)
    first.load_state_dict(interrupted(0, 3))
    assert draws(islice(iter(first), 2)) == expected(0)[3:5]
    second.load_state_dict(first.state_dict())
    assert draws(second) == expected(0)[5:]


@workers
def test_only_the_resumed_epoch_is_shortened(num_workers: int) -> None:
    reader = loader(num_workers, persistent_workers=num_workers > 0)
    reader.load_state_dict(interrupted(0, 3))
    assert draws(islice(iter(reader), 5)) == expected(0)[3:]
    reader.sampler.set_epoch(1)
    assert draws(reader) == expected(1)


class Recorder(LightningModule):
    """Notes what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Linear(1, 1), []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.seen.append(batch["draw"])
        return self.weight(batch["x"]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(("at", "limit"), [(3, 1.0), (8, 1.0), (11, 1.0), (2, 5), (5, 5)])
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_sees_what_the_whole_run_sees(tmp_path: Path, at: int, limit: float) -> None:
    def run(folder: str, checkpoint: Path | None) -> list[str]:
        recorder = Recorder()
        saver = ModelCheckpoint(tmp_path / folder, "{step}", save_top_k=-1, every_n_train_steps=at)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=3,
            limit_train_batches=limit,
            callbacks=[saver],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(recorder, loader(), ckpt_path=checkpoint)
        return recorder.seen

    whole = run("whole", None)
    assert len(whole) == (24 if limit == 1.0 else 15)
    assert run("resumed", tmp_path / f"whole/step={at}.ckpt") == whole[at:]


class Broken(Dataset[Any]):
    """A mistake of the user in its third batch."""

    def __getitem__(self, draw: Draw) -> object:
        return DataError("a.json", "not a list", record=3, remedy="Mend it.") if 7 in draw.rows else list(draw.rows)


LEFT_OPEN = """
import multiprocessing, sys
from vl_peft.sampling import SequentialTaskSampler, TaskLoader

class Echo:
    def __getitem__(self, draw):
        return draw.rows

reading = []

def read():
    reading.append(iter(TaskLoader(Echo(), SequentialTaskSampler("a", 9, 3), num_workers=2)))
    next(reading[0])

if __name__ == "__main__" and sys.argv[1] == "directly":
    read()
elif __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=read)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.parametrize("how", ["directly", "as a child"])
def test_a_process_ends_quietly_with_workers_still_there(how: str, tmp_path: Path) -> None:
    """They take no SIGTERM: multiprocessing would wait for them for ever."""
    script = tmp_path / "left_open.py"
    script.write_text(LEFT_OPEN)
    done = subprocess.run([sys.executable, script, how], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@workers
def test_a_users_mistake_is_raised_as_itself(num_workers: int) -> None:
    iterator = iter(TaskLoader(Broken(), SequentialTaskSampler("a", 12, 3), num_workers=num_workers))
    assert [next(iterator), next(iterator)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(DataError) as caught:
        next(iterator)
    assert str(caught.value) == "a.json, record 3: not a list. Mend it."
    assert caught.value.record == 3
