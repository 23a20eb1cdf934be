"""GQA files to examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datamodules.gqa import GQA
from vl_peft.batch import Example
from vl_peft.errors import ConfigError, DataError

SKY = {
    "semantic": [{"operation": "select", "dependencies": [], "argument": "sky (2486325)"}],
    "entailed": ["02930160"],
    "question": "Is the sky dark?",
    "imageId": "2354786",
    "isBalanced": True,
    "answer": "yes",
    "fullAnswer": "Yes, the sky is dark.",
}
SKY_META = {"question": "Is the sky dark?", "image": "2354786", "entailed": ("02930160",), "balanced": True}
SKY_EXAMPLE = Example(
    id="02930152",
    source="gqa: Is the sky dark?",
    visuals=("2354786",),
    targets=("yes",),
    weights=(1.0,),
    references=("yes",),
)


def test_default_splits(data: Any) -> None:
    for name in ("train", "val", "testdev"):
        data.json(f"GQA/{name}_balanced_questions.json", {f"{name}1": SKY, "02930152": SKY})
    benchmark = GQA(**data.options())
    for split, name in (("train", "train"), ("val", "val"), ("test", "testdev")):
        examples = list(benchmark.read(split))  # type: ignore[arg-type]
        assert [e.id for e in examples] == [f"{name}1", "02930152"]
        meta = {} if split == "train" else SKY_META
        assert examples[1] == replace(SKY_EXAMPLE, meta=meta)
    assert benchmark.feature_folder("train") == "VG/clip_features/data_clip_{encoder}_att"
    assert benchmark.feature_folder("test") == "GQA/clip_features/data_clip_{encoder}_att"


def test_published_protocol(data: Any) -> None:
    data.json("GQA/train_balanced_questions.json", {"1": SKY})
    data.json("GQA/val_balanced_questions.json", {"2": SKY})
    benchmark = GQA(
        train_splits=("train_balanced", "val_balanced"),
        val_split="testdev_balanced",
        prompt_text="gpa: ",
        **data.options(),
    )
    assert [(e.id, e.source) for e in benchmark.read("train")] == [
        ("1", "gpa: Is the sky dark?"),
        ("2", "gpa: Is the sky dark?"),
    ]
    assert benchmark.feature_folder("val").startswith("GQA/")


def test_hidden_answers(data: Any) -> None:
    hidden = {"imageId": "n1", "question": "Is it?", "isBalanced": True}
    data.json("GQA/submission_all_questions.json", {"7": hidden})
    meta = {"question": "Is it?", "image": "n1", "balanced": True}
    assert list(GQA(test_split="submission_all", **data.options()).read("test")) == [
        Example(id="7", source="gqa: Is it?", visuals=("n1",), meta=meta)
    ]


def test_files_that_cannot_be_used(data: Any) -> None:
    benchmark = GQA(**data.options())
    with pytest.raises(DataError, match=r"train_balanced_questions\.json: no such file.*--data\.root"):
        list(benchmark.read("train"))
    data.json("GQA/val_balanced_questions.json", {"1": SKY, "2": {"question": "?", "imageId": "n1"}})
    with pytest.raises(DataError, match=r"val_balanced_questions\.json, record 2: 'answer' is missing"):
        list(benchmark.read("val"))
    with pytest.raises(ConfigError, match="same folder"):
        GQA(train_splits=("train_balanced", "testdev_balanced"))
    with pytest.raises(ConfigError, match="one or more"):
        GQA(train_splits=())


def test_real_question(data: Any, shared: Path) -> None:
    data.copy("GQA/testdev_balanced_questions.json", shared / "data/real/gqa/questions.json")
    (example,) = GQA(**data.options()).read("test")
    assert (example.id, example.visuals, example.targets) == ("202218649", ("n578564",), ("picture",))
    assert example.source == "gqa: What is hanging above the chalkboard?"
    assert example.meta == {
        "question": "What is hanging above the chalkboard?",
        "image": "n578564",
        "types": {"detailed": "relS", "semantic": "rel", "structural": "query"},
        "entailed": ("202218648",),
        "group": "thing",
        "balanced": True,
    }


def test_files_of_choices_are_used_where_they_are(data: Any) -> None:
    benchmark = GQA(**data.options())
    assert benchmark.metric().choices == ()  # type: ignore[attr-defined]
    data.json("GQA/testdev_choices.json", {})
    assert [file.name for file in benchmark.metric().choices] == ["testdev_choices.json"]  # type: ignore[attr-defined]
