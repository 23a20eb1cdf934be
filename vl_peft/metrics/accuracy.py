"""Accuracies: an exact answer (GQA, TVQA, How2QA), and NLVR2 with its consistency."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from vl_peft.errors import UserError
from vl_peft.metrics.base import Record, SentenceMetric


def percent(values: Iterable[float]) -> float:
    """The mean of at least one number, times 100."""
    values = list(values)
    return 100.0 * sum(values) / len(values)


class ExactMatch(SentenceMetric):
    """Share of predictions equal to the only reference, letter by letter (GQA; the choice ``a0``..``a4`` of video QA).

    Args:
        per: a key of ``meta``; adds ``accuracy/<value>`` for each value of it, e.g. ``show_name`` for TVQA.
            Examples without the key count in the whole only.

    >>> metric = ExactMatch(per="show_name")
    >>> metric.update(["7", "8", "9"], ["a1", "a0", "a3"], [["a1"], ["a2"], ["a3"]],
    ...               [{"show_name": "Castle"}, {"show_name": "Castle"}, {"show_name": "Friends"}])
    >>> {name: round(value, 2) for name, value in metric.compute().items()}
    {'accuracy': 66.67, 'accuracy/Castle': 50.0, 'accuracy/Friends': 100.0}
    """

    headline = "accuracy"

    def __init__(self, per: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.per = per

    def score(self, records: Mapping[str, Record]) -> dict[str, float]:
        """``accuracy``, and ``accuracy/<value>`` for the values of ``per``."""
        groups: dict[str, list[float]] = defaultdict(list)
        for record in records.values():
            correct = float(record.prediction == record.references[0])
            groups["accuracy"].append(correct)
            if self.per is not None and self.per in record.meta:
                groups[f"accuracy/{record.meta[self.per]}"].append(correct)
        return {name: percent(groups[name]) for name in sorted(groups)}


class NLVR2Accuracy(SentenceMetric):
    """NLVR2: share of right verdicts, and of sentences judged right with all their image pairs (consistency).

    The id is the official identifier ``split-set-pair-sentence``; examples that differ in ``pair`` alone form a group.
    ``true`` and ``false`` are compared in lower case, as the official script does. Most image pairs are asked about
    twice, with one sentence that is true of it and one that is not (``balanced``) or with two of one kind
    (``unbalanced``): the accuracies over either, which are the official subsets where the whole split is scored.

    >>> metric = NLVR2Accuracy()
    >>> metric.update(["dev-1-0-0", "dev-1-1-0", "dev-2-0-0"], ["true", "true", "false"],
    ...               [["True"], ["False"], ["False"]])
    >>> {name: round(value, 2) for name, value in metric.compute().items()}
    {'accuracy': 66.67, 'consistency': 50.0}
    """

    headline = "accuracy"

    def score(self, records: Mapping[str, Record]) -> dict[str, float]:
        """``accuracy`` and ``consistency``, and the accuracies of the subsets, where there are such pairs.

        Raises:
            UserError: an id does not have the four parts of an NLVR2 identifier.
        """
        groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
        pairs: dict[tuple[str, ...], list[tuple[str, float]]] = defaultdict(list)
        for key, record in records.items():
            parts = key.split("-")
            if len(parts) != 4:
                raise UserError(f"NLVR2 identifier {key!r} is not of the form split-set-pair-sentence.")
            label = str(record.references[0]).lower()
            correct = float(record.prediction.lower() == label)
            groups[parts[0], parts[1], parts[3]].append(correct)
            pairs[parts[0], parts[1], parts[2]].append((label, correct))
        scores = {
            "accuracy": percent(correct for group in groups.values() for correct in group),
            "consistency": percent(min(group) for group in groups.values()),
        }
        for name, kinds in (("balanced", 2), ("unbalanced", 1)):
            subset = [pair for pair in pairs.values() if len(pair) > 1 and len({label for label, _ in pair}) == kinds]
            if subset:
                scores[f"accuracy/{name}"] = percent(correct for pair in subset for _, correct in pair)
        return scores
