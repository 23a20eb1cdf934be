"""The official scores of a file of predictions, whoever made it: ``vl-peft data score``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from datamodules.base import Benchmark
from datamodules.loading import Split
from vl_peft.batch import Example
from vl_peft.errors import ConfigError
from vl_peft.submission import compare_ids, read_predictions


class Scores(NamedTuple):
    """Scores by name, the name of the headline among them, what a reader has to know, and how much was scored."""

    scores: dict[str, float]
    headline: str
    notes: tuple[str, ...]
    examples: int


def score(
    predictions: Path,
    benchmark: Benchmark,
    references: Path | None = None,
    split: Split = "val",
    partial: bool = False,
) -> Scores:
    """Compare a file of predictions with an annotation file.

    Args:
        predictions: in the form of the benchmark's submissions, or ``predictions/*.jsonl`` of a run.
        benchmark: whose metric and formats are used.
        references: an official or processed annotation file; ``None`` for the benchmark's ``split`` below its root.
        split: see there.
        partial: score the ids that both have, instead of failing if one has others.

    Raises:
        DataError: a file cannot be used, or ids are missing or too many.
        ConfigError: the references are hidden, or no id is in both.
    """
    submission = benchmark.submission("test")
    assert submission is not None, "every benchmark has a format"
    answers = read_predictions(predictions, submission.format)
    examples = _labelled(benchmark.references(references) if references else benchmark.read(split))
    if partial:
        examples = {key: example for key, example in examples.items() if key in answers}
    else:
        compare_ids(predictions, answers, examples, "Score those that both have with --partial.")
    if not examples:
        raise ConfigError(f"{predictions}: none of its {len(answers)} ids has a reference: of another split, perhaps?")
    metric = benchmark.metric()
    metric.thorough = True
    metric.update(
        list(examples),
        [answers[key] for key in examples],
        [example.references for example in examples.values()],
        [example.meta for example in examples.values()],
    )
    return Scores(metric.compute(), metric.headline, metric.notes, len(examples))


def _labelled(examples: Iterable[Example]) -> dict[str, Example]:
    found = {example.id: example for example in examples}
    hidden = sum(not example.references for example in found.values())
    if hidden:
        raise ConfigError(f"{hidden} of {len(found)} examples have no references: only the server can score them.")
    return found
