"""TVQA files to examples; what all video benchmarks share is tested here too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules.tvqa import TVQA
from vl_peft.batch import Example
from vl_peft.errors import DataError

RECORD = {
    "a0": "The yogurt manufacturer. ",
    "a1": "The people who make toilet seats.",
    "a2": "Stan Lee.",
    "a3": "Leonard's mom.",
    "a4": "The person who didn't make the apartment walls soundproof.",
    "q": "Who does Sheldon say he'll send an email to after coming out of the bathroom? ",
    "qid": 137292,
    "show_name": "The Big Bang Theory",
    "ts": "48.62-60.02",
    "vid_name": "s03e21_seg02_clip_08",
}
SAID = "Chase : That's all this is? House : Yes."
TEXT = (
    "[Subs] Chase : That's all this is? House : Yes. "
    "[Q] Who does Sheldon say he'll send an email to after coming out of the bathroom? [TS] (48.62-60.02) "
    "[Choices] a0: The yogurt manufacturer. a1: The people who make toilet seats. a2: Stan Lee. "
    "a3: Leonard's mom. a4: The person who didn't make the apartment walls soundproof."
)


@pytest.fixture
def tvqa(data: Any) -> Any:
    data.subtitles("tv", s03e21_seg02_clip_08=[" Chase : That's all this is?", "House : Yes. "])
    return data


def test_example(tvqa: Any) -> None:
    tvqa.lines("video/ann/tvqa/tvqa_val.jsonl", [RECORD | {"answer_idx": 3}])
    (example,) = TVQA(**tvqa.options()).read("val")
    assert example == Example(
        id="137292",
        source=TEXT + " tvqa: ",
        visuals=("s03e21_seg02_clip_08",),
        targets=("a3",),
        weights=(1.0,),
        references=("a3",),
        context=(7, 7 + len(SAID)),
        meta={"show_name": "The Big Bang Theory"},
    )


@pytest.mark.parametrize(
    ("options", "source"),
    [
        ({"prompt_position": "front"}, "tvqa: " + TEXT),
        ({"prompt_position": "end"}, TEXT + " tvqa: "),
        ({"prompt_position": "front", "use_prompt": False}, TEXT),
        ({"prompt_position": "front", "prompt_text": "question: "}, "question: " + TEXT),
    ],
)
def test_context_is_the_subtitles_wherever_the_prompt_stands(tvqa: Any, options: Any, source: str) -> None:
    tvqa.lines("video/ann/tvqa/tvqa_train.jsonl", [RECORD | {"answer_idx": 0}])
    (example,) = TVQA(**tvqa.options(**options)).read("train")
    assert example.source == source
    start, end = example.context
    assert example.source[start:end] == SAID


def test_hidden_answers_and_repeated_questions(tvqa: Any, reports: list[str]) -> None:
    tvqa.lines("video/ann/tvqa/tvqa_test_public.jsonl", [RECORD])
    (example,) = TVQA(**tvqa.options()).read("test")
    assert (example.targets, example.weights, example.references) == ((), (), ())
    assert reports == []
    tvqa.lines("video/ann/tvqa/tvqa_test_release.jsonl", [RECORD, RECORD | {"qid": 1}])
    assert [e.id for e in TVQA(**tvqa.options()).read("test")] == ["137292", "1"]
    place = "tvqa_test_release.jsonl on line 1"
    assert reports == [f"tvqa: test: 1 records repeat the id of an earlier one; left out ({place})"]
    (tvqa.path / "video/ann/tvqa/tvqa_test_public.jsonl").unlink()
    assert [e.id for e in TVQA(**tvqa.options()).read("test")] == ["137292", "1"]


@pytest.mark.parametrize(
    ("option", "text", "done"),
    [
        ("omit", "", "left out of the text"),
        ("verbatim", "[TS] (NaN-NaN) ", "printed as they are"),
        ("substitute", "[TS] (10-30) ", "10 to 30 in their place"),
    ],
)
def test_unknown_span(tvqa: Any, reports: list[str], option: str, text: str, done: str) -> None:
    tvqa.lines("video/ann/tvqa/tvqa_test_public.jsonl", [RECORD | {"ts": "NaN-NaN"}])
    (example,) = TVQA(unknown_span=option, **tvqa.options()).read("test")
    assert example.source == TEXT.replace("[TS] (48.62-60.02) ", text) + " tvqa: "
    assert reports == [f"tvqa: test: 1 time spans are not two numbers; {done} (tvqa_test_public.jsonl on line 1)"]


def test_empty_span(tvqa: Any, reports: list[str]) -> None:
    records = [RECORD | {"qid": i, "ts": ts} for i, ts in enumerate(["0-0", "19.18-19.18", "1-2"])]
    tvqa.lines("video/ann/tvqa/tvqa_test_public.jsonl", records)
    zero, empty, _ = TVQA(**tvqa.options()).read("test")
    assert "[TS] (0-0) " in zero.source and "[TS] (19.18-19.18) " in empty.source
    zero, _, sound = TVQA(empty_span="omit", **tvqa.options()).read("test")
    assert "[TS]" not in zero.source and "[TS] (1-2) " in sound.source
    assert [report.partition(" (")[0] for report in reports] == [
        "tvqa: test: 2 time spans end where they begin; kept",
        "tvqa: test: 2 time spans end where they begin; left out of the text",
    ]


def test_missing_subtitles(tvqa: Any, reports: list[str]) -> None:
    records = [RECORD | {"qid": i, "vid_name": "silent"} for i in range(3)]
    tvqa.lines("video/ann/tvqa/tvqa_test_public.jsonl", records)
    benchmark = TVQA(**tvqa.options())
    for _ in range(2):
        first, *_ = benchmark.read("test")
        assert first.source.startswith("[Subs]  [Q] Who")
        assert first.context == (7, 7)
    (message,) = reports
    assert message.startswith("tvqa: test: 1 videos have no subtitles in ") and "tv_subtitles.jsonl" in message
    with pytest.raises(DataError, match=r"tv_subtitles\.jsonl, record silent: no subtitles .*missing_subtitles: empty"):
        list(TVQA(missing_subtitles="fail", **tvqa.options()).read("test"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a4": None}, r"tvqa_train\.jsonl, record on line 2: 'a4' is NoneType, not str"),
        ({"answer_idx": 5}, r"tvqa_train\.jsonl, record on line 2: 'answer_idx' is 5, not one of 0 to 4"),
        ({"show_name": 1}, r"tvqa_train\.jsonl, record on line 2: 'show_name'"),
    ],
)
def test_malformed_line(tvqa: Any, change: dict[str, Any], message: str) -> None:
    good = RECORD | {"answer_idx": 0}
    tvqa.lines("video/ann/tvqa/tvqa_train.jsonl", [good, good | {"qid": 1} | change])
    with pytest.raises(DataError, match=message):
        list(TVQA(**tvqa.options()).read("train"))


def test_answers_are_required_to_train(tvqa: Any) -> None:
    tvqa.lines("video/ann/tvqa/tvqa_train.jsonl", [RECORD])
    with pytest.raises(DataError, match=r"tvqa_train\.jsonl, record on line 1: 'answer_idx' is missing"):
        list(TVQA(**tvqa.options()).read("train"))


def test_malformed_subtitles(tvqa: Any) -> None:
    tvqa.lines("video/ann/tv_subtitles.jsonl", [{"vid_name": "a", "sub": [{"text": "x"}, {"start": 1}]}])
    with pytest.raises(DataError, match=r"tv_subtitles\.jsonl, record on line 1, sub\[1\]: 'text' is missing"):
        list(TVQA(**tvqa.options()).read("test"))


def test_missing_files(tvqa: Any) -> None:
    with pytest.raises(DataError, match=r"tvqa_test_public\.jsonl: no such file.*vl-peft data demo"):
        list(TVQA(**tvqa.options()).read("test"))
    (tvqa.path / "video/ann/tv_subtitles.jsonl").unlink()
    with pytest.raises(DataError, match=r"tv_subtitles\.jsonl: no such file"):
        list(TVQA(**tvqa.options()).read("test"))


def test_real_test_questions(data: Any, shared: Path, reports: list[str]) -> None:
    data.copy("video/ann/tvqa/tvqa_test_public.jsonl", shared / "data/real/tvqa/tvqa_test_public.jsonl")
    data.subtitles("tv")
    plain = list(TVQA(**data.options()).read("test"))
    assert len(plain) == 7623
    told = {report.partition(" (")[0] for report in reports}
    assert "tvqa: test: 3 time spans are not two numbers; left out of the text" in told
    assert "tvqa: test: 2 time spans end where they begin; kept" in told
    assert {e.id for e in plain if " [TS] " not in e.source} == {"137648", "142453", "142977"}
    published = {e.id: e for e in TVQA(unknown_span="verbatim", **data.options()).read("test")}
    assert "[TS] (NaN-NaN) [Choices] a0: " in published["137648"].source
    assert "[TS] (0-0) [Choices]" in published["139509"].source
    assert plain[0].source == TEXT.replace(SAID, "") + " tvqa: "
    assert len({e.meta["show_name"] for e in plain}) == 6
