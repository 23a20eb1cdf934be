"""TVC files to examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules.tvc import TVC
from vl_peft.batch import Example
from vl_peft.errors import DataError

VIDEO = "grey_s03e12_seg02_clip_17"
HIDDEN = {"vid_name": VIDEO, "duration": 94.03, "ts": [35.73, 40.9], "clip_id": 86602}
CAPTIONS = ("Meredith walks into the kitchen.", "Meredith enters.")
RECORD = HIDDEN | {
    "descs": [
        {"desc": CAPTIONS[0] + " ", "desc_id": 62633, "type": "v", "from_retrieval": True},
        {"desc": CAPTIONS[1], "desc_id": 62634, "type": "vt", "from_retrieval": False},
    ]
}
SOURCE = "[Subs] Meredith : Hi. [TS] ([35.73, 40.9]) tvc: "
META = {"vid_name": VIDEO, "clip_id": 86602, "ts": [35.73, 40.9]}


@pytest.fixture
def tvc(data: Any) -> Any:
    data.subtitles("tv", **{VIDEO: ["Meredith : Hi."]})
    for split in ("train", "val"):
        data.lines(f"video/ann/tvc/tvc_{split}_release.jsonl", [RECORD])
    return data


def per_caption() -> list[Example]:
    return [
        Example(key, SOURCE, (VIDEO,), (caption,), (1.0,), (caption,), (7, 21), META)
        for key, caption in zip(("62633", "62634"), CAPTIONS, strict=True)
    ]


def test_train_has_an_example_per_caption(tvc: Any) -> None:
    assert list(TVC(**tvc.options()).read("train")) == per_caption()


def test_val_has_an_example_per_clip_unless_flattened(tvc: Any) -> None:
    assert list(TVC(**tvc.options()).read("val")) == [
        Example("86602", SOURCE, (VIDEO,), CAPTIONS, (1.0, 1.0), CAPTIONS, (7, 21), META)
    ]
    assert list(TVC(flatten_val=True, **tvc.options()).read("val")) == per_caption()


def test_hidden_captions(tvc: Any, reports: list[str]) -> None:
    tvc.lines("video/ann/tvc/tvc_test_public_release.jsonl", [HIDDEN | {"ts": [0, 5.4]}])
    (example,) = TVC(**tvc.options()).read("test")
    assert (example.id, example.targets, example.references) == ("86602", (), ())
    assert "[TS] ([0, 5.4]) tvc: " in example.source  # whole numbers are printed as the file has them
    tvc.lines("video/ann/tvc/tvc_test_release.jsonl", [HIDDEN, HIDDEN | {"clip_id": 1}])
    assert [e.id for e in TVC(**tvc.options()).read("test")] == ["86602", "1"]
    place = "tvc_test_public_release.jsonl on line 1"
    assert reports == [f"tvc: test: 1 records repeat the id of an earlier one; left out ({place})"]


def test_prompt_in_front(tvc: Any) -> None:
    (example,) = TVC(**tvc.options(prompt_position="front")).read("val")
    assert example.source == "tvc: [Subs] Meredith : Hi. [TS] ([35.73, 40.9])"
    assert example.source[slice(*example.context)] == "Meredith : Hi."


def test_unknown_span(tvc: Any) -> None:
    nan = float("nan")
    tvc.lines("video/ann/tvc/tvc_test_release.jsonl", [HIDDEN | {"ts": [nan, nan]}])
    assert next(TVC(**tvc.options()).read("test")).source == "[Subs] Meredith : Hi. tvc: "
    verbatim = TVC(unknown_span="verbatim", **tvc.options())
    assert next(verbatim.read("test")).source == "[Subs] Meredith : Hi. [TS] ([nan, nan]) tvc: "


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (HIDDEN, r"tvc_val_release\.jsonl, record on line 1: 'descs' is missing"),
        (RECORD | {"descs": [{"desc_id": 3}]}, r"record on line 1, descs\[0\]: 'desc' is missing"),
        (RECORD | {"ts": 35.73}, r"record on line 1: 'ts' is float, not str or list"),
    ],
)
def test_malformed_line(tvc: Any, record: dict[str, Any], message: str) -> None:
    tvc.lines("video/ann/tvc/tvc_val_release.jsonl", [record])
    with pytest.raises(DataError, match=message):
        list(TVC(**tvc.options()).read("val"))


def test_real_test_moments(data: Any, shared: Path) -> None:
    file = shared / "data/real/tvc/tvc_test_public_release.jsonl"
    data.copy("video/ann/tvc/tvc_test_public_release.jsonl", file)
    data.subtitles("tv")
    examples = list(TVC(**data.options()).read("test"))
    assert [e.id for e in examples] == [str(i) for i in range(102866, 108286)]
    assert examples[0].source == "[Subs]  [TS] ([80.64, 85.28]) tvc: "
    assert any("[TS] ([0, 5.4]) " in e.source for e in examples)
