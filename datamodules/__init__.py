"""Benchmarks as LightningDataModules, and the embedded demo corpus."""

from collections.abc import Mapping

from datamodules.base import Benchmark
from datamodules.coco import COCO
from datamodules.gqa import GQA
from datamodules.how2qa import How2QA
from datamodules.loading import TaskData
from datamodules.multitask import MultiTask
from datamodules.nlvr2 import NLVR2
from datamodules.tvc import TVC
from datamodules.tvqa import TVQA
from datamodules.vqav2 import VQAv2
from datamodules.yc2c import YC2C

BENCHMARKS: Mapping[str, type[Benchmark]] = {
    benchmark.task.name: benchmark for benchmark in (VQAv2, GQA, NLVR2, COCO, TVQA, How2QA, TVC, YC2C)
}
"""The benchmarks by task name."""

__all__ = [
    "BENCHMARKS",
    "COCO",
    "GQA",
    "NLVR2",
    "TVC",
    "TVQA",
    "YC2C",
    "Benchmark",
    "How2QA",
    "MultiTask",
    "TaskData",
    "VQAv2",
]
