"""The scores of GQA's evaluation script (https://cs.stanford.edu/people/dorarad/gqa/evaluate.html)."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vl_peft.errors import DataError
from vl_peft.metrics.accuracy import percent
from vl_peft.metrics.base import Record, SentenceMetric

Choices = Mapping[str, Mapping[str, Collection[str]]]


class GQAAccuracy(SentenceMetric):
    """GQA: exact match, and how sensible and consistent the answers are.

    The official script's scores, as far as ``meta`` and ``choices`` say what they need; the rest is left out. Questions
    with a false ``meta["balanced"]`` count as entailed ones only.

    - ``accuracy``: share of answers that are exactly the right one.
    - ``binary``, ``open``: the same over yes/no or choice questions, and over those of structural type ``query``;
      ``structural/<type>`` and ``semantic/<type>`` over those of a type. Need ``meta["types"]``.
    - ``consistency``: over right answers whose question entails others, the mean share of these that are right too.
      Needs ``meta["entailed"]``, the ids of the entailed questions. Those that were not asked are left out and counted
      in ``notes`` (the official script demands all questions, not only the balanced ones).
    - ``validity``, ``plausibility``: share of answers that are of the right kind for the question (a colour), and
      that occur with its subject somewhere (an apple is not purple). Need ``choices``; among the thorough scores, as
      these files are large.
    - ``distribution``: how far the answers' frequencies are from the right ones': chi-square per group of questions,
      averaged with the groups' sizes as weights, divided by 100. The one number that is no percentage and where
      lower is better. Needs ``meta["group"]``, the global group, which some questions have not.

    Args:
        choices: official files ``<split>_choices.json``: ``{id: {"valid": [...], "plausible": [...]}}``.

    >>> metric = GQAAccuracy()
    >>> types = [{"structural": "verify", "semantic": "attr"}, {"structural": "query", "semantic": "rel"}]
    >>> metric.update(["1", "2"], ["yes", "cup"], [["yes"], ["jar"]],
    ...               [{"types": types[0], "entailed": ("2",)}, {"types": types[1], "group": "thing"}])
    >>> metric.compute()  # doctest: +NORMALIZE_WHITESPACE
    {'accuracy': 50.0, 'binary': 100.0, 'open': 0.0, 'semantic/attr': 100.0, 'semantic/rel': 0.0,
     'structural/query': 0.0, 'structural/verify': 100.0, 'consistency': 0.0, 'distribution': 0.01}
    """

    headline = "accuracy"

    def __init__(self, choices: Sequence[Path] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.choices = tuple(choices)

    def score(self, records: Mapping[str, Record]) -> dict[str, float]:
        """All but ``validity`` and ``plausibility``."""
        right = {key: record.prediction == record.references[0] for key, record in records.items()}
        records = _balanced(records)
        scores = accuracies(records, right) | self._consistency(records, right)
        groups = {key: record for key, record in records.items() if record.meta.get("group") is not None}
        return scores | ({"distribution": distribution(groups)} if groups else {})

    def extra(self, records: Mapping[str, Record]) -> dict[str, float]:
        """``validity`` and ``plausibility``, where the files have choices for every question.

        Raises:
            DataError: a file of choices is damaged.
        """
        records, choices = _balanced(records), _read(self.choices)
        unknown = [key for key in records if not {"valid", "plausible"} <= choices.get(key, {}).keys()]
        if self.choices and unknown:
            note = f"{len(unknown):,} of {len(records):,} questions (first {unknown[0]}) are in no file of choices"
            self.notes = (*self.notes, f"validity and plausibility were left out: {note}")
        return {} if unknown else sensible(records, choices)

    def _consistency(self, records: Mapping[str, Record], right: Mapping[str, bool]) -> dict[str, float]:
        shares, missing, entailing = [], 0, 0
        for key, record in records.items():
            others = [other for other in record.meta.get("entailed", ()) if other != key]
            asked = [right[other] for other in others if other in right]
            missing += len(others) - len(asked)
            entailing += len(others)
            if right[key] and asked:
                shares.append(percent(asked))
        if missing:
            note = f"consistency: {missing:,} of {entailing:,} entailed questions were not asked"
            self.notes = (*self.notes, f"{note}; it is over the others")
        return {"consistency": sum(shares) / len(shares)} if shares else {}


def accuracies(records: Mapping[str, Record], right: Mapping[str, bool]) -> dict[str, float]:
    """``accuracy``, and that of the questions of each kind and type."""
    groups: dict[str, list[float]] = defaultdict(list)
    for key, record in records.items():
        names, types = ["accuracy"], record.meta.get("types") or {}
        if "structural" in types:
            names.append("open" if types["structural"] == "query" else "binary")
        names += [f"{by}/{types[by]}" for by in ("structural", "semantic") if by in types]
        for name in names:
            groups[name].append(float(right[key]))
    return {name: percent(groups[name]) for name in sorted(groups)}


def sensible(records: Mapping[str, Record], choices: Choices) -> dict[str, float]:
    """``validity`` and ``plausibility``."""
    scores = {}
    for name, kind in (("validity", "valid"), ("plausibility", "plausible")):
        # "What do the two have in common?" has three possible answers, whatever the file lists.
        scores[name] = percent(
            record.prediction
            in (
                ("color", "material", "shape")
                if "Common" in (record.meta.get("types") or {}).get("detailed", "")
                else choices[key][kind]
            )
            for key, record in records.items()
        )
    return scores


def distribution(records: Mapping[str, Record]) -> float:
    """Chi-square between the answers and the right ones, in hundreds; every record has a ``meta["group"]``."""
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    predicted: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records.values():
        gold[record.meta["group"]][record.references[0]] += 1
        predicted[record.meta["group"]][record.prediction] += 1
    total = sum(
        sum((predicted[group][answer] - count) ** 2 / count for answer, count in answers.items()) * answers.total()
        for group, answers in gold.items()
    )
    return total / len(records) / 100


def _balanced(records: Mapping[str, Record]) -> Mapping[str, Record]:
    return {key: record for key, record in records.items() if record.meta.get("balanced", True)} or records


def _read(files: Sequence[Path]) -> Choices:
    choices: dict[str, Any] = {}
    for file in files:
        try:
            choices |= json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as error:
            remedy = "Download it again, or move it away to do without validity and plausibility."
            raise DataError(file, f"cannot be read ({error})", remedy=remedy) from error
    return choices
