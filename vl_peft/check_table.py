"""``vl-peft data check``: runs the check of ``datamodules/check.py`` and prints what it found."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from lightning_utilities.core import rank_zero
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from datamodules import BENCHMARKS
from datamodules.check import TRAINING, BenchmarkReport, SplitReport, check, differing_sizes
from datamodules.check_features import Depth, Features
from datamodules.check_texts import Lengths
from datamodules.loading import TaskData
from vl_peft.errors import ConfigError
from vl_peft.tokenizer import TextTokenizer


def fit_options(options: argparse.Namespace) -> list[str]:
    """The options of fit that say what to check: a configuration's, or all benchmarks as they are by default."""
    given = [part for file in options.config for part in ("--config", file)]
    if not given:
        benchmarks = {name: {"class_path": f"datamodules.{kind.__name__}"} for name, kind in BENCHMARKS.items()}
        given = ["--model.backbone=VLBart", "--model.tuning=FullFineTuning", "--data=MultiTask"]
        given.append(f"--data.benchmarks={json.dumps(benchmarks)}")
    values = {
        "data.root": options.root,
        "data.encoder": options.encoder,
        "model.backbone.init_args.pretrained": options.tokenizer,
    }
    return given + [f"--{name}={value}" for name, value in values.items() if value]


def run_check(data: TaskData, options: argparse.Namespace) -> int:
    """Check the benchmarks of some data and print the result; returns the exit status: 1 if training would fail.

    Args:
        data: the benchmarks.
        options: of the command. If they name the benchmarks, by a configuration or one by one, an absent one is a
            failure. Those of a configuration are trained together.

    Raises:
        ConfigError: if there is no such tokenizer, ``--benchmarks`` names one that the data does not have, or a number
            is too small.
    """
    names = options.benchmarks or list(data.benchmarks)
    if unknown := [name for name in names if name not in data.benchmarks]:
        raise ConfigError(f"--benchmarks {' '.join(unknown)}: there are {', '.join(data.benchmarks)}.")
    if options.sample < 1 or options.workers < 0:
        raise ConfigError("--sample must be at least 1, and --workers not negative.")
    tokenizer, console = TextTokenizer(data.loading.tokenizer), Console(stderr=True)
    with _silence(), Progress(console=console, transient=True, disable=not console.is_terminal) as bars:

        def progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
            return bars.track(items, total=total, description=what)

        depth = Depth(options.sample, options.full, options.missing, options.workers, progress)
        reports = dict(zip(names, check((data.benchmarks[name] for name in names), tokenizer, depth), strict=True))
    problems = list(_overall(reports, bool(options.config or options.benchmarks), bool(options.config)))
    ok = not problems and all(report.status != "fails" for report in reports.values())
    root, name = data.loading.root, data.loading.tokenizer
    if options.json:
        found = {name: asdict(report) for name, report in reports.items()}
        print(json.dumps({"ok": ok, "root": root, "tokenizer": name, "problems": problems, "benchmarks": found}))
    else:
        _print(Console(highlight=False), reports, problems, f"{root}, lengths by the tokenizer '{name}'")
    return 0 if ok else 1


def _overall(reports: Mapping[str, BenchmarkReport], asked: bool, together: bool) -> Iterator[str]:
    absent = [name for name, report in reports.items() if report.status == "absent"]
    if asked and absent:
        yield f"no annotation files of {', '.join(absent)}"
    elif len(absent) == len(reports):
        yield "no annotation files of any benchmark"
    if together and (differing := differing_sizes(reports)):
        yield differing


@contextmanager
def _silence() -> Iterator[None]:
    """Benchmarks tell what they find while they read; here it is all in the report."""
    level = rank_zero.log.level
    rank_zero.log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        rank_zero.log.setLevel(level)


