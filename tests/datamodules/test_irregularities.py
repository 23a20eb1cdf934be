"""Real data is irregular: every row of docs/irregularities.md does and reports what it says there."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import COCO, GQA, NLVR2, TVC, TVQA, YC2C, How2QA, VQAv2
from vl_peft.batch import Example
from vl_peft.errors import DataError
from vl_peft.sampling import Draw

TABLE = Path(__file__).resolve().parents[2] / "docs/irregularities.md"
CLASSES = (COCO, GQA, NLVR2, TVC, TVQA, YC2C, How2QA, VQAv2)


def told(reports: list[str]) -> list[str]:
    """The reports without the places they name, and without those on which files were found."""
    return [r.partition(" (")[0] for r in reports if " annotations, " not in r]


def test_the_table_names_options_that_exist_with_their_defaults() -> None:
    options: dict[str, set[object]] = {}
    for kind in CLASSES:
        for parent in kind.__mro__:
            if "__init__" in vars(parent) and parent.__module__.startswith("datamodules"):
                for name, parameter in inspect.signature(parent.__init__).parameters.items():
                    options.setdefault(name, set()).add(parameter.default)
    rows = [line.split("|")[2] for line in TABLE.read_text().splitlines() if line.startswith("| ")][1:]
    named = [match for row in rows for match in re.findall(r"`(\w+): \*\*(\S+?)\*\*", row)]
    assert len(named) >= 10
    for name, default in named:
        assert default in {str(value).lower() for value in options[name]}, name


def vqa(data: Any, *labels: dict[str, float], split: str = "train") -> None:
    record = {"img_id": "COCO_train2014_1", "sent": "?"}
    data.json(f"vqa/karpathy_{split}.json", [record | {"question_id": i, "label": v} for i, v in enumerate(labels)])


def test_vqa_questions_without_an_answer(data: Any, reports: list[str]) -> None:
    vqa(data, {"net": 1}, {})
    kept = list(VQAv2(**data.options()).read("train"))
    assert [(e.targets, e.weights) for e in kept] == [(("net",), (1.0,)), (("",), (0.0,))]
    assert [e.id for e in VQAv2(without_answer="skip", **data.options()).read("train")] == ["0"]
    assert told(reports) == [
        "vqa: train: 1 questions have no answer in the vocabulary; their loss weight is 0",
        "vqa: train: 1 questions have no answer in the vocabulary; left out",
    ]
    vqa(data, {}, split="val")
    assert len(list(VQAv2(without_answer="skip", **data.options()).read("val"))) == 1, "all are evaluated"


def test_vqa_empty_answers(data: Any, reports: list[str]) -> None:
    vqa(data, {"": 1, "net": 0.3})
    assert next(VQAv2(**data.options()).read("train")).targets == ("net",)
    assert [e.targets for e in VQAv2(**data.options()).read("train")] == [("net",)]
    assert [e.targets for e in VQAv2(empty_answer="keep", **data.options()).read("train")] == [("", "net")]
    assert told(reports) == [
        "vqa: train: 1 questions have an empty answer; no target",
        "vqa: train: 1 questions have an empty answer; kept as a target",
    ]


def test_vqa_questions_without_annotation(data: Any, reports: list[str]) -> None:
    annotation = {"question_id": 1, "image_id": 1, "answers": [{"answer": "net", "answer_id": 1}]}
    questions = [{"question_id": i, "image_id": 1, "question": "?"} for i in (1, 2)]
    data.json("vqa/v2_OpenEnded_mscoco_train2014_questions.json", {"questions": questions})
    data.json("vqa/v2_mscoco_train2014_annotations.json", {"annotations": [annotation]})
    with pytest.raises(DataError, match=r"annotations\.json, record 2: no annotation of this question.*malformed skip"):
        list(VQAv2(split_by="official", **data.options()).read("train"))
    kept = list(VQAv2(split_by="official", malformed="skip", **data.options()).read("train"))
    assert [e.id for e in kept] == ["1"]
    assert told(reports) == ["vqa: train: 1 records cannot be used; left out"]
    assert "v2_mscoco_train2014_annotations.json, 2: no annotation of this question" in reports[-1]


LINE = {f"a{i}": "x" for i in range(5)} | {"q": "?", "show_name": "Castle", "ts": "1-2", "vid_name": "v"}


@pytest.mark.parametrize(
    "bad",
    ['{"qid": 7', "[1]", "7" * 5000, "[" * 100_000, json.dumps(LINE | {"qid": 1}), '{"qid": true}', "\x00"],
)
def test_malformed_lines(data: Any, reports: list[str], bad: str) -> None:
    good = [json.dumps(LINE | {"qid": i, "answer_idx": 0}) for i in (3, 4)]
    data.text("video/ann/tvqa/tvqa_train.jsonl", f"{good[0]}\n{bad}\n{good[1]}\n")
    data.subtitles("tv", v=["hello"])
    with pytest.raises(DataError, match=r"tvqa_train\.jsonl, record on line 2"):
        list(TVQA(**data.options()).read("train"))
    assert [e.id for e in TVQA(malformed="skip", **data.options()).read("train")] == ["3", "4"]
    assert told(reports) == ["tvqa: train: 1 records cannot be used; left out"]
    assert "tvqa_train.jsonl, on line 2" in reports[-1]


def test_a_missing_subtitle_file_is_no_malformed_record(data: Any) -> None:
    data.lines("video/ann/tvqa/tvqa_train.jsonl", [LINE | {"qid": 3, "answer_idx": 0}])
    data.subtitles("tv")
    with pytest.raises(DataError, match="no subtitles of this video"):
        list(TVQA(malformed="skip", missing_subtitles="fail", **data.options()).read("train"))


def test_broken_characters_are_malformed(data: Any) -> None:
    data.lines("video/ann/tvqa/tvqa_train.jsonl", [LINE | {"qid": 3, "answer_idx": 0, "q": "\ud800"}])
    data.subtitles("tv", v=["hello"])
    with pytest.raises(DataError, match="'q' has half of a character"):
        list(TVQA(**data.options()).read("train"))


def test_subtitles(data: Any, reports: list[str]) -> None:
    records = [LINE | {"qid": i, "vid_name": v, "answer_idx": 0} for i, v in enumerate(("v", "absent", "silent", "v"))]
    data.lines("video/ann/tvqa/tvqa_train.jsonl", records)
    lines = [{"vid_name": v, "sub": [{"text": t}] if t else []} for v, t in (("v", "a"), ("silent", ""), ("v", "b"))]
    data.lines("video/ann/tv_subtitles.jsonl", lines)
    examples = list(TVQA(**data.options()).read("train"))
    assert [e.source.partition(" [Q]")[0] for e in examples] == ["[Subs] a", "[Subs] ", "[Subs] ", "[Subs] a"]
    assert [r.replace(str(data.path), "") for r in told(reports)] == [
        "tvqa: train: 1 lines of subtitles are for a video that has some; left out",
        "tvqa: train: 1 videos have no subtitles in /video/ann/tv_subtitles.jsonl; theirs are left empty",
        "tvqa: train: 1 videos have subtitles without a word",
    ]


def clip(key: int, *captions: str) -> dict[str, Any]:
    return {
        "vid_name": "v_1",
        "clip_id": key,
        "descs": [{"desc": c, "desc_id": key * 10 + i} for i, c in enumerate(captions)],
    }


def test_captions(data: Any, reports: list[str]) -> None:
    data.lines("video/ann/yc2c/yc2c_val_release.jsonl", [clip(1, " cut\r\nthe\u2028onion \n", " "), clip(2)])
    data.subtitles("yc2", v_1=["hello"])
    with pytest.raises(DataError, match=r"on line 2: it has no captions"):
        list(YC2C(**data.options()).read("val"))
    (example,) = YC2C(malformed="skip", **data.options()).read("val")
    assert example.references == ("cut the onion",)
    (example,) = YC2C(malformed="skip", line_breaks="keep", **data.options()).read("val")
    assert example.references == ("cut\r\nthe\u2028onion",)
    others = ["yc2c: val: 1 captions are empty; left out", "yc2c: val: 1 records cannot be used; left out"]
    assert told(reports) == [
        "yc2c: val: 1 captions have line breaks; now spaces",
        *others,
        "yc2c: val: 1 captions have line breaks; kept",
        *others,
    ]


def test_repeated_ids(data: Any, reports: list[str]) -> None:
    record = {"identifier": "dev-1-0-0", "sentence": "one", "label": "True"}
    data.lines("nlvr/dev.json", [record, record | {"sentence": "two"}])
    (example,) = NLVR2(**data.options()).read("val")
    assert example.source == "nlvr: one"
    assert reports[-1] == "nlvr: val: 1 records repeat the id of an earlier one; left out (dev.json on line 2)"
    data.text(
        "GQA/val_balanced_questions.json",
        '{"1": %s, "1": %s}' % ((json.dumps({"question": "?", "imageId": "1", "answer": "a"}),) * 2),
    )
    assert len(list(GQA(**data.options()).read("val"))) == 1
    assert reports[-1].startswith("gqa: val: 1 records repeat the id")


@pytest.fixture
def videos(data: Any) -> Any:
    """Four training questions about four videos: two with sound features, one damaged, one with NaN."""
    records = [LINE | {"qid": i, "vid_name": f"v{i}", "answer_idx": 0} for i in range(4)]
    for split in ("train", "val"):
        data.lines(f"video/ann/tvqa/tvqa_{split}.jsonl", records)
    data.subtitles("tv", **{f"v{i}": ["hello"] for i in range(4)})
    folder = data.path / "video/vis_features/tv/clip"
    folder.mkdir(parents=True)
    for i in range(4):
        np.savez(folder / f"v{i}.npz", features=np.full((3, 8), np.nan if i == 3 else i + 1, np.float16))
    (folder / "v0.npz").write_bytes(b"PK damaged")
    return data


def test_unreadable_features(videos: Any, tokenizer_folder: Path) -> None:
    options = videos.options(tokenizer=str(tokenizer_folder))
    with pytest.raises(DataError, match=r"v0\.npz, record v0: cannot be read"):
        TVQA(**options).load("train", Draw("tvqa", (1, 0), 0))
    benchmark = TVQA(unreadable_features="zeros", **options)
    batch = benchmark.load("train", Draw("tvqa", (0, 1, 2, 3), 0))
    assert [bool(rows.any()) for rows in batch.visual] == [False, True, True, False]
    assert set(batch.unreadable) == {"v0", "v3"} and "NaN" in batch.unreadable["v3"]
    assert benchmark.feature_dim == 8, "v0 is damaged, v1 is not"


def test_unreadable_features_met_by_workers_are_told_once(
    videos: Any, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("lightning_utilities.core.rank_zero.log.info", said.append)
    options = videos.options(tokenizer=str(tokenizer_folder), unreadable_features="zeros", num_workers=2)
    benchmark = TVQA(batch_size=1, **options)
    benchmark.setup("fit")
    for _ in range(2):
        for batch in benchmark.train_dataloader():
            benchmark.on_before_batch_transfer(batch, 0)
    benchmark.teardown("fit")
    assert sorted(re.findall(r"(v\d)\.npz", " ".join(said))) == ["v0", "v3"]
    assert said[-1] == "tvqa: 2 keys had features that cannot be read"


def test_unknown_videos_have_no_features(videos: Any, tokenizer_folder: Path, reports: list[str]) -> None:
    records = [LINE | {"qid": i, "vid_name": v, "answer_idx": 0} for i, v in enumerate(("v1", "e_367c"))]
    videos.lines("video/ann/tvqa/tvqa_val.jsonl", records)
    with pytest.raises(DataError, match=r"no features for 1 keys of 1 tvqa val examples \(e_367c\)"):
        TVQA(**videos.options()).examples("val")
    (kept,) = TVQA(missing_features="skip", **videos.options()).examples("val")
    assert isinstance(kept, Example) and kept.visuals == ("v1",)
    assert reports[-1].endswith("(e_367c): skipped")
