"""YC2C files to examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules.yc2c import YC2C
from vl_peft.batch import Example
from vl_peft.errors import DataError

RECORD = {
    "vid_name": "ljyO7IaGWLY_10",
    "clip_id": 13447,
    "duration": 7,
    "descs": [{"desc": "layer marinara sauce and pierogies ", "desc_id": 10337}],
}
HIDDEN = {"vid_name": "-Ses0R7_ksY_3", "clip_id": 15097, "duration": 9}
CAPTION = ("layer marinara sauce and pierogies",)


def test_examples_of_all_splits(data: Any) -> None:
    data.subtitles("yc2", **{"ljyO7IaGWLY_10": ["now the", "sauce"]})
    for split, record in (("train", RECORD), ("val", RECORD), ("test", HIDDEN)):
        data.lines(f"video/ann/yc2c/yc2c_{split}_release.jsonl", [record])
    benchmark = YC2C(**data.options())
    meta = {"vid_name": "ljyO7IaGWLY_10", "clip_id": 13447}
    rest = ("[Subs] now the sauce yc2c: ", ("ljyO7IaGWLY_10",), CAPTION, (1.0,), CAPTION, (7, 20), meta)
    assert list(benchmark.read("train")) == [Example("10337", *rest)]
    assert list(benchmark.read("val")) == [Example("13447", *rest)]
    assert list(YC2C(flatten_val=True, **data.options()).read("val")) == [Example("10337", *rest)]
    meta = {"vid_name": "-Ses0R7_ksY_3", "clip_id": 15097}
    assert list(benchmark.read("test")) == [
        Example("15097", "[Subs]  yc2c: ", ("-Ses0R7_ksY_3",), context=(7, 7), meta=meta)
    ]


def test_prompt_in_front(data: Any) -> None:
    data.subtitles("yc2", **{"ljyO7IaGWLY_10": ["now the", "sauce"]})
    data.lines("video/ann/yc2c/yc2c_val_release.jsonl", [RECORD])
    (example,) = YC2C(**data.options(prompt_position="front")).read("val")
    assert (example.source, example.context) == ("yc2c: [Subs] now the sauce", (13, 26))


def test_malformed_line(data: Any) -> None:
    data.subtitles("yc2")
    data.lines("video/ann/yc2c/yc2c_train_release.jsonl", [RECORD, {"vid_name": "x_1", "descs": []}])
    with pytest.raises(DataError, match=r"yc2c_train_release\.jsonl, record on line 2: 'clip_id' is missing"):
        list(YC2C(**data.options()).read("train"))


def test_real_val(data: Any, shared: Path) -> None:
    data.copy("video/ann/yc2c/yc2c_val_release.jsonl", shared / "data/real/yc2c/yc2c_val_release.jsonl")
    data.subtitles("yc2")
    examples = list(YC2C(**data.options()).read("val"))
    assert len(examples) == 3492
    assert sorted(int(e.id) for e in examples) == list(range(10337, 13829))
    assert all(len(e.references) == 1 and e.references[0] == e.references[0].strip() for e in examples)
    assert len({e.visuals[0].rsplit("_", 1)[0] for e in examples}) == 457
