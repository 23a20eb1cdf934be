"""NLVR2 files to examples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from datamodules.nlvr2 import NLVR2
from vl_peft.batch import Example
from vl_peft.errors import DataError

SENTENCE = "The right image shows a curving walkway of dark glass circles embedded in dirt and flanked by foliage."
RECORD = {
    "validation": {"61": "False"},
    "sentence": SENTENCE,
    "left_url": "https://example.com/a.jpg",
    "writer": "61",
    "label": "False",
    "right_url": "https://example.com/b.jpg",
    "synset": "beer bottle",
    "query": "some beer bottles38",
    "identifier": "dev-850-0-0",
    "extra_validations": {"154": "False"},
}


def test_examples(data: Any) -> None:
    data.lines("nlvr/dev.json", [RECORD, RECORD | {"identifier": "dev-850-0-1", "label": "True"}])
    first, second = NLVR2(**data.options()).read("val")
    assert first == Example(
        id="dev-850-0-0",
        source="nlvr: " + SENTENCE,
        visuals=("dev-850-0-img0", "dev-850-0-img1"),
        targets=("false",),
        weights=(1.0,),
        references=("false",),
    )
    assert (second.targets, second.references, second.visuals) == (("true",), ("true",), first.visuals)


def test_splits_and_tie(data: Any) -> None:
    for name in ("train", "test1", "test2"):
        data.lines(f"nlvr/{name}.json", [RECORD | {"identifier": f"{name}-1-2-3", "directory": 7}])
    read = {split: next(NLVR2(**data.options()).read(split)).id for split in ("train", "test")}  # type: ignore[arg-type]
    assert read == {"train": "train-1-2-3", "test": "test1-1-2-3"}
    assert next(NLVR2(test_split="test2", **data.options()).read("test")).visuals[1] == "test2-1-2-img1"
    assert NLVR2.task.candidates == ("false", "true")  # the first wins a tie


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "yes"}, r"dev\.json, record on line 2: 'label' is 'yes', not 'True' or 'False'"),
        ({"identifier": "dev"}, r"dev\.json, record on line 2: 'identifier' is 'dev', not"),
        ({"sentence": None}, r"dev\.json, record on line 2: 'sentence' is NoneType, not str"),
    ],
)
def test_malformed_line(data: Any, change: dict[str, Any], message: str) -> None:
    data.lines("nlvr/dev.json", [RECORD, RECORD | change])
    with pytest.raises(DataError, match=message):
        list(NLVR2(**data.options()).read("val"))


def test_real_dev(data: Any, shared: Path) -> None:
    data.copy("nlvr/dev.json", shared / "data/real/nlvr2/dev.json")
    examples = list(NLVR2(**data.options()).read("val"))
    assert len(examples) == len({e.id for e in examples}) == 6982
    assert Counter(e.references[0] for e in examples) == {"true": 3551, "false": 3431}
    assert len({e.visuals for e in examples}) == 4051
    assert len({e.id.rsplit("-", 2)[0] + "-" + e.id.rsplit("-", 1)[1] for e in examples}) == 2018
    assert max(len(e.source.split()) for e in examples) == 49 + 1
