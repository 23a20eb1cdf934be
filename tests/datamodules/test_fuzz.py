"""Damaged files give a correct parse or one of our own errors that names the file, and never another exception."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules import COCO, GQA, NLVR2, TVC, TVQA, YC2C, How2QA, VQAv2
from vl_peft.batch import Example
from vl_peft.errors import DataError

CHOICES = {f"a{i}": f"choice {i}." for i in range(5)}
QUESTION = CHOICES | {"q": "Why?", "qid": 7, "show_name": "Castle", "ts": "1.5-2", "vid_name": "v", "answer_idx": 3}
CLIP = {
    "vid_name": "v",
    "clip_id": 7,
    "ts": [1, 2.5],
    "descs": [{"desc": "a dog", "desc_id": 1}, {"desc": "b", "desc_id": 2}],
}
SENTENCE = {"identifier": "dev-1-0-0", "sentence": "One dog.", "label": "True"}
LABELLED = {
    "img_id": "COCO_val2014_1",
    "label": {"a": 1, "b": 0.3},
    "question_id": 7,
    "sent": "?",
    "answers": [{"answer": "a"}],
}
PAIR = {"identifier": "dev-1-0-0", "img0": "x", "img1": "y", "label": 1, "sent": "One dog."}
SCENE = {
    "question": "?",
    "imageId": "1",
    "answer": "a",
    "types": {"detailed": "x"},
    "entailed": ["2"],
    "groups": {"global": None},
}
IMAGE = {
    "filepath": "val2014",
    "filename": "a.jpg",
    "split": "val",
    "cocoid": 1,
    "sentences": [{"raw": "A dog", "sentid": 1}],
}


def lines(record: Any) -> str:
    return f"{json.dumps(record)}\n" * 2


CASES: dict[str, tuple[Any, str, Callable[[Any], str], Any]] = {
    "tvqa": (TVQA, "video/ann/tvqa/tvqa_val.jsonl", lines, QUESTION),
    "how2qa": (How2QA, "video/ann/how2qa/how2qa_val_release.jsonl", lines, QUESTION),
    "tvc": (TVC, "video/ann/tvc/tvc_val_release.jsonl", lines, CLIP),
    "yc2c": (YC2C, "video/ann/yc2c/yc2c_val_release.jsonl", lines, CLIP),
    "nlvr": (NLVR2, "nlvr/dev.json", lines, SENTENCE),
    "nlvr processed": (NLVR2, "nlvr/valid.json", json.dumps, [PAIR]),
    "vqa processed": (VQAv2, "vqa/karpathy_val.json", json.dumps, [LABELLED]),
    "gqa": (GQA, "GQA/val_balanced_questions.json", json.dumps, {"07": SCENE}),
    "gqa processed": (GQA, "GQA/valid.json", json.dumps, [LABELLED | {"question_id": "07"}]),
    "coco": (COCO, "COCO/dataset_coco.json", json.dumps, {"images": [IMAGE]}),
}
ODD = (
    "null",
    "true",
    "-1",
    "1e999",
    "NaN",
    '""',
    '"x"',
    "[]",
    "{}",
    "[[]]",
    '{"a": 1}',
    '"\\ud800"',
    "9" * 5000,
    '"\\u2028"',
)


def mutated(text: str, rng: random.Random) -> str:
    """The text with a value replaced, a piece cut out, doubled or shuffled, or a character changed."""
    start = rng.randrange(len(text))
    end = min(len(text), start + rng.randrange(1, 12))
    way = rng.randrange(5)
    if way == 0:
        head, colon, tail = text[start:].partition(": ")
        _, mark, rest = tail.partition(rng.choice([",", "}", "]"]))
        return text[:start] + head + colon + rng.choice(ODD) + mark + rest
    if way == 1:
        return text[:start] + text[end:]
    if way == 2:
        return text[:end] + text[start:]
    if way == 3:
        return text[:start] + rng.choice('{}[]",:\\\0\n\u2028\ud7ffé0-') + text[start + 1 :]
    return text[:start] + text[start:end][::-1] + text[end:]


@pytest.mark.parametrize("case", CASES)
def test_mutated_annotations(data: Any, case: str) -> None:
    benchmark, name, dump, value = CASES[case]
    for channel in ("tv", "how2", "yc2"):
        data.subtitles(channel, v=["hello"])
    text, rng, read, failed = dump(value), random.Random(case), 0, 0
    for _ in range(500):
        file: Path = data.text(name, mutated(text, rng))
        for malformed in ("fail", "skip"):
            try:
                examples = list(benchmark(malformed=malformed, **data.options()).read("val"))
            except DataError as error:
                assert str(data.path) in str(error) and error.problem and Path(error.file).name.startswith(file.name)
                failed += 1
            else:
                assert all(
                    isinstance(e, Example) and e.id and " ".join((e.source, *e.targets)).encode() for e in examples
                )
                assert all(len(e.targets) == len(e.weights) for e in examples)
                read += 1
    assert read > 50 and failed > 50, "both happen"
