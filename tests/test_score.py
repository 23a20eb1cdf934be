"""``data score``: official numbers of prediction files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules import BENCHMARKS, COCO, GQA, TVC, How2QA, VQAv2
from datamodules.score import score
from vl_peft.cli import main
from vl_peft.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("how2qa/how2qa_val_predictions.json", "how2qa", "how2qa/how2qa_val_release.jsonl"), {"accuracy": 73.13}),
        (
            ("yc2c/yc2c_val_predictions.jsonl", "yc2c", "yc2c/yc2c_val_release.jsonl", "--meteor=false"),
            {"CIDEr": 115.88, "Bleu_4": 10.71, "ROUGE_L": 38.74, "macro/CIDEr": 123.49, "paragraph/CIDEr": 67.05},
        ),
        (("../golden/nlvr2_pred/dev_pred.csv", "nlvr", "nlvr2/dev.json"), {"accuracy": 70.48, "consistency": 30.38}),
    ],
)
def test_sample_submissions(
    arguments: tuple[str, ...], expected: dict[str, float], shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """VALUE's samples and an NLVR2 file get what the official evaluators gave them."""
    real = shared / "data/real"
    predictions, name, references, *options = arguments
    command = ["data", "score", str(real / predictions), "--benchmark", name, "--references", str(real / references)]
    assert main([*command, *options]) == 0
    shown = capsys.readouterr().out
    assert all(f"{value:.2f}" in shown for value in expected.values())
    assert main([*command, *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {metric: round(result["scores"][metric], 2) for metric in expected} == expected
    assert result["headline"] == next(iter(expected))


def write(file: Path, content: object) -> Path:
    """JSON, or one JSON object per line."""
    lines = content if isinstance(content, list) and file.suffix == ".jsonl" else [content]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_every_benchmark_reads_references_by_themselves(tmp_path: Path) -> None:
    """An annotation file alone is enough, official or processed: all right answers are 100 %."""
    people = [{"answer": "net", "answer_id": i} for i in range(10)]
    choices = {f"a{i}": "x" for i in range(5)}
    cases = [
        (
            VQAv2(),
            [{"question_id": 7, "answer": "net"}],
            {"annotations": [{"question_id": 7, "image_id": 1, "answers": people}]},
        ),
        (
            VQAv2(),
            [{"question_id": 7, "answer": "net"}],
            [{"question_id": 7, "img_id": "COCO_val2014_000000000001", "sent": "?", "label": {"net": 1}}],
        ),
        (
            GQA(),
            [{"questionId": "07", "prediction": "yes"}],
            {"07": {"question": "Is it?", "imageId": "1", "answer": "yes"}},
        ),
        (
            COCO(meteor=False),
            [{"image_id": 1, "caption": "a man rides a horse"}, {"image_id": 2, "caption": "two dogs play outside"}],
            {
                "images": [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2)],
                "annotations": [
                    {"image_id": 1, "id": 11, "caption": "A man rides a horse."},
                    {"image_id": 2, "id": 12, "caption": "Two dogs play outside."},
                ],
            },
        ),
        (How2QA(), {"7": 2}, {"qid": 7, "vid_name": "v", "ts": "0-1", "q": "?", "answer_idx": 2, **choices}),
    ]
    for benchmark, predictions, references in cases:
        result = score(
            write(tmp_path / "p.json", predictions), benchmark, write(tmp_path / "references.json", references)
        )
        assert result.scores["Bleu_4" if result.headline == "CIDEr" else result.headline] == pytest.approx(100)


def test_predictions_of_a_run_and_references_below_a_root(demo_root: Path, tmp_path: Path) -> None:
    benchmark = TVC(root=str(demo_root), meteor=False)
    examples = list(benchmark.read("val"))
    lines = [{"id": e.id, "prediction": e.references[0], "references": e.references} for e in examples]
    result = score(write(tmp_path / "val_tvc.jsonl", lines), benchmark)
    assert result.examples == len(examples) and result.scores["Bleu_1"] == pytest.approx(100)


def test_ids_have_to_fit(tmp_path: Path) -> None:
    record = {"vid_name": "v", "ts": "0-1", "q": "?", "answer_idx": 0, **{f"a{i}": "x" for i in range(4)}}
    references = write(tmp_path / "r.jsonl", [{**record, "qid": i} for i in range(4)])
    predictions = write(tmp_path / "p.json", {"0": 0, "1": 3, "9": 0})
    with pytest.raises(DataError, match=r"p.json: 2 of the 4 examples have no prediction \(2, 3\); 1 of the 3 .*\(9\)"):
        score(predictions, How2QA(), references)
    assert score(predictions, How2QA(), references, partial=True).scores["accuracy"] == 50
    with pytest.raises(ConfigError, match="none of its 1 ids"):
        score(write(tmp_path / "other.json", {"77": 0}), How2QA(), references, partial=True)


def test_hidden_references_are_explained(demo_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only the server can score them"):
        score(write(tmp_path / "p.json", {"0": 0}), How2QA(root=str(demo_root)), split="test")


def test_unknown_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "score", str(tmp_path / "p"), "--benchmark", "nope"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in ("nope", *BENCHMARKS))
