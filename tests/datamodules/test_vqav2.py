"""VQAv2 files to examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.vqav2 import VQAv2
from vl_peft.batch import Example
from vl_peft.errors import DataError


def annotation(question: int, answers: list[str]) -> dict[str, Any]:
    return {
        "question_id": question,
        "image_id": question // 1000,
        "question_type": "what is this",
        "answer_type": "other",
        "multiple_choice_answer": answers[0],
        "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)],
    }


NET = annotation(458752000, ["net", "net", "net", "netting", "net", "net", "mesh", "net", "net", "net"])
ODD = annotation(262148000, ["a b c"] * 10)
RED = annotation(393225000, ["red"] * 10)


def question(of: dict[str, Any], text: str) -> dict[str, Any]:
    return {"image_id": of["image_id"], "question": text, "question_id": of["question_id"]}


def image(part: str, cocoid: int, split: str) -> dict[str, Any]:
    filename = f"COCO_{part}_{cocoid:012d}.jpg"
    return {"filepath": part, "filename": filename, "split": split, "cocoid": cocoid, "sentences": []}


@pytest.fixture
def vqa(data: Any) -> Any:
    parts = {
        "train2014": [question(NET, "What is this photo taken looking through?")],
        "val2014": [question(ODD, "Where is he looking?"), question(RED, "What color?")],
    }
    annotations = {"train2014": [NET], "val2014": [RED, ODD]}
    for part, questions in parts.items():
        data.json(f"vqa/v2_OpenEnded_mscoco_{part}_questions.json", {"info": {}, "questions": questions})
        data.json(f"vqa/v2_mscoco_{part}_annotations.json", {"info": {}, "annotations": annotations[part]})
    images = [
        image("train2014", 458752, "train"),
        image("val2014", 262148, "restval"),
        image("val2014", 393225, "test"),
    ]
    data.json("COCO/dataset_coco.json", {"images": images, "dataset": "coco"})
    return data


def test_karpathy_train_without_vocabulary(vqa: Any) -> None:
    net, odd = VQAv2(**vqa.options()).read("train")
    assert net.id == "458752000"
    assert net.source == "vqa: What is this photo taken looking through?"
    assert net.visuals == ("COCO_train2014_000000458752",)
    assert dict(zip(net.targets, net.weights, strict=True)) == pytest.approx({"net": 1.0, "netting": 0.3, "mesh": 0.3})
    assert (net.references, net.meta, net.context) == ((), {}, (0, 0))
    assert (odd.visuals, odd.targets) == (("COCO_val2014_000000262148",), ("a b c",))


def test_vocabulary_filters_and_empty_labels_are_counted(vqa: Any, reports: list[str]) -> None:
    vqa.json("vqa/trainval_ans2label.json", {"": 0, "net": 1, "red": 2})
    net, odd = VQAv2(**vqa.options()).read("train")
    assert (net.targets, net.weights) == (("net",), (1.0,))
    assert (odd.targets, odd.weights) == (("",), (0.0,))
    place = "(v2_OpenEnded_mscoco_val2014_questions.json questions[0])"
    assert reports[1:] == [f"vqa: train: 1 questions have no answer in the vocabulary; their loss weight is 0 {place}"]


def test_empty_answers_are_no_targets(vqa: Any) -> None:
    blank = annotation(458752000, ["", "", "", "net", "net", "net", "net", "net", "net", "net"])
    vqa.json("vqa/v2_mscoco_train2014_annotations.json", {"annotations": [blank]})
    vqa.json("vqa/trainval_ans2label.json", {"": 0, "net": 1})
    assert next(VQAv2(**vqa.options()).read("train")).targets == ("net",)


def test_evaluated_questions_keep_the_ten_answers(vqa: Any) -> None:
    (example,) = VQAv2(use_prompt=False, **vqa.options()).read("test")
    assert example == Example(
        id="393225000",
        source="What color?",
        visuals=("COCO_val2014_000000393225",),
        targets=("red",),
        weights=(1.0,),
        references=tuple(RED["answers"]),
        meta={"question_type": "what is this", "answer_type": "other"},
    )


def test_official_splits(vqa: Any) -> None:
    (vqa.path / "COCO/dataset_coco.json").unlink()
    vqa.json("vqa/v2_OpenEnded_mscoco_test2015_questions.json", {"questions": [question(RED, "What color?")]})
    benchmark = VQAv2(split_by="official", **vqa.options())
    assert [e.id for e in benchmark.read("train")] == ["458752000"]
    assert [(e.id, len(e.references)) for e in benchmark.read("val")] == [("262148000", 10), ("393225000", 10)]
    assert list(benchmark.read("test")) == [
        Example(id="393225000", source="vqa: What color?", visuals=("COCO_test2015_000000393225",))
    ]


def test_files_that_cannot_be_used(vqa: Any) -> None:
    benchmark = VQAv2(**vqa.options())
    broken = [{"image_id": 458752, "question_id": 458752000}]
    vqa.json("vqa/v2_OpenEnded_mscoco_train2014_questions.json", {"questions": broken})
    with pytest.raises(DataError, match=r"v2_OpenEnded_mscoco_train2014_questions\.json, .*questions\[0\]: 'question'"):
        list(benchmark.read("train"))
    vqa.json("vqa/v2_mscoco_train2014_annotations.json", {"annotations": [NET | {"answers": [{"answer": 3}]}]})
    with pytest.raises(DataError, match=r"annotations\[0\], answers\[0\]: 'answer' is int, not str"):
        list(benchmark.read("train"))
    vqa.json("vqa/v2_mscoco_val2014_annotations.json", {"annotations": [ODD]})
    with pytest.raises(DataError, match=r"v2_mscoco_val2014_annotations\.json, record 393225000: no annotation"):
        list(benchmark.read("test"))
    (vqa.path / "COCO/dataset_coco.json").unlink()
    with pytest.raises(DataError, match=r"dataset_coco\.json: no such file.*vl-peft data demo"):
        list(benchmark.read("train"))


def test_real_questions(data: Any, shared: Path) -> None:
    real = shared / "data/real/vqav2"
    data.copy("vqa/v2_OpenEnded_mscoco_train2014_questions.json", real / "questions.json")
    data.copy("vqa/trainval_ans2label.json", real / "trainval_ans2label.json")
    annotations = json.loads((real / "annotations.json").read_text())["annotations"]
    annotations = [{"image_id": 458752} | a for a in annotations]  # these three lack the field
    data.json("vqa/v2_mscoco_train2014_annotations.json", {"annotations": annotations})
    examples = list(VQAv2(split_by="official", **data.options()).read("train"))
    assert [e.id for e in examples] == ["458752000", "458752001", "458752002"]
    assert dict(zip(examples[0].targets, examples[0].weights, strict=True)) == pytest.approx(
        {"net": 1.0, "pitcher": 0.3, "orange": 0.3}  # "netting" and "mesh" are not among the 3,129
    )
    assert examples[1].source == "vqa: What position is this man playing?"
    assert examples[2].targets == ("orange",)
