"""Prediction files: what the servers want, checked against real sample files and by round trips."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import COCO, GQA, NLVR2, TVC, TVQA, YC2C, Benchmark, How2QA, VQAv2
from vl_peft.errors import ConfigError, DataError
from vl_peft.metrics import Record
from vl_peft.submission import ChoiceIndices, ClipCaptions, Format, JsonList, Submission, Verdicts, archive

NUMBERS = st.integers(min_value=0, max_value=10**12).map(str)
SENTENCES = st.text(st.characters(codec="utf-8"), max_size=30)
CASES: list[tuple[Format, st.SearchStrategy[str], st.SearchStrategy[str]]] = [
    (JsonList("question_id", "answer"), NUMBERS, SENTENCES),
    (JsonList("questionId", "prediction", number=False), NUMBERS.map(lambda k: f"0{k}"), SENTENCES),
    (ChoiceIndices(5), NUMBERS, st.sampled_from([f"a{i}" for i in range(5)])),
    (Verdicts(), NUMBERS.map(lambda k: f"test1-{k}-0-1"), st.sampled_from(["true", "false"])),
    (ClipCaptions(), NUMBERS, SENTENCES),
]


def records(format: Format, predictions: dict[str, str]) -> dict[str, Record]:
    """As the metrics hold them."""
    meta = (lambda key: {"clip_id": int(key), "vid_name": "v"}) if isinstance(format, ClipCaptions) else lambda key: {}
    return {key: Record(prediction, (), meta(key)) for key, prediction in predictions.items()}


@pytest.mark.parametrize(("format", "ids", "texts"), CASES, ids=lambda x: type(x).__name__)
def test_what_is_written_reads_as_what_was_predicted(
    format: Format,
    ids: st.SearchStrategy[str],
    texts: st.SearchStrategy[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("submission")

    @given(st.dictionaries(ids, texts, min_size=1, max_size=8))
    def check(predictions: dict[str, str]) -> None:
        file = Submission("a/b.txt", format).write(folder, records(format, predictions), predictions)
        assert file == folder / "a/b.txt"
        assert format.read(file) == predictions
        assert [p.name for p in file.parent.iterdir()] == ["b.txt"]

    check()


def test_the_servers_forms(tmp_path: Path) -> None:
    def text(format: Format, predictions: dict[str, str]) -> str:
        return Submission("f", format).write(tmp_path, records(format, predictions), predictions).read_text()

    assert json.loads(text(VQAv2(split_by="official").submission("test").format, {"458752000": "net"})) == [
        {"question_id": 458752000, "answer": "net"}
    ]
    assert json.loads(text(GQA().submission("test").format, {"02930152": "yes"})) == [
        {"questionId": "02930152", "prediction": "yes"}
    ]
    assert json.loads(text(COCO().submission("test").format, {"391895": "a man"})) == [
        {"image_id": 391895, "caption": "a man"}
    ]
    assert text(NLVR2().submission("test").format, {"test1-0-1-0": "true", "test1-0-2-0": "false"}) == (
        "test1-0-1-0,True\ntest1-0-2-0,False\n"
    )
    assert json.loads(text(TVQA().submission("test").format, {"137292": "a4", "137293": "a"})) == {
        "137292": 4,
        "137293": 0,
    }
    line = json.loads(text(TVC().submission("test").format, {"102866": "He sits."}))
    assert line == {"vid_name": "v", "clip_id": 102866, "descs": [{"desc": "He sits."}]}


@pytest.mark.parametrize(
    ("benchmark", "split", "path"),
    [
        (TVQA(), "val", "tvqa/tvqa_val_predictions.json"),
        (TVQA(), "test", "tvqa/tvqa_test_predictions.json"),
        (How2QA(), "test", "how2qa/how2qa_test_public_predictions.json"),
        (TVC(), "val", "tvc/tvc_val_predictions.jsonl"),
        (YC2C(), "test", "yc2c/yc2c_test_predictions.jsonl"),
        (VQAv2(split_by="official"), "test", "v2_OpenEnded_mscoco_test2015_vl_peft_results.json"),
    ],
)
def test_files_are_where_the_servers_look(benchmark: Benchmark, split: str, path: str) -> None:
    assert benchmark.submission(split).path == path  # type: ignore[arg-type, union-attr]


def test_real_sample_submissions_are_read(shared: Path) -> None:
    answers = ChoiceIndices(4).read(shared / "data/real/how2qa/how2qa_val_predictions.json")
    assert len(answers) == 3115 and answers["30351"] == "a2"
    captions = ClipCaptions().read(shared / "data/real/yc2c/yc2c_val_predictions.jsonl")
    assert len(captions) == 3492 and captions["13447"] == "pour the marinade sauce on the chicken"


@pytest.mark.parametrize(
    ("format", "content", "says"),
    [
        (JsonList("question_id", "answer"), '[{"question_id": "1", "answer": "a"}]', "'question_id' is '1'"),
        (JsonList("question_id", "answer"), '[{"question_id": 1}]', "KeyError"),
        (JsonList("question_id", "answer"), '[{"question_id": 1, "answer": 2}]', "is not an id and a text"),
        (
            JsonList("image_id", "caption"),
            '[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]',
            "twice",
        ),
        (JsonList("image_id", "caption"), "{", "JsonList"),
        (ChoiceIndices(4), '{"1": 4}', "4 is not an index from 0 to 3"),
        (ChoiceIndices(4), "[1]", "ChoiceIndices"),
        (Verdicts(), "a-1-1-1,Maybe\n", "Maybe"),
        (ClipCaptions(), '{"clip_id": 1, "descs": []}', "record 1"),
        (ClipCaptions(), "7\n", "record 1"),
    ],
)
def test_faulty_files_are_named(format: Format, content: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "predictions"
    file.write_text(content)
    with pytest.raises(DataError, match=says) as error:
        format.read(file)
    assert str(file) in str(error.value)


def test_a_submission_is_complete_or_not_written(tmp_path: Path) -> None:
    format = JsonList("image_id", "caption")
    submission = Submission("c.json", format)
    with pytest.raises(DataError, match=r"1 of the 3 examples have no prediction \(3\)"):
        submission.write(tmp_path, records(format, {"1": "a", "2": "b"}), ["1", "2", "3"])
    with pytest.raises(DataError, match=r"1 of the 2 predictions are of no example \(2\)"):
        submission.write(tmp_path, records(format, {"1": "a", "2": "b"}), ["1"])
    assert not list(tmp_path.iterdir())


def test_an_archive_has_the_files_under_their_paths(tmp_path: Path) -> None:
    format = ChoiceIndices(5)
    submission = Submission("tvqa/tvqa_val_predictions.json", format, "value.zip")
    submission.write(tmp_path, records(format, {"1": "a0"}), ["1"])
    with zipfile.ZipFile(archive(tmp_path, "value.zip", [submission.path])) as zipped:
        assert zipped.namelist() == ["tvqa/tvqa_val_predictions.json"]
        assert json.loads(zipped.read(submission.path)) == {"1": 0}


def test_flattened_captions_cannot_be_submitted() -> None:
    with pytest.raises(ConfigError, match="flatten_val of tvc"):
        TVC(flatten_val=True).submission("val")
