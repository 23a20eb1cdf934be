"""Several benchmarks trained together."""

from __future__ import annotations

from collections.abc import Mapping

from datamodules.base import Benchmark
from datamodules.loading import Loading, TaskData
from vl_peft.errors import ConfigError


class MultiTask(TaskData):
    """Joins benchmarks into one training loader and one evaluation loader each.

    Args:
        benchmarks: the benchmarks by task name, e.g. ``{"vqa": VQAv2(), "caption": COCO()}``.
        shared: the arguments of :class:`TaskData`, which then hold for every benchmark.

    Raises:
        ConfigError: if there is none, a key is not its task's name, or a benchmark sets a shared argument itself.
    """

    def __init__(self, benchmarks: dict[str, Benchmark], **shared: object) -> None:
        super().__init__(**shared)  # type: ignore[arg-type]
        if not benchmarks:
            raise ConfigError("data.benchmarks is empty: name at least one benchmark.")
        for name, benchmark in benchmarks.items():
            if name != benchmark.task.name:
                raise ConfigError(f"data.benchmarks.{name} is the task '{benchmark.task.name}': give it this key.")
            if benchmark.loading not in (Loading(), self.loading):
                raise ConfigError(f"data.benchmarks.{name} sets an argument that all share: set it under data itself.")
            benchmark.loading = self.loading
        self._benchmarks = benchmarks

    @property
    def benchmarks(self) -> Mapping[str, Benchmark]:
        """The benchmarks by task name."""
        return self._benchmarks
