"""GQA's large files through an index gives what reading them gives."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from datamodules.gqa import GQA
from datamodules.gqa_index import IndexedFile, IndexedQuestions
from vl_peft.errors import ConfigError, DataError


def record(i: int, **change: Any) -> dict[str, Any]:
    facts = {"types": {"structural": "verify", "semantic": "attr", "detailed": None}, "entailed": [f"0{i}1"]}
    named = {"question": f"Is it {i}?", "imageId": str(i % 3), "answer": ("yes", "no", "yes", "ü")[i % 4]}
    return (
        named
        | facts
        | {"groups": {"global": None, "local": "x"}, "isBalanced": True, "semantic": [{"a": [1]}]}
        | change
    )


@pytest.fixture
def gqa(data: Any) -> Any:
    """Three numbered files of four training questions each, one of them gzipped, and three images."""
    for shard in range(3):
        questions = {f"0{i}": record(i) for i in range(4 * shard, 4 * shard + 4)}
        data.json(f"GQA/train_all_questions/train_all_questions_{shard}.json", questions)
    zipped = data.path / "GQA/train_all_questions/train_all_questions_1.json"
    zipped.with_name(f"{zipped.name}.gz").write_bytes(gzip.compress(zipped.read_bytes()))
    zipped.unlink()
    data.json("GQA/val_all_questions.json", {f"0{i}": record(i) for i in range(5)})
    for folder in ("VG", "GQA"):
        data.image_features(f"{folder}/clip_features/data_clip_x_att", ["0", "1", "2"])
    return data


def make(gqa: Any, **options: Any) -> GQA:
    return GQA(**gqa.options(train_splits=("train_all",), val_split="val_all", **options))


def test_equals_reading_the_files(gqa: Any) -> None:
    benchmark = make(gqa)
    for split in ("train", "val"):
        questions = benchmark.examples(split)  # type: ignore[arg-type]
        assert isinstance(questions, IndexedQuestions)
        wanted = list(benchmark.read(split))  # type: ignore[arg-type]
        assert list(questions) == wanted and len(questions) == len(wanted)
        assert questions[1:-1] == wanted[1:-1] and questions[-1] == wanted[-1]
        for index in (len(wanted), -len(wanted) - 1):
            with pytest.raises(IndexError):
                questions[index]
    assert [e.id for e in benchmark.examples("train")][8:] == ["08", "09", "010", "011"], "shards in numerical order"
    assert benchmark.commonest_target() == "yes"


def test_is_written_once_and_anew_when_a_file_changes(gqa: Any, reports: list[str]) -> None:
    def written() -> list[str]:
        make(gqa).examples("train")
        said = [report for report in reports if "writing" in report]
        reports.clear()
        return said

    place = gqa.path / "GQA/train_all_questions"
    assert written() == [f"gqa: train: writing the index of 3 files to {place}, once"]
    assert written() == []
    file = place / "train_all_questions_2.json"
    file.write_text(json.dumps({"7": record(1)}))
    assert len(written()) == 1 and len(make(gqa).examples("train")) == 9
    os.utime(file, ns=(1, 1))
    assert written() == [f"gqa: train: writing the index of 1 files to {place}, once"]


def test_workers_map_it_themselves(gqa: Any) -> None:
    questions = make(gqa).examples("train")
    pickled = pickle.dumps(questions.parts[0])
    assert len(pickled) < 1000, "a path and no data"
    part = pickle.loads(pickled)
    assert isinstance(part._records, np.memmap) and part.question(3) == questions.parts[0].question(3)


def test_missing_features_are_counted_by_image(gqa: Any, reports: list[str]) -> None:
    (gqa.path / "VG/clip_features/data_clip_x_att/1.h5").unlink()
    with pytest.raises(DataError, match=r"no features for 1 keys of 4 gqa train examples \(1\)"):
        make(gqa).examples("train")
    benchmark = make(gqa, missing_features="skip")
    kept = benchmark.examples("train")
    assert list(kept) == [e for e in benchmark.read("train") if e.visuals != ("1",)] and len(kept) == 8
    assert "skipped" in reports[-1]
    assert kept.answers() == Counter(e.targets[0] for e in kept)
    assert pickle.loads(pickle.dumps(kept.parts[0])).question(1) == kept.parts[0].question(1)


def test_hidden_answers(gqa: Any) -> None:
    hidden = {"7": {"imageId": "2", "question": "Is it?", "isBalanced": True}}
    gqa.json("GQA/submission_all_questions.json", hidden)
    (example,) = make(gqa, test_split="submission_all").examples("test")
    assert (example.id, example.targets) == ("7", ())
    assert example.meta == {"question": "Is it?", "image": "2", "balanced": True}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"01": record(1), "02": record(2, question=None)}, r"questions_0\.json, record 02: 'question' is NoneType"),
        ({"01": record(1), "02": {"question": "?", "imageId": "n1"}}, r"questions_0\.json, record 02: 'answer' is mis"),
        ({"01": record(1), "02": record(2, imageId=3)}, r"questions_0\.json, record 02: 'imageId' is int"),
        ({"01": [record(1)]}, r"questions_0\.json, record 01: a JSON object was expected, not list"),
        ('{"01": {"question": "?", ]', r"questions_0\.json: not JSON \(.*byte 25"),
        ("", r"questions_0\.json: cannot be read"),
        ([1], r"questions_0\.json"),
    ],
)
def test_files_that_cannot_be_used(gqa: Any, content: Any, message: str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    gqa.text("GQA/train_all_questions/train_all_questions_0.json", text)
    with pytest.raises(DataError, match=message):
        make(gqa).examples("train")


def test_a_missing_shard_is_named(gqa: Any) -> None:
    (gqa.path / "GQA/train_all_questions/train_all_questions_1.json.gz").unlink()
    with pytest.raises(DataError, match=r"train_all_questions_1\.json: no such file"):
        make(gqa).examples("train")


def test_a_folder_that_cannot_be_written_to(gqa: Any, tmp_path: Path) -> None:
    blocked = gqa.text("blocked", "a file where a folder should be")
    with pytest.raises(ConfigError, match=r"cannot be written to .*blocked.*index_folder"):
        make(gqa, index_folder=str(blocked)).examples("train")
    elsewhere = tmp_path / "elsewhere"
    assert len(make(gqa, index_folder=str(elsewhere)).examples("train")) == 12
    assert len(list(elsewhere.glob("*.index"))) == 3
    assert not list(gqa.path.glob("GQA/**/*.index"))


def test_damaged_index(gqa: Any) -> None:
    make(gqa).examples("train")
    index = gqa.path / "GQA/train_all_questions/train_all_questions_0.json.index"
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2])
    assert len(make(gqa).examples("train")) == 12, "it is not what it says it is, and so written anew"
    with h5py.File(index, "a") as h5:
        del h5["ends"]
    with pytest.raises(DataError, match=r"train_all_questions_0\.json\.index: cannot be read.*written anew"):
        IndexedFile(index)


def test_balanced_questions_are_among_all() -> None:
    with pytest.raises(ConfigError, match="the balanced questions are among all"):
        GQA(train_splits=("train_all", "train_balanced"))
