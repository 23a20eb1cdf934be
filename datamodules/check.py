"""Is the data of benchmarks fit to train on? What ``vl-peft data check`` finds, as plain data: nothing is printed.

All annotations are read, the features are listed, and some of them, or all, are read; the same of the texts' lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from datamodules.base import Benchmark
from datamodules.check_features import SHOWN, Depth, FeatureCheck, Features
from datamodules.check_texts import Lengths, lengths, survey, unknown_answers
from datamodules.findings import UNUSABLE, Finding
from datamodules.loading import Form, Loading, Size, Split
from datamodules.records import locate
from datamodules.video import VideoBenchmark
from vl_peft.batch import Example
from vl_peft.errors import DataError, UserError
from vl_peft.tokenizer import TextTokenizer

SPLITS: tuple[Split, ...] = ("train", "val", "test")
TRAINING: tuple[Split, ...] = ("train", "val")
"""The splits that training reads; problems of the others do not end it."""


@dataclass
class SplitReport:
    """One split.

    Attributes:
        form: which annotation files are read.
        files: bytes of each file that the split needs in this form, by its path below the root; ``None`` if absent.
        examples: how many there are; ``None`` if they could not be read.
        expected: how many the whole split has, if that is known. People work on parts: it is no problem to have less.
        videos: of a benchmark with subtitles, how many there are; ``with_subtitles``: in how many something is said.
        features: what there is of them; ``None`` if there is nothing.
        source: of the input texts; ``target``: of the texts to train on.
        findings: irregularities that a run would live with.
        problems: what would end a run, or, in a test split, an evaluation.
    """

    form: Form | None = None
    files: dict[str, int | None] = field(default_factory=dict)
    examples: int | None = None
    expected: Size | None = None
    videos: int | None = None
    with_subtitles: int | None = None
    features: Features | None = None
    source: Lengths | None = None
    target: Lengths | None = None
    findings: list[Finding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class BenchmarkReport:
    """One benchmark; ``"absent"`` if none of its own annotation files is there, and then ``splits`` has only names.

    It fails if training would: by a problem of the train or val split.
    """

    status: Literal["ok", "fails", "absent"]
    splits: dict[Split, SplitReport]


def check(benchmarks: Iterable[Benchmark], tokenizer: TextTokenizer, depth: Depth) -> Iterator[BenchmarkReport]:
    """What is found of each benchmark, which is of no use afterwards: it reads on where a run would end."""
    features = FeatureCheck(depth)
    for benchmark in benchmarks:
        policy = benchmark.loading
        benchmark.loading = replace(policy, malformed="skip", cache_gb=0.0)
        there = any(map(locate, _own_files(benchmark)))
        checks = {split: _SplitCheck(benchmark, split, policy, tokenizer, features) for split in SPLITS}
        for split in depth.progress(SPLITS if there else (), len(SPLITS), benchmark.task.name):
            checks[split].run()
        reports = {split: part.report for split, part in checks.items()}
        fails = any(reports[split].problems for split in TRAINING)
        yield BenchmarkReport("fails" if fails else "ok" if there else "absent", reports)


def differing_sizes(reports: Mapping[str, BenchmarkReport]) -> str | None:
    """A problem of benchmarks that are trained together: features of different size F, if that is so."""
    sizes = {
        name: next(iter(features.sizes))
        for name, report in reports.items()
        if (features := report.splits["train"].features) and features.sizes
    }
    if len(set(sizes.values())) < 2:
        return None
    return f"The visual features differ in size ({sizes}): benchmarks trained together need the same."


class _SplitCheck:
    """Fills the report of one split.

    Args:
        benchmark: reads on where a run would end.
        split: of it.
        policy: what a run would do.
        tokenizer: counts the tokens of texts.
        features: checks these.
    """

    def __init__(
        self, benchmark: Benchmark, split: Split, policy: Loading, tokenizer: TextTokenizer, features: FeatureCheck
    ) -> None:
        self.benchmark, self.split, self.policy = benchmark, split, policy
        self.tokenizer, self.features = tokenizer, features
        self.report = SplitReport(expected=_expected(benchmark, split))

    def run(self) -> None:
        """Read and look; what goes wrong is a problem of the report."""
        try:
            self._files()
            examples = self._annotated()
            self._examples(examples)
        except UserError as error:
            self.report.problems.append(str(error))

    def _files(self) -> None:
        self.report.form = self.benchmark.form(self.split)
        for file in self.benchmark.files(self.split)[self.report.form]:
            found = locate(file)
            name = str((found or file).relative_to(self.benchmark.root))
            self.report.files[name] = found.stat().st_size if found else None

    def _annotated(self) -> Sequence[Example]:
        try:
            examples = self.benchmark.annotated(self.split)
        finally:
            self._findings()
        self.report.examples = len(examples)
        return examples

    def _findings(self) -> None:
        found = self.benchmark.found.get(self.split)
        for finding in found.kinds() if found else ():
            if finding.what == UNUSABLE and self.policy.malformed == "fail":
                self.report.problems.append(f"{finding}; --data.malformed skip goes on without them.")
            else:
                self.report.findings.append(finding)

    def _examples(self, examples: Sequence[Example]) -> None:
        report, benchmark = self.report, self.benchmark
        if not len(examples):
            problem = f"the {self.split} split of {benchmark.task.name} is empty"
            raise DataError(benchmark.root, problem, remedy="Check its files.")
        seen = survey(examples, targets=benchmark.vocabulary is not None)
        if isinstance(benchmark, VideoBenchmark):
            report.videos, report.with_subtitles = len(seen.visuals), len(seen.spoken)
        report.findings += unknown_answers(benchmark, seen.targets)
        report.source, report.target = lengths(benchmark, self.split, examples, self.tokenizer, self.features.depth)
        report.features = self.features.features(benchmark, self.split, seen.visuals)
        self._judge(report.features)

    def _judge(self, features: Features) -> None:
        """Missing and unusable features are problems or findings, as the policies have it."""
        what = "features" if self.policy.raw is None else "files"
        if features.missing:
            problem = f"no {what} for {features.missing:,} of the {features.needed:,} keys that examples show"
            if features.missing == features.needed or self.policy.missing_features == "fail":
                remedy = "Extract them, or leave their examples out with --data.missing_features skip."
                named = f"{', '.join(features.first_missing)}{', ...' if features.missing > SHOWN else ''}"
                self.report.problems.append(str(DataError(features.path, f"{problem} ({named})", remedy=remedy)))
            else:
                skipped = f"keys have no {what}; their examples are left out"
                self.report.findings.append(Finding(skipped, features.missing, tuple(features.first_missing)))
        if features.unusable:
            reasons = list(features.unusable.values())
            if self.policy.unreadable_features == "fail":
                self.report.problems += reasons[:SHOWN]
                if len(reasons) > SHOWN:
                    self.report.problems.append(f"{len(reasons) - SHOWN:,} more features cannot be used")
            else:
                replaced = "features cannot be used; zeros take their place"
                self.report.findings.append(Finding(replaced, len(reasons), tuple(reasons[:SHOWN])))


def _own_files(benchmark: Benchmark) -> Iterator[Path]:
    """Its annotation files without those that it shares: these lie in other folders than its first one."""
    for split in SPLITS:
        for files in benchmark.files(split).values():
            yield from (file for file in files if file.parent == files[0].parent)


def _expected(benchmark: Benchmark, split: Split) -> Size | None:
    sizes = [benchmark.sizes.get(part) for part in benchmark.parts(split)]
    known = [size for size in sizes if size is not None]
    if not known or len(known) < len(sizes):
        return None
    return Size(sum(size.count for size in known), all(size.exact for size in known))
