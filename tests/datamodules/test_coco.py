"""COCO captions to examples."""

from __future__ import annotations

from typing import Any

import pytest

from datamodules.coco import COCO
from vl_peft.batch import Example, Generation
from vl_peft.errors import DataError


def image(cocoid: int, split: str, captions: dict[int, str]) -> dict[str, Any]:
    return {
        "filepath": "val2014",
        "sentids": list(captions),
        "filename": f"COCO_val2014_{cocoid:012d}.jpg",
        "imgid": 0,
        "split": split,
        "sentences": [{"tokens": raw.split(), "raw": raw, "imgid": 0, "sentid": k} for k, raw in captions.items()],
        "cocoid": cocoid,
    }


MOPED = {
    770337: "A man with a red helmet on a small moped on a dirt road. ",
    771687: "Man riding a motor bike on a dirt road on the countryside.",
}
IMAGES = [image(391895, "restval", MOPED), image(1, "test", MOPED), image(2, "train", {5: "\nA dog."})]


def test_train_has_an_example_per_caption(data: Any) -> None:
    data.json("COCO/dataset_coco.json", {"images": IMAGES, "dataset": "coco"})
    examples = list(COCO(**data.options()).read("train"))
    first = (MOPED[770337].strip(),)
    assert examples[0] == Example("770337", "caption: ", ("COCO_val2014_000000391895",), first, (1.0,), first)
    assert [(e.id, e.targets) for e in examples[1:]] == [("771687", (MOPED[771687],)), ("5", ("A dog.",))]


def test_evaluation_has_an_example_per_image(data: Any) -> None:
    data.json("COCO/dataset_coco.json", {"images": IMAGES, "dataset": "coco"})
    benchmark = COCO(use_prompt=False, **data.options())
    (example,) = benchmark.read("test")
    captions = tuple(raw.strip() for raw in MOPED.values())
    assert example == Example("1", "", ("COCO_val2014_000000000001",), captions, (1.0, 1.0), captions)
    assert list(benchmark.read("val")) == []


def test_longest_caption_is_an_option_of_one_object() -> None:
    short = COCO(generation=Generation(num_beams=5, max_length=20))
    assert (short.task.generation.max_length, short.task.generation.num_beams) == (20, 5)
    assert COCO().task.generation.max_length == COCO.task.generation.max_length == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, r"dataset_coco\.json, record images\[1\]: 'split' is 'dev', not one of train, restval"),
        ({"sentences": [{"sentid": 3}]}, r"record images\[1\], sentences\[0\]: 'raw' is missing"),
        ({"sentences": None}, r"record images\[1\]: 'sentences' is NoneType, not list"),
    ],
)
def test_malformed_image(data: Any, change: dict[str, Any], message: str) -> None:
    data.json("COCO/dataset_coco.json", {"images": [IMAGES[0], IMAGES[0] | change]})
    with pytest.raises(DataError, match=message):
        list(COCO(**data.options()).read("train"))
