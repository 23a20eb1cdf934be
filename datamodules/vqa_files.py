"""Questions of VQAv2 and the answers given to them, from the official files and from the processed ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.findings import Findings
from datamodules.image import ranked, soft_labels
from datamodules.records import SKIP, MalformedError, Record, read_items, read_list
from vl_peft.metrics import soft_scores


@dataclass(frozen=True, slots=True)
class Labels:
    """What people answered to a question.

    Attributes:
        scores: each answer and its soft score, best first.
        references: what the metric compares with; empty for training.
        meta: question type, answer type and the like; empty for training.
    """

    scores: Mapping[str, float]
    references: tuple[Any, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    """One question, whichever file it is from; ``labels`` is ``None`` where the answers are hidden."""

    record: Record
    key: int
    image: str
    text: str
    labels: Labels | None


def official_labels(
    file: Path, wanted: Callable[[Record], bool], evaluated: bool, found: Findings
) -> dict[int, Labels]:
    """Labels by question id of the annotations that are wanted of a ``v2_mscoco_*_annotations.json``."""
    labels = {}
    for record in read_items(file, "annotations", found.reject):
        try:
            if wanted(record):
                labels[record.require("question_id", int)] = _official(record, evaluated)
        except MalformedError as error:
            found.reject(error)
    return labels


def _official(record: Record, evaluated: bool) -> Labels:
    people = _people(record)
    scores = ranked(soft_scores([person["answer"] for person in people]))
    return Labels(scores, people, _meta(record, "question_type", "answer_type")) if evaluated else Labels(scores)


def _people(record: Record) -> tuple[dict[str, Any], ...]:
    answers = record.each("answers")
    if not answers:
        raise record.error("'answers' is empty")
    for answer in answers:
        answer.require("answer", str)
    return tuple(answer.fields for answer in answers)


def official_question(
    record: Record, part: str, images: Container[int] | None, labels: Mapping[int, Labels] | None
) -> Question | None:
    """A question of ``v2_OpenEnded_mscoco_<part>_questions.json``.

    Args:
        record: the question.
        part: of COCO.
        images: those of the split, ``None`` for all; a question about another one gives ``None``.
        labels: by question id; ``None`` where they are hidden.

    Raises:
        MalformedError: if a field or the annotation of the question is missing.
    """
    image = record.require("image_id", int)
    if images is not None and image not in images:
        return None
    key = record.require("question_id", int)
    if labels is not None and key not in labels:
        file = record.file.with_name(f"v2_mscoco_{part}_annotations.json")
        raise MalformedError(file, "no annotation of this question", key, SKIP)
    text = record.require("question", str)
    return Question(record, key, f"COCO_{part}_{image:012d}", text, labels[key] if labels is not None else None)


def processed_question(record: Record, people: Mapping[int, Labels], hidden: bool, evaluated: bool) -> Question:
    """A question of a ``karpathy_*.json`` or LXMERT's ``minival.json`` and so on.

    Its references are the ten answers of the record, or those of ``people``, or the label dict.
    """
    key, image, text = record.require("question_id", int), record.require("img_id", str), record.require("sent", str)
    if hidden and "label" not in record.fields:
        return Question(record, key, image, text, None)
    scores = soft_labels(record)
    if not evaluated:
        return Question(record, key, image, text, Labels(scores))
    references: tuple[Any, ...] = (scores,)
    if "answers" in record.fields:
        references = _people(record)
    elif key in people:
        references = people[key].references
    meta = _meta(record, "question_type", "answer_type", "is_topk_optimal")
    return Question(record, key, image, text, Labels(scores, references, meta))


def without_people(files: Iterable[Path]) -> Mapping[str, Container[int]]:
    """For each part of COCO the ids of processed questions that have a label but not the ten answers."""
    ids: dict[str, set[int]] = defaultdict(set)
    for file in files:
        for record in read_list(file, lambda error: None):  # told of when the examples are made
            image, key = str(record.fields.get("img_id")), record.fields.get("question_id")
            if "answers" not in record.fields and "label" in record.fields and isinstance(key, int):
                ids[image.partition("_")[2].partition("_")[0]].add(key)
    return ids


def _meta(record: Record, *names: str) -> dict[str, Any]:
    return {name: record.fields[name] for name in names if name in record.fields}
