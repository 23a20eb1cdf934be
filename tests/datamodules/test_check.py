"""``vl-peft data check`` on the demo corpus, whole and with each fault made on purpose, and on real files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vl_peft.cli import main

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FEATURES = "COCO/clip_features/data_clip_demo_att"


class Checked:
    """A run of the command with ``--json``: its exit status, and what it found."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *options: str) -> None:
        self.status = main(["data", "check", "--json", *options])
        self.found: dict[str, Any] = json.loads(capsys.readouterr().out)

    def split(self, benchmark: str, split: str = "train") -> dict[str, Any]:
        part: dict[str, Any] = self.found["benchmarks"][benchmark]["splits"][split]
        return part

    def problem(self, benchmark: str, split: str = "train") -> str:
        """The only problem of a split."""
        (problem,) = self.split(benchmark, split)["problems"]
        return str(problem)

    def finding(self, what: str, benchmark: str, split: str = "train") -> dict[str, Any]:
        """The only finding of a kind."""
        (finding,) = (f for f in self.split(benchmark, split)["findings"] if f["what"].startswith(what))
        return dict(finding)


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[..., Checked]:
    return lambda root, *options: Checked(capsys, "--root", str(root), *options)


@pytest.fixture(scope="module")
def small(demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The annotations of the demo corpus, and its features of COCO images and TV clips; not to be written to."""
    root = tmp_path_factory.mktemp("small")
    for name in ("COCO/dataset_coco.json", "vqa", "GQA", "nlvr", FEATURES, "video/ann", "video/vis_features/tv"):
        source, target = demo_root / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file():
            shutil.copy(source, target)
        else:
            ignore = shutil.ignore_patterns("images", "clip_features" if name != FEATURES else "")
            shutil.copytree(source, target, ignore=ignore)
    return root


@pytest.fixture
def root(small: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(small, tmp_path / "root"))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_lines(file: Path, records: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def shown(root: Path, split: str = "train") -> list[str]:
    """Names of the COCO images of a split, in file order."""
    images = json.loads((root / "COCO/dataset_coco.json").read_text())["images"]
    wanted = ("train", "restval") if split == "train" else (split,)
    return [image["filename"].partition(".")[0] for image in images if image["split"] in wanted]


def test_the_demo_corpus_is_accepted(demo_root: Path, check: Callable[..., Checked]) -> None:
    checked = check(demo_root)
    assert checked.status == 0 and checked.found["ok"] is True and checked.found["problems"] == []
    benchmarks = checked.found["benchmarks"]
    assert set(benchmarks) == {"vqa", "gqa", "nlvr", "caption", "tvqa", "how2qa", "tvc", "yc2c"}
    assert all(report["status"] == "ok" for report in benchmarks.values())
    train = checked.split("caption")
    assert train["expected"] == {"count": 566_747, "exact": False}
    assert train["examples"] == 5 * train["features"]["needed"] == 5 * len(shown(demo_root))
    assert list(train["files"]) == ["COCO/dataset_coco.json"] and train["form"] == "processed"
    assert train["features"]["shapes"] == {"49x128": train["features"]["read"]}
    assert train["features"]["dtypes"] == {"float16": train["features"]["read"]}
    tvqa = checked.split("tvqa")
    assert (
        tvqa["videos"]
        == tvqa["with_subtitles"]
        == len({r["vid_name"] for r in lines(demo_root / "video/ann/tvqa/tvqa_train.jsonl")})
    )
    assert tvqa["target"] | {"texts": 0, "longest": ""} == {
        "texts": 0,
        "p50": 4,
        "p90": 4,
        "p99": 4,
        "max": 4,
        "longest": "",
        "limit": 20,
        "cut": 0.0,
    }  # <s> a 0 </s>


@pytest.mark.parametrize("width", [80, 120])
def test_the_table(
    demo_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["data", "check", "--root", str(demo_root), "--benchmarks", "vqa", "tvqa"]) == 0
    printed = capsys.readouterr().out
    tables = printed.partition("\n\n")[2].partition("cut: share")[0]
    assert max(map(len, tables.splitlines())) <= 80 and "…" not in tables
    assert "~605,102" in printed and " 122,039 " in printed and "49x128" in printed
    assert printed.endswith("training can begin: vqa, tvqa\n")


def test_missing_features(root: Path, tmp_path: Path, check: Callable[..., Checked]) -> None:
    lost = sorted(shown(root)[:12])
    for key in lost:
        (root / FEATURES / f"{key}.h5").unlink()
    options = ("--benchmarks", "caption", "--missing", str(tmp_path / "missing"))
    checked = check(root, *options)
    assert checked.status == 1 and checked.found["benchmarks"]["caption"]["status"] == "fails"
    assert f"{FEATURES}: no features for 12 of the {len(shown(root))} keys" in checked.problem("caption")
    features = checked.split("caption")["features"]
    assert (features["missing"], features["missing_examples"]) == (12, 60)
    assert sorted(features["first_missing"]) == sorted(shown(root)[:10])
    assert sorted(Path(features["missing_list"]).read_text().splitlines()) == lost
    assert [file.name for file in (tmp_path / "missing").iterdir()] == ["caption_train.txt"], "where keys are missing"

    checked = check(root, *options, "--data.missing_features=skip")
    assert checked.status == 0
    assert checked.finding("keys have no features", "caption")["count"] == 12


def test_features_of_test_images_are_not_for_training(root: Path, check: Callable[..., Checked]) -> None:
    (root / FEATURES / f"{shown(root, 'test')[0]}.h5").unlink()
    checked = check(root, "--benchmarks", "caption")
    assert checked.status == 0
    assert "no features for 1 of" in checked.problem("caption", "test")


def put(value: np.ndarray) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with h5py.File(file, "w") as h5:
            h5[f"{file.stem}/features"] = value

    return write


NAN = np.full((49, 128), np.nan, np.float16)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (put(NAN), "features contain NaN or infinity"),
        (lambda file: file.write_bytes(file.read_bytes()[:700]), "cannot be read, perhaps truncated"),
        (put(np.ones((49, 2, 64), np.float16)), r"features have shape (49, 2, 64), not [V, F]"),
        (put(np.ones((50, 128), np.float16)), "50"),
        (put(np.ones((49, 64), np.float16)), "features have size 64, most others 128"),
        (put(np.ones((49, 128), np.int8)), "features are int8, not float16 or float32"),
    ],
    ids=["NaN", "truncated", "three axes", "no square", "other size", "integers"],
)
def test_unusable_features(
    root: Path, check: Callable[..., Checked], spoil: Callable[[Path], None], message: str
) -> None:
    key = shown(root, "val")[1]
    spoil(root / FEATURES / f"{key}.h5")
    checked = check(root, "--benchmarks", "caption", "--full")
    assert checked.status == 1
    assert message in checked.problem("caption", "val") and key in checked.problem("caption", "val")
    assert list(checked.split("caption", "val")["features"]["unusable"]) == [key]
    checked = check(root, "--benchmarks", "caption", "--data.unreadable_features=zeros")
    assert checked.status == 0
    assert checked.finding("features cannot be used; zeros", "caption", "val")["count"] == 1


def test_a_damaged_packed_file(root: Path, check: Callable[..., Checked]) -> None:
    (root / f"{FEATURES}.packed.h5").write_bytes(b"this is no HDF5")
    checked = check(root, "--benchmarks", "caption")
    assert checked.status == 1
    assert f"{FEATURES}.packed.h5: cannot be read, perhaps truncated" in checked.problem("caption")


def test_images_themselves(demo_root: Path, check: Callable[..., Checked]) -> None:
    checked = check(demo_root, "--benchmarks", "caption", "--sample", "5", "--data.raw=demo")
    assert checked.status == 0
    features = checked.split("caption")["features"]
    assert features["dtypes"] == {"uint8": 5} and features["sizes"] == {}


def test_worker_processes_find_the_same(
    root: Path, check: Callable[..., Checked], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(NAN)(root / FEATURES / f"{shown(root, 'val')[0]}.h5")
    here = check(root, "--benchmarks", "caption", "--full").found
    monkeypatch.setattr("datamodules.check_features.MANY", 1)
    assert check(root, "--benchmarks", "caption", "--full").found == here


def test_features_of_other_sizes_cannot_be_trained_together(
    root: Path, tmp_path: Path, check: Callable[..., Checked]
) -> None:
    for file in (root / "video/vis_features/tv/demo").iterdir():
        np.savez(file, features=np.ones((3, 64), np.float16))
    own = tmp_path / "own.yaml"
    kinds = "{caption: {class_path: datamodules.COCO}, tvqa: {class_path: datamodules.TVQA}}"
    own.write_text(f"data: {{class_path: datamodules.MultiTask, init_args: {{benchmarks: {kinds}}}}}\n")
    configs = "--config", str(EXPERIMENTS / "base.yaml"), "--config", str(EXPERIMENTS / "image/single_adapter.yaml")
    checked = check(root, *configs, "--config", str(own))
    assert checked.status == 1
    (problem,) = checked.found["problems"]
    assert problem.startswith("The visual features differ in size ({'caption': 128, 'tvqa': 64})")
    assert check(root, "--benchmarks", "caption", "tvqa").status == 0, "nobody said that they are trained together"


def test_a_sample_is_drawn_by_the_seed(root: Path, check: Callable[..., Checked]) -> None:
    train = check(root, "--benchmarks", "caption", "--sample", "3").split("caption")
    assert (train["features"]["read"], train["source"]["texts"]) == (3, 30)
    full = check(root, "--benchmarks", "caption", "--sample", "3", "--full").split("caption")
    assert (full["features"]["read"], full["source"]["texts"]) == (len(shown(root)), full["examples"])


def test_duplicate_ids_and_malformed_lines(root: Path, check: Callable[..., Checked]) -> None:
    file = root / "video/ann/tvqa/tvqa_train.jsonl"
    records = lines(file)
    write_lines(file, [*records, records[3]])
    checked = check(root, "--benchmarks", "tvqa")
    assert checked.status == 0
    place = f"tvqa_train.jsonl on line {len(records) + 1}"
    assert checked.finding("records repeat the id", "tvqa") == {
        "what": "records repeat the id of an earlier one; left out",
        "count": 1,
        "places": [place],
    }

    with file.open("a") as out:
        out.write('{"qid": 7\n[1]\n')
    checked = check(root, "--benchmarks", "tvqa")
    assert checked.status == 1
    assert checked.problem("tvqa").startswith("2 records cannot be used; left out")
    assert all(f"tvqa_train.jsonl, on line {len(records) + n}" in checked.problem("tvqa") for n in (2, 3))
    checked = check(root, "--benchmarks", "tvqa", "--data.malformed=skip")
    assert checked.status == 0
    assert checked.finding("records cannot be used", "tvqa")["count"] == 2
    assert checked.split("tvqa")["examples"] == len(records)


def test_missing_subtitles(root: Path, check: Callable[..., Checked]) -> None:
    file = root / "video/ann/tv_subtitles.jsonl"
    video = lines(root / "video/ann/tvqa/tvqa_train.jsonl")[0]["vid_name"]
    write_lines(file, [line for line in lines(file) if line["vid_name"] != video])
    checked = check(root, "--benchmarks", "tvqa")
    train = checked.split("tvqa")
    assert checked.status == 0 and train["with_subtitles"] == train["videos"] - 1
    finding = checked.finding("videos have no subtitles", "tvqa")
    assert str(file) in finding["what"] and finding["places"] == [video]
    strict = "--data.benchmarks.tvqa.init_args.missing_subtitles=fail"
    checked = check(root, "--benchmarks", "tvqa", strict)
    assert checked.status == 1 and f"{file}, record {video}: no subtitles" in checked.problem("tvqa")
    file.unlink()
    checked = check(root, "--benchmarks", "tvqa")
    assert checked.status == 1 and f"{file}: no such file" in checked.problem("tvqa")
    assert checked.split("tvqa")["files"]["video/ann/tv_subtitles.jsonl"] is None


def test_answers_outside_the_vocabularies(root: Path, demo_root: Path, check: Callable[..., Checked]) -> None:
    shutil.copytree(demo_root / "VG/clip_features", root / "VG/clip_features")
    questions = json.loads((root / "GQA/train_balanced_questions.json").read_text())
    answers = [question["answer"] for question in questions.values()]
    known = {answer: i for i, answer in enumerate(sorted(set(answers) - {answers[0]}))}
    (root / "GQA/trainval_ans2label.json").write_text(json.dumps(known))
    (root / "vqa/trainval_ans2label.json").write_text('{"nothing that is answered": 0}')
    checked = check(root, "--benchmarks", "gqa", "vqa")
    assert checked.status == 0
    finding = checked.finding("answers are not in GQA/trainval_ans2label.json", "gqa")
    assert finding["count"] == answers.count(answers[0]) and finding["places"] == [answers[0]]
    train = checked.split("vqa")
    assert checked.finding("questions have no answer in the vocabulary", "vqa")["count"] == train["examples"]


def test_texts_that_are_too_long(root: Path, check: Callable[..., Checked]) -> None:
    file = root / "video/ann/tvqa/tvqa_train.jsonl"
    records = lines(file)
    records[1]["q"] = "why " * 700
    write_lines(file, records)
    checked = check(root, "--benchmarks", "tvqa")
    source = checked.split("tvqa")["source"]
    assert checked.status == 0 and source["max"] > 700 > source["limit"] == 600
    assert source["longest"] == str(records[1]["qid"])
    assert source["cut"] == pytest.approx(1 / len(records)) and source["texts"] == len(records)


def test_empty_and_absent(root: Path, check: Callable[..., Checked]) -> None:
    (root / "video/ann/tvqa/tvqa_val.jsonl").write_text("")
    checked = check(root, "--benchmarks", "tvqa")
    assert checked.status == 1 and "the val split of tvqa is empty" in checked.problem("tvqa", "val")

    shutil.rmtree(root / "vqa")
    assert check(root, "--benchmarks", "caption").status == 0
    checked = check(root, "--benchmarks", "caption", "vqa")
    assert checked.found["benchmarks"]["vqa"]["status"] == "absent", "Karpathy's file is COCO's own"
    assert checked.status == 1 and checked.found["problems"] == ["no annotation files of vqa"]
    for name in ("GQA", "nlvr", "video"):
        shutil.rmtree(root / name)
    checked = check(root)
    assert checked.status == 0, "nobody asked for what is absent"
    present = [name for name, report in checked.found["benchmarks"].items() if report["status"] != "absent"]
    assert present == ["caption"]
    assert check(root / "nowhere").status == 1


def test_what_a_configuration_reads(root: Path, tmp_path: Path, check: Callable[..., Checked]) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("data: {class_path: datamodules.COCO, init_args: {split_by: official}}\n")
    configs = [EXPERIMENTS / "base.yaml", EXPERIMENTS / "image/single_adapter.yaml", own]
    options = [part for config in configs for part in ("--config", str(config))]
    checked = check(root, *options)
    assert list(checked.found["benchmarks"]) == ["caption"]
    images = json.loads((root / "COCO/dataset_coco.json").read_text())["images"]
    assert checked.split("caption", "val")["examples"] == sum(image["filepath"] == "val2014" for image in images)
    assert checked.split("caption", "val")["expected"] == {"count": 40_504, "exact": True}


def test_mistakes_of_the_user(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (("--benchmarks", "coco"), "--benchmarks coco: there are vqa"),
        (("--sample", "0"), "--sample must be at least 1"),
        (("--tokenizer", "/nowhere"), "No tokenizer at '/nowhere'"),
    ):
        assert main(["data", "check", "--root", str(root), *options]) == 2
        assert message in capsys.readouterr().err


def test_real_files(shared: Path, tmp_path: Path, check: Callable[..., Checked]) -> None:
    for name in (
        "tvqa/tvqa_test_public",
        "how2qa/how2qa_val_release",
        "tvc/tvc_test_public_release",
        "yc2c/yc2c_val_release",
    ):
        (tmp_path / "video/ann" / name).parent.mkdir(parents=True)
        shutil.copy(shared / "data/real" / f"{name}.jsonl", tmp_path / f"video/ann/{name}.jsonl")
    for channel in ("tv", "how2", "yc2"):
        write_lines(tmp_path / f"video/ann/{channel}_subtitles.jsonl", [])
    (tmp_path / "nlvr").mkdir()
    shutil.copy(shared / "data/real/nlvr2/dev.json", tmp_path / "nlvr")
    checked = check(tmp_path)
    assert checked.status == 1, "there is nothing to train on"
    for benchmark, split, count in (
        ("tvqa", "test", 7_623),
        ("how2qa", "val", 3_115),
        ("tvc", "test", 5_420),
        ("yc2c", "val", 3_492),
        ("nlvr", "val", 6_982),
    ):
        part = checked.split(benchmark, split)
        assert part["examples"] == count and part["expected"] == {"count": count, "exact": True}
        assert part["source"]["texts"] == 2000 and "no such feature folder" in checked.problem(benchmark, split)
    assert checked.finding("time spans are not two numbers", "tvqa", "test")["count"] == 3
    assert checked.finding("time spans end where they begin", "tvqa", "test")["count"] == 2
    assert checked.finding("time spans end where they begin", "how2qa", "val")["count"] == 2
    assert not [f for f in checked.split("tvc", "test")["findings"] if f["what"].startswith("time spans")]