def _print(console: Console, reports: Mapping[str, BenchmarkReport], problems: list[str], title: str) -> None:
    present = {name: report for name, report in reports.items() if report.status != "absent"}
    console.print(f"check of {escape(title)}\n", soft_wrap=True)
    if present:
        for title, table, legend in (
            ("annotation files", _files(present), ""),
            ("examples", _examples(present), "of: the whole split (~ by papers); less is no problem\n"),
            ("features", _features(present), "read: drawn by the seed, or all with --full\n"),
            (
                "tokens: of 50, 90, 99 % of the texts at most, of the longest",
                _texts(present),
                "cut: share over the limit\n",
            ),
        ):
            console.print(f"[bold]{title}[/]\n", table, f"[dim]{legend}[/]", sep="")
        _notes(console, present)
    if absent := [name for name in reports if name not in present]:
        console.print(f"[bold]absent[/] (no annotation files): {', '.join(absent)}", soft_wrap=True)
    for problem in problems:
        console.print(f"[bold red]problem[/]: {escape(problem)}", soft_wrap=True)
    failing = [name for name, report in present.items() if report.status == "fails"]
    if failing or problems:
        console.print(f"[bold red]training would fail[/]: {', '.join(failing or reports)}", soft_wrap=True)
    else:
        console.print(f"[bold green]training can begin[/]: {', '.join(present)}", soft_wrap=True)


def _table(left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _rows(reports: Mapping[str, BenchmarkReport]) -> Iterator[tuple[str, str, SplitReport]]:
    """Name (before the first of its splits only), split and report."""
    for name, report in reports.items():
        for i, (split, part) in enumerate(report.splits.items()):
            yield "" if i else name, split, part


def _files(reports: Mapping[str, BenchmarkReport]) -> Table:
    table = _table(("benchmark", "file"), ("MB",))
    for name, report in reports.items():
        files = {file: size for part in report.splits.values() for file, size in part.files.items()}
        for i, (file, size) in enumerate(files.items()):
            table.add_row("" if i else name, file, "[red]absent[/]" if size is None else f"{size / 2**20:,.2f}")
    return table


def _examples(reports: Mapping[str, BenchmarkReport]) -> Table:
    table = _table(("benchmark", "split", "form"), ("examples", "of", "subtitles"))
    for name, split, part in _rows(reports):
        count = "-" if part.examples is None else f"{part.examples:,}"
        whole = f"{'' if part.expected.exact else '~'}{part.expected.count:,}" if part.expected else "?"
        spoken = f"{part.with_subtitles / part.videos:.1%}" if part.videos and part.with_subtitles is not None else ""
        table.add_row(name, split, part.form or "-", count, whole, spoken)
    return table


def _features(reports: Mapping[str, BenchmarkReport]) -> Table:
    headings = "needed", "missing", "read", "unusable", "shape", "dtype"
    table = _table(("benchmark", "split"), headings)
    for name, split, part in _rows(reports):
        found = part.features
        if found is None:
            table.add_row(name, split, *["-"] * len(headings))
            continue
        counts = (found.needed, found.missing, found.read, len(found.unusable))
        table.add_row(name, split, *map(_count, counts), _shape(found), " ".join(found.dtypes))
    return table


def _texts(reports: Mapping[str, BenchmarkReport]) -> Table:
    headings = "texts", "limit", "cut", "targets", "limit", "cut"
    table = _table(("benchmark", "split"), headings)
    for name, split, part in _rows(reports):
        table.add_row(name, split, *_lengths(part.source), *_lengths(part.target))
    return table


def _lengths(found: Lengths | None) -> tuple[str, str, str]:
    if found is None:
        return "-", "", ""
    tokens = f"{found.p50} {found.p90} {found.p99} {found.max}"
    return tokens, "none" if found.limit is None else str(found.limit), f"{found.cut:.1%}" if found.cut else "0"


def _count(number: int) -> str:
    return f"{number:,}"


def _shape(found: Features) -> str:
    """One shape, or the range of each side: ``1-64x512``."""
    shapes = [[int(side) for side in shape.split("x")] for shape in found.shapes]
    if len({len(shape) for shape in shapes}) > 1:
        return "various"
    sides = [(min(side), max(side)) for side in zip(*shapes, strict=True)]
    return "x".join(str(low) if low == high else f"{low}-{high}" for low, high in sides) or "-"


def _notes(console: Console, reports: Mapping[str, BenchmarkReport]) -> None:
    """What is odd, then what is wrong: a line each."""
    for name, report in reports.items():
        for split, part in report.splits.items():
            for finding in part.findings:
                console.print(f"{name} {split}: {escape(str(finding))}", soft_wrap=True)
            for problem in part.problems:
                kind = "[bold red]problem[/]" if split in TRAINING else "[bold yellow]not for training[/]"
                console.print(f"{kind}: {name} {split}: {escape(problem)}", soft_wrap=True)
            if part.features and part.features.missing_list:
                console.print(f"{name} {split}: keys without features in {part.features.missing_list}", soft_wrap=True)
    console.print()
