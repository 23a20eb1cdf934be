"""Processed files of the LXMERT and VL-T5 family: which are found, and that they give the same examples."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datamodules import COCO, GQA, NLVR2, VQAv2
from vl_peft.batch import Example
from vl_peft.errors import ConfigError, DataError


def vqa_style(questions: Any, annotations: Any, vocabulary: Any, part: str, people: bool) -> list[dict[str, Any]]:
    """LXMERT's conversion, with VL-T5's ``answers`` if asked for."""
    by_id = {annotation["question_id"]: annotation for annotation in annotations}
    records = []
    for question in questions:
        given = by_id[question["question_id"]]
        answers = [answer["answer"] for answer in given["answers"]]
        ladder = {1: 0.3, 2: 0.6, 3: 0.9}
        label = {a: ladder.get(answers.count(a), 1) for a in sorted(set(answers)) if a in vocabulary}
        record = {
            "answer_type": given["answer_type"],
            "img_id": f"COCO_{part}_{question['image_id']:012d}",
            "label": label,
            "question_id": question["question_id"],
            "question_type": given["question_type"],
            "sent": question["question"],
        }
        records.append(record | ({"answers": given["answers"], "is_topk_optimal": True} if people else {}))
    return records


def gqa_style(questions: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"img_id": q["imageId"], "label": {q["answer"]: 1.0}, "question_id": key, "sent": q["question"]}
        for key, q in questions.items()
    ]


def nlvr2_style(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "identifier": record["identifier"],
            "img0": record["identifier"].rpartition("-")[0] + "-img0",
            "img1": record["identifier"].rpartition("-")[0] + "-img1",
            "label": int(record["label"] == "True"),
            "sent": record["sentence"],
            "uid": f"nlvr2_valid_{i}",
        }
        for i, record in enumerate(records)
    ]


@pytest.fixture
def real_vqa(data: Any, shared: Path) -> Any:
    """The official files of three real questions, as val2014."""
    real = shared / "data/real/vqav2"
    questions = json.loads((real / "questions.json").read_text())["questions"]
    annotations = [{"image_id": 458752} | a for a in json.loads((real / "annotations.json").read_text())["annotations"]]
    types = {"question_type": "what", "answer_type": "other"}  # some of the three lack them
    annotations = [types | annotation for annotation in annotations]
    data.json("vqa/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    data.json("vqa/v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    data.copy("vqa/trainval_ans2label.json", real / "trainval_ans2label.json")
    data.questions, data.annotations = questions, annotations
    data.vocabulary = json.loads((real / "trainval_ans2label.json").read_text())
    return data


def test_real_vqa_questions(real_vqa: Any, reports: list[str]) -> None:
    official = list(VQAv2(split_by="official", **real_vqa.options()).read("val"))
    assert reports == [
        "vqa: val: official annotations, vqa/v2_OpenEnded_mscoco_val2014_questions.json, "
        "vqa/v2_mscoco_val2014_annotations.json"
    ]
    converted = [
        vqa_style(real_vqa.questions, real_vqa.annotations, real_vqa.vocabulary, "val2014", people)
        for people in (True, False)
    ]
    (real_vqa.path / "vqa/v2_OpenEnded_mscoco_val2014_questions.json").unlink()
    real_vqa.json("vqa/nominival.json", converted[0][:2])
    real_vqa.json("vqa/minival.json", converted[1][2:])  # its ten answers are in the official annotations
    processed = list(VQAv2(split_by="official", **real_vqa.options()).read("val"))
    assert reports[-1] == "vqa: val: processed annotations, vqa/nominival.json, vqa/minival.json"
    assert [replace(e, meta={**e.meta, "is_topk_optimal": True}) for e in official[:2]] == processed[:2]
    assert official[2] == processed[2] and len(official) == len(processed) == 3
    (minival,) = VQAv2(split_by="lxmert", **real_vqa.options()).read("val")
    assert minival == official[2]


def test_without_the_ten_answers_the_label_is_the_reference(real_vqa: Any, reports: list[str]) -> None:
    records = vqa_style(real_vqa.questions, real_vqa.annotations, real_vqa.vocabulary, "val2014", False)
    for file in real_vqa.path.glob("vqa/v2_*"):
        file.unlink()
    real_vqa.json("vqa/karpathy_val.json", records)
    examples = list(VQAv2(**real_vqa.options()).read("val"))
    assert examples[0].references == ({"net": 1.0, "orange": 0.3, "pitcher": 0.3},)
    assert examples[0].targets == ("net", "orange", "pitcher")
    assert "scored against soft labels" in reports[1]


def test_lxmert_and_karpathy_splits(data: Any) -> None:
    def record(i: int, **change: Any) -> dict[str, Any]:
        return {"img_id": "COCO_val2014_1", "label": {"a": 1}, "question_id": i, "sent": "?"} | change

    for i, name in enumerate(("train", "nominival", "minival", "karpathy_train", "karpathy_val", "karpathy_test")):
        data.json(f"vqa/{name}.json", [record(i)])
    data.json("vqa/test.json", [{k: v for k, v in record(9).items() if k != "label"}])

    def ids(split_by: Any) -> list[list[str]]:
        benchmark = VQAv2(split_by=split_by, **data.options())
        return [[e.id for e in benchmark.read(split)] for split in ("train", "val", "test")]  # type: ignore[arg-type]

    assert ids("karpathy") == [["3"], ["4"], ["5"]]
    assert ids("official") == [["0"], ["1", "2"], ["9"]]
    assert ids("lxmert") == [["0", "1"], ["2"], ["9"]]
    (hidden,) = VQAv2(split_by="lxmert", **data.options()).read("test")
    assert hidden == Example("9", "vqa: ?", ("COCO_val2014_1",))
    with pytest.raises(ConfigError, match="the val split has no official files"):
        list(VQAv2(split_by="lxmert", annotations="official", **data.options()).read("val"))


def test_real_gqa_question(data: Any, shared: Path, reports: list[str]) -> None:
    file = shared / "data/real/gqa/questions.json"
    data.json("GQA/testdev.json", gqa_style(json.loads(file.read_text())))
    (processed,) = GQA(test_split="testdev", **data.options()).read("test")
    data.copy("GQA/testdev_balanced_questions.json", file)
    (official,) = GQA(test_split="testdev", **data.options()).read("test")
    shared_meta = {name: official.meta[name] for name in ("question", "image")}
    assert replace(official, meta=shared_meta) == processed
    assert reports == [
        "gqa: test: processed annotations, GQA/testdev.json",
        "gqa: test: official annotations, GQA/testdev_balanced_questions.json",
    ], "official files are preferred where both are there"
    (asked,) = GQA(annotations="processed", **data.options()).read("test")
    assert asked == processed


def test_processed_names_of_gqa_splits(data: Any) -> None:
    record = {"img_id": "1", "label": {"pipe": 1.0}, "question_id": "07333408", "sent": "What is on the white wall?"}
    for i, name in enumerate(("train", "valid")):
        data.json(f"GQA/{name}.json", [record | {"question_id": f"0{i}"}])
    data.json("GQA/submit.json", [{k: v for k, v in record.items() if k != "label"}])
    benchmark = GQA(train_splits=("train", "valid"), test_split="submit", **data.options())
    assert [(e.id, e.targets, e.meta) for e in benchmark.read("train")] == [
        ("00", ("pipe",), {}),
        ("01", ("pipe",), {}),
    ]
    data.image_features("GQA/clip_features/data_clip_x_att", ["1"])
    (hidden,) = benchmark.examples("test")
    assert (hidden.id, hidden.targets, hidden.source) == ("07333408", (), "gqa: What is on the white wall?")


def test_real_nlvr2_dev(data: Any, shared: Path, reports: list[str]) -> None:
    lines = (shared / "data/real/nlvr2/dev.json").read_text().splitlines()
    converted = json.dumps(nlvr2_style([json.loads(line) for line in lines]), sort_keys=True, indent=4)
    golden = json.loads((shared / "data/golden/nlvr2_golden.json").read_text())["splits"]["dev"]
    sha256 = hashlib.sha256(converted.encode()).hexdigest()
    assert sha256 == golden["lxmert_style_json_sha256(sort_keys,indent=4)"]
    data.text("nlvr/valid.json", converted)
    processed = list(NLVR2(**data.options()).read("val"))
    data.text("nlvr/dev.json", "\n".join(lines))
    official = list(NLVR2(**data.options()).read("val"))
    assert processed == official and len(official) == 6982
    assert reports == [
        "nlvr: val: processed annotations, nlvr/valid.json",
        "nlvr: val: official annotations, nlvr/dev.json",
    ]


@pytest.mark.parametrize("zipped", [False, True])
def test_nlvr2_train_is_told_apart_by_content(data: Any, zipped: bool, reports: list[str]) -> None:
    line = {"identifier": "train-1-2-3", "sentence": "There is a dog.", "label": "True"}
    wanted = [Example("train-1-2-3", "nlvr: There is a dog.", ("train-1-2-img0", "train-1-2-img1"), ("true",), (1.0,))]
    wanted = [replace(e, references=("true",)) for e in wanted]
    for text in (json.dumps(line), "\n " + json.dumps(nlvr2_style([line]))):
        file = data.text("nlvr/train.json", text)
        if zipped:
            file.with_name("train.json.gz").write_bytes(gzip.compress(text.encode()))
            file.unlink()
        assert list(NLVR2(**data.options()).read("train")) == wanted
    assert [report.split()[2] for report in reports] == ["official", "processed"]
    with pytest.raises(DataError, match=r"train\.json, record on line"):
        list(NLVR2(annotations="official", **data.options()).read("train"))


def caption(key: int, image: int, text: str) -> dict[str, Any]:
    return {"image_id": image, "id": key, "caption": text}


@pytest.mark.parametrize("folder", ["COCO", "COCO/annotations"])
def test_coco_by_official_files_and_by_karpathys(data: Any, folder: str, reports: list[str]) -> None:
    images = {"train2014": {7: {70: "A dog. ", 71: "One dog"}}, "val2014": {8: {80: "A cat"}, 9: {90: "Two cats"}}}
    karpathy = []
    for part, of in images.items():
        listed = [{"id": key, "file_name": f"COCO_{part}_{key:012d}.jpg"} for key in of]
        annotations = [caption(k, key, text) for key, said in of.items() for k, text in said.items()]
        data.json(f"{folder}/captions_{part}.json", {"info": {}, "images": listed, "annotations": annotations[::-1]})
        karpathy += [
            {
                "filepath": part,
                "filename": image["file_name"],
                "split": "restval",
                "cocoid": image["id"],
                "sentences": [{"raw": text, "sentid": k} for k, text in of[image["id"]].items()][::-1],
            }
            for image in listed
        ]
    data.json("COCO/dataset_coco.json", {"images": karpathy})
    for split in ("train", "val"):
        read = [
            list(COCO(split_by="official", annotations=form, **data.options()).read(split))  # type: ignore[arg-type]
            for form in ("official", "processed", "auto")
        ]
        assert read[0] == read[1] == read[2] != []
    assert reports[0] == f"caption: train: official annotations, {folder}/captions_train2014.json"
    assert [(e.id, e.visuals) for e in read[0]] == [
        ("8", ("COCO_val2014_000000000008",)),
        ("9", ("COCO_val2014_000000000009",)),
    ]
    assert len(list(COCO(**data.options()).read("train"))) == 4, "all are restval in Karpathy's split"
    data.json(f"{folder}/image_info_test2014.json", {"images": [{"id": 5, "file_name": "COCO_test2014_5.jpg"}]})
    (hidden,) = COCO(split_by="official", **data.options()).read("test")
    assert hidden == Example("5", "caption: ", ("COCO_test2014_5",))


@pytest.mark.parametrize(
    ("benchmark", "file", "change", "message"),
    [
        (VQAv2, "vqa/karpathy_val.json", {"label": {"a": 2}}, r"item 1: the score of 'a' in 'label' is 2, not"),
        (VQAv2, "vqa/karpathy_val.json", {"label": None}, r"item 1: 'label' is NoneType"),
        (VQAv2, "vqa/karpathy_val.json", {"sent": 1}, r"item 1: 'sent' is int"),
        (GQA, "GQA/valid.json", {"label": {"a": "b"}}, r"item 1: the score of 'a' in 'label' is 'b'"),
        (NLVR2, "nlvr/valid.json", {"label": 2}, r"item 1: 'label' is 2, not 0 or 1"),
        (NLVR2, "nlvr/valid.json", {"img1": 2}, r"item 1: 'img1' is int, not str"),
    ],
)
def test_malformed_records(data: Any, benchmark: Any, file: str, change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"img_id": "COCO_val2014_1", "label": {"a": 1}, "question_id": 3, "sent": "?"}
    if benchmark is NLVR2:
        good |= {"identifier": "dev-1-0-0", "img0": "dev-1-0-img0", "img1": "dev-1-0-img1", "label": 1}
    if benchmark is GQA:
        good |= {"question_id": "03"}
    data.json(file, [good, good | change])
    with pytest.raises(DataError, match=message):
        list(benchmark(**data.options()).read("val"))
    assert len(list(benchmark(malformed="skip", **data.options()).read("val"))) == 1
