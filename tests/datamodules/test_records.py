"""Reading JSON by records, and what is said when it fails."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from datamodules import records
from datamodules.records import Record, read_items, read_json, read_lines
from vl_peft.errors import DataError


def test_lines_plain_and_gzipped(tmp_path: Path) -> None:
    content = '{"a": 1}\n\n{"a": 2}\n'
    (tmp_path / "plain.jsonl").write_text(content)
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    for name in ("plain.jsonl", "packed.jsonl"):
        found = [(record.where, record.fields) for record in read_lines(tmp_path / name)]
        assert found == [("on line 1", {"a": 1}), ("on line 3", {"a": 2})]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_items_equal_those_of_the_json_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(records, "CHUNK", chunk)
    items = [{"n": 12345.5, "s": 'a "quoted" \\ line\nü', "l": [1, [], {}, None, True]}, {}, {"n": -1e10}]
    value: dict[str, Any] = {"info": {"year": 2017}, "count": 1234567, "empty": [], "items": items, "last": 1}
    (tmp_path / "list.json").write_text(json.dumps(value, indent=indent))
    found = list(read_items(tmp_path / "list.json", "items"))
    assert [record.fields for record in found] == items
    assert [record.where for record in found] == ["items[0]", "items[1]", "items[2]"]
    assert list(read_items(tmp_path / "list.json", "empty")) == []

    keyed = {f"0{i}": item for i, item in enumerate(items)}
    (tmp_path / "object.json").write_text(json.dumps(keyed, indent=indent))
    assert {record.where: record.fields for record in read_items(tmp_path / "object.json")} == keyed


def test_items_are_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "CHUNK", 16)
    (tmp_path / "x.json").write_text('{"1": {"a": 1}, "2": {"a": 2}, "3": damaged')
    items = read_items(tmp_path / "x.json")
    assert [next(items).fields, next(items).fields] == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match=r"x\.json, record on line 1: not JSON"):
        next(items)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"x\.json, record on line 1: not JSON \('{' was expected\)"),
        ("[]", r"not JSON \('{' was expected\)"),
        ('{"items"\n: [{"a": 1},\n{"a": ]}', r"record on line 3: not JSON"),
        ('{"items": [{"a": 1}', r"record on line 1: not JSON"),
        ('{"items": [{}, 3]}', r"record items\[1\]: a JSON object was expected, not int"),
        ('{"items": {}}', r"not JSON \('\[' was expected\)"),
        ('{"other": []}', r"x\.json: the list 'items' is missing"),
        ("{1: 2}", r"a key in double quotes was expected"),
    ],
)
def test_damaged_items(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_items(tmp_path / "x.json", "items"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', r"x\.jsonl, record on line 2: not JSON \(Expecting value\)\. Download the file again"),
        (b'{"a": 1}\n[1]\n', r"x\.jsonl, record on line 2: a JSON object was expected, not list"),
        (b'{"a": "\xff"}\n', r"x\.jsonl: cannot be read \('utf-8' codec"),
    ],
)
def test_damaged_lines(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_lines(tmp_path / "x.jsonl"))


def test_truncated_gzip(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-10])
    with pytest.raises(DataError, match=r"x\.jsonl\.gz: cannot be read"):
        list(read_lines(tmp_path / "x.jsonl"))


def test_missing_file_names_the_path_and_the_remedy(tmp_path: Path) -> None:
    for read in (read_json, lambda p: list(read_lines(p)), lambda p: list(read_items(p))):
        with pytest.raises(DataError) as caught:
            read(tmp_path / "vqa" / "x.json")
        assert str(tmp_path / "vqa" / "x.json") in str(caught.value)
        assert "--data.root" in str(caught.value) and "vl-peft data demo" in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_require(tmp_path: Path) -> None:
    record = Record(tmp_path / "x.jsonl", "on line 4", {"q": 3, "answers": [{"answer": "net"}, {}]})
    assert record.require("q", int) == 3
    with pytest.raises(DataError, match=r"x\.jsonl, record on line 4: 'qid' is missing"):
        record.require("qid")
    with pytest.raises(DataError, match=r"on line 4: 'q' is int, not str or list"):
        record.require("q", (str, list))
    first, second = record.each("answers")
    assert first.require("answer", str) == "net"
    with pytest.raises(DataError, match=r"on line 4, answers\[1\]: 'answer' is missing"):
        second.require("answer", str)
