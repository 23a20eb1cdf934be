"""How2QA files to examples."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from datamodules.how2qa import How2QA
from vl_peft.batch import Example
from vl_peft.errors import DataError

RECORD = {
    "vid_name": "25848",
    "ts": "36.58-58.52",
    "qid": 30351,
    "q": "What website is shown during this video?",
    "a0": "Www.lyndalepl.com.",
    "a1": "Www.plants.com.",
    "a2": "Www.lyndaleplants.com.",
    "a3": "Www.lyndale.com.",
    "answer_idx": 2,
}
TEXT = (
    "[Subs] hello there [Q] What website is shown during this video? [TS] (36.58-58.52) [Choices] "
    "a0: Www.lyndalepl.com. a1: Www.plants.com. a2: Www.lyndaleplants.com. a3: Www.lyndale.com."
)


def test_examples_of_all_splits(data: Any) -> None:
    data.subtitles("how2", **{"25848": ["hello", " there\n"]})
    hidden = {k: v for k, v in RECORD.items() if k != "answer_idx"}
    for split, record in (("train", RECORD), ("val", RECORD), ("test_public", hidden)):
        data.lines(f"video/ann/how2qa/how2qa_{split}_release.jsonl", [record])
    benchmark = How2QA(**data.options())
    shared_fields = {"id": "30351", "source": TEXT + " how2qa: ", "visuals": ("25848",), "context": (7, 18)}
    answered = Example(**shared_fields, targets=("a2",), weights=(1.0,), references=("a2",))
    assert list(benchmark.read("train")) == list(benchmark.read("val")) == [answered]
    assert list(benchmark.read("test")) == [Example(**shared_fields)]
    assert benchmark.feature_folder("val") == "video/vis_features/how2/{encoder}"


def test_malformed_line(data: Any) -> None:
    data.subtitles("how2")
    data.lines("video/ann/how2qa/how2qa_val_release.jsonl", [RECORD, RECORD | {"qid": 2, "answer_idx": 4}])
    with pytest.raises(DataError, match=r"how2qa_val_release\.jsonl, record on line 2: 'answer_idx' is 4, not .* 3"):
        list(How2QA(**data.options()).read("val"))
    data.text("video/ann/how2qa/how2qa_val_release.jsonl", json.dumps(RECORD) + '\n{"vid_name": "25')
    with pytest.raises(DataError, match=r"how2qa_val_release\.jsonl, record on line 2: not JSON"):
        list(How2QA(**data.options()).read("val"))


def test_real_val(data: Any, shared: Path) -> None:
    file = shared / "data/real/how2qa/how2qa_val_release.jsonl"
    data.copy("video/ann/how2qa/how2qa_val_release.jsonl", file)
    data.subtitles("how2")
    examples = list(How2QA(**data.options()).read("val"))
    assert len(examples) == len({e.id for e in examples}) == 3115
    assert Counter(e.references[0] for e in examples) == {"a0": 778, "a1": 727, "a2": 781, "a3": 829}
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [e.targets for e in examples] == [(f"a{r['answer_idx']}",) for r in records]
    predictions = json.loads((file.parent / "how2qa_val_predictions.json").read_text())
    right = sum(e.references == (f"a{predictions[e.id]}",) for e in examples)
    assert right == 2278  # 73.13 %, as VALUE's evaluator says
